//! config.json of a model: refused, or sizes and rotations that a model can have.
#![no_main]

use libfuzzer_sys::fuzz_target;
use planish_nn::config::ModelConfig;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Ok(json) = serde_json::from_slice::<Value>(data) else { return };
    match ModelConfig::from_json(&json) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(config) => {
            assert!(config.num_layers() > 0 && config.vocab_size > 0);
            for rope in &config.ropes {
                let (frequencies, scale) = rope.frequencies(config.max_positions.min(1 << 20));
                assert_eq!(frequencies.len(), rope.rotary_dim / 2);
                assert!(scale.is_finite() && frequencies.iter().all(|f| f.is_finite()));
            }
        }
    }
});
