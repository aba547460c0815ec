//! adapter_config.json: refused, or settings that are the same after they were written.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use planish_nn::adapters::LoraConfig;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Ok(json) = serde_json::from_slice::<Value>(data) else { return };
    match LoraConfig::from_json(&json, Path::new("adapter_config.json")) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(config) => {
            let again = LoraConfig::from_json(&config.to_json(), Path::new("again.json"));
            let again = again.expect("what was written can be read");
            // Keys that every version of PEFT looks for may have come to what was said besides; nothing may be lost of it.
            assert!(config.others.iter().all(|(key, value)| again.others.get(key) == Some(value)));
            assert_eq!(LoraConfig { others: config.others.clone(), ..again }, config);
        }
    }
});
