//! AdamW with its state in 8 bits: the kernel's bits are the processor's.

use planish_autograd::Param;
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Device, Tensor};
use planish_train::config::{OptimSettings, OptimizerChoice};
use planish_train::optim::{Optimizer, Rates, Update, optimizer, state_size};

use crate::emulator;

/// A matrix of a whole number of blocks and one of no such number, an embedding and a norm, whose states are in full.
fn params(dtype: DType) -> Vec<Param> {
    let shapes: [(&str, Vec<usize>); 4] = [
        ("model.layers.0.mlp.up_proj.weight", vec![64, 128]),
        ("model.layers.0.mlp.down_proj.weight", vec![67, 63]),
        ("model.embed_tokens.weight", vec![70, 64]),
        ("model.norm.weight", vec![64]),
    ];
    let one = |(i, (name, shape)): (usize, (&str, Vec<usize>))| {
        let (s, n) = (Stream::new(3, Purpose::Data, i as u64), shape.iter().product::<usize>());
        let values: Vec<f32> = (0..n as u64).map(|j| s.normal(j) as f32).collect();
        Param::trainable(name, Tensor::from_vec(values, shape).unwrap().to_dtype(dtype).unwrap())
    };
    shapes.into_iter().enumerate().map(one).collect()
}

/// Sets gradients of many sizes, some of which are zeros, and updates.
fn step(params: &[Param], optimizer: &mut dyn Optimizer, number: u64) {
    for (i, p) in params.iter().enumerate() {
        let (s, n) = (Stream::new(40 + number, Purpose::Data, i as u64), p.value().numel() as u64);
        let size = |j: u64| 10f64.powi((j / 300 % 7) as i32 - 6);
        let value = |j| if j % 11 == 0 || (256..512).contains(&j) { 0.0 } else { size(j) * s.normal(j) };
        let grad = Tensor::from_vec((0..n).map(|j| value(j) as f32).collect(), p.value().dims()).unwrap();
        p.set_grad(Some(grad.to_device(p.value().device()).unwrap()));
    }
    optimizer.step(Update { learning_rate: 1e-2, grad_scale: 0.3 }).unwrap();
}

fn bits(t: &Tensor) -> Vec<u64> {
    let here = t.to_device(Device::Cpu).unwrap();
    match here.dtype() {
        DType::U8 => here.to_vec::<u8>().unwrap().into_iter().map(u64::from).collect(),
        _ => here.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap().into_iter().map(f64::to_bits).collect(),
    }
}

// The error is the training layer's.
#[allow(clippy::result_large_err)]
#[test]
fn updates_are_those_of_the_processor_to_the_bit() {
    let Some(device) = emulator(50) else { return };
    let optim = OptimSettings {
        optim: OptimizerChoice::AdamW8bit,
        weight_decay: 0.1,
        adam_beta2: 0.99,
        ..OptimSettings::default()
    };
    for dtype in [DType::F32, DType::BF16] {
        let (here, there) = (params(dtype), params(dtype));
        for p in &there {
            p.update(|t| t.to_device(device).map(|moved| *t = moved)).unwrap();
        }
        let made = |params: &[Param]| optimizer(params, &optim, &Rates::default(), &std::env::temp_dir()).unwrap();
        let before = device.memory().unwrap().unwrap().in_use;
        let (mut ours, mut theirs) = (made(&here), made(&there));
        let taken = device.memory().unwrap().unwrap().in_use - before;
        // Beside the codes.
        assert_eq!(taken, state_size(&there, &optim).unwrap().memory + 2048);
        for number in 0..6 {
            if number == 3 {
                // Through a checkpoint of the other.
                let (kept, back) = (ours.state().unwrap(), made(&there));
                theirs = back;
                let get = |name: &str| Ok(kept.iter().find(|(n, _)| n == name).unwrap().1.copied().unwrap());
                theirs.restore(number, &get).unwrap();
            }
            step(&here, &mut *ours, number);
            step(&there, &mut *theirs, number);
            let (want, got) = (ours.state().unwrap(), theirs.state().unwrap());
            assert_eq!(want.len(), got.len());
            let full = |name: &str| name.contains("embed_tokens") || name.contains("norm");
            for ((name, want), (other, got)) in want.iter().zip(&got) {
                assert!(name == other && want.dtype() == got.dtype() && want.dims() == got.dims(), "{name} {other}");
                if !full(name) {
                    assert!(bits(want) == bits(got), "{dtype}, update {}: {name}", number + 1);
                }
            }
            for (want, got) in here.iter().zip(&there).filter(|(p, _)| !full(p.name())) {
                assert!(bits(&want.value()) == bits(&got.value()), "{dtype}, update {}: {}", number + 1, want.name());
            }
        }
        assert!(theirs.state().unwrap().iter().filter(|(_, t)| t.dtype() == DType::U8).count() == 4, "two in 8 bits");
    }
}
