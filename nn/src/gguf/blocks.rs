//! Dequantisation: from blocks of small integers with shared scales to f32, as
//! [`planish_tensor::quant::ggml`] has them.

use half::{bf16, f16};
use planish_tensor::quant::{GgmlKind, ggml};

use super::GgmlType;

impl GgmlType {
    /// The blocks that it is made of, if it is quantised.
    pub const fn blocks(self) -> Option<GgmlKind> {
        Some(match self {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => return None,
            GgmlType::Q4_0 => GgmlKind::Q4_0,
            GgmlType::Q4_1 => GgmlKind::Q4_1,
            GgmlType::Q5_0 => GgmlKind::Q5_0,
            GgmlType::Q5_1 => GgmlKind::Q5_1,
            GgmlType::Q8_0 => GgmlKind::Q8_0,
            GgmlType::Q4_K => GgmlKind::Q4_K,
            GgmlType::Q5_K => GgmlKind::Q5_K,
            GgmlType::Q6_K => GgmlKind::Q6_K,
        })
    }
}

/// Dequantises whole blocks; the caller has matched the lengths.
pub(super) fn dequantize(kind: GgmlType, bytes: &[u8], out: &mut [f32]) {
    if let Some(kind) = kind.blocks() {
        return ggml::dequantize(kind, bytes, out);
    }
    match kind {
        GgmlType::F32 => each(bytes, out, |b: &[u8; 4], o: &mut [f32; 1]| o[0] = f32::from_le_bytes(*b)),
        GgmlType::F16 => each(bytes, out, |b: &[u8; 2], o: &mut [f32; 1]| o[0] = f16::from_le_bytes(*b).to_f32()),
        _ => each(bytes, out, |b: &[u8; 2], o: &mut [f32; 1]| o[0] = bf16::from_le_bytes(*b).to_f32()),
    }
}

/// Calls `f` on each block of `B` bytes and the `N` values it stands for.
fn each<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn(&[u8; B], &mut [f32; N])) {
    for (block, values) in bytes.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        f(block, values);
    }
}
