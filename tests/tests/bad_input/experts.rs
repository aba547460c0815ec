//! Mixtures of experts, and latent attention.

use std::fs;

use planish_tests::program::{planish, refused};
use serde_json::{Value, json};

use crate::place::{Place, fixture_model, reweighted};

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
    let text = |name: &str| place.path(name).to_string_lossy().into_owned();
    let (model, out) = (text("model"), text("out.gguf"));
    refused(&["export", "--model", &model, "--output", &out], "no architecture for models of type \"mixtral\"");
    assert!(!place.path("out.gguf").exists());
    Place::new().refuses_with(
        &["--router-aux-loss-coef", "0.01"],
        "`router_aux_loss_coef` is for mixtures of experts, and this model has no router",
    );
    Place::new().refuses_with(&["--router-z-loss-coef", "0.01"], "this model has no router");
    Place::new().refuses_with(&["--router-z-loss-coef=-1"], "router_z_loss_coef");
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
