//! Every kind of bad input, from outside: one sentence that names the file, line, key or shape, exit code
//! 2, and nothing written.

use std::fs;
use std::path::{Path, PathBuf};

use planish_tests::program::refused;
use serde_json::{Value, json};

/// A copy of the builtin model's files, one data file and a place for the run.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
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

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn data(&self, bytes: impl AsRef<[u8]>) -> &Place {
        fs::write(self.path("data.jsonl"), bytes).unwrap();
        self
    }

    /// config.json with entries changed.
    fn config(&self, changes: Value) -> &Place {
        let path = self.path("model/config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        fs::write(path, config.to_string()).unwrap();
        self
    }

    /// `planish sft` on it is refused with these words, and writes nothing.
    fn refuses(&self, words: &str) {
        self.refuses_with(&[], words);
    }

    fn refuses_with(&self, extra: &[&str], words: &str) {
        let text = |name: &str| self.path(name).to_string_lossy().into_owned();
        let (model, data, run) = (text("model"), text("data.jsonl"), text("run"));
        let own = [("--model", &model), ("--dataset", &data), ("--output-dir", &run)];
        let mut arguments = vec!["sft", "--max-steps", "1"];
        // A flag given twice would be the mistake that is found.
        for (flag, value) in own.into_iter().filter(|(flag, _)| !extra.contains(flag)) {
            arguments.extend([flag, value.as_str()]);
        }
        arguments.extend(extra);
        refused(&arguments, words);
        assert!(!self.path("run").exists(), "nothing is written when {words}");
    }
}

#[test]
fn weights_that_are_missing_damaged_or_of_another_model() {
    let weights = |place: &Place| place.path("model/model.safetensors");
    let place = Place::new();
    fs::remove_file(weights(&place)).unwrap();
    place.refuses("model.safetensors");
    let place = Place::new();
    let whole = fs::read(weights(&place)).unwrap();
    fs::write(weights(&place), &whole[..whole.len() / 2]).unwrap();
    place.refuses("model.safetensors");
    fs::write(weights(&place), [&u64::MAX.to_le_bytes()[..], b"{}"].concat()).unwrap();
    place.refuses("model.safetensors");
    Place::new().config(json!({"hidden_size": 64, "head_dim": 32})).refuses("but config.json calls for");
    Place::new().config(json!({"num_hidden_layers": 5})).refuses("model.layers.4");
    Place::new().config(json!({"num_hidden_layers": 3})).refuses("does not call for");
    Place::new().refuses_with(&["--model", "no/such/model/here"], "no such file or directory");
}

#[test]
fn configs_that_no_model_can_have() {
    Place::new().config(json!({"model_type": "rwkv9"})).refuses("`rwkv9` is not supported; supported are llama");
    Place::new().config(json!({"num_attention_heads": 0})).refuses("num_attention_heads");
    Place::new().config(json!({"num_key_value_heads": 0})).refuses("num_key_value_heads");
    Place::new().config(json!({"num_key_value_heads": 3})).refuses("multiple of num_key_value_heads");
    Place::new().config(json!({"num_hidden_layers": 1_000_000_000})).refuses("num_hidden_layers");
    Place::new().config(json!({"hidden_size": -1})).refuses("`hidden_size` is -1");
    Place::new().config(json!({"rope_theta": 0})).refuses("rope_theta");
    Place::new().config(json!({"vocab_size": 10})).refuses("embed");
    let place = Place::new();
    fs::write(place.path("model/config.json"), "{").unwrap();
    place.refuses("config.json");
}

#[test]
fn tokenizers_and_templates() {
    let place = Place::new();
    fs::remove_file(place.path("model/tokenizer.json")).unwrap();
    place.refuses("tokenizer.json");
    let place = Place::new();
    fs::write(place.path("model/tokenizer.json"), "[]").unwrap();
    place.refuses("tokenizer.json");
    let chat =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n";
    for (template, words) in [("{% if %}", "template"), ("{% for i in range(100000000) %}x{% endfor %}", "template")] {
        let place = Place::new();
        fs::write(place.path("model/chat_template.jinja"), template).unwrap();
        place.data(chat).refuses(words);
    }
}

#[test]
fn data_that_cannot_be_read_or_understood() {
    let good = "{\"prompt\": \"a\", \"completion\": \"b\"}\n";
    Place::new().data(format!("{good}{{\"prompt\": \"a\"\n")).refuses("data.jsonl:2");
    Place::new()
        .data([good.as_bytes(), b"{\"prompt\": \"\xff\", \"completion\": \"b\"}\n"].concat())
        .refuses("data.jsonl:2");
    Place::new().data("").refuses("data.jsonl");
    Place::new().data("{\"alpha\": 1, \"beta\": 2}\n").refuses("alpha");
    Place::new().data("{\"prompt\": \"a\", \"completion\": \"\"}\n{\"text\": \"b\"}\n").refuses("data.jsonl");
    Place::new().refuses_with(&["--eval-dataset", "nowhere.jsonl", "--eval-strategy", "steps"], "nowhere.jsonl");
}

#[test]
fn adapters_and_targets() {
    let place = Place::new();
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/adapters/qwen2_plain");
    place.refuses_with(&["--adapter", other.to_str().unwrap()], "made for another one");
    place.refuses_with(&["--adapter", "nowhere"], "adapter_config.json");
    let lora = ["--use-peft", "--lora-target-modules", "w_pack"];
    place.refuses_with(&lora, "its linear modules are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj");
    place.refuses_with(&["--use-peft", "--lora-target-modules", "(q_proj"], "is not a regular expression");
    place.refuses_with(&["--device", "cuda"], "CPU");
}

#[test]
fn output_directories() {
    let place = Place::new();
    fs::create_dir(place.path("full")).unwrap();
    fs::write(place.path("full/mine.txt"), "precious").unwrap();
    let full = place.path("full");
    place.refuses_with(&["--output-dir", full.to_str().unwrap()], "is not empty");
    assert_eq!(fs::read_to_string(place.path("full/mine.txt")).unwrap(), "precious");
    let file = place.path("data.jsonl");
    place.refuses_with(&["--output-dir", file.to_str().unwrap()], "is a file");
    place.refuses_with(&["--resume-from-checkpoint", "latest"], "no checkpoint");
}
