//! QLoRA on a device: the steps of the processor, and the bits of the same model with its weights as numbers.

use std::collections::BTreeMap;

use planish_autograd::Tape;
use planish_nn::Ctx;
use planish_nn::adapters::{LoraConfig, LoraInit, Targets, adapter_params, attach_lora};
use planish_nn::decoder::{LoadOptions, Model, Packed};
use planish_nn::pretrained::Pretrained;
use planish_nn::quantize::{QuantizeAs, requantize, unpack};
use planish_tensor::quant::{FourBitKind, GgmlKind};
use planish_tensor::{DType, Device};
use planish_tests::blocks;
use planish_tests::law5::{bits, packed, sequences};
use planish_train::losses::cross_entropy;

use crate::half::{BOUNDS, BOUNDS_OF_FIXTURES, close, in_bf16, kernels_of, tiny, watched};
use crate::training::{STEPS, compare, trajectory};
use crate::{emulator, fixture, law5, load, stir, with_lora};

const fn four(kind: FourBitKind, block: usize, double: bool) -> QuantizeAs {
    QuantizeAs::FourBit { kind, block, double }
}

const NF4: QuantizeAs = four(FourBitKind::Nf4, 64, true);

/// A format for each family, the fused projections of Phi among them.
const FORMATS: [(&str, QuantizeAs); 4] = [
    ("smollm2", NF4),
    ("phi3", four(FourBitKind::Nf4, 64, false)),
    ("gemma2", four(FourBitKind::Fp4, 32, true)),
    ("qwen2", QuantizeAs::Int8),
];

fn quantised(family: &str, how: QuantizeAs) -> Model {
    let opened = Pretrained::open(&fixture(&format!("models/{family}"))).unwrap().quantized(Some(how));
    let model = opened.load(LoadOptions::default()).unwrap();
    assert!(model.layers[0].linears()[0].weight.base.value().quantized().is_some());
    model
}

/// [`tiny`] in 4 bits.
fn tiny_nf4() -> Model {
    requantized(tiny(DType::BF16, false))
}

/// A model's weights in 4 bits.
pub(crate) fn requantized(mut model: Model) -> Model {
    requantize(&mut model, NF4).unwrap();
    model
}

#[test]
fn ten_steps_in_f32() {
    let Some(device) = emulator(51) else { return };
    for (i, (family, how)) in FORMATS.into_iter().enumerate() {
        let model = || with_lora(quantised(family, how), 0.1);
        compare(&format!("{family} as {how:?}"), &model(), &model(), device, i % 2 == 0);
    }
}

/// On tensor cores, and with the sizes of fixtures, which are for other kernels.
#[test]
fn ten_steps_in_bf16() {
    let Some((device, emulator)) = watched(52, (9, 0)) else { return };
    let made = || with_lora(tiny_nf4(), 0.1);
    let there = in_bf16(made(), device);
    close("NF4", &trajectory(&made(), false, STEPS), &trajectory(&there, true, STEPS), BOUNDS);
    // Forward within products of few rows, backward by values.
    let seen = kernels_of(&emulator);
    assert!(["matmul_nf4_hopper", "nf4", "matmul_hopper"].iter().all(|k| seen.contains(*k)), "{seen:?}");
    // Which decode the scales themselves.
    assert!(!seen.contains("scales"), "{seen:?}");
    for (family, how) in FORMATS {
        let made = || with_lora(quantised(family, how), 0.1);
        let (here, there) = (trajectory(&made(), false, 2), trajectory(&in_bf16(made(), device), false, 2));
        close(&format!("{family} as {how:?}"), &here, &there, BOUNDS_OF_FIXTURES);
    }
}

/// The optimizer's step is one launch, which rounds the adapter's weights for the next step too; scales are decoded where they
/// are used; nothing is turned around in memory.
#[test]
fn a_step_has_few_launches_beside_its_products() {
    let Some((device, emulator)) = watched(97, (9, 0)) else { return };
    let launches = |steps| {
        // A rank that is filled up to a multiple of 8 would be copied for that.
        let config = LoraConfig { r: 8, target_modules: Targets::AllLinear, ..LoraConfig::default() };
        let mut model = tiny_nf4();
        attach_lora(&mut model, &config, 3).unwrap();
        let there = in_bf16(model, device);
        emulator.take_reports();
        trajectory(&there, false, steps);
        let mut all = BTreeMap::new();
        emulator.take_reports().into_iter().for_each(|report| *all.entry(report.kernel).or_insert(0) += 1);
        all
    };
    let [first, both] = [launches(1), launches(2)];
    let of_second: BTreeMap<&str, i32> =
        both.iter().map(|(name, n)| (&**name, n - first.get(name).unwrap_or(&0))).collect();
    let of = |name: &str| of_second.get(name).copied().unwrap_or(0);
    assert_eq!([of("adamw_of_all"), of("scales")], [1, 0], "{of_second:?}");
    // A few in each of two micro-batches, of activations: none of a weight.
    assert_eq!([of("copy_strided"), of("cast")], [2, 6], "{of_second:?}");
}

/// Weights that LoftQ quantises itself are the adapter's own.
#[test]
fn loftq() {
    let Some(device) = emulator(53) else { return };
    for bits in [4, 8] {
        let made = || {
            let init_lora_weights = LoraInit::LoftQ { bits, iterations: 1 };
            let config =
                LoraConfig { r: 4, init_lora_weights, target_modules: Targets::AllLinear, ..LoraConfig::default() };
            let mut model = load("smollm2", None, false);
            attach_lora(&mut model, &config, 3).unwrap();
            model
        };
        compare(&format!("LoftQ of {bits} bits"), &made(), &made(), device, false);
    }
}

/// Log-probabilities and gradients have the bits of the model whose weights are the values, in every way to a token.
fn same_as_values(what: &str, base: Model, device: Device, half: bool, lengths: &[usize]) {
    let mut dense = base.clone();
    unpack(&mut dense, DType::F32).unwrap();
    let [model, dense] = [base, dense].map(|model| {
        let mut model = with_lora(model, 0.0);
        stir(&model);
        model.to_device(device).unwrap();
        if half {
            model.set_activations(DType::BF16).unwrap();
        }
        model
    });
    let sequences = sequences(&model, lengths, 5);
    let want = packed(&dense, &Ctx::inference(), &sequences, false);
    assert_eq!(law5::check(what, &model, &Ctx::inference(), &sequences), want, "{what}");
    let gradients = |model: &Model| -> Vec<Vec<u64>> {
        let (tape, batch) = (Tape::new(), Packed::new(&sequences));
        let mask = vec![true; batch.len()];
        cross_entropy(model, &Ctx::training(&tape, None), &batch, &mask, true).unwrap();
        adapter_params(model, 0).iter().map(|p| bits(&p.take_grad().unwrap())).collect()
    };
    assert!(gradients(&model) == gradients(&dense), "{what}: gradients");
}

#[test]
fn bits_are_those_of_the_values() {
    let Some(device) = emulator(54) else { return };
    for (i, (family, how)) in FORMATS.into_iter().enumerate() {
        same_as_values(&format!("{family} as {how:?}"), quantised(family, how), device, i % 2 == 0, &[9, 2]);
    }
    same_as_values("NF4 on tensor cores", tiny_nf4(), device, true, &[18, 2]);
}

/// GGUF's blocks, the embedding and the head among them.
#[test]
fn bits_of_blocks_of_gguf_are_those_of_the_values() {
    let Some(device) = emulator(55) else { return };
    for (i, kind) in [GgmlKind::Q5_1, GgmlKind::Q6_K].into_iter().enumerate() {
        same_as_values(kind.name(), blocks::model(kind), device, i % 2 == 0, &[3, 2]);
    }
}
