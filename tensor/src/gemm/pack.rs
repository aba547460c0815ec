//! Packing: from a strided matrix of any float dtype to the kernel's panel order, widened.

use crate::dtype::{Float, Real};

/// Writes one panel: `panel[p * width + l]` = element (line `l0 + l`, depth `k0 + p`) for
/// `l < width`, `p < kc`; zero for lines past `lines`.
///
/// `line_stride` and `depth_stride` are the source's strides along the two directions.
#[inline]
pub(super) fn pack_panels<R: Real, S: Float>(
    panel: &mut [R],
    src: &[S],
    l0: usize,
    lines: usize,
    k0: usize,
    kc: usize,
    line_stride: usize,
    depth_stride: usize,
    width: usize,
) {
    let live = width.min(lines.saturating_sub(l0));
    if live < width {
        panel.fill(R::ZERO);
    }
    if depth_stride == 1 {
        transpose_pack(panel, src, l0 * line_stride + k0, kc, line_stride, live, width);
    } else if line_stride == 1 {
        copy_pack(panel, src, l0 + k0 * depth_stride, kc, depth_stride, live, width);
    } else {
        for p in 0..kc {
            for l in 0..live {
                panel[p * width + l] = src[(l0 + l) * line_stride + (k0 + p) * depth_stride].widen();
            }
        }
    }
}

crate::simd::simd_fn! {
    /// Lines are contiguous along the depth: a transposition, eight deep at a time so that each
    /// line's cache line is used whole.
    fn transpose_pack<R: Real, S: Float>(panel: &mut [R], src: &[S], start: usize, kc: usize, line_stride: usize, live: usize, width: usize) {
        const DEPTH: usize = 8;
        let whole = kc - kc % DEPTH;
        for p in (0..whole).step_by(DEPTH) {
            let out = &mut panel[p * width..(p + DEPTH) * width];
            for l in 0..live {
                let at = start + l * line_stride + p;
                let line: &[S; DEPTH] = src[at..at + DEPTH].try_into().expect("DEPTH long");
                for d in 0..DEPTH {
                    out[d * width + l] = line[d].widen();
                }
            }
        }
        for p in whole..kc {
            for l in 0..live {
                panel[p * width + l] = src[start + l * line_stride + p].widen();
            }
        }
    }
}

crate::simd::simd_fn! {
    /// Lines are neighbours: each depth is one run to copy.
    fn copy_pack<R: Real, S: Float>(panel: &mut [R], src: &[S], start: usize, kc: usize, depth_stride: usize, live: usize, width: usize) {
        for p in 0..kc {
            let at = start + p * depth_stride;
            for (o, x) in panel[p * width..p * width + live].iter_mut().zip(&src[at..at + live]) {
                *o = x.widen();
            }
        }
    }
}
