//! Quantised weights against their definition, bit for bit: the body of one test for each set of vector instructions,
//! each in a process of its own, since a process keeps to one.

use planish_tensor::gemm::KC;
use planish_tensor::ops::linear;
use planish_tensor::quant::{FourBit, FourBitKind, Ggml, GgmlKind, Int8, Layout, Panels, Quantized, Scales};
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Tensor, f16};

fn random(shape: [usize; 2], salt: u64) -> Tensor {
    let s = Stream::new(salt, Purpose::Data, 0);
    Tensor::from_vec((0..shape[0] * shape[1]).map(|i| s.normal(i as u64) as f32).collect(), shape).unwrap()
}

/// Blocks of Q8_0 or Q4_0 of random integers.
fn blocks([rows, cols]: [usize; 2], kind: GgmlKind) -> Quantized {
    let s = Stream::new(9, Purpose::Data, 0);
    let n = rows * cols / 32 * kind.block_bytes();
    let mut bytes: Vec<u8> = (0..n).map(|i| s.below(i as u64, 256) as u8).collect();
    for (i, block) in bytes.chunks_exact_mut(kind.block_bytes()).enumerate() {
        block[..2].copy_from_slice(&f16::from_f32(0.01 + i as f32 / 4096.0).to_le_bytes());
    }
    Ggml::from_blocks([rows, cols], kind, &Tensor::from_vec(bytes, [n]).unwrap()).unwrap()
}

/// Element `i`, from the definition of its format; of panels of `w`, that is the element.
fn value(q: &Quantized, w: &Tensor, i: usize) -> f32 {
    let bytes = |t: &Tensor| t.to_vec::<u8>().unwrap();
    match q.layout() {
        Layout::FourBit(f) => {
            let byte = bytes(f.bytes())[i / 2];
            let code = f.kind().code()[(if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 }) as usize];
            let block = i / f.block_size();
            let scale = match f.scales() {
                Scales::Plain(absmax) => absmax.to_vec::<f32>().unwrap()[block],
                Scales::Nested(n) => {
                    let code = n.code.to_vec::<f32>().unwrap()[bytes(&n.codes)[block] as usize];
                    code * n.absmax.to_vec::<f32>().unwrap()[block / n.block] + n.offset
                }
            };
            code * scale
        }
        Layout::Int8(x) => {
            let scale = x.scales().to_vec::<f32>().unwrap()[i / q.shape()[1]] * (1.0 / 127.0);
            x.bytes().to_vec::<i8>().unwrap()[i] as f32 * scale
        }
        Layout::Ggml(x) => {
            let all = bytes(x.bytes());
            let block = &all[i / 32 * x.kind().block_bytes()..][..x.kind().block_bytes()];
            let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
            match x.kind() {
                GgmlKind::Q8_0 => d * block[2 + i % 32] as i8 as f32,
                _ => {
                    let byte = block[2 + i % 16];
                    d * ((if i % 32 < 16 { byte & 15 } else { byte >> 4 }) as i32 - 8) as f32
                }
            }
        }
        Layout::Panels(x) => {
            let rounded = w.to_dtype(x.dtype()).unwrap().to_dtype(DType::F32).unwrap();
            rounded.as_slice::<f32>().unwrap()[i]
        }
    }
}

/// Values and products, whatever the format, at sizes that divide nothing and at a depth of several chains.
pub(crate) fn is_its_definition() {
    for shape in [[5, 7], [37, 96], [19, KC + 32]] {
        let w = random(shape, 1);
        let mut all = vec![
            FourBit::quantize(&w, FourBitKind::Nf4, 64, false).unwrap(),
            FourBit::quantize(&w, FourBitKind::Fp4, 32, true).unwrap(),
            Int8::quantize(&w).unwrap(),
            Panels::of(&w).unwrap(),
            Panels::of(&w.to_dtype(DType::BF16).unwrap()).unwrap(),
        ];
        if shape[1].is_multiple_of(32) {
            all.extend([GgmlKind::Q8_0, GgmlKind::Q4_0].map(|kind| blocks(shape, kind)));
        }
        for q in all {
            let values = q.dequantize(DType::F32).unwrap().to_vec::<f32>().unwrap();
            for i in (0..values.len()).step_by(1 + values.len() / 300) {
                assert_eq!(values[i].to_bits(), value(&q, &w, i).to_bits(), "{} element {i} of {shape:?}", q.format());
            }
            let packed = Tensor::packed(q.clone());
            for rows in [1, 2, 3, 15, 40] {
                let x = random([rows, shape[1]], 2);
                let y = linear::forward(&x, &packed, None).unwrap().to_vec::<f32>().unwrap();
                let x = x.to_vec::<f32>().unwrap();
                for (at, y) in y.iter().enumerate() {
                    let (x, w) =
                        (&x[at / shape[0] * shape[1]..][..shape[1]], &values[at % shape[0] * shape[1]..][..shape[1]]);
                    let chain = |(x, w): (&[f32], &[f32])| x.iter().zip(w).fold(0f32, |s, (x, w)| x.mul_add(*w, s));
                    let want = x.chunks(KC).zip(w.chunks(KC)).map(chain).reduce(|a, b| a + b).unwrap();
                    assert_eq!(y.to_bits(), want.to_bits(), "{}: {rows} rows of {shape:?}, {at}", q.format());
                }
            }
        }
    }
}
