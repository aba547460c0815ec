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
            assert_eq!(again.expect("what was written can be read"), config);
        }
    }
});
