use super::*;
use crate::gemm::Store;
use crate::ops::linear::matmul_into;
use crate::ops::testing::{bits, random, same_bits_on_any_threads};
use crate::ops::{embedding, linear, lm_head, lora_linear};

/// The same weight in every format.
fn all(weight: &Tensor) -> Vec<Quantized> {
    let four = |kind, block, double| FourBit::quantize(weight, kind, block, double).unwrap();
    let mut all = vec![
        four(FourBitKind::Nf4, 64, false),
        four(FourBitKind::Nf4, 32, true),
        four(FourBitKind::Fp4, 128, false),
        four(FourBitKind::Fp4, 4096, true),
        Int8::quantize(weight).unwrap(),
    ];
    let (rows, cols) = (weight.dims()[0], weight.dims()[1]);
    for kind in GgmlKind::ALL.into_iter().filter(|k| cols.is_multiple_of(k.block_len())) {
        all.push(noise(rows, cols, kind));
    }
    let in_panels: Vec<Quantized> = all.iter().filter_map(|q| laid_out(&Tensor::packed(q.clone()))).collect();
    assert!(in_panels.len() == if cols.is_multiple_of(32) { all.len() } else { 0 });
    all.extend(in_panels);
    all.extend(FLOATS.map(|dtype| Panels::of(&weight.to_dtype(dtype).unwrap()).unwrap()));
    all
}

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

fn laid_out(weight: &Tensor) -> Option<Quantized> {
    Panels::takes(weight).then(|| Panels::of(weight).unwrap())
}

/// Blocks of random bytes with scales of ordinary size.
fn noise(rows: usize, cols: usize, kind: GgmlKind) -> Quantized {
    let n = rows * cols / kind.block_len() * kind.block_bytes();
    let stream = crate::rng::Stream::new(3, crate::rng::Purpose::Data, kind.block_bytes() as u64);
    let mut bytes: Vec<u8> = (0..n).map(|i| stream.below(i as u64, 256) as u8).collect();
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        let scales: &[usize] = match kind {
            GgmlKind::Q6_K => &[208],
            GgmlKind::Q4_0 | GgmlKind::Q5_0 | GgmlKind::Q8_0 => &[0],
            _ => &[0, 2],
        };
        for &at in scales {
            let scale = crate::f16::from_f32(0.01 + block[at] as f32 / 1000.0);
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    Ggml::from_blocks([rows, cols], kind, &Tensor::from_vec(bytes, [n]).unwrap()).unwrap()
}

fn pairs(rows: usize, cols: usize) -> Vec<(String, Tensor, Tensor)> {
    let weight = random(&[rows, cols], DType::F32, 7);
    let pair = |q: Quantized| {
        let panels = if matches!(q.layout(), Layout::Panels(_)) { " panels" } else { "" };
        let name = format!("{}{panels} {rows} x {cols}", q.format());
        (name, q.dequantize(DType::F32).unwrap(), Tensor::packed(q))
    };
    all(&weight).into_iter().map(pair).collect()
}

/// The invariant of the module: for few rows and many, both ways, whatever does not divide.
#[test]
fn products_have_the_bits_of_those_with_the_values() {
    for (out, input) in [(1, 1), (5, 3), (37, 64), (70, 800), (33, 256), (129, 1024)] {
        for (name, dense, packed) in pairs(out, input) {
            for rows in [1, 2, 5, 17, 33, 70] {
                let (x, dy) = (random(&[rows, input], DType::F32, 1), random(&[rows, out], DType::F32, 2));
                let forward = |w| bits(&linear::forward(&x, w, None).unwrap());
                assert!(forward(&packed) == forward(&dense), "{name}: {rows} rows forward");
                let backward = |w| bits(&linear::backward_input(&dy, w).unwrap());
                assert!(backward(&packed) == backward(&dense), "{name}: {rows} rows backward");
            }
        }
    }
}

#[test]
fn updates_heads_and_embeddings_have_them_too() {
    let (out, input, rows) = (300, 256, 40);
    let (a, b) = (random(&[4, input], DType::F32, 3), random(&[out, 4], DType::F32, 4));
    let (x, dy) = (random(&[rows, input], DType::F32, 1), random(&[rows, out], DType::F32, 2));
    let targets: Vec<u32> = (0..rows as u32).map(|i| i * 7 % out as u32).collect();
    for (name, dense, packed) in pairs(out, input) {
        let lora = lora_linear::Lora { scale: 0.5, dropout: None };
        let run = |w: &Tensor| {
            let (y, h) = lora_linear::forward(&x, w, None, &a, &b, &lora).unwrap();
            let wanted = lora_linear::Wanted { input: true, a: None, b: None };
            let dx = lora_linear::backward(&dy, &x, w, &a, &b, &h, &lora, wanted).unwrap().unwrap();
            let norms = crate::ops::dora_linear::row_norms(w, &a, &b, 0.5).unwrap();
            let (head, gradient) = lm_head::forward_with_gradient(&x, w, &targets, &Default::default()).unwrap();
            let g = random(&[rows], DType::F32, 9);
            let back = lm_head::backward(&g, &x, w, &targets, &head.lse, &Default::default(), None).unwrap();
            let rows = embedding::forward(w, &targets).unwrap();
            [y, dx, norms, head.logprobs, gradient, back, rows].map(|t| bits(&t))
        };
        assert!(run(&packed) == run(&dense), "{name}");
        same_bits_on_any_threads(|| vec![linear::forward(&x, &packed, None).unwrap()]);
    }
}

#[test]
fn any_run_of_elements_is_read() {
    for (name, dense, packed) in pairs(7, 512).into_iter().chain(pairs(5, 51)) {
        let (q, want) = (packed.quantized().unwrap(), dense.to_vec::<f32>().unwrap());
        for start in [0, 1, 2, 3, 31, 33, 50, 64, 127] {
            for len in [0, 1, 2, 7, 8, 15, 32, 33, 100, want.len() - start] {
                let mut got = vec![f32::NAN; len];
                q.read(start, &mut got);
                let same = got.iter().zip(&want[start..]).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{name}: {len} from {start}");
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn nibbles_in_registers_are_those_of_plain_code() {
    if crate::simd::detected() < crate::simd::Simd::Avx2 {
        return;
    }
    let bytes: Vec<u8> = (0..=255).collect();
    let code: [f32; 16] = std::array::from_fn(|i| (i as f32 - 7.3) * 0.7);
    let scale = |b: usize| 1.3 + b as f32;
    for block in [32, 64, 512] {
        for start in [0, 1, 2, 31, 32, 33, 63, 100] {
            for len in [0, 1, 2, 7, 8, 9, 16, 33, 200, 512 - start] {
                let (mut got, mut want) = (vec![0f32; len], vec![1f32; len]);
                // SAFETY: detected.
                unsafe { x86::read(&bytes, &code, block, scale, start, &mut got) };
                four_bit::portable(&bytes, &code, block, scale, start, &mut want);
                assert_eq!(bits_of(&got), bits_of(&want), "{len} from {start} in blocks of {block}");
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn bits_of(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn views_keep_their_places() {
    for (name, dense, packed) in pairs(9, 256) {
        let part = |t: &Tensor| t.narrow(0, 3, 4).unwrap().transpose(0, 1).unwrap().to_dtype(DType::F32).unwrap();
        assert_eq!(bits(&part(&packed)), bits(&part(&dense).contiguous().unwrap()), "{name}");
        let x = random(&[2, 256], DType::F32, 5);
        let product = |t: &Tensor| {
            let mut c = Tensor::zeros([2, 4], DType::F32).unwrap();
            let w = t.narrow(0, 3, 4).unwrap().transpose(0, 1).unwrap();
            matmul_into(&x, &w, &mut c, Store::Set).unwrap();
            bits(&c)
        };
        assert_eq!(product(&packed), product(&dense), "{name}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let w = random(&[4, 64], DType::F32, 0);
    let error = FourBit::quantize(&w, FourBitKind::Nf4, 48, false).unwrap_err().to_string();
    assert!(error.contains("blocksize is 48") && error.contains("4096"), "{error}");
    let bytes = Tensor::zeros([128], DType::U8).unwrap();
    let make = |scales: usize| {
        let scales = Scales::Plain(Tensor::zeros([scales], DType::F32).unwrap());
        FourBit::from_parts([4, 64], FourBitKind::Nf4, 64, &bytes, scales, DType::F32)
    };
    make(4).unwrap();
    let error = make(3).unwrap_err().to_string();
    assert!(error.contains("absmax") && error.contains('3') && error.contains('4'), "{error}");
    assert!(FourBit::quantize(&make(4).map(Tensor::packed).unwrap(), FourBitKind::Nf4, 64, false).is_err());
    let integers = bytes.to_dtype(DType::I8).unwrap();
    assert!(Int8::from_parts([4, 65], &integers, &Tensor::zeros([4], DType::F32).unwrap()).is_err());
    assert!(Ggml::from_blocks([4, 33], GgmlKind::Q8_0, &bytes).is_err());
    let packed = Tensor::packed(make(4).unwrap());
    assert!(packed.as_slice::<f32>().is_err() && packed.as_slice::<u8>().is_err() && packed.to_vec::<f32>().is_err());
    assert!(crate::ops::elementwise::add(&packed, &packed).is_err());
    assert_eq!(packed.nbytes(), 128 + 16);
    let panels = Tensor::packed(Panels::of(&packed).unwrap());
    for no in [&panels, &bytes, &packed.narrow(0, 0, 2).unwrap(), &packed.transpose(0, 1).unwrap()] {
        assert!(Panels::of(no).is_err() && !Panels::takes(no));
    }
    let unaligned =
        Tensor::packed(FourBit::quantize(&random(&[4, 40], DType::F32, 0), FourBitKind::Nf4, 32, false).unwrap());
    assert!(Panels::of(&unaligned).is_err() && !Panels::takes(&unaligned));
    assert!(Panels::of(&w.to_dtype(DType::F64).unwrap()).is_err());
    assert_eq!(Tensor::packed(Panels::of(&w).unwrap()).nbytes(), 16 * 64 * 4, "whole panels");
}

/// Maps of one input as one piece of work, of every format, with and without a bias, of few rows and of more than these, and
/// deeper than one block of the sum: each row has the bits that it has alone.
#[test]
fn maps_of_one_input_together_are_each_alone() {
    let (wide, cols) = (70, 1024);
    let weights: Vec<Tensor> =
        [wide, 33, 1].into_iter().flat_map(|rows| pairs(rows, cols)).map(|(_, _, packed)| packed).collect();
    let biases: Vec<Option<Tensor>> =
        weights.iter().enumerate().map(|(i, w)| (i % 2 == 1).then(|| random(&[w.dims()[0]], DType::F32, 5))).collect();
    let maps: Vec<_> = weights.iter().zip(&biases).map(|(w, b)| (w, b.as_ref())).collect();
    for rows in [1, 5, 11, 16, 27, 33] {
        let x = random(&[1, rows, cols], DType::F32, rows as u64);
        let row = |r: usize, w: &Tensor, b| bits(&linear::forward(&x.narrow(1, r, 1).unwrap(), w, b).unwrap());
        let alone = maps.iter().map(|&(w, b)| (0..rows).flat_map(|r| row(r, w, b)).collect::<Vec<u32>>());
        let alone: Vec<_> = alone.collect();
        same_bits_on_any_threads(|| {
            let together = linear::forward_together(&x, &maps).unwrap();
            assert_eq!(together.len(), maps.len());
            for ((together, alone), (w, _)) in together.iter().zip(&alone).zip(&maps) {
                assert_eq!(together.dims(), [1, rows, w.dims()[0]]);
                assert!(bits(together) == *alone, "{rows} rows by {w:?}");
            }
            together
        });
    }
    let x = random(&[2, cols], DType::F32, 1);
    let narrow = Tensor::packed(Panels::of(&random(&[8, 32], DType::F32, 2)).unwrap());
    assert!(linear::forward_together(&x, &[maps[0], (&narrow, None)]).is_err());
    assert!(linear::forward_together(&x, &[]).unwrap().is_empty());
}

/// Inputs of one shape after another, by one weight and by several as one piece of work: threads keep packed rows, and not for too long.
#[test]
fn rows_are_packed_anew_for_each_product() {
    let cols = 900;
    let weights = [128, 80, 48].map(|rows| Tensor::packed(Panels::of(&random(&[rows, cols], DType::F32, 1)).unwrap()));
    let maps: Vec<(&Tensor, Option<&Tensor>)> = weights.iter().map(|w| (w, None)).collect();
    for rows in [11, 16, 32] {
        for seed in 0..4 {
            let x = random(&[rows, cols], DType::F32, seed);
            let row = |r: usize, w: &Tensor| bits(&linear::forward(&x.narrow(0, r, 1).unwrap(), w, None).unwrap());
            let alone = weights.each_ref().map(|w| (0..rows).flat_map(|r| row(r, w)).collect::<Vec<u32>>());
            for threads in 1..=3 {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let together = linear::forward_together(&x, &maps).unwrap();
                    for ((w, together), alone) in weights.iter().zip(&together).zip(&alone) {
                        assert!(
                            bits(&linear::forward(&x, w, None).unwrap()) == *alone,
                            "{rows} rows, {seed}, {threads}"
                        );
                        assert!(bits(together) == *alone, "{rows} rows together, {seed}, {threads}");
                    }
                });
            }
        }
    }
}

#[test]
fn panels_are_the_weight() {
    for dtype in FLOATS {
        for shape in [[1, 1], [16, 3], [33, 70], [0, 4], [4, 0]] {
            let weight = random(&shape, DType::F32, 3).to_dtype(dtype).unwrap();
            let across = weight.transpose(0, 1).unwrap().contiguous().unwrap().transpose(0, 1).unwrap();
            for weight in [&weight, &across] {
                let back = Panels::of(weight).unwrap().dequantize(dtype).unwrap();
                assert_eq!((back.dims(), back.dtype()), (weight.dims(), dtype));
                let [back, weight] = [&back, weight].map(|t| bits(&t.to_dtype(DType::F32).unwrap()));
                assert_eq!(back, weight);
            }
        }
    }
}

/// One block of memory for weights of several formats: each is where it should be.
#[test]
fn weights_of_several_formats_lie_together() {
    let weights: Vec<Tensor> = [(37, 256), (16, 512)]
        .into_iter()
        .flat_map(|(rows, cols)| all(&random(&[rows, cols], DType::F32, 7)))
        .filter(|q| !matches!(q.layout(), Layout::Panels(_)))
        .map(Tensor::packed)
        .chain([random(&[3, 5], DType::BF16, 1)])
        .collect();
    let panels = Panels::together(&weights).unwrap();
    assert_eq!(panels.len(), weights.len());
    for (weight, panels) in weights.iter().zip(&panels) {
        assert_eq!(panels.nbytes(), Panels::bytes(weight));
        assert_eq!(Some(panels.format()), weight.quantized().map(Quantized::format).or(Some("bfloat16")));
        let values = |t: &Tensor| bits(&t.to_dtype(DType::F32).unwrap());
        assert_eq!(values(weight), values(&Tensor::packed(panels.clone())), "{}", panels.format());
    }
}

#[test]
fn zeros_stay_zeros_and_errors_are_small() {
    let zero = Tensor::zeros([3, 40], DType::F32).unwrap();
    for q in all(&zero).into_iter().take(5) {
        let values = q.dequantize(DType::F32).unwrap().to_vec::<f32>().unwrap();
        assert!(values.iter().all(|x| *x == 0.0), "{}", q.format());
    }
    let w = random(&[64, 256], DType::F32, 1);
    // A normal distribution: nf4 in blocks of 64 errs by about 9%, fp4 by 12%, int8 by less than 1%.
    let bounds = [(0.08, 0.1), (0.07, 0.1), (0.1, 0.2), (0.1, 0.25), (0.002, 0.01)];
    for (q, (least, most)) in all(&w).into_iter().zip(bounds) {
        let error = q.relative_rms(&w).unwrap();
        assert!(error > least && error < most, "{}: {error}", q.format());
    }
}
