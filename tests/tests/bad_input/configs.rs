//! config.json.

use std::fs;

use planish_tests::program::planish;
use serde_json::{Value, json};

use crate::place::Place;

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
