//! Files and directories that are missing, damaged, or something else.

use std::fs;
use std::path::Path;

use planish_tests::program::planish;
use serde_json::json;

use crate::place::{Place, entry, reweighted, safetensors};

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
    for (header, words) in [
        // Overlaps, lies about its size, is far larger than the file, or of a type that no weight has.
        (json!({"a": entry("F32", &[2], [0, 8]), "b": entry("F32", &[2], [4, 12])}), "overlaps tensor"),
        (json!({"a": entry("F32", &[3], [0, 8])}), "takes 12 bytes, but its offsets give it 8"),
        (json!({"a": entry("F32", &[1 << 40, 1 << 40], [0, 8])}), "whose size cannot be addressed"),
        (json!({"a": entry("F32", &[1 << 40], [0, 1 << 42])}), "the file is truncated"),
        (json!({"a": entry("F32", &[1], [8, 4])}), "before it starts"),
        (json!({"a": entry("F8_E4M3", &[8], [0, 8])}), "has dtype F8_E4M3, which is not supported"),
        (json!({"a": entry("F32", &[1], [0, 4])}), "belong to no tensor"),
        (json!([]), "the header is malformed"),
    ] {
        fs::write(weights(&place), safetensors(&header, 12)).unwrap();
        assert!(place.refuses(words).contains("model.safetensors"), "{header}");
    }
    let with_gap = safetensors(&json!({"model.norm.weight": entry("I64", &[1], [0, 8])}), 8);
    fs::write(weights(&place), with_gap).unwrap();
    place.refuses("the weights have no tensor `model.embed_tokens.weight`");
    fs::write(weights(&place), "").unwrap();
    place.refuses("model.safetensors: truncated or not safetensors");
    for (changes, words) in [
        (json!({"hidden_size": 64, "head_dim": 32}), "but config.json calls for"),
        (json!({"num_hidden_layers": 5}), "model.layers.4"),
        (json!({"num_hidden_layers": 3}), "does not call for"),
        (json!({"num_attention_heads": 0}), "num_attention_heads"),
    ] {
        let place = Place::new();
        let error = place.config(changes).refuses(words);
        assert!(error.contains(&place.path("model").display().to_string()), "which model? {error}");
    }
    Place::new().refuses_with(&["--model", "no/such/model/here"], "no such file or directory");
}

#[test]
fn damaged_gguf_files() {
    let place = Place::new();
    let file = place.path("model.gguf");
    let whole = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf/llama.gguf")).unwrap();
    let refuses = |bytes: &[u8], words: &str| {
        fs::write(&file, bytes).unwrap();
        let error = place.refuses_with(&["--model", file.to_str().unwrap()], words);
        assert!(error.contains("model.gguf"), "{error}");
    };
    refuses(b"", "does not begin with \"GGUF\"");
    refuses(b"GGML\x01\0\0\0", "does not begin with \"GGUF\"");
    refuses(&whole[..whole.len() - 1], "truncated");
    refuses(&whole[..100], "truncated");
    let with = |at: usize, bytes: &[u8]| {
        let mut damaged = whole.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        damaged
    };
    // The same file with a value of its metadata changed: the key, its type, the value.
    let changed = |key: &str, value: u32| {
        let name = [&(key.len() as u64).to_le_bytes()[..], key.as_bytes()].concat();
        let at = whole.windows(name.len()).position(|w| w == name).expect(key) + name.len();
        assert_eq!(whole[at..at + 4], 4_u32.to_le_bytes(), "{key} is a u32");
        with(at + 4, &value.to_le_bytes())
    };
    refuses(&changed("llama.block_count", 1_000_000_000), "`llama.block_count` is 1000000000, but it must be from 1");
    refuses(&changed("llama.vocab_size", 98), "\"llama.vocab_size\" differs from the rows of token_embd.weight");
    let renamed = |key: &str| {
        let at = whole.windows(key.len()).position(|w| w == key.as_bytes()).expect(key);
        with(at + key.len() - 1, b"_")
    };
    refuses(&renamed("general.architecture"), "metadata key \"general.architecture\" is missing");
    refuses(&renamed("tokenizer.ggml.tokens"), "the GGUF metadata has no usable `tokenizer.ggml.tokens`");
    refuses(&with(4, &9_u32.to_le_bytes()), "GGUF version 9 is not supported");
    refuses(&with(4, &3_u32.to_be_bytes()), "big-endian");
    // As many tensors, pairs, or bytes of the first key as 64 bits can count.
    for at in [8, 16, 24] {
        refuses(&with(at, &u64::MAX.to_le_bytes()), "truncated");
        refuses(&with(at, &(1_u64 << 40).to_le_bytes()), "truncated");
    }
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
    let under = place.path("data.jsonl/run");
    place.refuses_with(&["--output-dir", under.to_str().unwrap()], "cannot write to output_dir");
    #[cfg(target_os = "linux")]
    place.refuses_with(&["--output-dir", "/proc/run"], "cannot write to output_dir /proc/run");
    // A checkpoint that lost a file.
    let checkpoint = place.path("full/checkpoint-3");
    fs::create_dir(&checkpoint).unwrap();
    let resume = ["--output-dir", full.to_str().unwrap(), "--resume-from-checkpoint", checkpoint.to_str().unwrap()];
    place.refuses_with(&resume, "checkpoint-3");
    assert_eq!(fs::read_dir(&full).unwrap().count(), 2);
}

/// A pipe is never waited for, and a directory is no file.
#[test]
#[cfg(unix)]
fn files_that_are_none() {
    let fifo = |path: &Path| {
        let _ = fs::remove_file(path);
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let weights = |place: &Place| place.path("model/model.safetensors");
    let place = Place::new();
    fifo(&weights(&place));
    place.refuses("model.safetensors: it is a pipe or a device, where a regular file is needed");
    let place = Place::new();
    fs::remove_file(weights(&place)).unwrap();
    fs::create_dir(weights(&place)).unwrap();
    place.refuses("model.safetensors: it is a directory, where a file is needed");
    let place = Place::new();
    fifo(&place.path("model/config.json"));
    place.refuses("config.json: it is a pipe");
    let place = Place::new();
    fifo(&place.path("model/tokenizer.json"));
    place.refuses("has no tokenizer.json");
    let place = Place::new();
    fifo(&place.path("data.jsonl"));
    place.refuses("data.jsonl: cannot open it: it is a pipe or a device");
    let parquet = place.path("data.parquet");
    fifo(&parquet);
    place.refuses_with(&["--dataset", parquet.to_str().unwrap()], "data.parquet");
    let gguf = place.path("m.gguf");
    fifo(&gguf);
    place.refuses_with(&["--model", gguf.to_str().unwrap()], "m.gguf: it is a pipe or a device");
}

/// Weights that are no numbers are named, where a diverging run is told to go slower.
#[test]
fn weights_that_are_no_numbers() {
    let place = reweighted(Place::new(), |all| {
        let (_, tensor) = all.iter_mut().find(|(name, _)| name == "model.layers.1.mlp.up_proj.weight").unwrap();
        let mut values = tensor.to_dtype(planish_tensor::DType::F32).unwrap().to_vec::<f32>().unwrap();
        values[7] = f32::NAN;
        *tensor = planish_tensor::Tensor::from_vec(values, tensor.dims().to_vec()).unwrap();
    });
    let text = |name: &str| place.path(name).to_string_lossy().into_owned();
    let (model, data, run) = (text("model"), text("data.jsonl"), text("run"));
    let own = ["sft", "--model", &model, "--dataset", &data, "--output-dir", &run, "--max-steps", "1"];
    for more in [&[][..], &["--use-peft"]] {
        let _ = fs::remove_dir_all(&run);
        let done = planish(&[&own[..], more].concat());
        assert_eq!(done.code, 2, "{done:?}");
        let said = "the weight `model.layers.1.mlp.up_proj.weight` holds NaN (element 7)";
        assert!(done.stderr.contains(said), "{done:?}");
    }
}
