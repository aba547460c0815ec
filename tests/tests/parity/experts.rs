//! Mixtures of experts: training against TRL's trainer with the losses of the routers, and files as transformers 5 holds
//! experts.

use std::path::Path;

use planish_nn::Ctx;
use planish_nn::adapters::{
    LoraConfig, Partial, Targets, adapter_params, attach_lora, load_adapter, merge_adapter, save_adapter, train_only,
};
use planish_nn::decoder::{LoadOptions, Model};
use planish_nn::pretrained::{Pretrained, read_json};
use planish_nn::weights::WeightsReader;
use planish_tensor::DType;
use serde_json::Value;

use crate::trajectory::{Feed, WHOLE, train};
use crate::{difference, fixture, floats, packed_logits};

fn runs() -> serde_json::Map<String, Value> {
    read_json(&fixture("experts/runs.json")).unwrap().as_object().unwrap().clone()
}

/// All weights and low-rank updates of every map, router and experts included: loss, gradient norm, and the losses of
/// the routers at each step.
#[test]
fn trajectories_with_routers_losses_are_those_of_trl() {
    let runs = runs();
    assert!(runs.len() >= 16);
    let mut wrong = Vec::new();
    for (name, run) in &runs {
        let steps = run["steps"].as_array().unwrap();
        for (s, ((sums, norm), step)) in train(run, None, WHOLE).iter().zip(steps).enumerate() {
            assert_eq!(sums.count, step["tokens"].as_f64().unwrap());
            let z = sums.get("router_z_loss").map(|z| ("router_z_loss", z));
            let balance = sums.get("aux_loss").map(|balance| ("aux_loss", balance));
            assert_eq!(balance.is_some(), !step["aux_loss"].is_null(), "{name}");
            assert_eq!(z.is_some(), run["router_z_loss_coef"].as_f64() > Some(0.0), "{name}");
            for (what, got) in [("loss", sums.mean()), ("grad_norm", *norm)].into_iter().chain(z).chain(balance) {
                let want = step[what].as_f64().unwrap();
                // Trajectories in f32 part slowly: the sums of both sides are in different orders.
                if !((got - want).abs() <= 1e-3 * want) {
                    let idle = sums.get("router/dead_experts");
                    wrong.push(format!("{name} step {}: {what} {got}, TRL {want} ({idle:?} idle experts)", s + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Law 3, with the losses of the routers, which are means over the whole step: in f64 micro-batches, passes and
/// recomputation change the trajectory by rounding only.
#[test]
fn splitting_a_step_changes_rounding_only() {
    let mut run = runs()["full_mixtral_z"].clone();
    run["router_aux_loss_coef"] = 0.3.into();
    let train = |feed| train(&run, Some(DType::F64), feed);
    let want = train(WHOLE);
    for (micro_batch, tokens_per_pass, recompute) in [(8, 0, false), (1, 0, true), (3, 40, true), (8, 50, false)] {
        let feed = Feed { micro_batch, tokens_per_pass, recompute };
        for ((got, norm), (want, want_norm)) in train(feed).iter().zip(&want) {
            let mut pairs = vec![(got.mean(), want.mean()), (*norm, *want_norm)];
            pairs.extend(got.means().into_iter().zip(want.means()).map(|((_, a), (_, b))| (a, b)));
            assert_eq!(pairs.len(), 2 + 2 + 2 + 3, "{:?}", got.means());
            for (got, want) in pairs {
                // Sums of some hundred f64 in another order, carried through six updates.
                assert!((got - want).abs() <= 1e-9 * want.abs().max(1.0), "{feed:?}: {got} is not {want}");
            }
        }
    }
}

/// A file that holds all experts of a layer as one is read as one that holds each, and written as that.
#[test]
fn fused_experts_are_written_apart() {
    let dir = fixture("models/mixtral_fused");
    let fused = WeightsReader::open(&dir).unwrap();
    assert!(fused.contains("model.layers.0.mlp.experts.gate_up_proj"));
    let model = Pretrained::open(&dir).unwrap().load(LoadOptions::default()).unwrap();
    let out = tempfile::tempdir().unwrap();
    model.save(out.path()).unwrap();
    let written = WeightsReader::open(out.path()).unwrap();
    let all = fused.get("model.layers.0.mlp.experts.gate_up_proj").unwrap();
    let [experts, rows, hidden] = all.dims() else { panic!("{:?}", all.dims()) };
    let all = all.to_vec::<f32>().unwrap();
    for e in 0..*experts {
        for (half, name) in ["w1", "w3"].into_iter().enumerate() {
            let got = written.get(&format!("model.layers.0.block_sparse_moe.experts.{e}.{name}.weight")).unwrap();
            let start = (e * rows + half * rows / 2) * hidden;
            assert_eq!(got.to_vec::<f32>().unwrap(), &all[start..start + rows / 2 * hidden], "{e} {name}");
        }
    }
    assert!(written.contains("model.layers.0.block_sparse_moe.gate.weight"));
    assert!(!written.names().iter().any(|n| n.ends_with("gate_up_proj")));
    let again = Pretrained::open(out.path()).unwrap().load(LoadOptions::default()).unwrap();
    let values = |model: &Model| -> Vec<(String, Vec<f32>)> {
        model.base_params().iter().map(|p| (p.name().to_owned(), p.value().to_vec().unwrap())).collect()
    };
    assert_eq!(values(&again), values(&model));
}

/// Chosen experts, routers and shared experts are trained alone: by a part of their path or a regular expression.
#[test]
fn chosen_experts_are_trained_alone() {
    let trained = |modules: &[&str]| -> Result<Vec<String>, String> {
        let dir = fixture("models/qwen2_moe");
        let mut model = Pretrained::open(&dir).unwrap().load(LoadOptions::default()).unwrap();
        let modules = modules.iter().map(|m| (*m).to_owned()).collect();
        let what = Partial::layers(4, 4, modules, vec![]).unwrap();
        train_only(&mut model, &what).map_err(|e| e.to_string())?;
        Ok(model.params().iter().filter(|p| p.is_trainable()).map(|p| p.name().to_owned()).collect())
    };
    // Only the second of the four layers has experts.
    let at = |e: usize| ["gate", "up", "down"].map(|p| format!("model.layers.1.mlp.experts.{e}.{p}_proj.weight"));
    assert_eq!(trained(&["experts.3"]).unwrap(), at(3));
    assert_eq!(trained(&[r"experts\.[0-1]\."]).unwrap(), [at(0), at(1)].concat());
    assert_eq!(trained(&["mlp.gate"]).unwrap(), ["model.layers.1.mlp.gate.weight"]);
    assert_eq!(trained(&["shared_expert", "experts.4"]).unwrap().len(), 6);
    assert!(trained(&["experts.7"]).unwrap_err().contains("experts.7"));
    assert!(trained(&["experts.(3"]).unwrap_err().contains("is not a regular expression"));
}

/// Adapters of PEFT on what transformers 5 fuses (`target_parameters`) are saved as they were read, and merge into what
/// they compute.
#[test]
fn adapters_on_fused_parameters_are_those_of_peft() {
    for name in ["peft_mixtral", "peft_qwen2_moe"] {
        let dir = fixture(&format!("experts/{name}"));
        let base = read_json(&dir.join("adapter_config.json")).unwrap();
        let base = fixture(base["base_model_name_or_path"].as_str().unwrap());
        let open = || Pretrained::open(&base).unwrap().load(LoadOptions::default()).unwrap();
        let mut model = open();
        let config = load_adapter(&mut model, &dir).unwrap();
        let out = tempfile::tempdir().unwrap();
        save_adapter(&model, &*config, out.path()).unwrap();
        let json = |dir: &Path| read_json(&dir.join("adapter_config.json")).unwrap();
        assert_eq!(json(out.path()), json(&dir), "{name}");
        let read = |dir: &Path| WeightsReader::open(dir.join("adapter_model.safetensors")).unwrap();
        let (ours, theirs) = (read(out.path()), read(&dir));
        let sorted = |reader: &WeightsReader| {
            let mut names = reader.names().to_vec();
            names.sort();
            names
        };
        assert_eq!(sorted(&ours), sorted(&theirs), "{name}");
        assert!(theirs.names().iter().any(|n| n.contains(".experts.") && n.contains("lora_B")));
        for tensor in theirs.names() {
            let (got, want) = (ours.get(tensor).unwrap(), theirs.get(tensor).unwrap());
            assert_eq!(got.dims(), want.dims(), "{name}: {tensor}");
            assert_eq!(floats(&ours, tensor), floats(&theirs, tensor), "{name}: {tensor}");
        }
        let sequences = [vec![3, 1, 4, 1, 5, 9, 2, 6], (20..60).collect::<Vec<u32>>()];
        let (ctx, off) = (Ctx::inference(), Ctx::inference().without_adapters());
        let adapted = packed_logits(&model, &ctx, &sequences);
        assert_eq!(packed_logits(&model, &off, &sequences), packed_logits(&open(), &ctx, &sequences), "{name}: off");
        merge_adapter(&mut model).unwrap();
        for (got, want) in packed_logits(&model, &ctx, &sequences).iter().zip(&adapted) {
            // Logits of about 10 in f32, by another order of sums.
            let worst = difference(got, want);
            assert!(worst <= 2e-4, "{name}: merged, off by {worst}");
        }
    }
}

/// New ones are made and refused as PEFT does.
#[test]
fn fused_parameters_are_targets() {
    let attach = |family: &str, parameters: &[&str], modules: Targets, dropout: f64| {
        let mut model =
            Pretrained::open(&fixture(&format!("models/{family}"))).unwrap().load(LoadOptions::default()).unwrap();
        let config = LoraConfig {
            r: 2,
            lora_dropout: dropout,
            target_modules: modules,
            target_parameters: parameters.iter().map(|p| (*p).to_owned()).collect(),
            ..LoraConfig::default()
        };
        attach_lora(&mut model, &config, 7).map_err(|e| e.to_string())?;
        Ok::<_, String>(adapter_params(&model, 0).iter().map(|p| p.name().to_owned()).collect::<Vec<_>>())
    };
    let none = || Targets::Names(Vec::new());
    let names = attach("qwen3_moe", &["gate_up_proj", "gate.weight"], none(), 0.0).unwrap();
    assert_eq!(names.len(), 2 * 2 * 2);
    assert!(names.contains(&"base_model.model.model.layers.1.mlp.experts.lora_A.weight".to_owned()), "{names:?}");
    assert!(names.contains(&"base_model.model.model.layers.0.mlp.gate.lora_B.weight".to_owned()), "{names:?}");
    let both = attach("deepseek_v3", &["experts.gate_up_proj", "experts.down_proj"], none(), 0.0).unwrap();
    assert!(
        both.contains(&"base_model.model.model.layers.1.mlp.experts.base_layer.lora_A.weight".to_owned()),
        "{both:?}"
    );
    assert!(attach("qwen3_moe", &["experts.w1"], none(), 0.0).unwrap_err().contains("mlp.experts.gate_up_proj"));
    assert!(attach("smollm2", &["gate_up_proj"], none(), 0.0).unwrap_err().contains("target_parameters"));
    assert!(
        attach("qwen3_moe", &["gate_up_proj"], none(), 0.1)
            .unwrap_err()
            .contains("lora_dropout with target_parameters")
    );
    let twice = attach("qwen3_moe", &["gate_up_proj"], Targets::AllLinear, 0.0).unwrap_err();
    assert!(twice.contains("both ask for `model.layers.0.mlp.experts.0.gate_proj`"), "{twice}");
}
