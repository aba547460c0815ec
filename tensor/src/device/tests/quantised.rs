//! Quantised weights on a device: their values and products have the bits of the processor's values.

use super::*;
use crate::f16;
use crate::ops::{embedding, grouped_linear, lm_head, lora_linear};
use crate::quant::{FourBit, FourBitKind, Ggml, GgmlKind, Int8, Quantized};
use crate::rng::{Purpose, Stream};

fn random(dims: &[usize], salt: u64) -> Tensor {
    let s = Stream::new(salt, Purpose::Data, 0);
    let n = dims.iter().product::<usize>() as u64;
    Tensor::from_vec((0..n).map(|i| s.normal(i) as f32).collect(), dims).unwrap()
}

/// A weight of random blocks, with scales that are numbers.
fn blocks([rows, cols]: [usize; 2], kind: GgmlKind) -> Quantized {
    let s = Stream::new(9, Purpose::Data, 0);
    let n = rows * cols / kind.block_len() * kind.block_bytes();
    let mut bytes: Vec<u8> = (0..n).map(|i| s.below(i as u64, 256) as u8).collect();
    let at: &[usize] = if kind == GgmlKind::Q6_K { &[208] } else { &[0, 2] };
    for (i, block) in bytes.chunks_exact_mut(kind.block_bytes()).enumerate() {
        for &at in at {
            block[at..at + 2].copy_from_slice(&f16::from_f32(0.003 + i as f32 / 4096.0).to_le_bytes());
        }
    }
    Ggml::from_blocks([rows, cols], kind, &Tensor::from_vec(bytes, [n]).unwrap()).unwrap()
}

/// A weight in each format. Blocks of 4 bits go across rows, and the last one is cut where the shape is odd.
fn all(shape: [usize; 2], of_ggml: [usize; 2]) -> Vec<Quantized> {
    let weight = random(&shape, 3);
    let four = |kind, block, double| FourBit::quantize(&weight, kind, block, double).unwrap();
    let mut all = vec![
        four(FourBitKind::Nf4, 64, false),
        four(FourBitKind::Nf4, 32, true),
        four(FourBitKind::Fp4, 64, true),
        four(FourBitKind::Fp4, 128, false),
        Int8::quantize(&weight).unwrap(),
    ];
    all.extend(GgmlKind::ALL.map(|kind| blocks(of_ggml, kind)));
    all
}

fn bits(t: &Tensor) -> Vec<u32> {
    let wide = t.to_device(Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    wide.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn values_are_those_of_the_processor() {
    let Some(device) = emulator(6, |e| e) else { return };
    for weight in all([37, 45], [5, 512]) {
        let what = weight.format();
        let here = Tensor::packed(weight);
        let there = here.to_device(device).unwrap();
        assert_eq!((there.device(), there.nbytes(), there.dims()), (device, here.nbytes(), here.dims()));
        assert_eq!(format!("{there:?}"), format!("Tensor(packed {:?} {what} on {device})", here.shape()));
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let (want, got) = (here.to_dtype(dtype).unwrap(), there.to_dtype(dtype).unwrap());
            assert_eq!((got.dtype(), got.device()), (dtype, device));
            assert_eq!(bits(&got), bits(&want), "{what} in {dtype}");
            type View = fn(&Tensor) -> crate::Result<Tensor>;
            let views: [View; 3] =
                [|t| t.narrow(0, 1, 3), |t| t.transpose(0, 1), |t| t.transpose(0, 1)?.narrow(1, 2, 1)];
            for (i, view) in views.iter().enumerate() {
                let values = view(&there).unwrap().to_dtype(dtype).unwrap();
                assert_eq!(bits(&values), bits(&view(&want).unwrap().contiguous().unwrap()), "{what}, view {i}");
            }
        }
        // And back.
        let back = there.to_device(Device::Cpu).unwrap();
        assert_eq!((back.device(), bits(&back)), (Device::Cpu, bits(&here)), "{what}");
    }
    let none = Tensor::packed(FourBit::quantize(&random(&[0, 3], 1), FourBitKind::Nf4, 64, false).unwrap());
    assert_eq!(none.to_device(device).unwrap().to_dtype(DType::BF16).unwrap().dims(), [0, 3]);
}

/// Forward and backward, with an update and without, by tensor cores and in f32; the head and the embedding of GGUF files.
#[test]
fn products_are_those_with_the_values() {
    let Some((device, driver)) = watched(7, Emulator::with_reports) else { return };
    let sizes = [
        (DType::BF16, all([72, 40], [16, 256])),
        // A depth that products of few rows make values of NF4 for within.
        (DType::BF16, all([72, 128], [16, 256])),
        (DType::F32, all([13, 21], [6, 256])),
        (DType::F16, all([8, 16], [8, 256])),
    ];
    for (activations, weights) in sizes {
        for weight in weights {
            let what = format!("{} with {activations}", weight.format());
            let [out, input] = weight.shape();
            let packed = Tensor::packed(weight).to_device(device).unwrap();
            let dense = packed.to_dtype(activations).unwrap();
            let put =
                |dims: &[usize], salt| random(dims, salt).to_dtype(activations).unwrap().to_device(device).unwrap();
            let (x, dy) = (put(&[5, input], 4), put(&[5, out], 5));
            let adapter = |dims: &[usize], salt| random(dims, salt).to_device(device).unwrap();
            let (a, b) = (adapter(&[3, input], 6), adapter(&[out, 3], 7));
            let lora = lora_linear::Lora { scale: 0.7, dropout: None };
            let run = |weight: &Tensor| -> crate::Result<Vec<Vec<u32>>> {
                let y = linear::forward(&x, weight, None)?;
                let (z, h) = lora_linear::forward(&x, weight, None, &a, &b, &lora)?;
                let wanted = lora_linear::Wanted { input: true, a: None, b: None };
                let dz = lora_linear::backward(&dy, &x, weight, &a, &b, &h, &lora, wanted)?.expect("asked for");
                let head = lm_head::forward_with_gradient(&x, weight, &[1, 0, 2, 5, 3], &Default::default())?;
                let rows = embedding::forward(weight, &[2, 0, 2])?;
                let all = [y, linear::backward_input(&dy, weight)?, z, dz, head.0.logprobs, head.1, rows];
                Ok(all.iter().map(bits).collect())
            };
            let (got, want) = (run(&packed).unwrap(), run(&dense).unwrap());
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                // Rows of the embedding are f32, whatever activations are.
                if i < 6 || activations == DType::F32 {
                    assert!(got == want, "{what}, result {i}");
                } else {
                    assert_eq!(
                        *got,
                        bits(&embedding::forward(&packed.to_dtype(DType::F32).unwrap(), &[2, 0, 2]).unwrap())
                    );
                }
            }
        }
    }
    let kernels: std::collections::BTreeSet<String> = driver.take_reports().into_iter().map(|r| r.kernel).collect();
    for kernel in ["nf4", "fp4", "int8", "scales", "ggml", "matmul_hopper", "matmul_nf4_hopper"] {
        assert!(kernels.contains(kernel), "{kernel} was not run: {kernels:?}");
    }
}

/// A product has the values of one weight in memory, and nothing of it afterwards.
#[test]
fn one_weight_at_a_time_is_there_as_numbers() {
    let Some(device) = emulator(8, |e| e) else { return };
    let before = device.memory().unwrap().unwrap().in_use;
    let weights: Vec<Tensor> = (0..4)
        .map(|i| FourBit::quantize(&random(&[256, 128], i), FourBitKind::Nf4, 64, true).unwrap())
        .map(|q| Tensor::packed(q).to_device(device).unwrap())
        .collect();
    let packed: usize = weights.iter().map(Tensor::nbytes).sum();
    let held = (device.memory().unwrap().unwrap().in_use - before) as usize;
    // Each part begins at a multiple of 512.
    assert!(held >= packed && held <= packed + 4 * 4 * 512, "{held} for {packed}");
    let x = random(&[2, 128], 9).to_dtype(DType::BF16).unwrap().to_device(device).unwrap();
    let dy = random(&[2, 256], 9).to_dtype(DType::BF16).unwrap().to_device(device).unwrap();
    let peak = |f: &dyn Fn(&Tensor) -> crate::Result<Tensor>| {
        device.peak_of(|| weights.iter().for_each(|w| drop(f(w).unwrap()))).unwrap().1
    };
    let backward = peak(&|w| linear::backward_input(&dy, w));
    // The values, the result.
    let most = 2 * 256 * 128 + 2 * 2 * 256 + 2 * 512;
    assert!(backward >= 2 * 256 * 128 && backward <= most, "{backward}, {most} would do");
    // A product of few rows has no values in memory, only its result.
    let forward = peak(&|w| linear::forward(&x, w, None));
    assert!(forward > 0 && forward <= 2 * 2 * 256 + 512, "{forward}");
    drop((x, dy));
    assert_eq!((device.memory().unwrap().unwrap().in_use - before) as usize, held);
}

#[test]
fn quantised_weights_are_not_read_or_mixed_silently() {
    let Some(device) = emulator(9, |e| e) else { return };
    let here = Tensor::packed(FourBit::quantize(&random(&[8, 16], 1), FourBitKind::Nf4, 64, false).unwrap());
    let there = here.to_device(device).unwrap();
    let x = random(&[2, 16], 2);
    let words = |e: Error| e.to_string();
    let mixed = [linear::forward(&x, &there, None), linear::forward(&x.to_device(device).unwrap(), &here, None)];
    for refused in mixed {
        assert!(words(refused.unwrap_err()).contains("one tensor is on"));
    }
    let refused = there.quantized().unwrap().relative_rms(&random(&[8, 16], 1)).unwrap_err();
    assert_eq!(refused, Error::NotHere { op: "quantisation error", device });
    assert!(words(there.to_dtype(DType::F64).unwrap_err()).contains("float64"));
    assert!(words(there.as_slice::<f32>().unwrap_err()).contains("emulator:9"));
    // What takes no packed weight says so.
    for refused in [elementwise::add(&there, &there), elementwise::scale(&there, 2.0), concat::forward(&[&there], 0)] {
        assert!(words(refused.unwrap_err()).contains("packed"));
    }
}

/// Experts in 4 bits: with many rows each they are one product of the values of those that have rows, with few a product each, and
/// the bits are the same, there and back.
#[test]
fn experts_of_many_rows_are_one_product() {
    let Some((device, driver)) = watched(20, |e| e.with_reports()) else { return };
    let half = |dims: &[usize], salt| random(dims, salt).to_dtype(DType::BF16).unwrap();
    let packed = |i, nested| FourBit::quantize(&half(&[32, 64], i), FourBitKind::Nf4, 64, nested).unwrap();
    // None of the second has rows; then two that have, few of them. Scales of one kind are decoded by one launch, of two by one each.
    for (starts, together, alike) in
        [([0, 130, 130, 131, 200], true, true), ([0, 130, 130, 131, 200], true, false), ([0, 3, 3, 3, 9], false, true)]
    {
        let here: Vec<Tensor> = (0..4).map(|i| Tensor::packed(packed(i, alike || i % 2 == 0))).collect();
        let weights: Vec<Tensor> = here.iter().map(|w| w.to_device(device).unwrap()).collect();
        let dense: Vec<Tensor> =
            here.iter().map(|w| w.to_dtype(DType::BF16).unwrap().to_device(device).unwrap()).collect();
        let rows = starts[4];
        let [x, dy] = [64, 32].map(|size| half(&[rows, size], 8).to_device(device).unwrap());
        driver.take_reports();
        let got = [
            grouped_linear::forward(&x, &weights, &starts).unwrap(),
            grouped_linear::backward_input(&dy, &weights, &starts).unwrap(),
        ];
        let ran: Vec<String> = driver.take_reports().into_iter().map(|r| r.kernel).collect();
        let times = |kernel| ran.iter().filter(|ran| *ran == kernel).count();
        let [each, all] = [times("nf4"), times("nf4_each")];
        if together {
            assert_eq!([each, all], if alike { [0, 2] } else { [6, 0] }, "{ran:?}");
            assert_eq!((times("matmul_runs_hopper"), ran.len()), (2, 2 + each + all), "{ran:?}");
        } else {
            assert_eq!(times("matmul_runs_hopper"), 0, "{ran:?}");
        }
        let want = [
            grouped_linear::forward(&x, &dense, &starts).unwrap(),
            grouped_linear::backward_input(&dy, &dense, &starts).unwrap(),
        ];
        assert_eq!(got.each_ref().map(bits), want.each_ref().map(bits), "{rows} rows");
    }
    // What a plan counts: the values of all, or of one.
    let values = |device, rows| grouped_linear::values_bytes(device, 4, rows, 4 * 32 * 64).unwrap();
    assert_eq!([values(device, 4 * 64), values(device, 4 * 64 - 1), values(Device::Cpu, 1000)], [16384, 4096, 0]);
}

/// Where the values of all experts have no room, those of one at a time do, with the same bits.
#[test]
fn experts_whose_values_have_no_room_together() {
    let Some(small) = watched(21, |e| e.with_memory(1300 << 10).with_reports()) else { return };
    let Some(large) = watched(22, Emulator::with_reports) else { return };
    let packed = |i| FourBit::quantize(&random(&[256, 256], i), FourBitKind::Nf4, 64, true).unwrap();
    let weights: Vec<Tensor> = (0..8).map(|i| Tensor::packed(packed(i))).collect();
    let x = random(&[512, 256], 9).to_dtype(DType::BF16).unwrap();
    let starts: Vec<usize> = (0..9).map(|i| 64 * i).collect();
    let of = |(device, driver): (Device, Arc<Emulator>)| {
        let weights: Vec<Tensor> = weights.iter().map(|w| w.to_device(device).unwrap()).collect();
        let y = bits(&grouped_linear::forward(&x.to_device(device).unwrap(), &weights, &starts).unwrap());
        (y, driver.take_reports().iter().filter(|report| report.kernel == "matmul_runs_hopper").count())
    };
    let [(got, no_launch), (want, one_launch)] = [small, large].map(of);
    assert_eq!((no_launch, one_launch), (0, 1));
    assert!(got == want);
}
