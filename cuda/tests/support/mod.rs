//! What the tests of kernels share.
// Each test program uses its part; a test that skips says so.
#![allow(dead_code, clippy::print_stderr)]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use half::{bf16, f16};
use planish_cuda::cache::{Defines, KernelCache};
use planish_cuda::emulator::Emulator;
use planish_cuda::memory::DeviceBuffer;
use planish_cuda::{DType, Device, Queue};

/// The kernel cache of all tests, in Cargo's folder; `None`, said on stderr, if there is no NVRTC.
///
/// With `PLANISH_REQUIRE_NVRTC=1` its absence is a failure.
pub(crate) fn cache() -> Option<Arc<KernelCache>> {
    static CACHE: OnceLock<Option<Arc<KernelCache>>> = OnceLock::new();
    CACHE
        .get_or_init(|| {
            let cache = KernelCache::new(Some(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("kernels")));
            match cache.compiler() {
                Ok(_) => Some(Arc::new(cache)),
                Err(error) => {
                    let required = std::env::var("PLANISH_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
                    assert!(!required, "{error}; scripts/fetch-nvrtc gets it");
                    eprintln!("skipped: {error}; scripts/fetch-nvrtc gets it");
                    None
                }
            }
        })
        .clone()
}

/// An emulated H100 with the tests' kernel cache.
pub(crate) fn device() -> Option<Device> {
    device_of((9, 0))
}

/// An emulated device of a compute capability.
pub(crate) fn device_of(capability: (u32, u32)) -> Option<Device> {
    let cache = cache()?;
    Some(Device::new(Arc::new(Emulator::new(capability).unwrap()), cache))
}

pub(crate) fn defines(of: &[(&str, &str)]) -> Defines {
    of.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// A value as `dtype` holds it.
pub(crate) fn round(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(x as f32),
        DType::BF16 => bf16::from_f64(x).to_f64(),
        DType::F16 => f16::from_f64(x).to_f64(),
        _ => panic!("{dtype} is not computed with"),
    }
}

/// Random numbers of about size 1, as `dtype` holds them; another list for each salt.
pub(crate) fn random(n: usize, dtype: DType, salt: u64) -> Vec<f64> {
    let mut state = salt.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut next = || {
        // SplitMix64.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..n).map(|_| round((next() + next() + next() - 1.5) * 2.0, dtype)).collect()
}

/// Values on the device.
pub(crate) fn put(queue: Queue<'_>, values: &[f64], dtype: DType) -> DeviceBuffer {
    match dtype {
        DType::F32 => queue.upload("a test", &values.iter().map(|&x| x as f32).collect::<Vec<_>>()),
        DType::F64 => queue.upload("a test", values),
        DType::BF16 => queue.upload("a test", &values.iter().map(|&x| bf16::from_f64(x).to_bits()).collect::<Vec<_>>()),
        DType::F16 => queue.upload("a test", &values.iter().map(|&x| f16::from_f64(x).to_bits()).collect::<Vec<_>>()),
        other => panic!("no {other} here"),
    }
    .unwrap()
}

/// Values from the device.
pub(crate) fn get(buffer: &DeviceBuffer, dtype: DType) -> Vec<f64> {
    match dtype {
        DType::F32 => buffer.download::<f32>().unwrap().into_iter().map(f64::from).collect(),
        DType::F64 => buffer.download::<f64>().unwrap(),
        DType::BF16 => buffer.download::<u16>().unwrap().into_iter().map(|b| bf16::from_bits(b).to_f64()).collect(),
        DType::F16 => buffer.download::<u16>().unwrap().into_iter().map(|b| f16::from_bits(b).to_f64()).collect(),
        other => panic!("no {other} here"),
    }
}

/// Room for `n` elements.
pub(crate) fn room(queue: Queue<'_>, n: usize, dtype: DType) -> DeviceBuffer {
    queue.alloc("a test", n, dtype).unwrap()
}

/// How far a result rounded to `dtype` may be from the exact one, in norm: half a unit in the last place for each
/// element at most, and a few roundings of f32 before.
pub(crate) fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2e-6,
        DType::BF16 => 2.0f64.powi(-8),
        DType::F16 => 2.0f64.powi(-11),
        _ => 1e-12,
    }
}

/// |got - want| <= tolerance |want|, with norms over all elements.
#[track_caller]
pub(crate) fn close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(want).map(|(g, w)| g - w));
    let size = norm(&mut want.iter().copied());
    if !(difference <= tolerance * size) {
        let worst = (0..got.len()).max_by(|&a, &b| (got[a] - want[a]).abs().total_cmp(&(got[b] - want[b]).abs()));
        let worst = worst.map(|i| format!("element {i}: {} for {}", got[i], want[i])).unwrap_or_default();
        panic!("{what}: off by {:.2e} of {size:.2e}, {tolerance:.1e} is allowed; {worst}", difference / size);
    }
}

/// Runs a body for each shape that proptest thinks of, on an emulated H100, or on each of the devices that are named.
#[macro_export]
macro_rules! shapes {
    ($(#[$meta:meta])* fn $name:ident($($args:tt)*) $body:block) => {
        $crate::shapes! { @on [(9, 0)]; $(#[$meta])* fn $name($($args)*) $body }
    };
    (on $capabilities:expr; $(#[$meta:meta])* fn $name:ident($($args:tt)*) $body:block) => {
        $crate::shapes! { @on $capabilities; $(#[$meta])* fn $name($($args)*) $body }
    };
    (@on $capabilities:expr; $(#[$meta:meta])* fn $name:ident($queue:ident; $($arg:ident in $range:expr),*; $cases:literal cases) $body:block) => {
        $(#[$meta])*
        #[test]
        fn $name() {
            for capability in $capabilities {
                let Some(device) = $crate::support::device_of(capability) else { return };
                let config =
                    proptest::test_runner::Config { cases: $cases, failure_persistence: None, ..Default::default() };
                let mut runner = proptest::test_runner::TestRunner::new_with_rng(
                    config,
                    proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
                );
                let result = runner.run(&($($range,)*), |($($arg,)*)| {
                    let $queue = device.queue();
                    $body
                    Ok(())
                });
                if let Err(error) = result {
                    panic!("on {capability:?}: {error}");
                }
            }
        }
    };
}

/// A device whose tensor cores are those of `mma.sync`, and one of Hopper's.
pub(crate) const BOTH: [(u32, u32); 2] = [(8, 0), (9, 0)];

pub(crate) const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
