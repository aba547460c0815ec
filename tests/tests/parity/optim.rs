//! Optimizers and learning-rate schedules against torch, transformers, bitsandbytes and schedulefree.

use planish_autograd::Param;
use planish_nn::pretrained::read_json;
use planish_nn::weights::WeightsReader;
use planish_tensor::{DType, Tensor};
use planish_train::config::{Ramp, Schedule, ScheduleArgs};
use planish_train::optim::{
    Adafactor, AdamW, AdamWSettings, Lion, Muon, Optimizer, Rates, ScheduleFree, Sgd, Update, learning_rate,
};

use crate::fixture;

#[test]
fn adamw_is_torchs() {
    let reader = WeightsReader::open(fixture("sft/optim/adamw.safetensors")).unwrap();
    let get = |name: &str| reader.get(name).unwrap();
    // The settings below are those the fixture was made with.
    let recorded = ["betas", "eps", "weight_decay"].map(|key| reader.metadata()[key].as_str());
    assert_eq!(recorded, ["0.9 0.99", "1e-6", "0.1"]);
    let rates = get("lr").to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap();
    // Rounding of single operations may differ (fused or not): a few units in the last place a step.
    for (dtype, tolerance) in [("f64", 1e-15), ("f32", 4e-7)] {
        let settings = AdamWSettings { beta1: 0.9, beta2: 0.99, eps: 1e-6, weight_decay: 0.1 };
        // A name that ends in `bias` does not decay.
        let params: Vec<Param> = ["a", "b", "c"]
            .iter()
            .map(|t| Param::trainable(if *t == "b" { "b.bias" } else { t }, get(&format!("{dtype}.{t}.init"))))
            .collect();
        let mut optimizer = AdamW::new(&params, settings).unwrap();
        for (s, &rate) in rates.iter().enumerate() {
            for (p, t) in params.iter().zip(["a", "b", "c"]) {
                let g = get(&format!("{dtype}.{t}.grad")).narrow(0, s, 1).unwrap();
                p.set_grad(Some(g.reshape(p.value().shape()).unwrap().copied().unwrap()));
            }
            optimizer.step(Update { learning_rate: rate, grad_scale: 1.0 }).unwrap();
            for (p, t) in params.iter().zip(["a", "b", "c"]) {
                let want = get(&format!("{dtype}.{t}.param")).narrow(0, s, 1).unwrap();
                close(&p.value(), &want, tolerance, &format!("{dtype} {t} after update {}", s + 1));
            }
        }
        for (name, tensor) in optimizer.state() {
            let (kind, t) = name.split_once('.').unwrap();
            let kind = if kind == "m" { "exp_avg" } else { "exp_avg_sq" };
            close(&tensor, &get(&format!("{dtype}.{}.{kind}", &t[..1])), tolerance, &name);
        }
    }
}

fn close(got: &Tensor, want: &Tensor, tolerance: f64, what: &str) {
    let values = |t: &Tensor| t.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap();
    for (got, want) in values(got).iter().zip(values(want)) {
        assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{what}: {got} against {want}");
    }
}

#[test]
fn schedules_are_those_of_transformers() {
    let cases = read_json(&fixture("sft/optim/schedules.json")).unwrap();
    let mut checked = 0;
    for case in cases.as_array().unwrap() {
        let name = case["lr_scheduler_type"].as_str().unwrap();
        let Some(&schedule) = Schedule::ALL.iter().find(|s| s.name() == name) else { continue };
        let given = &case["lr_scheduler_kwargs"];
        let ramp = |key: &str| given[key].as_str().map(|n| *Ramp::ALL.iter().find(|r| r.name() == n).unwrap());
        let args = ScheduleArgs {
            min_lr: given["min_lr"].as_f64(),
            min_lr_rate: given["min_lr_rate"].as_f64(),
            num_cycles: given["num_cycles"].as_f64(),
            num_decay_steps: given["num_decay_steps"].as_u64(),
            num_stable_steps: given["num_stable_steps"].as_u64(),
            min_lr_ratio: given["min_lr_ratio"].as_f64(),
            warmup_type: ramp("warmup_type"),
            decay_type: ramp("decay_type"),
            timescale: given["timescale"].as_u64(),
        };
        let number = |key: &str| case[key].as_f64().unwrap();
        for (step, want) in case["lr"].as_array().unwrap().iter().enumerate() {
            let (warmup, total) = (number("warmup_steps") as u64, number("max_steps") as u64);
            let got = learning_rate(schedule, &args, number("learning_rate"), step as u64, warmup, total);
            let want = want.as_f64().unwrap();
            // The same f64 formula, perhaps in another order.
            assert!((got - want).abs() <= 1e-15, "{case:?} step {step}: {got} against {want}");
        }
        checked += 1;
    }
    assert!(checked >= 14, "{checked} schedules");
}

/// Ten updates of every optimizer beside AdamW; and half of them, saved and gone on with, to the bit.
#[test]
#[allow(clippy::result_large_err)]
fn the_others_are_those_of_their_references() {
    let reader = WeightsReader::open(fixture("sft/optim/others.safetensors")).unwrap();
    let get = |name: &str| reader.get(name).unwrap();
    let rates = get("lr").to_vec::<f64>().unwrap();
    let adam = AdamWSettings { beta1: 0.9, beta2: 0.99, eps: 1e-6, weight_decay: 0.1 };
    let own = Rates::default();
    let make = |name: &str, params: &[Param]| -> Box<dyn Optimizer> {
        match name {
            "sgd" => Box::new(Sgd::new(params, 0.0, 0.1, &own).unwrap()),
            "sgd_momentum" => Box::new(Sgd::new(params, 0.9, 0.1, &own).unwrap()),
            "lion" => Box::new(Lion::new(params, (0.9, 0.99), 0.1, &own).unwrap()),
            "adafactor" => Box::new(Adafactor::new(params, 0.1, &own).unwrap()),
            "muon" => Box::new(Muon::new(params, adam, &own).unwrap()),
            _ => Box::new(ScheduleFree::new(params, adam, &own).unwrap()),
        }
    };
    for name in ["sgd", "sgd_momentum", "lion", "adafactor", "muon", "schedule_free"] {
        let tensors = if name == "muon" { &["a", "m"][..] } else { &["a", "m", "b"] };
        let fresh = || -> Vec<Param> {
            // A name that ends in `bias` does not decay.
            let named = |t: &&str| if *t == "b" { "b.bias".to_string() } else { t.to_string() };
            tensors.iter().map(|t| Param::trainable(named(t), get(&format!("{t}.init")))).collect()
        };
        let step = |params: &[Param], optimizer: &mut dyn Optimizer, s: usize| {
            for (t, p) in tensors.iter().zip(params) {
                // As a sum of two tokens, whose mean it is.
                let grad = get(&format!("{t}.grad")).narrow(0, s, 1).unwrap().reshape(p.value().shape()).unwrap();
                p.set_grad(Some(planish_tensor::ops::elementwise::scale(&grad, 2.0).unwrap()));
            }
            optimizer.step(Update { learning_rate: rates[s], grad_scale: 0.5 }).unwrap();
        };
        let params = fresh();
        let mut optimizer = make(name, &params);
        for s in 0..10 {
            step(&params, &mut *optimizer, s);
            for (t, p) in tensors.iter().zip(&params) {
                let want = get(&format!("{name}.{t}.param")).narrow(0, s, 1).unwrap().to_vec::<f32>().unwrap();
                let worst = crate::difference(&p.value().to_vec::<f32>().unwrap(), &want);
                // Values up to 3 after ten f32 updates; Muon's polynomials amplify rounding about tenfold.
                let tolerance = if name == "muon" { 2e-5 } else { 3e-6 };
                assert!(worst <= tolerance, "{name}, {t}, step {s}: {worst}");
            }
            // Evaluating in between changes nothing.
            let before: Vec<Vec<f32>> = params.iter().map(|p| p.value().to_vec().unwrap()).collect();
            optimizer.averaged(true).unwrap();
            if name == "schedule_free" && s == 9 {
                for (t, p) in tensors.iter().zip(&params) {
                    let want = get(&format!("{name}.{t}.average")).to_vec::<f32>().unwrap();
                    let worst = crate::difference(&p.value().to_vec::<f32>().unwrap(), &want);
                    assert!(worst <= 3e-6, "{name}, average of {t}: {worst}");
                }
            }
            optimizer.averaged(false).unwrap();
            assert_eq!(before, params.iter().map(|p| p.value().to_vec().unwrap()).collect::<Vec<Vec<f32>>>(), "{name}");
        }
        let other = fresh();
        let mut first = make(name, &other);
        (0..5).for_each(|s| step(&other, &mut *first, s));
        first.averaged(true).unwrap();
        let state = first.state().unwrap();
        let again: Vec<Param> = other.iter().map(|p| Param::trainable(p.name(), p.value().copied().unwrap())).collect();
        let mut second = make(name, &again);
        let find = |wanted: &str| Ok(state.iter().find(|(n, _)| n == wanted).expect(wanted).1.clone());
        second.restore(5, &find).unwrap();
        (5..10).for_each(|s| step(&again, &mut *second, s));
        for (p, q) in params.iter().zip(&again) {
            let bits = |p: &Param| p.value().to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(p), bits(q), "{name}: resumed");
        }
    }
}
