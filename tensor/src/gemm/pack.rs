//! Packing: from a strided matrix of any float dtype to panels that the kernel reads in order, widened.

#[cfg(target_arch = "x86_64")]
use crate::dtype::DType;
use crate::dtype::{Float, Real};
#[cfg(target_arch = "x86_64")]
use crate::simd::{Simd, level};

#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

/// Lines `l0..l0 + lines` at depths `k0..k0 + kc` of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a, S> {
    pub(crate) data: &'a [S],
    pub(crate) l0: usize,
    pub(crate) lines: usize,
    pub(crate) k0: usize,
    pub(crate) kc: usize,
    /// Distance of lines.
    pub(crate) line_stride: usize,
    /// Distance along the depth.
    pub(crate) depth_stride: usize,
}

/// Writes one panel: `panel[p * width + l]` = element (line `l0 + l`, depth `k0 + p`) for `l < lines`,
/// 0 for `lines <= l < width`.
#[inline]
pub(crate) fn pack<R: Real, S: Float>(panel: &mut [R], width: usize, part: Part<'_, S>) {
    if part.lines < width {
        panel.fill(R::ZERO);
    }
    pack_lines(panel, width, part);
}

/// As [`pack`], but what lies behind the last line stays as it is.
#[inline]
pub(crate) fn pack_lines<R: Real, S: Float>(panel: &mut [R], width: usize, part: Part<'_, S>) {
    assert!(panel.len() == width * part.kc && part.lines <= width);
    if part.lines == 0 || part.kc == 0 {
        return;
    }
    let Part { lines, k0, kc, l0, line_stride, depth_stride, data } = part;
    let last = (l0 + lines - 1) * line_stride + (k0 + kc - 1) * depth_stride;
    assert!(last < data.len(), "a panel reaches past its matrix");
    if depth_stride == 1 {
        #[cfg(target_arch = "x86_64")]
        if R::DTYPE == DType::F32 && level() >= Simd::Avx2 && x86::transposes(S::DTYPE) {
            // SAFETY: R is f32 and S one of the dtypes that are transposed, by the tests before; the
            // vector unit is there; every element lies inside `data` and `panel` by the assertions.
            return unsafe { x86::transpose(panel.as_mut_ptr().cast(), width, data.as_ptr().cast(), S::DTYPE, &part) };
        }
        transpose_pack(panel, width, part);
    } else if line_stride == 1 {
        copy_pack(panel, width, part);
    } else {
        for p in 0..kc {
            for l in 0..lines {
                panel[p * width + l] = data[(l0 + l) * line_stride + (k0 + p) * depth_stride].widen();
            }
        }
    }
}

/// Lines are contiguous along the depth: a transposition, eight deep at a time so that each line's cache
/// line is used whole.
fn transpose_pack<R: Real, S: Float>(panel: &mut [R], width: usize, part: Part<'_, S>) {
    const DEPTH: usize = 8;
    let Part { data, l0, lines, k0, kc, line_stride, .. } = part;
    let start = l0 * line_stride + k0;
    let whole = kc - kc % DEPTH;
    for p in (0..whole).step_by(DEPTH) {
        let out = &mut panel[p * width..(p + DEPTH) * width];
        for l in 0..lines {
            let at = start + l * line_stride + p;
            let line: &[S; DEPTH] = data[at..at + DEPTH].try_into().expect("DEPTH long");
            for d in 0..DEPTH {
                out[d * width + l] = line[d].widen();
            }
        }
    }
    for p in whole..kc {
        for l in 0..lines {
            panel[p * width + l] = data[start + l * line_stride + p].widen();
        }
    }
}

crate::simd::simd_fn! {
    /// Lines are neighbours: each depth is one run to copy.
    fn copy_pack<R: Real, S: Float>(panel: &mut [R], width: usize, part: Part<'_, S>) {
        // The lengths that whole tiles have, known to the compiler: a run is a few moves then, not a call.
        match part.lines {
            4 => copy_runs::<R, S, 4>(panel, width, &part),
            6 => copy_runs::<R, S, 6>(panel, width, &part),
            8 => copy_runs::<R, S, 8>(panel, width, &part),
            16 => copy_runs::<R, S, 16>(panel, width, &part),
            48 => copy_runs::<R, S, 48>(panel, width, &part),
            64 => copy_runs::<R, S, 64>(panel, width, &part),
            _ => {
                let Part { data, l0, lines, k0, kc, depth_stride, .. } = part;
                for p in 0..kc {
                    let at = l0 + (k0 + p) * depth_stride;
                    for (o, x) in panel[p * width..p * width + lines].iter_mut().zip(&data[at..at + lines]) {
                        *o = x.widen();
                    }
                }
            }
        }
    }
}

/// As [`copy_pack`], of N lines.
#[inline(always)]
fn copy_runs<R: Real, S: Float, const N: usize>(panel: &mut [R], width: usize, part: &Part<'_, S>) {
    let from = part.l0 + part.k0 * part.depth_stride;
    for p in 0..part.kc {
        let at = from + p * part.depth_stride;
        let run: &[S; N] = part.data[at..at + N].try_into().expect("N long");
        let out: &mut [R; N] = (&mut panel[p * width..p * width + N]).try_into().expect("N long");
        for (o, x) in out.iter_mut().zip(run) {
            *o = x.widen();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};
    use crate::{bf16, f16};

    fn check<S: Float>() {
        let stream = Stream::new(5, Purpose::Data, 0);
        for lines in [1usize, 5, 7, 9, 15, 16, 17, 31, 33, 48, 49] {
            for kc in [1usize, 5, 15, 16, 17, 32, 40, 65] {
                for (line_stride, depth_stride) in [(kc + 3, 1), (1, lines + 2), (2 * (kc + 1), 2)] {
                    let n = (lines + 2) * line_stride + (kc + 3) * depth_stride;
                    let data: Vec<S> = (0..n as u64).map(|i| S::from_f64(stream.normal(i))).collect();
                    let part =
                        Part { data: &data, l0: 2, lines: lines - 1, k0: 1, kc: kc - 1, line_stride, depth_stride };
                    let width = lines.next_multiple_of(16);
                    let mut panel = vec![f32::NAN; width * part.kc];
                    pack(&mut panel, width, part);
                    for p in 0..part.kc {
                        for l in 0..width {
                            let want = if l < part.lines {
                                data[(2 + l) * line_stride + (1 + p) * depth_stride].widen::<f32>()
                            } else {
                                0.0
                            };
                            let got = panel[p * width + l];
                            assert_eq!(got.to_bits(), want.to_bits(), "{lines} lines, depth {kc}, at ({l}, {p})");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_panel_is_the_matrix_widened() {
        check::<f32>();
        check::<bf16>();
        check::<f16>();
        check::<f64>();
    }

    #[test]
    #[should_panic(expected = "reaches past")]
    fn a_panel_past_its_matrix_is_refused() {
        let data = [0f32; 15];
        let part = Part { data: &data, l0: 0, lines: 4, k0: 0, kc: 4, line_stride: 4, depth_stride: 1 };
        pack(&mut [0f32; 64], 16, part);
    }
}
