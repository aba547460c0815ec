//! `--device emulator`: the CUDA backend without a GPU trains, scores and decodes what the processor does.
//!
//! Without NVRTC these tests say that they skip; with `PLANISH_REQUIRE_NVRTC=1` its absence is a failure.

mod decoding;
mod distill;
mod eight_bits;
mod experts;
mod graphs;
mod half;
mod law5;
mod ops;
mod preference;
mod program;
mod quantised;
mod room;
mod scores;
mod training;
mod variants;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use planish_cuda::cache::KernelCache;
use planish_cuda::emulator::Emulator;
use planish_nn::adapters::{LoraConfig, Targets, adapter_params, attach_lora};
use planish_nn::decoder::{LoadOptions, Model};
use planish_nn::pretrained::Pretrained;
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Device, Tensor};

/// The folder of compiled kernels of all tests.
fn kernels() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels")
}

/// Whether there is a compiler of kernels; if not, that is said on stderr.
#[allow(clippy::print_stderr)]
fn has_nvrtc() -> bool {
    let Err(error) = KernelCache::new(None).compiler().map(drop) else { return true };
    let required = std::env::var("PLANISH_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
    assert!(!required, "{error}; scripts/fetch-nvrtc gets it");
    eprintln!("skipped: {error}; scripts/fetch-nvrtc gets it");
    false
}

/// Emulator `number`, one for each test; `None` without NVRTC. With `PLANISH_TEST_DEVICE=cuda` it is the card of this machine.
fn emulator(number: u32) -> Option<Device> {
    match std::env::var("PLANISH_TEST_DEVICE").as_deref() {
        Ok("cuda") => Some(Device::Cuda(0)),
        Ok(other) => panic!("PLANISH_TEST_DEVICE is '{other}'; it can be 'cuda'"),
        Err(_) => small_emulator(number, 1 << 30),
    }
}

/// The same with so many bytes of memory.
fn small_emulator(number: u32, bytes: u64) -> Option<Device> {
    has_nvrtc().then(|| install(number, Emulator::new((9, 0)).unwrap().with_memory(bytes)).0)
}

/// Emulator `number` of this kind.
fn install(number: u32, emulator: Emulator) -> (Device, Arc<Emulator>) {
    let (cache, emulator) = (Arc::new(KernelCache::new(Some(kernels()))), Arc::new(emulator));
    let device = Device::Emulator(number);
    device.install(planish_cuda::Device::new(emulator.clone(), cache)).unwrap();
    (device, emulator)
}

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

fn load(family: &str, dtype: Option<DType>, trainable: bool) -> Model {
    Pretrained::open(&fixture(&format!("models/{family}"))).unwrap().load(LoadOptions { dtype, trainable }).unwrap()
}

/// LoRA on every linear module.
fn with_lora(mut model: Model, dropout: f64) -> Model {
    let config =
        LoraConfig { r: 4, target_modules: Targets::AllLinear, lora_dropout: dropout, ..LoraConfig::default() };
    attach_lora(&mut model, &config, 3).unwrap();
    model
}

/// Gives the adapter's B other numbers than its zeros.
fn stir(model: &Model) {
    for (i, p) in adapter_params(model, 0).into_iter().enumerate().filter(|(_, p)| p.name().contains("lora_B")) {
        let (dims, s) = (p.value().dims().to_vec(), Stream::new(1, Purpose::Data, i as u64));
        let values = (0..p.value().numel() as u64).map(|k| 0.05 * s.normal(k) as f32).collect();
        p.update(|t| Tensor::from_vec(values, dims).map(|new| *t = new)).unwrap();
    }
}
