//! Mixtures of experts and latent attention on the emulator: what the processor computes.

use planish_autograd::Tape;
use planish_nn::Ctx;
use planish_nn::decoder::{Model, Packed, Routing};
use planish_tensor::{DType, Device};
use planish_tests::law5::sequences;
use planish_train::losses::{Load, RouterTerms, router_loss};

use crate::half::{BOUNDS_OF_FIXTURES, close, in_bf16};
use crate::training::{compare, trajectory};
use crate::{emulator, law5, load, with_lora};

/// Experts apart and in one weight, shared ones with a gate and without, groups, a bias on the choice, scores that are sigmoids; latent
/// attention with queries at once and by way of a latent vector.
#[test]
fn all_weights() {
    let Some(device) = emulator(67) else { return };
    for (i, family) in ["mixtral", "qwen2_moe", "deepseek_v2_groups", "deepseek_v3"].into_iter().enumerate() {
        let model = || load(family, None, true);
        compare(family, &model(), &model(), device, i % 2 == 1);
    }
}

/// Where an adapter is in the experts, they are computed one by one.
#[test]
fn lora() {
    let Some(device) = emulator(68) else { return };
    for family in ["olmoe", "deepseek_v2"] {
        let model = || with_lora(load(family, None, false), 0.1);
        compare(&format!("{family} with LoRA"), &model(), &model(), device, false);
    }
}

#[test]
fn in_halves() {
    let Some(device) = emulator(69) else { return };
    for family in ["mixtral_fused", "qwen3_moe", "deepseek_v3_halves"] {
        let (here, there) = (load(family, None, true), in_bf16(load(family, None, true), device));
        close(family, &trajectory(&here, false, 2), &trajectory(&there, false, 2), BOUNDS_OF_FIXTURES);
    }
}

/// Law 5, in f32 and in bf16: a token's bits do not go by who else chose its experts.
#[test]
fn every_way_gives_the_same_bits() {
    let Some(device) = emulator(84) else { return };
    for (family, half) in [("qwen2_moe", false), ("deepseek_v3", true)] {
        let model = load(family, None, false);
        let model = if half { in_bf16(model, device) } else { model };
        model.to_device(device).unwrap();
        let sequences = sequences(&model, &[12, 2, 19], 5);
        law5::check(family, &model, &Ctx::inference(), &sequences);
    }
}

/// The routers' losses, their sum of squares, what they chose, and the gradient that goes to their weights.
fn routers(model: &Model) -> (Vec<f64>, Vec<Vec<u64>>) {
    let (tape, routing) = (Tape::new(), Routing::default());
    let ctx = Ctx::training(&tape, None).with_routing(&routing);
    let batch = Packed::new(&sequences(model, &[7, 12], 3));
    model.forward(&ctx, &batch, false).unwrap();
    let (pass, mut load) = (routing.take(), Load::default());
    load.add(&pass).unwrap();
    let (loss, squares) = router_loss(&pass, &load, RouterTerms { balance: 0.3, z: 0.1 }).unwrap();
    let loss = loss.unwrap();
    let number = loss.value().to_device(Device::Cpu).unwrap().item::<f32>().unwrap();
    tape.backward(&loss).unwrap();
    let mut all = vec![f64::from(number), squares];
    let routers: Vec<_> = model.params().into_iter().filter(|p| p.name().contains("gate.weight")).collect();
    assert!(!routers.is_empty());
    for router in routers {
        let gradient = router.grad().unwrap().to_device(Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
        all.extend(gradient.to_vec::<f64>().unwrap());
    }
    (all, load.layers.iter().map(|layer| layer.load.clone()).collect())
}

#[test]
fn losses_of_routers() {
    let Some(device) = emulator(85) else { return };
    for family in ["mixtral", "deepseek_v3"] {
        let (here, there) = (load(family, None, true), load(family, None, true));
        there.to_device(device).unwrap();
        let ((want, chosen), (got, chosen_there)) = (routers(&here), routers(&there));
        assert_eq!(chosen_there, chosen, "{family}");
        let size = want.iter().map(|w| w * w).sum::<f64>().sqrt();
        let off = want.iter().zip(&got).map(|(w, g)| (w - g) * (w - g)).sum::<f64>().sqrt();
        assert!(off <= 1e-5 * size, "{family}: off by {:.1e}", off / size);
    }
}
