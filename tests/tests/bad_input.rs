//! Every kind of bad input, from outside: one sentence that names the file, line, key or shape, exit code
//! 2, and nothing written.

use std::fs;
use std::path::{Path, PathBuf};

use planish_tests::program::{planish, refused};
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
    fn refuses(&self, words: &str) -> String {
        self.refuses_with(&[], words)
    }

    fn refuses_with(&self, extra: &[&str], words: &str) -> String {
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

/// An entry of a safetensors header.
fn entry(dtype: &str, shape: &[u64], offsets: [u64; 2]) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": offsets})
}

/// A safetensors file with this header and that many bytes of data.
fn safetensors(header: &Value, data: usize) -> Vec<u8> {
    let text = header.to_string();
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &vec![0; data]].concat()
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
fn configs_that_no_model_can_have() {
    Place::new().config(json!({"model_type": "rwkv9"})).refuses("`rwkv9` is not supported; supported are llama");
    Place::new().config(json!({"num_attention_heads": 0})).refuses("num_attention_heads");
    Place::new().config(json!({"num_key_value_heads": 0})).refuses("num_key_value_heads");
    Place::new().config(json!({"num_key_value_heads": 3})).refuses("multiple of num_key_value_heads");
    Place::new().config(json!({"num_hidden_layers": 1_000_000_000})).refuses("num_hidden_layers");
    Place::new().config(json!({"hidden_size": -1})).refuses("`hidden_size` is -1");
    Place::new().config(json!({"rope_theta": 0})).refuses("rope_theta");
    Place::new().config(json!({"vocab_size": 10})).refuses("embed");
    Place::new().config(json!({"vocab_size": 1u64 << 40})).refuses("vocab_size");
    Place::new().config(json!({"hidden_size": u64::MAX, "head_dim": 32})).refuses("hidden_size");
    Place::new().config(json!({"rms_norm_eps": -1})).refuses("rms_norm_eps");
    Place::new().config(json!({"rms_norm_eps": "small"})).refuses("rms_norm_eps");
    Place::new().config(json!({"hidden_act": "tanhexp"})).refuses("tanhexp");
    let endless = json!({"rope_type": "longrope", "original_max_position_embeddings": 1,
        "short_factor": vec![1; 16], "long_factor": vec![1; 16]});
    Place::new().config(json!({"rope_scaling": endless, "head_dim": 32})).refuses("are not finite");
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
    // A token more than the embedding has rows.
    let place = Place::new();
    let path = place.path("model/tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["extra_special_tokens"] = (0..64).map(|n| format!("<|more {n}|>")).collect();
    fs::write(&path, config.to_string()).unwrap();
    place.refuses("the tokenizer has");
    fs::write(&path, "{\"added_tokens_decoder\": {\"one\": {\"content\": \"x\"}}}").unwrap();
    place.refuses("tokenizer_config.json: `added_tokens_decoder.one`");
    Place::new().refuses_with(&["--chat-template-path", "nowhere.jinja"], "nowhere.jinja");
    Place::new().refuses_with(&["--eos-token", "<|nope|>"], "the vocabulary has no token \"<|nope|>\"");
    let chat =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n";
    for (template, words) in [
        ("\n{% if %}", "chat template \"default\", line 2: "),
        ("{% for i in range(100000000) %}x{% endfor %}", "template"),
        ("a\n{{ raise_exception('no assistants') }}", "no assistants"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "template"),
        ("a\n{{ messages[0].content.nope() }}", "line 2"),
        ("{{ 'x' * 100000000000 }}", "template"),
        ("{{ '{:>100000000000000}'.format(1) }}", "the width is too large"),
        ("{{ '%999999999999999s' % 'a' }}", "the width is too large"),
        ("{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}", "is too large"),
        (
            "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}\n{{ n.x }}",
            "line 2: a value is too large to be spelled out",
        ),
    ] {
        let place = Place::new();
        fs::write(place.path("model/chat_template.jinja"), template).unwrap();
        place.data(chat).refuses(words);
        let file = place.path("model/chat_template.jinja");
        let other = Place::new();
        other.data(chat).refuses_with(&["--chat-template-path", file.to_str().unwrap()], words);
    }
}

#[test]
fn data_that_cannot_be_read_or_understood() {
    let good = "{\"prompt\": \"a\", \"completion\": \"b\"}\n";
    Place::new().data(format!("{good}{{\"prompt\": \"a\"\n")).refuses("data.jsonl:2");
    Place::new()
        .data([good.as_bytes(), b"{\"prompt\": \"\xff\", \"completion\": \"b\"}\n"].concat())
        .refuses("data.jsonl:2");
    Place::new().data("").refuses("data.jsonl: the file holds no rows");
    Place::new().data("\n\n  \n").refuses("data.jsonl: the file holds no rows");
    let unknown = Place::new().data("{\"alpha\": 1, \"beta\": 2}\n").refuses("the columns `alpha`, `beta`");
    assert!(unknown.contains("accepted: ") && unknown.contains("messages") && unknown.contains("prompt+completion"));
    Place::new().data("[1, 2]\n").refuses("data.jsonl:1: expected an object with columns, found");
    Place::new().data(format!("{good}{}", "[".repeat(100_000))).refuses("data.jsonl:2: malformed JSON");
    Place::new().data("{\"prompt\": 1, \"completion\": \"b\"}\n").refuses("data.jsonl:1: `prompt` must be");
    Place::new().data("{\"messages\": [{\"role\": \"user\"}]}\n").refuses("data.jsonl:1");
    Place::new().data("{\"input_ids\": [1, 99999999]}\n").refuses("but the model has");
    Place::new().data("{\"input_ids\": [1, -1]}\n").refuses("data.jsonl:1: input_ids[1]");
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
    if planish_cuda::probe().unavailable().is_some() {
        place.refuses_with(&["--device", "cuda"], "--device cuda:0 cannot be used: ");
    }
    place.refuses_with(
        &["--device", "tpu"],
        "must be one of cpu, cuda, cuda:N (GPU number N), emulator, auto, found `tpu`",
    );
    let lion = ["--device", "emulator", "--optim", "lion"];
    place.refuses_with(&lion, "--device emulator: the optimizer lion_32bit is not supported there yet");
}

#[test]
fn adapters_that_cannot_be() {
    let place = Place::new();
    let peft = |flags: &[&str], words: &str| {
        place.refuses_with(&[&["--use-peft"], flags].concat(), words);
    };
    peft(&["--lora-r", "0"], "lora_r");
    peft(
        &["--lora-r", "99999"],
        "rank 99999 is more than model.layers.0.self_attn.q_proj has: its weight is 128 by 128",
    );
    peft(&["--rank-pattern", "q_proj"], "must be NAME=RANK");
    peft(&["--rank-pattern", "q_proj=0"], "must be NAME=RANK");
    peft(&["--alpha-pattern", "q_proj=-1"], "must be NAME=ALPHA");
    peft(&["--init-lora-weights", "eva"], "must be true, false, gaussian, pissa");
    peft(&["--init-lora-weights", "loftq", "--loftq-bits", "5"], "loftq_bits");
    let quantised = ["--load-in-4bit", "--init-lora-weights", "loftq"];
    peft(&[&quantised[..], &["--loftq-bits", "8"]].concat(), "4 with load_in_4bit");
    peft(&[&quantised[..], &["--loftq-iter", "5"]].concat(), "more turns make another base");
    peft(&[&quantised[..], &["--use-dora"]].concat(), "goes without use_dora");
    peft(&["--init-lora-weights", "orthogonal", "--lora-r", "3"], "even with init_lora_weights orthogonal");
    peft(&["--use-dora", "--lora-target-modules", "lm_head"], "use_dora on lm_head, which is not supported");
    peft(&["--bias", "all"], "bias trains biases, but the modules it is for have none in this model");
    peft(&["--layers-to-transform", "1,77"], "layers_to_transform has 77, but the model's layers are 0 to 3");
    peft(&["--peft-type", "loha"], "one of LORA, ADALORA, IA3");
    peft(&["--peft-type", "IA3", "--lora-target-modules", "embed_tokens"], "IA3 on embed_tokens");
    peft(&["--peft-type", "LN_TUNING", "--lora-target-modules", "q_proj"], "its norm modules are input_layernorm");
    peft(&["--peft-type", "OFT", "--oft-r", "4"], "give one of the two, the number of blocks or their size");
    peft(&["--peft-type", "PROMPT_TUNING", "--prompt-tuning-init", "TEXT"], "has no tokens to begin with");
    let lstm = ["--peft-type", "P_TUNING", "--encoder-reparameterization-type", "LSTM"];
    let wide = "9223372036854775808";
    peft(&[&lstm[..], &["--encoder-hidden-size", wide]].concat(), "encoder_hidden_size is 9223372036854775808, but it");
    peft(
        &[&lstm[..], &["--encoder-num-layers", "65"]].concat(),
        "encoder_num_layers is 65, but it must be from 1 to 64",
    );
    let ada = |flags: &[&str], words: &str| peft(&[&["--peft-type", "ADALORA"], flags].concat(), words);
    // One step in all: no room to take ranks away after a first one.
    ada(&["--tinit", "1"], "leaves none of the 1 steps for ranks to fall");
    ada(&["--init-r", "4", "--target-r", "5"], "ranks fall from init_r, which is 4");
    ada(&["--init-r", "99999"], "lower init_r");
    place.refuses_with(
        &["--finetuning-type", "freeze", "--freeze-trainable-layers", "99"],
        "freeze_trainable_layers is 99",
    );
    place.refuses_with(&["--finetuning-type", "freeze", "--freeze-trainable-modules", "mlpp"], "\"mlpp\"");
    // Files of PEFT's form that are not.
    let adapter = |config: Value| {
        let dir = place.path("adapter");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
        dir.to_string_lossy().into_owned()
    };
    for (config, words) in [
        (json!({"peft_type": "XLORA"}), "peft_type \"XLORA\" is not supported; supported are LORA, ADALORA"),
        (json!({"peft_type": 1}), "`peft_type` must be a text"),
        (json!({"peft_type": "OFT", "target_modules": ["q_proj"], "coft": true}), "coft, which is not supported"),
        (json!({"peft_type": "VERA", "target_modules": ["q_proj"], "r": 0}), "r is 0, but it must be at least 1"),
        (
            json!({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 1e18}),
            "`num_virtual_tokens` must be a whole number",
        ),
        (json!({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 0}), "num_virtual_tokens is 0"),
        (
            json!({"peft_type": "ADALORA", "target_modules": ["q_proj"], "total_step": 9, "rank_pattern": {"a": [true]}}),
            "`rank_pattern` must have 12 times true or false",
        ),
    ] {
        place.refuses_with(&["--adapter", &adapter(config)], words);
    }
}

/// A name that no module has is refused beside names that are right; PEFT trains without it.
#[test]
fn names_that_match_nothing() {
    let place = Place::new();
    let peft = |flags: &[&str], words: &str| place.refuses_with(&[&["--use-peft"], flags].concat(), words);
    let said = peft(
        &["--lora-target-modules", "q_proj,nonsense_proj"],
        "no module of the model matches target_modules \"nonsense_proj\"; its linear modules are q_proj, k_proj",
    );
    assert!(!said.contains("Names("), "{said}");
    peft(&["--lora-target-modules", "nothing.*"], "matches target_modules \"nothing.*\"");
    peft(&["--exclude-modules", "k_proj,foo"], "matches exclude_modules \"foo\"; its own modules are q_proj");
    peft(&["--lora-modules-to-save", "norm,foo"], "matches modules_to_save \"foo\"");
    peft(&["--rank-pattern", "foo=3"], "matches rank_pattern \"foo\"; its adapted modules are q_proj, v_proj");
    // There is such a module, but it is not adapted.
    peft(&["--alpha-pattern", "o_proj=3"], "matches alpha_pattern \"o_proj\"; its adapted modules are q_proj, v_proj");
    let ia3 = |flags: &[&str], words: &str| peft(&[&["--peft-type", "IA3"], flags].concat(), words);
    ia3(&["--feedforward-modules", "foo"], "matches feedforward_modules \"foo\"");
    ia3(
        &["--feedforward-modules", "down_proj,up_proj"],
        "matches feedforward_modules \"up_proj\"; its adapted modules",
    );
    peft(
        &["--peft-type", "LN_TUNING", "--lora-target-modules", "norm,q_proj"],
        "matches target_modules \"q_proj\"; its norm modules are input_layernorm",
    );
    // Settings of another kind of adapter, or of none.
    peft(&["--peft-type", "VERA", "--rank-pattern", "q_proj=3"], "`rank_pattern` is for `peft_type` LORA");
    peft(&["--peft-type", "VERA", "--use-dora"], "`use_dora` is for `peft_type` LORA");
    peft(&["--peft-type", "P_TUNING", "--prefix-projection"], "`prefix_projection` is for `peft_type` PREFIX_TUNING");
    peft(&["--feedforward-modules", "up_proj"], "`feedforward_modules` is for `peft_type` IA3");
    for kind in ["IA3", "LN_TUNING"] {
        let said =
            peft(&["--peft-type", kind, "--layers-to-transform", "1"], "`layers_to_transform` is none that PEFT has");
        assert!(said.contains("give `lora_target_modules` a regular expression"), "{said}");
    }
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/adapters/qwen2_plain");
    let beside = ["--adapter", fixture.to_str().unwrap(), "--lora-r", "4"];
    place.refuses_with(&beside, "`lora_r` is of a new adapter, and `adapter` names one");
    let prompts = ["--peft-type", "PROMPT_TUNING", "--lora-target-modules", "q_proj"];
    peft(&prompts, "`lora_target_modules` is for adapters of modules");
    let words = "`freeze_trainable_modules` chooses what is trained with `finetuning_type` freeze";
    place.refuses_with(&["--freeze-trainable-modules", "mlp"], words);
    let with = "`finetuning_type` says what is trained without an adapter";
    peft(&["--finetuning-type", "freeze", "--freeze-trainable-modules", "mlp"], with);
    place.refuses_with(&["--freeze-extra-modules", "norm"], "`freeze_extra_modules` chooses");
    let freeze = |flags: &[&str], words: &str| {
        place.refuses_with(&[&["--finetuning-type", "freeze"], flags].concat(), words);
    };
    freeze(&["--freeze-trainable-modules", "mlp,foo"], "matches freeze_trainable_modules \"foo\"");
    // Inside of the layers there is one.
    freeze(&["--freeze-extra-modules", "q_proj"], "matches freeze_extra_modules \"q_proj\"; its own modules are embed");
    let experts = fixture_model("qwen3_moe");
    experts.refuses_with(
        &["--use-peft", "--lora-dropout", "0", "--lora-target-parameters", "mlp.gate.weight,mlp.nope"],
        "matches target_parameters \"mlp.nope\"; its expert modules are mlp.experts.gate_up_proj",
    );
    let routers = ["--use-peft", "--lora-target-parameters", "mlp.gate.weight", "--rank-pattern"];
    experts.refuses_with(&[&routers[..], &["mlp.experts.down_proj=2"]].concat(), "matches rank_pattern");
}

/// Sizes that no machine has room for, and blocks that do not fit.
#[test]
fn adapters_that_are_too_large() {
    let place = Place::new();
    let peft = |kind: &str, flags: &[&str], words: &str| {
        place.refuses_with(&[&["--use-peft", "--peft-type", kind], flags].concat(), words)
    };
    let said = peft("VERA", &["--vera-r", "1000000000"], "`base_model.vera_A` would have shape [1000000000, 128]");
    assert!(said.contains(" GiB are free; lower its rank"), "{said}");
    let most = "18446744073709551615";
    peft("VERA", &["--vera-r", most], "`base_model.vera_A` would have shape");
    let wide = ["--encoder-hidden-size", "65536"];
    peft("P_TUNING", &wide, "mlp_head.2.weight` would have shape [65536, 65536]");
    let lstm = ["--encoder-reparameterization-type", "LSTM", "--encoder-num-layers", "64"];
    peft("P_TUNING", &[&lstm[..], &wide].concat(), "would have shape");
    peft("PREFIX_TUNING", &["--prefix-projection", "--encoder-hidden-size", most], "encoder_hidden_size is 1844");
    for kind in ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"] {
        peft(kind, &["--num-virtual-tokens", "512"], "leaves a text none of the 512 positions");
        peft(
            kind,
            &["--num-virtual-tokens", most],
            "num_virtual_tokens is 18446744073709551615, but it must be from 1",
        );
    }
    // The ends of a model have no bound for a rank of their own.
    let ends = ["--lora-target-modules", "lm_head", "--lora-r", "1000000000"];
    peft("LORA", &ends, "lm_head.lora_A.weight` would have shape [1000000000, 128]");
    for quantised in ["--load-in-4bit", "--load-in-8bit"] {
        peft("LORA", &[&[quantised], &ends[..]].concat(), "lm_head.lora_A.weight` would have shape [1000000000, 128]");
    }
    peft("LORA", &["--lora-target-modules", "embed_tokens", "--lora-r", most], "would have shape");
    let experts = fixture_model("qwen3_moe");
    let pattern = format!("experts.down_proj={most}");
    let own = ["--use-peft", "--lora-r", "4", "--lora-dropout", "0", "--lora-target-parameters", "experts.down_proj"];
    experts
        .refuses_with(&[&own[..], &["--rank-pattern", &pattern]].concat(), "experts.lora_A.weight` would have shape");
    peft(
        "OFT",
        &["--oft-block-size", "31"],
        "oft_block_size is 31, which does not divide the 128 inputs of model.layers.0",
    );
    let said = peft("OFT", &["--oft-block-size", "0", "--oft-r", "3"], "oft_r is 3, which does not divide");
    assert!(said.contains("choose among 1, 2, 4, 8, 16, 32, 64, 128"), "{said}");
    peft("OFT", &["--oft-block-size", most], "which does not divide the 128 inputs");
    let said = peft("BOFT", &["--boft-block-size", "5"], "boft_block_size is 5, which does not divide");
    assert!(said.contains("choose among 1, 2, 4"), "{said}");
    peft("BOFT", &["--boft-block-size", "0", "--boft-block-num", most], "which does not divide");
    // A file's bound is said.
    let dir = place.path("adapter");
    fs::create_dir_all(&dir).unwrap();
    for (config, words) in [
        (json!({"peft_type": "LORA", "target_modules": ["q_proj"], "r": 1e9}), "a whole number from 1 to 65536"),
        (json!({"peft_type": "VERA", "target_modules": ["q_proj"], "r": 1e9}), "a whole number from 0 to 16777216"),
    ] {
        fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
        place.refuses_with(&["--adapter", dir.to_str().unwrap()], words);
    }
}

/// An adapter that begins from the weights cannot begin from quantised ones.
#[test]
fn initialisations_of_quantised_weights() {
    let place = Place::new();
    for name in ["pissa", "olora"] {
        let said = place.refuses_with(
            &["--use-peft", "--load-in-4bit", "--init-lora-weights", name],
            &format!("init_lora_weights is {name}, which "),
        );
        assert!(said.contains("choose true, gaussian or orthogonal"), "{said}");
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

/// What config.json says beside the shape. Leniency where files on the hub need it is in the last lines.
#[test]
fn configs_that_contradict_the_rest() {
    let refuses = |changes: Value, words: &str| {
        Place::new().config(changes).refuses(words);
    };
    refuses(json!({"architectures": ["FooForCausalLM"]}), "architectures has \"FooForCausalLM\", which is no model of");
    refuses(json!({"architectures": ["MistralForCausalLM"]}), "no model of the model_type \"llama\"");
    refuses(
        json!({"architectures": "LlamaForCausalLM"}),
        "`architectures` is \"LlamaForCausalLM\", but it must be a list",
    );
    refuses(json!({"eos_token_id": 1_000_000}), "`eos_token_id` is 1000000, but it must be an id from 0 to");
    refuses(json!({"eos_token_id": [1, "</s>"]}), "`eos_token_id` is \"</s>\", but it must be an id");
    refuses(json!({"bos_token_id": -1}), "`bos_token_id` is -1");
    refuses(json!({"pad_token_id": -2}), "`pad_token_id` is -2");
    refuses(json!({"pad_token_id": 1_000_000}), "`pad_token_id` is 1000000");
    refuses(json!({"torch_dtype": "float8"}), "`torch_dtype` is \"float8\", but it must be a dtype of torch");
    let place = Place::new();
    place.config(json!({
        "architectures": null, "pad_token_id": -1, "bos_token_id": null, "eos_token_id": [0, 1], "dtype": "torch.float16",
    }));
    let text = |name: &str| place.path(name).to_string_lossy().into_owned();
    let done = planish(&["data", "preview", "--model", &text("model"), "--dataset", &text("data.jsonl")]);
    assert_eq!(done.code, 0, "{done:?}");
}

/// A tokenizer.json that makes a million of a letter, or adds thousands of tokens to a text, is refused unread.
#[test]
fn tokenizers_that_blow_up_or_contradict_themselves() {
    let refuses = |change: &dyn Fn(&mut Value), words: &str| {
        let place = Place::new();
        let path = place.path("model/tokenizer.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        fs::write(&path, json.to_string()).unwrap();
        assert!(place.refuses(words).contains("model/tokenizer.json"));
    };
    let tenfold = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"});
    let sequence = json!({"type": "Sequence", "normalizers": vec![tenfold; 12]});
    refuses(&|json| json["normalizer"] = sequence.clone(), "its `normalizer` makes up to 1000000000000 bytes of one");
    let template = |name: &str, ids: usize| {
        json!({
            "type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": vec![0; ids], "tokens": vec!["<s>"; ids]}},
        })
    };
    refuses(&|json| json["post_processor"] = template("<s>", 100_000), "adds 100002 tokens to a text");
    refuses(
        &|json| json["post_processor"] = template("<t>", 1),
        "adds \"<t>\", which its `special_tokens` do not have",
    );
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

/// A model of experts made of the builtin one's files: its weights are never reached.
fn experts(model_type: &str) -> Place {
    let place = Place::new();
    place.config(json!({
        "model_type": model_type, "architectures": null, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
        "num_local_experts": null, "shared_expert_intermediate_size": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
    }));
    place
}

#[test]
fn experts_that_no_model_can_have() {
    let more = json!({"num_experts_per_tok": 5});
    experts("qwen3_moe").config(more).refuses("`num_experts_per_tok` is 5, but it must be from 1 to 4");
    experts("qwen3_moe").config(json!({"num_experts_per_tok": 0})).refuses("`num_experts_per_tok` is 0");
    experts("qwen3_moe").config(json!({"num_experts": 0})).refuses("`num_experts` is 0");
    experts("mixtral").config(json!({"num_experts": null})).refuses("config.json has no `num_local_experts`");
    experts("olmoe").config(json!({"num_experts_per_tok": null})).refuses("has no `num_experts_per_tok`");
    let without = json!({"shared_expert_intermediate_size": null});
    experts("qwen2_moe").config(without).refuses("config.json has no `shared_expert_intermediate_size`");
    experts("qwen2_moe").config(json!({"moe_intermediate_size": 0})).refuses("`moe_intermediate_size` is 0");
    experts("qwen3_moe").config(json!({"decoder_sparse_step": 0})).refuses("`decoder_sparse_step` is 0");
    experts("qwen3_moe").config(json!({"decoder_sparse_step": 99})).refuses("leave none of the");
    let all: Vec<usize> = (0..4).collect();
    experts("qwen3_moe").config(json!({"mlp_only_layers": all})).refuses("leave none of the 4 layers with them");
    experts("qwen3_moe").config(json!({"mlp_only_layers": [1, 9]})).refuses("`mlp_only_layers` is a list with 9");
    experts("mixtral").config(json!({"router_aux_loss_coef": -1})).refuses("`router_aux_loss_coef` is -1");
    // The weights are a dense model's: the first that is missing is named.
    experts("qwen3_moe").config(json!({"head_dim": 32})).refuses("`model.layers.0.self_attn.q_norm.weight`");
    experts("olmoe").refuses("`model.layers.0.self_attn.q_norm.weight`");
    experts("mixtral").refuses("`model.layers.0.block_sparse_moe.gate.weight`");
}

/// A copy of a fixture's model with the builtin one's tokenizer, cut to its vocabulary.
fn fixture_model(name: &str) -> Place {
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
fn reweighted(place: Place, change: impl Fn(&mut Vec<(String, planish_tensor::Tensor)>)) -> Place {
    let path = place.path("model/model.safetensors");
    let reader = planish_nn::weights::WeightsReader::open(&path).unwrap();
    let mut all: Vec<_> =
        reader.names().iter().map(|n| (n.clone(), reader.get(n).unwrap().copied().unwrap())).collect();
    drop(reader);
    change(&mut all);
    planish_nn::weights::save_safetensors(&path, all, &Default::default()).unwrap();
    place
}

#[test]
fn experts_whose_files_are_wrong() {
    let without = |gone: &'static str| {
        reweighted(fixture_model("qwen3_moe"), move |all| all.retain(|(name, _)| !name.ends_with(gone)))
    };
    without("layers.1.mlp.experts.3.up_proj.weight").refuses("`model.layers.1.mlp.experts.3.up_proj.weight`");
    without("layers.0.mlp.gate.weight").refuses("no tensor `model.layers.0.mlp.gate.weight`");
    let cut = |which: &'static str| {
        reweighted(fixture_model("qwen3_moe"), move |all| {
            let (_, tensor) = all.iter_mut().find(|(name, _)| name == which).unwrap();
            *tensor = tensor.narrow(0, 0, 3).unwrap().copied().unwrap();
        })
    };
    let router = cut("model.layers.0.mlp.gate.weight").refuses("`model.layers.0.mlp.gate.weight` has shape [3, 32]");
    assert!(router.contains("calls for [6, 32]"), "{router}");
    cut("model.layers.0.mlp.experts.2.down_proj.weight").refuses("experts.2.down_proj.weight` has shape [3, 12]");
    // An expert more than config.json has.
    fixture_model("qwen3_moe").config(json!({"num_experts": 5})).refuses("`model.layers.0.mlp.gate.weight` has shape");
    let fused = reweighted(fixture_model("mixtral_fused"), |all| {
        let (_, tensor) = all.iter_mut().find(|(name, _)| name.ends_with("down_proj")).unwrap();
        *tensor = tensor.narrow(0, 0, 2).unwrap().copied().unwrap();
    });
    fused
        .refuses("`model.layers.0.mlp.experts.down_proj` has shape [2, 32, 44], but config.json calls for [3, 32, 44]");
    let unbalanced = reweighted(fixture_model("deepseek_v3"), |all| {
        all.retain(|(name, _)| !name.ends_with("e_score_correction_bias"));
    });
    unbalanced.refuses("no tensor `model.layers.1.mlp.gate.e_score_correction_bias`");
}

#[test]
fn latent_attention_that_no_model_can_have() {
    let v3 = |changes: Value, words: &str| {
        fixture_model("deepseek_v3").config(changes).refuses(words);
    };
    v3(json!({"n_group": 3}), "n_routed_experts (8) is not a multiple of n_group (3)");
    v3(json!({"n_group": 8, "topk_group": 8}), "leaves 1 expert(s) in a group, which is judged by 2");
    v3(json!({"topk_group": 1}), "have fewer experts than num_experts_per_tok (3)");
    v3(json!({"topk_group": 5}), "`topk_group` is 5, but it must be from 1 to 4");
    v3(json!({"num_key_value_heads": 2}), "num_key_value_heads (2) is not num_attention_heads (4)");
    v3(json!({"kv_lora_rank": null}), "config.json has no `kv_lora_rank`");
    v3(json!({"kv_lora_rank": 0}), "`kv_lora_rank` is 0");
    v3(json!({"qk_rope_head_dim": 5}), "RoPE turns 5 of the");
    v3(json!({"qk_nope_head_dim": u64::MAX}), "qk_nope_head_dim");
    v3(json!({"topk_method": "greedy"}), "`topk_method` \"greedy\" is not supported");
    v3(json!({"scoring_func": "softmax"}), "`scoring_func` \"softmax\" is not supported");
    v3(json!({"q_lora_rank": null}), "`model.layers.0.self_attn.q_proj.weight`");
    v3(json!({"quantization_config": {"quant_method": "fp8"}}), "quantization_config");
    let v2 = |changes: Value, words: &str| {
        fixture_model("deepseek_v2").config(changes).refuses(words);
    };
    v2(json!({"topk_method": "noaux_tc"}), "`topk_method` \"noaux_tc\" is not supported");
    v2(json!({"norm_topk_prob": true}), "`norm_topk_prob`");
    v2(json!({"moe_layer_freq": 2}), "`moe_layer_freq`");
    fixture_model("deepseek_v2").refuses_with(
        &["--use-peft", "--peft-type", "PREFIX_TUNING"],
        "keys and values in front of latent attention (PREFIX_TUNING)",
    );
}

#[test]
fn what_experts_cannot_do_is_said_at_once() {
    let place = fixture_model("mixtral");
    let words = "--device emulator: a mixture of experts (a model of type mixtral) is not supported there yet";
    place.refuses_with(&["--device", "emulator"], words);
    let text = |name: &str| place.path(name).to_string_lossy().into_owned();
    let (model, out) = (text("model"), text("out.gguf"));
    refused(&["generate", "--model", &model, "--prompt", "a", "--device", "emulator"], words);
    refused(&["export", "--model", &model, "--output", &out], "no architecture for models of type \"mixtral\"");
    assert!(!place.path("out.gguf").exists());
    Place::new().refuses_with(
        &["--router-aux-loss-coef", "0.01"],
        "`router_aux_loss_coef` is for mixtures of experts, and this model has no router",
    );
    Place::new().refuses_with(&["--router-z-loss-coef", "0.01"], "this model has no router");
    Place::new().refuses_with(&["--router-z-loss-coef=-1"], "router_z_loss_coef");
}

/// A target that the loss does not depend on would be left as it is for the whole run: the first step names it. A reward
/// model has no head on the vocabulary.
#[test]
fn a_target_that_no_gradient_reaches() {
    let place = Place::new();
    place.data("{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n");
    let text = |name: &str| place.path(name).to_string_lossy().into_owned();
    let (model, data) = (text("model"), text("data.jsonl"));
    let run = |out: &str, targets: &str| {
        let out = text(out);
        let own = ["reward", "--model", &model, "--dataset", &data, "--output-dir", &out, "--max-steps", "1"];
        planish(&[&own[..], &["--use-peft", "--lora-target-modules", targets]].concat())
    };
    let done = run("run", "q_proj,lm_head");
    assert_eq!(done.code, 2, "{done:?}");
    let said = "error: step 1: no gradient reached `base_model.model.lm_head.lora_A.weight` (and 1 more)";
    assert!(done.stderr.contains(said), "{done:?}");
    assert!(!place.path("run/final").exists());
    assert_eq!(run("other", "q_proj").code, 0);
}

/// Experts alone are trained: where the first step chose none of them it changed nothing, and the run stops; where it
/// chose one, it goes on.
#[test]
fn experts_alone_that_no_token_chooses() {
    let place = fixture_model("qwen3_moe");
    // Two tokens choose at most four of the six.
    place.data("{\"input_ids\": [5, 6], \"completion_mask\": [0, 1]}\n");
    let text = |name: &str| place.path(name).to_string_lossy().into_owned();
    let (model, data) = (text("model"), text("data.jsonl"));
    let run = |out: &str, modules: &str| {
        let out = text(out);
        let own = ["sft", "--model", &model, "--dataset", &data, "--output-dir", &out, "--max-steps", "1"];
        let freeze = ["--finetuning-type", "freeze", "--freeze-trainable-layers", "1", "--freeze-trainable-modules"];
        planish(&[&own[..], &freeze, &[modules]].concat())
    };
    let (mut chosen, mut stopped) = (0, 0);
    for expert in 0..6 {
        let done = run(&format!("run {expert}"), &format!("experts.{expert}"));
        if done.code == 0 {
            chosen += 1;
            let metrics = fs::read_to_string(place.path(&format!("run {expert}/metrics.jsonl"))).unwrap();
            let step: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
            assert!(step["grad_norm"].as_f64().unwrap() > 0.0, "{step}");
        } else {
            stopped += 1;
            assert_eq!(done.code, 2, "{done:?}");
            let said = format!("experts.{expert}`, and nothing else is to be trained");
            assert!(
                done.stderr.contains("error: step 1: no token that the loss depends on chose `")
                    && done.stderr.contains(&said),
                "{done:?}"
            );
            assert!(!place.path(&format!("run {expert}/final")).exists());
        }
    }
    assert!(chosen >= 2 && stopped >= 2, "{chosen} and {stopped}");
    // Among others one may wait for its turn.
    let all = run("all", "experts");
    assert!(all.code == 0 && all.stderr.contains("step 1 sent no token to "), "{all:?}");
}

/// Requests that choose among adapters; first that right ones are answered by whom they name.
#[test]
fn requests_of_adapters() {
    let place = Place::new();
    let text = |name: &str| place.path(name).to_string_lossy().into_owned();
    let (model, data) = (text("model"), text("data.jsonl"));
    for (run, seed) in [("one", "1"), ("two", "2")] {
        let run = text(run);
        let own = ["sft", "--model", &model, "--dataset", &data, "--output-dir", &run, "--max-steps", "1"];
        let more = ["--use-peft", "--learning-rate", "0.1", "--seed", seed, "--lora-target-modules", "all-linear"];
        assert_eq!(planish(&[&own[..], &more].concat()).code, 0);
    }
    let (one, two) = (text("one/final"), format!("second={}", text("two/final")));
    let requests = |lines: &str| {
        fs::write(place.path("requests.jsonl"), lines).unwrap();
        text("requests.jsonl")
    };
    let fixed =
        ["generate", "--model", &model, "--max-new-tokens", "4", "--json", "--adapter", &one, "--adapter", &two];
    let answers = |own: &[&str]| -> Vec<(Value, Value)> {
        let done = planish(&[&fixed[..], own].concat());
        assert_eq!(done.code, 0, "{done:?}");
        let all: Vec<Value> = serde_json::from_str(&done.stdout).unwrap();
        all.into_iter().map(|a| (a["adapter"].clone(), a["logprobs"].clone())).collect()
    };
    let by_flag = answers(&["--prompt", "What is 2 plus 3?"]);
    let line = |name: &str| json!({"prompt": "What is 2 plus 3?", "adapter": name}).to_string();
    let file = requests(&format!("{}\n\n{}\n{}\n", line("second"), line("base"), line("final")));
    let by_file = answers(&["--requests", &file]);
    assert_eq!(by_file.iter().map(|a| &a.0).collect::<Vec<_>>(), ["second", "base", "final"]);
    assert_eq!((&by_flag[0], &by_flag[1]), (&by_file[2], &by_file[0]));
    assert!(by_file[0].1 != by_file[1].1 && by_file[1].1 != by_file[2].1 && by_file[0].1 != by_file[2].1);

    let wrong = |own: &[&str], words: &str| refused(&[&fixed[..], own].concat(), words);
    let file = requests(&format!("{}\n{}\n", line("base"), line("third")));
    let said = wrong(&["--requests", &file], "there is no adapter `third`, but final, second, and `base`");
    assert!(said.contains("requests.jsonl, line 2"), "{said}");
    let file = requests("{\"prompt\": [{\"role\": \"user\"}]}\n");
    wrong(&["--requests", &file], "requests.jsonl, line 1");
    let file = requests("\n");
    wrong(&["--requests", &file], "has no request");
    wrong(&["--requests", "nowhere.jsonl"], "nowhere.jsonl");
    wrong(&["--prompt", "a", "--adapter", &one], "two adapters have the name `final`");
    wrong(&["--prompt", "a", "--adapter", &format!("base={one}")], "`base` is the model without an adapter");
}
