//! Adapters: their settings, their files, and requests that choose among them.

use std::fs;
use std::path::Path;

use planish_tests::program::{planish, refused};
use serde_json::{Value, json};

use crate::place::{Place, fixture_model};

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
