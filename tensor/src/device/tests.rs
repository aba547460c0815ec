mod quantised;

use std::path::PathBuf;
use std::sync::Arc;

use planish_cuda::cache::KernelCache;
use planish_cuda::emulator::Emulator;

use super::*;
use crate::ops::{attention, concat, elementwise, linear, view};
use crate::{DType, bf16};

/// Emulator `number`, with the tests' cache of kernels; `None`, said on stderr, without NVRTC.
fn emulator(number: u32, change: impl FnOnce(Emulator) -> Emulator) -> Option<Device> {
    watched(number, change).map(|(device, _)| device)
}

/// The same with what is beneath it.
#[allow(clippy::print_stderr)]
fn watched(number: u32, change: impl FnOnce(Emulator) -> Emulator) -> Option<(Device, Arc<Emulator>)> {
    let cache = KernelCache::new(Some(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/tmp/kernels")));
    if let Err(error) = cache.compiler() {
        let required = std::env::var("PLANISH_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
        assert!(!required, "{error}; scripts/fetch-nvrtc gets it");
        eprintln!("skipped: {error}; scripts/fetch-nvrtc gets it");
        return None;
    }
    let driver = Arc::new(change(Emulator::new((9, 0)).unwrap()));
    Device::Emulator(number).install(planish_cuda::Device::new(driver.clone(), Arc::new(cache))).unwrap();
    Some((Device::Emulator(number), driver))
}

fn numbers(dims: &[usize]) -> Tensor {
    let n = dims.iter().product::<usize>();
    Tensor::from_vec((0..n).map(|i| i as f32 * 0.5 - 3.0).collect(), dims).unwrap()
}

/// Values of a tensor, wherever it is.
fn back(t: &Tensor) -> Vec<f32> {
    t.to_device(Device::Cpu).unwrap().to_vec().unwrap()
}

#[test]
fn names_are_read_and_written() {
    for (text, device) in [
        ("cpu", Device::Cpu),
        ("cuda", Device::Cuda(0)),
        ("gpu", Device::Cuda(0)),
        ("cuda:3", Device::Cuda(3)),
        ("emulator", Device::Emulator(0)),
        ("emulator:2", Device::Emulator(2)),
    ] {
        assert_eq!(Device::parse(text), Some(device));
        assert_eq!(Device::parse(&device.to_string()), Some(device));
    }
    for text in ["", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:4294967296", "CUDA", "emulator:1:2", "tpu"] {
        assert_eq!(Device::parse(text), None, "{text}");
    }
}

#[test]
fn views_are_those_of_the_processor() {
    let Some(device) = emulator(1, |e| e) else { return };
    let x = numbers(&[3, 4, 5]);
    let there = x.to_device(device).unwrap();
    assert_eq!(there.device(), device);
    type View = fn(&Tensor) -> crate::Result<Tensor>;
    let views: [View; 7] = [
        |t| Ok(t.clone()),
        |t| t.narrow(1, 1, 2),
        |t| t.transpose(0, 2),
        |t| t.narrow(0, 1, 2)?.transpose(0, 1)?.narrow(2, 2, 3),
        |t| t.unsqueeze(0)?.broadcast_to([2, 3, 4, 5]),
        |t| t.transpose(1, 2)?.reshape([5, 12]),
        |t| t.narrow(1, 4, 0),
    ];
    for (i, view) in views.iter().enumerate() {
        let (want, got) = (view(&x).unwrap(), view(&there).unwrap());
        assert_eq!(got.dims(), want.dims());
        assert_eq!(back(&got), want.to_vec::<f32>().unwrap(), "view {i}");
        assert_eq!(back(&got.copied().unwrap()), want.to_vec::<f32>().unwrap(), "copy of view {i}");
    }
    let narrow = there.to_dtype(DType::BF16).unwrap();
    let want = x.to_dtype(DType::BF16).unwrap().to_vec::<bf16>().unwrap();
    assert_eq!(narrow.to_device(Device::Cpu).unwrap().to_vec::<bf16>().unwrap(), want);
    // A value: no write is seen through another handle.
    let mut sum = there.clone();
    elementwise::add_assign(&mut sum, &there).unwrap();
    assert_eq!(back(&there), x.to_vec::<f32>().unwrap());
    assert_eq!(back(&sum), x.to_vec::<f32>().unwrap().iter().map(|x| x + x).collect::<Vec<_>>());
    let part = numbers(&[3, 2, 5]).to_device(device).unwrap();
    let (mut to, mut want) = (there.clone(), x.clone());
    to.write(1, 1, &part).unwrap();
    want.write(1, 1, &numbers(&[3, 2, 5])).unwrap();
    assert_eq!(back(&to), want.to_vec::<f32>().unwrap());
    assert_eq!(back(&there), x.to_vec::<f32>().unwrap());
    view::narrow_backward_add(&part, 1, 2, &mut to).unwrap();
    view::narrow_backward_add(&numbers(&[3, 2, 5]), 1, 2, &mut want).unwrap();
    assert_eq!(back(&to), want.to_vec::<f32>().unwrap());
    let joined = concat::forward(&[&there.transpose(0, 1).unwrap(), &there.transpose(0, 1).unwrap()], 1).unwrap();
    let x = x.transpose(0, 1).unwrap();
    assert_eq!(back(&joined), concat::forward(&[&x, &x], 1).unwrap().to_vec::<f32>().unwrap());
    assert_eq!(back(&Tensor::zeros_on(device, [2, 3], DType::F32).unwrap()), [0.0; 6]);
    assert_eq!(Tensor::zeros_on(device, [0, 3], DType::F32).unwrap().dims(), [0, 3]);
}

#[test]
fn nothing_is_read_or_mixed_silently() {
    let Some(device) = emulator(2, |e| e) else { return };
    let x = numbers(&[2, 3]);
    let mut there = x.to_device(device).unwrap();
    let words = |e: Error| e.to_string();
    assert_eq!(
        words(there.as_slice::<f32>().unwrap_err()),
        "as_slice: the tensor is on emulator:2; copy it with to_device(Device::Cpu) first"
    );
    assert!(words(there.to_vec::<f32>().unwrap_err()).starts_with("to_vec: "));
    assert!(words(there.as_slice_mut::<f32>().map(drop).unwrap_err()).starts_with("as_slice_mut: "));
    assert!(words(there.narrow(0, 0, 1).unwrap().narrow(1, 0, 1).unwrap().item::<f32>().unwrap_err()).contains("item"));
    assert_eq!(
        words(elementwise::add(&x, &there).unwrap_err()),
        "add: one tensor is on cpu and another on emulator:2; copy one of them with to_device first"
    );
    assert!(words(linear::forward(&there, &x, None).unwrap_err()).contains("mul"));
    let q = there.reshape([3, 1, 2]).unwrap();
    let stem = Some(attention::Stem { of: 0, len: 1 });
    let table = attention::Segments { cu_q: &[0, 1, 3], cu_k: &[0, 1, 3], stems: &[None, stem] };
    let refused = attention::forward_branched(&q, &q, &q, &table, &attention::Attention::causal(1.0)).unwrap_err();
    assert_eq!(refused, Error::NotOnDevice { op: "attention", device });
    assert_eq!(words(refused), "attention: not supported on emulator:2 yet; use --device cpu");
    let ints = Tensor::zeros([2], DType::I64).unwrap();
    assert!(matches!(ints.to_device(device), Err(Error::UnsupportedDType { dtype: DType::I64, .. })));
    let double = x.to_dtype(DType::F64).unwrap().to_device(device).unwrap();
    assert!(words(elementwise::add(&double, &double).unwrap_err()).contains("f64"));
    assert_eq!(double.to_device(Device::Cpu).unwrap().to_vec::<f64>().unwrap()[0], -3.0);
    assert!(format!("{there:?}").contains("emulator:2"));
    assert_eq!(device.install_again(), Error::DeviceOpen { device });
}

impl Device {
    fn install_again(self) -> Error {
        let driver = Arc::new(Emulator::new((9, 0)).unwrap());
        self.install(planish_cuda::Device::new(driver, Arc::new(KernelCache::new(None)))).unwrap_err()
    }
}

/// Deliberate faults: no room names what asked; a kernel that reads what nothing wrote is caught and named.
#[test]
fn faults_end_with_a_sentence() {
    let Some(device) = emulator(3, |e| e.with_memory(1 << 20)) else { return };
    let error = Tensor::zeros_on(device, [1 << 20], DType::F32).unwrap_err().to_string();
    assert!(error.contains("a tensor needs 4194304 bytes of device memory"), "{error}");
    let x = numbers(&[200, 300]).to_device(device).unwrap();
    let mut kept = vec![x.clone()];
    let error = loop {
        match elementwise::scale(&x, 2.0) {
            Ok(y) => kept.push(y),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.starts_with("scale needs 240128 bytes of device memory"), "{error}");
    drop(kept);
    elementwise::scale(&x, 2.0).unwrap();

    let on = x.memory().unwrap().on().clone();
    let unwritten = on.scratch("a test", [8], DType::F32).unwrap();
    let fault = elementwise::add(&unwritten, &unwritten).unwrap_err().to_string();
    assert!(fault.contains("elementwise_add") && fault.contains("nothing wrote"), "{fault}");
    // As on a card, the device is of no use after it.
    assert!(x.to_device(Device::Cpu).is_err());
}

/// Tables are uploaded once for all layers; memory and copies are counted.
#[test]
fn tables_are_kept_and_copies_counted() {
    let Some(device) = emulator(4, |e| e) else { return };
    let q = numbers(&[5, 2, 8]).to_device(device).unwrap();
    let options = attention::Attention::causal(0.3);
    let run = || attention::forward(&q, &q, &q, &[0, 2, 5], &[0, 2, 5], &options).unwrap().0;
    let first = run();
    let before = device.transfers().unwrap();
    let second = run();
    assert_eq!(device.transfers().unwrap(), before);
    assert_eq!(back(&first), back(&second));
    let after = device.transfers().unwrap();
    assert_eq!((after.downloads - before.downloads, after.download_bytes - before.download_bytes), (2, 2 * 5 * 16 * 4));
    let (kept, peak) = device
        .peak_of(|| {
            drop(Tensor::zeros_on(device, [1000], DType::F32));
            Tensor::zeros_on(device, [10], DType::F32)
        })
        .unwrap();
    assert_eq!((kept.unwrap().numel(), peak), (10, 4096));
    let memory = device.memory().unwrap().unwrap();
    assert!(memory.in_use > 0 && memory.free < memory.total && memory.peak >= memory.in_use);
    assert_eq!(Device::Cpu.memory().unwrap(), None);
    assert!(device.name().unwrap().contains("emulator"));
}

/// A weight in f32 that products of bf16 take is rounded once, and again after it was written.
#[test]
fn weights_are_rounded_once_for_each_version() {
    let Some((device, driver)) = watched(5, Emulator::with_reports) else { return };
    let casts = || driver.take_reports().iter().filter(|report| report.kernel == "cast").count();
    let half = |t: &Tensor| t.to_dtype(DType::BF16).unwrap();
    let x = half(&numbers(&[8, 16])).to_device(device).unwrap();
    let mut weight = elementwise::scale(&numbers(&[24, 16]), 0.013).unwrap().to_device(device).unwrap();
    let values = |weight: &Tensor| back(&linear::forward(&x, weight, None).unwrap().to_dtype(DType::F32).unwrap());
    // The weight, and here the result.
    let (first, one) = (values(&weight), casts());
    let (again, two) = (values(&weight.clone()), casts());
    assert_eq!((one, two), (2, 1));
    assert_eq!(first, again);
    assert_eq!(first, values(&half(&weight)));
    casts();
    // A part of it has bits of its own to take.
    assert_eq!(values(&weight.narrow(0, 8, 8).unwrap())[..8], first[8..16]);
    assert_eq!(casts(), 2);
    weight.write(0, 0, &numbers(&[24, 16]).to_device(device).unwrap()).unwrap();
    let fresh = numbers(&[24, 16]).to_device(device).unwrap();
    let (got, want) = (values(&weight), values(&fresh));
    assert_eq!(casts(), 4);
    assert!(got == want && got != first);
}

/// What plans count is what the allocator hands out.
#[test]
fn tensors_take_what_is_said() {
    let Some(device) = emulator(19, |e| e) else { return };
    for bytes in [1u64, 511, 512, 513, 100_000, 1 << 20, (1 << 20) + 1, 3_000_000, (1 << 22) + 1, 9_000_001] {
        let before = device.memory().unwrap().unwrap().in_use;
        let tensor = Tensor::zeros_on(device, [bytes as usize], DType::U8).unwrap();
        assert_eq!(device.memory().unwrap().unwrap().in_use - before, device.taken(bytes), "{bytes}");
        drop(tensor);
    }
    assert_eq!((Device::Cpu.taken(5), device.taken(0)), (5, 0));
}

/// Weights in f32 with rounded copies, which products took, and without; one with a master; one that somebody else holds.
#[test]
fn an_update_writes_rounded_copies_too() {
    let Some((device, driver)) = watched(12, Emulator::with_reports) else { return };
    let put = |n: usize| numbers(&[3, n]).to_device(device).unwrap();
    let settings = optim::AdamW { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };
    let sizes = [8, 5, 16, 11];
    let square = |t: Tensor| elementwise::mul(&t, &t).unwrap();
    let mut state = sizes.map(|n| [put(n), put(n), square(put(n))]);
    let gradients = sizes.map(|n| put(n));
    let mut narrow = state[2][0].to_dtype(DType::BF16).unwrap();
    for of in [0, 3] {
        state[of][0].rounded(DType::BF16).unwrap();
    }
    let (held, before) = (state[3][0].clone(), back(&state[3][0]));
    let mut parameters = Vec::new();
    for ([p, m, v], gradient) in state.iter_mut().zip(&gradients) {
        parameters.push(optim::Parameter { state: [p, m, v], weight: None, gradient, settings });
    }
    parameters[2].weight = Some(&mut narrow);
    driver.take_reports();
    optim::adamw(parameters, 3, 0.5).unwrap();
    let launched = |driver: &Emulator| driver.take_reports().into_iter().map(|r| r.kernel).collect::<Vec<_>>();
    // One for those of f32 alone, one for those of bf16.
    assert_eq!(launched(&driver), ["adamw_of_all", "adamw_of_all"]);
    let of = |t: &Tensor| back(&t.to_dtype(DType::F32).unwrap());
    let want = |p: &Tensor| of(&p.to_dtype(DType::BF16).unwrap());
    assert_eq!(of(&narrow), want(&state[2][0]));
    let [first, .., last] = &state[..] else { unreachable!() };
    launched(&driver);
    let kept = first[0].rounded(DType::BF16).unwrap();
    assert!(launched(&driver).is_empty(), "it was rounded again");
    assert_eq!(of(&kept), want(&first[0]));
    assert_eq!(of(&last[0].rounded(DType::BF16).unwrap()), want(&last[0]));
    assert_eq!((back(&held), of(&held.rounded(DType::BF16).unwrap())), (before, want(&held)));
    assert!(back(&held) != back(&last[0]));
    optim::adamw(vec![], 1, 1.0).unwrap();
    let [p, m, v] = &mut [numbers(&[2]), numbers(&[2]), numbers(&[2])];
    let here = optim::Parameter { state: [p, m, v], weight: None, gradient: &numbers(&[2]), settings };
    assert_eq!(optim::adamw(vec![here], 1, 1.0).unwrap_err(), Error::OnlyOnDevice { op: "adamw" });
}
