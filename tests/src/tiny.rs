//! The fixtures' tiny models, as directories that the program opens.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// Token ids of the tiny models' vocabularies.
const VOCABULARY: u64 = 99;

/// Writes a copy of `tests/fixtures/models/NAME` into `to`, with the builtin model's tokenizer cut to its vocabulary.
///
/// # Panics
/// If there is no such fixture, or no room.
pub fn tiny_model(name: &str, to: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::create_dir_all(to).expect("room");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(root.join("fixtures/models").join(name).join(file), to.join(file)).expect("a fixture");
    }
    let bytes = fs::read(root.join("../train/builtin/tokenizer.json")).expect("the builtin tokenizer");
    let mut tokenizer: Value = serde_json::from_slice(&bytes).expect("JSON");
    tokenizer["model"]["vocab"].as_object_mut().expect("a map").retain(|_, id| id.as_u64() < Some(VOCABULARY));
    tokenizer["model"]["merges"] = json!([]);
    tokenizer["added_tokens"].as_array_mut().expect("a list").retain(|t| t["id"].as_u64() < Some(VOCABULARY));
    tokenizer["post_processor"] = Value::Null;
    fs::write(to.join("tokenizer.json"), tokenizer.to_string()).expect("room");
}
