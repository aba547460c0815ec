//! Sentences.

use std::fs;
use std::path::Path;

use planish_tests::program::{planish, refused};
use serde_json::json;

use crate::place::{Place, entry};

/// Who is meant by a sentence: the file, the directory, the nearest name.
#[test]
fn sentences_say_who_is_meant() {
    let place = Place::new();
    let text = |name: &str| place.path(name).to_string_lossy().into_owned();
    place.refuses_with(&["--prompt-column", "promt"], "the column \"promt\" is missing; did you mean `prompt`?");
    place.refuses_with(&["--packing", "maybe"], "--packing: `packing` must be true or false, found `maybe`");
    place.refuses_with(&["--validation-split", "0.5"], "1 row(s) cannot be split in two");
    place.refuses_with(&["--max-length", "1"], "`max_length` must be a whole number of at least 2, found `1`");
    place.refuses_with(&["--max-length", "0"], "`max_length` must be a whole number of at least 2, found `0`");
    place.refuses_with(&["--optim", "adamw_tourch"], "found `adamw_tourch`; did you mean `adamw_torch`?");
    place.refuses_with(&["--lr-scheduler-type", "cosin"], "found `cosin`; did you mean `cosine`?");
    place.refuses_with(&["--lr", "1"], "there is no flag `--lr`; did you mean `--learning-rate`?");
    let foo = place.refuses_with(&["--foo"], "there is no flag `--foo`");
    assert!(!foo.contains("did you mean"), "{foo}");
    place.refuses_with(&["--model", "bultin"], "bultin: there is no such file or directory; did you mean `builtin`?");
    place.refuses_with(&["--model", "smollm"], "an id on the hub such as");
    // A tokenizer of another model, an adapter of another.
    let other = Place::new();
    other.config(json!({"vocab_size": 100, "eos_token_id": null, "bos_token_id": null, "pad_token_id": null}));
    assert!(
        other.refuses("but the model's embedding only 100 rows").contains(&other.path("model").display().to_string())
    );
    let qwen = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/adapters/qwen2_plain");
    let error = place.refuses_with(&["--adapter", qwen.to_str().unwrap()], "made for another one");
    assert!(error.contains("adapters/qwen2_plain"), "{error}");
    // An entry given twice is no overlap.
    let one = entry("F32", &[1], [0, 4]).to_string();
    let header = format!("{{\"a\": {one}, \"a\": {one}}}");
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    let twice = Place::new();
    fs::write(twice.path("model/model.safetensors"), file).unwrap();
    twice.refuses("tensor \"a\" is declared twice");
    // A run of an adapter is not gone on with as one of all weights.
    let (model, data, run) = (text("model"), text("data.jsonl"), text("run"));
    let own = ["sft", "--model", &model, "--dataset", &data, "--output-dir", &run, "--save-steps", "1"];
    let done = planish(&[&own[..], &["--max-steps", "1", "--use-peft"]].concat());
    assert_eq!(done.code, 0, "{done:?}");
    let resumed = [&own[..], &["--max-steps", "2", "--resume-from-checkpoint", "latest"]].concat();
    refused(&resumed, "`use_peft`");
}
