//! Optimizers whose state is small or elsewhere: 8 bits against bitsandbytes, GaLore against its authors', states in a
//! file against those in memory, and what the plan says each takes.

use std::path::{Path, PathBuf};

use planish_autograd::Param;
use planish_nn::weights::WeightsReader;
use planish_tensor::memory::peak_of;
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Tensor};
use planish_train::config::{OptimSettings, OptimizerChoice, PretrainConfig, resolve};
use planish_train::optim::{
    AdamWSettings, Blockwise, GaLore, GaLoreSettings, Keep, Optimizer, ProjType, Rates, Rounding, Rule, Update,
    optimizer, state_size,
};
use planish_train::recipes::pretrain;
use planish_train::run::{Observer, Outcome};

fn fixture(name: &str) -> WeightsReader {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/optim").join(name);
    WeightsReader::open(path).unwrap()
}

const ADAM: AdamWSettings = AdamWSettings { beta1: 0.9, beta2: 0.99, eps: 1e-6, weight_decay: 0.1 };

#[test]
fn eight_bit_states_are_bitsandbytes_to_the_bit() {
    let reader = fixture("eight_bits.safetensors");
    let get = |name: &str| reader.get(name).unwrap();
    let rates = get("lr").to_vec::<f64>().unwrap();
    let rules = [
        ("adamw", Rule::AdamW(ADAM)),
        ("lion", Rule::Lion { betas: (0.9, 0.99), weight_decay: 0.1 }),
        ("sgd", Rule::Sgd { momentum: 0.9, weight_decay: 0.1 }),
    ];
    for (word, rounding) in [("table", Rounding::Table), ("nearest", Rounding::Nearest)] {
        for (name, rule) in rules {
            let param = Param::trainable("w", get("init").to_dtype(DType::F32).unwrap());
            let keep = Keep { eight_bits: true, rounding, paged: None };
            let mut optimizer = Blockwise::new(std::slice::from_ref(&param), rule, keep, &Rates::default()).unwrap();
            for (s, &rate) in rates.iter().enumerate() {
                let grad = get("grad").to_dtype(DType::F32).unwrap().narrow(0, s, 1).unwrap();
                param.set_grad(Some(grad.reshape([66, 64]).unwrap().copied().unwrap()));
                optimizer.step(Update { learning_rate: rate, grad_scale: 1.0 }).unwrap();
                for (kind, tensor) in optimizer.state().unwrap() {
                    let kind = kind.strip_suffix(".w").unwrap();
                    let i = if kind.starts_with('v') { 2 } else { 1 };
                    let what = format!("{word}, {name}, {kind} after update {}", s + 1);
                    if kind.ends_with("_absmax") {
                        let want = get(&format!("{word}.{name}.absmax{i}")).narrow(0, s, 1).unwrap();
                        let bits =
                            |t: &Tensor| t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
                        assert_eq!(bits(&tensor), bits(&want), "{what}");
                    } else {
                        let bytes = tensor.to_vec::<u8>().unwrap();
                        let sum: i64 = bytes.iter().enumerate().map(|(i, &b)| (i as i64 + 1) * i64::from(b)).sum();
                        let want = get(&format!("{word}.{name}.sum{i}")).to_vec::<i64>().unwrap()[s];
                        assert_eq!(sum, want, "{what}");
                        if s + 1 == rates.len() {
                            assert_eq!(
                                bytes,
                                get(&format!("{word}.{name}.state{i}")).to_vec::<u8>().unwrap(),
                                "{what}"
                            );
                        }
                    }
                }
            }
            // torch's root is not rounded to the nearest f32, so that AdamW's weights differ in the last bits.
            let want = get(&format!("{word}.{name}.param")).to_vec::<f32>().unwrap();
            for (got, want) in param.value().to_vec::<f32>().unwrap().iter().zip(want) {
                assert!((got - want).abs() <= 1e-6 * want.abs().max(1.0), "{word}, {name}: {got} against {want}");
            }
        }
    }
}

#[test]
fn galore_is_its_authors() {
    let reader = fixture("galore.safetensors");
    let get = |name: &str| reader.get(name).unwrap();
    let rates = get("lr").to_vec::<f64>().unwrap();
    for (word, proj_type) in [
        ("std", ProjType::Std),
        ("reverse_std", ProjType::ReverseStd),
        ("right", ProjType::Right),
        ("left", ProjType::Left),
    ] {
        let params: Vec<_> = ["a", "w", "v"].map(|t| Param::trainable(t, get(&format!("{t}.init")))).into();
        let settings = GaLoreSettings { rank: 3, update_proj_gap: 4, scale: 0.25, proj_type };
        let mut optimizer = GaLore::new(&params, ADAM, settings, |_| true, &Rates::default()).unwrap();
        for (s, &rate) in rates.iter().enumerate() {
            for p in &params {
                let grad = get(&format!("{}.grad", p.name())).narrow(0, s, 1).unwrap();
                p.set_grad(Some(grad.reshape(p.value().shape()).unwrap().copied().unwrap()));
            }
            optimizer.step(Update { learning_rate: rate, grad_scale: 1.0 }).unwrap();
            for p in &params {
                let want = get(&format!("{word}.{}.param", p.name())).narrow(0, s, 1).unwrap().to_vec::<f32>().unwrap();
                for (got, want) in p.value().to_vec::<f32>().unwrap().iter().zip(want) {
                    // Values up to 3; LAPACK's vectors are f32's, a few 1e-7 off, and a step is at most 1e-2.
                    assert!((got - want).abs() <= 2e-6, "{word}, {} after {}: {got} against {want}", p.name(), s + 1);
                }
            }
        }
    }
}

/// Weights of several sizes and dtypes, one of more than one run.
fn weights() -> Vec<Param> {
    let shapes: [(&str, &[usize], DType); 6] = [
        ("model.embed_tokens.weight", &[90, 64], DType::F32),
        ("model.layers.0.mlp.up_proj.weight", &[1100, 1000], DType::F32),
        ("model.layers.0.mlp.down_proj.weight", &[64, 97], DType::BF16),
        ("model.norm.weight", &[64], DType::F32),
        ("model.layers.1.mlp.up_proj.weight", &[96, 64], DType::F32),
        ("model.layers.1.mlp.down_proj.weight", &[65, 99], DType::BF16),
    ];
    let one = |(i, (name, shape, dtype)): (usize, (&str, &[usize], DType))| {
        let stream = Stream::new(3, Purpose::Data, i as u64);
        let n = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..n).map(|j| stream.normal(j as u64) as f32).collect();
        Param::trainable(name, Tensor::from_vec(values, shape).unwrap().to_dtype(dtype).unwrap())
    };
    shapes.into_iter().enumerate().map(one).collect()
}

fn step(params: &[Param], optimizer: &mut dyn Optimizer, s: u64) {
    for (i, p) in params.iter().enumerate() {
        let stream = Stream::new(4 + s, Purpose::Data, i as u64);
        let n = p.value().numel();
        let values: Vec<f32> = (0..n).map(|j| 0.1 * stream.normal(j as u64) as f32).collect();
        p.set_grad(Some(Tensor::from_vec(values, p.value().dims()).unwrap()));
    }
    optimizer.step(Update { learning_rate: 1e-2, grad_scale: 0.5 }).unwrap();
}

fn values(params: &[Param]) -> Vec<Vec<u64>> {
    let bits = |p: &Param| {
        p.value().to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap().into_iter().map(f64::to_bits).collect()
    };
    params.iter().map(bits).collect()
}

fn settings(pairs: &[(&str, &str)]) -> OptimSettings {
    let mut flags = vec![
        ("config_name", "c"),
        ("tokenizer_name", "t"),
        ("dataset", "d"),
        ("output_dir", "o"),
        ("weight_decay", "0.1"),
    ];
    flags.extend(pairs);
    let flags: Vec<_> = flags.iter().map(|(k, v)| (k.to_string(), vec![v.to_string()])).collect();
    resolve::<PretrainConfig>(None, &flags).unwrap().config.optim
}

#[test]
#[allow(clippy::result_large_err)]
fn where_the_state_is_changes_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let own = Rates::default();
    for (plain, paged) in [
        ("adamw", "paged_adamw_32bit"),
        ("adamw_8bit", "paged_adamw_8bit"),
        ("lion", "paged_lion_32bit"),
        ("lion_8bit", "paged_lion_8bit"),
    ] {
        let want = weights();
        let mut plain = optimizer(&want, &settings(&[("optim", plain)]), &own, dir.path()).unwrap();
        (0..4).for_each(|s| step(&want, &mut *plain, s));
        // Nothing, a part, and everything in memory.
        for budget in ["0", "0.0005", "1"] {
            let o = settings(&[("optim", paged), ("optim_memory_budget", budget)]);
            let params = weights();
            let mut first = optimizer(&params, &o, &own, dir.path()).unwrap();
            let size = state_size(&params, &o).unwrap();
            assert_eq!(size.file == 0, budget == "1", "{paged}, {budget}: {size:?}");
            (0..2).for_each(|s| step(&params, &mut *first, s));
            // Saved, and gone on with.
            let state: Vec<_> = first.state().unwrap().into_iter().map(|(n, t)| (n, t.copied().unwrap())).collect();
            let again: Vec<Param> =
                params.iter().map(|p| Param::trainable(p.name(), p.value().copied().unwrap())).collect();
            (2..4).for_each(|s| step(&params, &mut *first, s));
            let mut second = optimizer(&again, &o, &own, dir.path()).unwrap();
            second.restore(2, &|name| Ok(state.iter().find(|(n, _)| n == name).expect(name).1.clone())).unwrap();
            (2..4).for_each(|s| step(&again, &mut *second, s));
            assert!(values(&want) == values(&params), "{paged}, {budget}");
            assert!(values(&want) == values(&again), "{paged}, {budget}: resumed");
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
}

#[test]
fn the_plan_counts_what_each_optimizer_takes() {
    let dir = tempfile::tempdir().unwrap();
    for &choice in OptimizerChoice::ALL {
        for budget in ["0", "0.0005", "1"] {
            let mut pairs = vec![("optim", choice.name()), ("sgd_momentum", "0.9")];
            if choice.is_paged() {
                pairs.push(("optim_memory_budget", budget));
            }
            if choice == OptimizerChoice::GaLoreAdamW {
                pairs.extend([("optim_target_modules", "all-linear"), ("optim_args", "rank=8, proj_type=left")]);
            }
            let o = settings(&pairs);
            let params = weights();
            let planned = state_size(&params, &o).unwrap();
            let (mut made, peak) = peak_of(|| optimizer(&params, &o, &Rates::default(), dir.path()).unwrap());
            // Beside what stays, a master on its way into the file, or a copy that schedule-free starts with. What that
            // goes on from, y, is the weight where this has no master, and its sums are two numbers.
            let is_weight = |name: &str| {
                params.iter().any(|p| name == format!("y.{}", p.name()) && p.value().dtype() == p.grad_dtype())
            };
            let size = |t: &Tensor| t.numel() * t.dtype().size();
            let state = made.state().unwrap();
            let own = state.iter().filter(|(n, t)| !t.is_mapped() && !is_weight(n) && n != "schedule_free.sums");
            let kept: usize = own.map(|(_, t)| size(t)).sum();
            let buffers = if planned.file == 0 { 0 } else { planned.memory as usize - kept };
            assert_eq!(kept + buffers, planned.memory as usize, "{choice}, {budget}");
            assert!(
                peak >= planned.memory as usize && peak <= planned.memory as usize + (1 << 20),
                "{choice}: {peak} of {planned:?}"
            );
            let filed: usize = state.iter().filter(|(_, t)| t.is_mapped()).map(|(_, t)| size(t)).sum();
            assert_eq!(filed as u64, planned.file, "{choice}, {budget}");
            drop(state);
            if choice == OptimizerChoice::ScheduleFree {
                // What it keeps of the weights while it evaluates and saves has the room of the gradients, which are not
                // there then; of the largest weight stored narrower a copy is on its way.
                let gradients: usize = params.iter().map(|p| p.value().numel() * p.grad_dtype().size()).sum();
                let narrow = params.iter().map(|p| p.value()).filter(|t| t.dtype() == DType::BF16);
                let largest = narrow.map(|t| size(&t)).max().unwrap();
                // After the first step both are the same.
                (0..2).for_each(|s| step(&params, &mut *made, s));
                let before = values(&params);
                let ((), peak) = peak_of(|| made.averaged(true).unwrap());
                assert!(peak >= gradients && peak <= gradients + 2 * largest, "{peak} of {gradients}");
                assert!(values(&params) != before);
                made.averaged(false).unwrap();
                assert!(values(&params) == before);
            }
        }
    }
}

/// A directory that cannot hold the states: an error that names the file, before any step.
#[test]
fn a_file_that_cannot_be_made_is_an_error_at_once() {
    let o = settings(&[("optim", "paged_adamw_32bit")]);
    let problem = optimizer(&weights(), &o, &Rates::default(), Path::new("/nowhere")).err().unwrap().to_string();
    assert!(problem.contains("/nowhere/.optimizer.planish.tmp"), "{problem}");
}

#[test]
fn arguments_that_mean_nothing_are_refused() {
    let refuse = |pairs: &[(&str, &str)]| {
        let mut flags = vec![("config_name", "c"), ("tokenizer_name", "t"), ("dataset", "d"), ("output_dir", "o")];
        flags.extend(pairs);
        let flags: Vec<_> = flags.iter().map(|(k, v)| (k.to_string(), vec![v.to_string()])).collect();
        resolve::<PretrainConfig>(None, &flags).err().unwrap().to_string()
    };
    let galore = ("optim", "galore_adamw");
    assert!(refuse(&[galore]).contains("optim_target_modules"));
    let all = ("optim_target_modules", "all-linear");
    for args in ["rank=0", "rank=x", "rank", "gap=3", "scale=nan", "proj_type=full", "rounding=nearest"] {
        assert!(refuse(&[galore, all, ("optim_args", args)]).contains("optim_args"), "{args}");
    }
    assert!(refuse(&[("optim", "adamw_8bit"), ("optim_args", "rounding=up")]).contains("optim_args"));
    assert!(refuse(&[("optim_args", "rank=8")]).contains("optim_args"));
    assert!(refuse(&[all]).contains("optim_target_modules"));
    assert!(refuse(&[("optim_memory_budget", "1")]).contains("optim_memory_budget"));
}

/// Interrupts after a number of steps.
struct StopAfter(u64, u64);

impl Observer for StopAfter {
    fn stepped(&mut self, _: &planish_train::run::StepMetrics) {
        self.1 += 1;
    }
    fn interrupted(&mut self) -> bool {
        self.1 >= self.0
    }
}

/// Law 6 for whole runs; and a paged run writes what one in memory does.
#[test]
fn resumed_runs_are_those_that_never_stopped() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("train/builtin");
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(builtin.join("config.json")).unwrap()).unwrap();
    let sizes = [
        ("hidden_size", 64),
        ("intermediate_size", 80),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 1),
        ("head_dim", 32),
    ];
    sizes.iter().for_each(|(key, value)| config[*key] = (*value).into());
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let rows: String =
        (0..20).map(|i| format!("{{\"text\": \"row {i}: {}\"}}\n", "red fish ".repeat(i % 5 + 1))).collect();
    std::fs::write(dir.join("rows.jsonl"), rows).unwrap();
    let run = |out: &str, extra: &[(&str, &str)], stop: u64| {
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let (config, data, out) = (path("config.json"), path("rows.jsonl"), path(out));
        let tokenizer = builtin.to_string_lossy().into_owned();
        let mut flags = vec![
            ("config_name", config.as_str()),
            ("tokenizer_name", &tokenizer),
            ("dataset", &data),
            ("output_dir", &out),
            ("max_length", "32"),
            ("per_device_train_batch_size", "2"),
            ("learning_rate", "1e-2"),
            ("max_steps", "6"),
            ("save_strategy", "no"),
        ];
        flags.extend(extra);
        let flags: Vec<_> = flags.iter().map(|(k, v)| (k.to_string(), vec![v.to_string()])).collect();
        pretrain::run(&resolve::<PretrainConfig>(None, &flags).unwrap().config, &mut StopAfter(stop, 0)).unwrap()
    };
    let weights = |outcome: Outcome| match outcome {
        Outcome::Finished { result } => std::fs::read(result.join("model.safetensors")).unwrap(),
        other => panic!("{other:?}"),
    };
    let galore = [("optim_target_modules", "self_attn"), ("optim_args", "rank=4, update_proj_gap=2")];
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);
    let cases: [Case<'_>; 6] = [
        ("adamw_8bit", "float32", &[]),
        ("adamw_bnb_8bit", "bfloat16", &[("optim_args", "rounding=table")]),
        ("paged_adamw_32bit", "bfloat16", &[("optim_memory_budget", "0.0002")]),
        ("paged_adamw_8bit", "float32", &[]),
        ("sgd_8bit", "float32", &[("sgd_momentum", "0.9")]),
        ("galore_adamw", "float32", &galore),
    ];
    for (optim, dtype, extra) in cases {
        let flags = |more: &[(&'static str, &'static str)]| {
            let mut flags = vec![("optim", optim), ("dtype", dtype)];
            flags.extend(extra);
            flags.extend(more);
            flags
        };
        let whole = weights(run(&format!("{optim}-whole"), &flags(&[]), u64::MAX));
        let cut = format!("{optim}-cut");
        assert!(matches!(run(&cut, &flags(&[]), 3), Outcome::Interrupted { .. }));
        assert!(whole == weights(run(&cut, &flags(&[("resume_from_checkpoint", "latest")]), u64::MAX)), "{optim}");
        if let Some(plain) = optim.strip_prefix("paged_") {
            let plain = if plain == "adamw_8bit" { plain } else { "adamw" };
            let flags = [("optim", plain), ("dtype", dtype)];
            assert!(whole == weights(run(&format!("{optim}-plain"), &flags, u64::MAX)), "{optim}: in memory");
        }
    }
}
