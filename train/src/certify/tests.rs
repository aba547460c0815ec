//! The certificate of the builtin model, and that a certificate can be refused.

use super::gradient::{Allowed, Gradient, Way, compare, gradient};
use super::*;
use crate::models;

fn builtin_model() -> Opened {
    models::open(models::BUILTIN, "main", &mut |_| {}).unwrap()
}

#[test]
fn the_builtin_model_is_certified() {
    let certificate = certify(&builtin_model(), Options { threads: 3, ..Options::default() }, &mut |_| {}).unwrap();
    for check in &certificate.checks {
        assert!(check.passed, "{check:#?}");
        assert!(check.compared > 0, "{check:#?}");
    }
    assert!(certificate.passed());
    for training in ["full", "lora"] {
        for law in [3, 5] {
            let of = certificate.checks.iter().filter(|c| (c.training, c.law) == (training, law));
            assert!(of.count() >= 12, "{training}, law {law}");
        }
    }
    // Cutting the step does change bits, or nothing was compared: the bound is not met by being idle.
    let split = certificate.checks.iter().find(|c| c.what.starts_with("micro-batches of 1,")).unwrap();
    assert!(split.differing > 0 && split.deviation > 0.0 && split.bound < 1e-4, "{split:#?}");
}

/// A thousandth of one example's gradient is far over the bound of all; so is a NaN, and so is silence.
#[test]
fn what_is_wrong_is_refused() {
    let opened = builtin_model();
    let model = opened.load(WeightDtype::Float32, true).unwrap();
    let examples = examples(&opened, 4).unwrap();
    let whole = Way::of(vec![vec![0, 1, 2, 3]]);
    let want = gradient(&model, &examples, &whole).unwrap();
    let lost = gradient(&model, &examples, &Way::of(vec![vec![0, 1, 2]])).unwrap();
    let tokens: usize = examples.iter().map(|e| e.ids.len()).sum();
    let by_param: Vec<f64> = want
        .tensors
        .iter()
        .map(|(_, t)| 2.0 * 6e-8 * (2.0 * tokens as f64).sqrt() * 4.0 * gradient::norm(t.as_ref()).unwrap())
        .collect();
    let allowed = Allowed { by_param };
    let check = |got: &Gradient| Check::new(3, "full", "planted", compare(got, &want, &allowed).unwrap());
    assert!(check(&want).passed);
    let mixed = |share: f32, other: &Gradient| {
        let mix = |a: &Tensor, b: &Tensor| {
            let (a, b) = (a.to_vec::<f32>().unwrap(), b.to_vec::<f32>().unwrap());
            a.iter().zip(&b).map(|(a, b)| a + share * (b - a)).collect::<Vec<f32>>()
        };
        let tensors = want.tensors.iter().zip(&other.tensors).map(|((name, a), (_, b))| {
            let mixed = a.as_ref().zip(b.as_ref());
            (name.clone(), mixed.map(|(a, b)| Tensor::from_vec(mix(a, b), a.dims()).unwrap()))
        });
        Gradient { tensors: tensors.collect(), loss: want.loss }
    };
    assert!(!check(&mixed(1e-3, &lost)).passed);
    assert!(!check(&mixed(f32::NAN, &lost)).passed);
    let nothing = Gradient { tensors: vec![], loss: 0.0 };
    assert!(!check(&nothing).passed);
}
