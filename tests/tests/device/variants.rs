//! What `planish kernels compile` compiles ahead, and what the compile test watches for spills, is what runs: each variant
//! that training and decoding of small models ask for is in the list of `cuda/src/kernels.rs`.
//!
//! Small models have small widths and small tiles. Those of large models are held against the list where the launchers
//! choose them, in `cuda/src/ops/norm.rs`, `matmul.rs` and `matmul_hopper.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;

use planish_cuda::cache::{Defines, KernelCache};
use planish_cuda::emulator::Emulator;
use planish_cuda::kernels;
use planish_nn::decoder::Model;
use planish_nn::generate::{Generator, SamplingParams};
use planish_tensor::{DType, Device};
use planish_tests::law5::sequences;
use planish_train::config::OptimSettings;
use planish_train::trainer::accumulate;

use crate::half::{in_bf16, tiny_of};
use crate::quantised::requantized;
use crate::training::{step_of, trajectory};
use crate::{has_nvrtc, kernels as folder, with_lora};

/// A device and the cache that notes what it is asked for.
fn noted(number: u32, capability: (u32, u32)) -> (Device, Arc<KernelCache>) {
    let cache = Arc::new(KernelCache::new(Some(folder())));
    let emulator = Arc::new(Emulator::new(capability).unwrap().with_memory(1 << 30));
    let device = Device::Emulator(number);
    device.install(planish_cuda::Device::new(emulator, cache.clone())).unwrap();
    (device, cache)
}

/// Answers to prompts of different lengths, drawn and not.
fn decode(model: &Model) {
    for temperature in [0.0, 0.8] {
        let params = SamplingParams { max_new_tokens: 2, temperature, top_p: 0.9, ..SamplingParams::default() };
        Generator::new(model).generate(&sequences(model, &[5, 2], 3), &params, &mut |_| true).unwrap();
    }
}

/// The definitions but for those that go by a model's width alone.
fn but_widths(name: &str, defines: &Defines) -> Defines {
    let by_width = |define: &&(String, String)| matches!(name, "rms_norm" | "layer_norm") && define.0 == "LANES";
    defines.iter().filter(|define| !by_width(define)).cloned().collect()
}

fn is_listed(name: &str, defines: &Defines) -> bool {
    let kernel = kernels::find(name).unwrap();
    let owned = |variant: &&[kernels::Define]| -> Defines {
        variant.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    };
    kernel.variants.iter().map(owned).any(|of| but_widths(name, &of) == but_widths(name, defines))
}

#[test]
fn what_training_and_decoding_ask_for_is_compiled_ahead() {
    if !has_nvrtc() {
        return;
    }
    let mut missing = BTreeSet::new();
    for (number, capability) in [(101, (9, 0)), (102, (8, 0))] {
        let (device, cache) = noted(number, capability);
        for head in [64, 128] {
            // All weights, with f32 masters.
            let model = in_bf16(tiny_of(head, DType::BF16, true), device);
            trajectory(&model, false, 1);
            if (capability, head) == ((9, 0), 64) {
                // More tokens than the gradient of a small weight takes at once.
                accumulate(&model, &OptimSettings::default(), &step_of(&model, &[520, 520], 1), 0).unwrap();
            }
            decode(&model);
            for base in [tiny_of(head, DType::BF16, false), requantized(tiny_of(head, DType::BF16, false))] {
                let model = in_bf16(with_lora(base, 0.1), device);
                trajectory(&model, true, 1);
                decode(&model);
            }
        }
        // In f32, with bf16 weights and without.
        for dtype in [DType::BF16, DType::F32] {
            let model = tiny_of(64, dtype, true);
            model.to_device(device).unwrap();
            trajectory(&model, false, 1);
            decode(&model);
        }
        for (name, defines) in cache.asked() {
            if !is_listed(name, &defines) {
                let defines: Vec<String> = defines.iter().map(|(name, value)| format!("{name}={value}")).collect();
                missing.insert(format!("{name} {}", defines.join(" ")));
            }
        }
    }
    assert!(missing.is_empty(), "not in the list:\n{}", Vec::from_iter(missing).join("\n"));
}
