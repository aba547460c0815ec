//! The device draws the random numbers of the CPU.

// A test that skips says so.
#![allow(clippy::print_stderr)]

use std::path::PathBuf;
use std::sync::Arc;

use planish_cuda::cache::KernelCache;
use planish_cuda::emulator::Emulator;
use planish_cuda::ops::dropout::{self, Dropout};
use planish_cuda::ops::sampling::{self, Draw, Sampling};
use planish_cuda::{DType, Device};
use planish_tensor::rng::{Purpose, Rows, Stream};

/// An emulated device; `None`, said on stderr, without NVRTC.
fn device() -> Option<Device> {
    let cache = KernelCache::new(Some(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("kernels")));
    if let Err(error) = cache.compiler() {
        let required = std::env::var("PLANISH_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
        assert!(!required, "{error}; scripts/fetch-nvrtc gets it");
        eprintln!("skipped: {error}; scripts/fetch-nvrtc gets it");
        return None;
    }
    Some(Device::new(Arc::new(Emulator::new((9, 0)).unwrap()), Arc::new(cache)))
}

/// Of equally likely tokens the one that is drawn tells the uniform number.
#[test]
fn sampling_draws_the_uniform_numbers_of_the_cpu() {
    let Some(device) = device() else { return };
    let (queue, width, rows) = (device.queue(), 4096, 12u64);
    let draws: Vec<Draw> = (0..rows)
        .map(|r| Draw { seed: 0x1234_5678_9abc + r, step: r << 31, index: 0x1_0000_0000 * (r % 3) + r })
        .collect();
    let logits = queue.zeros("a test", rows as usize * width, DType::F32).unwrap();
    let words = queue.upload("a test", &Draw::words(&draws)).unwrap();
    let mut tokens = queue.alloc("a test", rows as usize, DType::U32).unwrap();
    let how = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
    let (out, logits, words) = (tokens.slice_mut(DType::U32), logits.slice(DType::F32), words.slice(DType::U32));
    sampling::sample(queue, out, logits, words, &how, width).unwrap();
    let want: Vec<u32> = draws
        .iter()
        .map(|d| (Stream::new(d.seed, Purpose::Sampling, d.step).uniform_f64(d.index) * width as f64) as u32)
        .collect();
    assert_eq!(tokens.download::<u32>().unwrap(), want);
}

#[test]
fn dropout_has_the_masks_of_the_cpu() {
    let Some(device) = device() else { return };
    let (queue, rows, columns, p) = (device.queue(), 5, 77, 0.3);
    let (seed, step) = (0xfeed_0000_0001, 3);
    let keys: Vec<u64> = (0..rows as u32).map(|r| Rows::key(11, r, 100 + r)).collect();
    let x = queue.upload("a test", &vec![1.0f32; rows * columns]).unwrap();
    let words = queue.upload("a test", &keys).unwrap();
    let mut y = queue.alloc("a test", rows * columns, DType::F32).unwrap();
    let mask = Dropout { seed, purpose: Purpose::Dropout as u32, step, p };
    dropout::dropout(queue, y.slice_mut(DType::F32), x.slice(DType::F32), words.slice(DType::U32), &mask, columns)
        .unwrap();
    let on_cpu = Rows::new(Stream::new(seed, Purpose::Dropout, step), keys.into());
    let ones = planish_tensor::Tensor::full(1.0f32, [rows, columns]).unwrap();
    let want = planish_tensor::ops::dropout::forward(&ones, p, &on_cpu).unwrap();
    assert_eq!(y.download::<f32>().unwrap(), want.to_vec::<f32>().unwrap());
}
