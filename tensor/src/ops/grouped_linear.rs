//! Linear maps of runs of rows, each run by a matrix of its own: experts.
//!
//! y_r = x_r W_gᵀ for the rows r of run g, `starts[g]..starts[g + 1]`.
//!
//! x: (rows, in), each W: (out, in) in any float dtype or [quantised](crate::quant), y: (rows, out). A row's sum has the
//! order and the bits of [`linear`](super::linear): neither the other rows of its run, nor the runs, nor threads are
//! in it. On the processor all runs are one [call](crate::gemm::gemm_grouped): work is split over runs, columns and rows together;
//! so they are on Hopper in halves, and else on a device a run is a product.
//!
//! Bound by the bytes of the matrices where runs are short, else by arithmetic: 2 rows · in · out operations.

use super::linear::matrix;
use crate::device;
use crate::gemm::{Mat, Right, Store, gemm_grouped};
use crate::quant::PackedMat;
use crate::{DType, Element, Error, Result, Tensor, dispatch_float};

pub use crate::device::ops::linear::values_bytes;

const OP: &str = "grouped_linear";

/// Checks x (rows, in) against the weights, (out, in) each, and where their runs begin; gives (in, out).
fn check(x: &Tensor, weights: &[Tensor], starts: &[usize]) -> Result<(usize, usize)> {
    for t in std::iter::once(x).chain(weights) {
        if t.rank() != 2 {
            return Err(Error::Rank { op: OP, expected: 2, shape: t.dims().to_vec() });
        }
    }
    let mismatch = |what, lhs: &[usize], rhs: &[usize]| {
        Err(Error::ShapeMismatch { op: OP, what, lhs: lhs.to_vec(), rhs: rhs.to_vec() })
    };
    let runs = starts.first() == Some(&0) && starts.last() == Some(&x.dims()[0]) && starts.is_sorted();
    if !runs || starts.len() != weights.len() + 1 {
        return mismatch("rows of x against where the runs begin", x.dims(), starts);
    }
    let Some(first) = weights.first() else { return mismatch("x against no weight", x.dims(), starts) };
    if let Some(other) = weights.iter().find(|w| w.dims() != first.dims()) {
        return mismatch("a weight against the first", other.dims(), first.dims());
    }
    Ok((first.dims()[1], first.dims()[0]))
}

/// C (rows, n) = A_g B_g run by run.
fn products<R: Element>(
    c: &mut Tensor,
    starts: &[usize],
    rights: &[Tensor],
    mut run: impl FnMut(Vec<(usize, &mut [R])>) -> Result<()>,
) -> Result<()> {
    let width = c.dims()[1];
    let (mut rest, mut left) = (c.as_slice_mut::<R>()?, Vec::with_capacity(rights.len()));
    for (g, w) in starts.windows(2).enumerate() {
        let (own, later) = rest.split_at_mut((w[1] - w[0]) * width);
        left.push((g, own));
        rest = later;
    }
    // One call for each kind of weight, of which there is one almost always.
    while let Some(&(first, _)) = left.first() {
        let kind = |g: usize| (rights[g].quantized().is_some(), rights[g].dtype());
        let (now, later): (Vec<_>, Vec<_>) = left.into_iter().partition(|(g, _)| kind(*g) == kind(first));
        left = later;
        run(now)?;
    }
    Ok(())
}

/// A B_g of the rows of each run, in the dtype of A.
fn grouped(a: &Tensor, rights: Vec<Tensor>, starts: &[usize], n: usize) -> Result<Tensor> {
    if let Some(on) = device::of(OP, std::iter::once(a).chain(&rights))? {
        return device::ops::linear::grouped(&on, a, &rights, starts, n);
    }
    let mut c = a.scratch_beside(OP, [a.dims()[0], n], a.dtype())?;
    fn call<R: crate::Real, B: Right<R>>(
        a: Mat<'_, R>,
        starts: &[usize],
        now: Vec<(usize, &mut [R])>,
        right: impl Fn(usize) -> B,
    ) {
        let part = |(g, c): (usize, _)| (a.narrow_rows(starts[g], starts[g + 1] - starts[g]), right(g), c);
        gemm_grouped(now.into_iter().map(part).collect(), Store::Set);
    }
    match a.dtype() {
        DType::F32 => products::<f32>(&mut c, starts, &rights, |now| {
            let (a, first) = (matrix::<f32>(a), &rights[now[0].0]);
            if first.quantized().is_some() {
                call(a, starts, now, |g| PackedMat::of(&rights[g]).expect("weights of one kind"));
                return Ok(());
            }
            dispatch_float!(OP, first.dtype(), W => {
                call(a, starts, now, |g| matrix::<W>(&rights[g]));
            });
            Ok(())
        })?,
        DType::F64 => {
            let rights = rights.iter().map(|w| w.to_dtype(DType::F64)).collect::<Result<Vec<_>>>()?;
            products::<f64>(&mut c, starts, &rights, |now| {
                call(matrix::<f64>(a), starts, now, |g| matrix::<f64>(&rights[g]));
                Ok(())
            })?;
        }
        dtype => return Err(Error::UnsupportedDType { op: OP, dtype }),
    }
    Ok(c)
}

/// y.
///
/// # Errors
/// Shapes that do not agree, runs that are not those of x; x of a dtype other than f32 and f64, or on a device of one
/// that does not compute.
pub fn forward(x: &Tensor, weights: &[Tensor], starts: &[usize]) -> Result<Tensor> {
    let (input, out) = check(x, weights, starts)?;
    if x.dims()[1] != input {
        let (lhs, rhs) = (x.dims().to_vec(), weights[0].dims().to_vec());
        return Err(Error::ShapeMismatch { op: OP, what: "last size of x against weight (out, in)", lhs, rhs });
    }
    grouped(x, weights.iter().map(|w| w.transpose(0, 1)).collect::<Result<_>>()?, starts, out)
}

/// dL/dx: dy_r W_g.
///
/// # Errors
/// As [`forward`].
pub fn backward_input(dy: &Tensor, weights: &[Tensor], starts: &[usize]) -> Result<Tensor> {
    let (input, out) = check(dy, weights, starts)?;
    if dy.dims()[1] != out {
        let (lhs, rhs) = (dy.dims().to_vec(), weights[0].dims().to_vec());
        return Err(Error::ShapeMismatch { op: OP, what: "gradient of y against weight (out, in)", lhs, rhs });
    }
    grouped(dy, weights.to_vec(), starts, input)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::linear;
    use crate::quant::{FourBit, FourBitKind};
    use crate::rng::{Purpose, Stream};

    fn random(shape: [usize; 2], salt: u64, dtype: DType) -> Tensor {
        let s = Stream::new(salt, Purpose::Data, 0);
        let values: Vec<f64> = (0..(shape[0] * shape[1]) as u64).map(|i| s.normal(i)).collect();
        Tensor::from_vec(values, shape).unwrap().to_dtype(dtype).unwrap()
    }

    fn bits(t: &Tensor) -> Vec<u64> {
        t.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap().into_iter().map(f64::to_bits).collect()
    }

    /// Runs of no, few and many rows, small and large matrices, of one kind and of several, on any number of threads.
    #[test]
    fn each_run_has_the_bits_of_its_own_product() {
        let starts = [0, 0, 1, 3, 40, 41, 300, 300];
        for (input, out) in [(5, 3), (96, 160), (800, 320)] {
            let weight = |g: u64, dtype| random([out, input], 10 + g, dtype);
            let packed =
                |g| Tensor::packed(FourBit::quantize(&weight(g, DType::F32), FourBitKind::Nf4, 32, false).unwrap());
            let kinds: [Vec<Tensor>; 3] = [
                (0..7).map(|g| weight(g, DType::BF16)).collect(),
                (0..7).map(packed).collect(),
                (0..7)
                    .map(|g| if g % 3 == 0 { packed(g) } else { weight(g, [DType::F32, DType::BF16][g as usize % 2]) })
                    .collect(),
            ];
            for weights in &kinds {
                for dtype in [DType::F32, DType::F64] {
                    let (x, dy) = (random([300, input], 1, dtype), random([300, out], 2, dtype));
                    for threads in 1..=3 {
                        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                        let run =
                            || (forward(&x, weights, &starts).unwrap(), backward_input(&dy, weights, &starts).unwrap());
                        let (y, dx) = pool.install(run);
                        for (g, w) in starts.windows(2).enumerate() {
                            let rows = |t: &Tensor| t.narrow(0, w[0], w[1] - w[0]).unwrap();
                            let alone = linear::forward(&rows(&x), &weights[g], None).unwrap();
                            assert_eq!(bits(&rows(&y)), bits(&alone), "{out} x {input}, run {g}, {threads} threads");
                            let alone = linear::backward_input(&rows(&dy), &weights[g]).unwrap();
                            assert_eq!(bits(&rows(&dx)), bits(&alone), "{out} x {input}, run {g}, {threads} threads");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn runs_that_are_not_those_of_x_are_refused() {
        let (x, w) = (random([4, 3], 1, DType::F32), random([2, 3], 2, DType::F32));
        let weights = [w.clone(), w.clone()];
        for starts in [&[0, 2][..], &[0, 3, 5], &[1, 2, 4], &[0, 5, 4], &[0, 1, 2, 4]] {
            assert!(forward(&x, &weights, starts).is_err(), "{starts:?}");
        }
        assert!(forward(&x, &[w, random([3, 2], 2, DType::F32)], &[0, 2, 4]).is_err());
        assert!(forward(&random([4, 2], 1, DType::F32), &weights, &[0, 2, 4]).is_err());
        assert!(forward(&random([0, 3], 1, DType::F32), &[], &[0]).is_err());
        assert_eq!(forward(&random([0, 3], 1, DType::F32), &weights, &[0, 0, 0]).unwrap().dims(), [0, 2]);
    }
}
