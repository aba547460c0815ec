//! What mistakes are made in: a directory with a model, data and room for a run.

use std::fs;
use std::path::{Path, PathBuf};

use planish_tests::program::refused;
use serde_json::{Value, json};

/// A copy of the builtin model's files, one data file and a place for the run.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        fs::create_dir(&model).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../train/builtin");
        for file in fs::read_dir(source).unwrap().map(|e| e.unwrap()) {
            fs::copy(file.path(), model.join(file.file_name())).unwrap();
        }
        fs::write(dir.path().join("data.jsonl"), "{\"prompt\": \"a\", \"completion\": \"b\"}\n").unwrap();
        Place { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn data(&self, bytes: impl AsRef<[u8]>) -> &Place {
        fs::write(self.path("data.jsonl"), bytes).unwrap();
        self
    }

    /// config.json with entries changed.
    pub(crate) fn config(&self, changes: Value) -> &Place {
        let path = self.path("model/config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        fs::write(path, config.to_string()).unwrap();
        self
    }

    /// `planish sft` on it is refused with these words, and writes nothing.
    pub(crate) fn refuses(&self, words: &str) -> String {
        self.refuses_with(&[], words)
    }

    pub(crate) fn refuses_with(&self, extra: &[&str], words: &str) -> String {
        let text = |name: &str| self.path(name).to_string_lossy().into_owned();
        let (model, data, run) = (text("model"), text("data.jsonl"), text("run"));
        let own = [("--model", &model), ("--dataset", &data), ("--output-dir", &run)];
        let mut arguments = vec!["sft", "--max-steps", "1"];
        // A flag given twice would be the mistake that is found.
        for (flag, value) in own.into_iter().filter(|(flag, _)| !extra.contains(flag)) {
            arguments.extend([flag, value.as_str()]);
        }
        arguments.extend(extra);
        let error = refused(&arguments, words);
        assert!(!self.path("run").exists(), "nothing is written when {words}");
        error
    }
}

/// An entry of a safetensors header.
pub(crate) fn entry(dtype: &str, shape: &[u64], offsets: [u64; 2]) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": offsets})
}

/// A safetensors file with this header and that many bytes of data.
pub(crate) fn safetensors(header: &Value, data: usize) -> Vec<u8> {
    let text = header.to_string();
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &vec![0; data]].concat()
}

/// A copy of a fixture's model with the builtin one's tokenizer, cut to its vocabulary.
pub(crate) fn fixture_model(name: &str) -> Place {
    let place = Place::new();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models").join(name);
    for file in ["config.json", "model.safetensors"] {
        fs::copy(from.join(file), place.path("model").join(file)).unwrap();
    }
    let path = place.path("model/tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < 99);
    json["model"]["merges"] = json!([]);
    json["added_tokens"].as_array_mut().unwrap().retain(|t| t["id"].as_u64().unwrap() < 99);
    json["post_processor"] = Value::Null;
    fs::write(path, json.to_string()).unwrap();
    for file in ["tokenizer_config.json", "chat_template.jinja"] {
        let _ = fs::remove_file(place.path("model").join(file));
    }
    place.data("{\"input_ids\": [5, 6, 7, 8], \"completion_mask\": [0, 0, 1, 1]}\n");
    place
}

/// The same with its weights changed.
pub(crate) fn reweighted(place: Place, change: impl Fn(&mut Vec<(String, planish_tensor::Tensor)>)) -> Place {
    let path = place.path("model/model.safetensors");
    let reader = planish_nn::weights::WeightsReader::open(&path).unwrap();
    let mut all: Vec<_> =
        reader.names().iter().map(|n| (n.clone(), reader.get(n).unwrap().copied().unwrap())).collect();
    drop(reader);
    change(&mut all);
    planish_nn::weights::save_safetensors(&path, all, &Default::default()).unwrap();
    place
}
