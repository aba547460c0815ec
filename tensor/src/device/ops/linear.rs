//! Matrix products.

use planish_cuda::DType as Type;
use planish_cuda::memory::SliceMut;
use planish_cuda::ops::elementwise;
use planish_cuda::ops::matmul::{Epilogue, Layout, Term, matmul};
use planish_cuda::ops::matmul_runs::{is_one_launch, matmul_runs};

use super::super::context;
use super::{On, quantised};
use crate::gemm::Store;
use crate::{DType, Device, Result, Tensor};

/// A two-dimensional tensor as the kernel takes it: without gaps, row by row or column by column; and which.
fn dense(t: &Tensor) -> Result<(Tensor, bool)> {
    if t.is_contiguous() {
        return Ok((t.clone(), false));
    }
    let transposed = t.transpose(0, 1)?;
    if transposed.is_contiguous() { Ok((transposed, true)) } else { Ok((t.copied()?, false)) }
}

/// Halves of a row of eight: what tensor cores ask of stored rows.
const ROW: usize = 8;

/// What a product is computed on, with sums in f32. Halves, on tensor cores, where A is one and B is alike or the
/// result is a half too: then A is an activation or a gradient, and a B of another type is a weight, taken in the type
/// of the activations as torch's autocast does; so is a quantised B. Otherwise f32, with B widened as it is read.
fn computed_in(a: DType, b: DType, to_half: bool) -> DType {
    let half = |t| matches!(t, DType::BF16 | DType::F16);
    if half(a) && (a == b || b == DType::Packed || to_half) { a } else { DType::F32 }
}

/// A tensor with `axis` filled up with zeros to `size`. Where that is what a sum is over, they change no bit of it.
pub(super) fn filled(on: &On, t: Tensor, axis: usize, size: usize) -> Result<Tensor> {
    if t.dims()[axis] == size {
        return Ok(t);
    }
    let mut dims = t.dims().to_vec();
    dims[axis] = size;
    let mut out = on.zeros("filling up", dims, t.dtype())?;
    out.write(axis, 0, &t)?;
    Ok(out)
}

/// C = or += A B + U V + a bias on each row, all but that two-dimensional and of any compute type; see [`computed_in`].
pub(crate) fn product(
    on: &On,
    factors: (&Tensor, &Tensor),
    update: Option<(&Tensor, &Tensor)>,
    bias: Option<&Tensor>,
    c: &mut Tensor,
    store: Store,
) -> Result<()> {
    if c.numel() == 0 {
        return Ok(());
    }
    let epilogue = Epilogue { add: matches!(store, Store::Add), ..Epilogue::default() };
    finished(on, factors, update, bias, c.cells_mut()?, epilogue)
}

/// C = factor · A B.
pub(crate) fn scaled_product(on: &On, factors: (&Tensor, &Tensor), factor: f64, c: &mut Tensor) -> Result<()> {
    if c.numel() == 0 {
        return Ok(());
    }
    finished(on, factors, None, None, c.cells_mut()?, Epilogue { alpha: factor as f32, ..Epilogue::default() })
}

/// Rows of a run on average, from which on it pays to make the values of all quantised matrices for one launch. Fewer read them
/// within their products.
const ROWS_FOR_VALUES: usize = 64;

/// Bytes of these values at most, all there at once: the largest map of 128 experts of Qwen3-30B-A3B has 0.4 GB, of 8 of Mixtral
/// 8x7B 0.94.
const VALUES: usize = 1 << 30;

/// Bytes of the values that a map of `experts` quantised experts, all of so many elements, takes on a device for `rows` rows: of all where
/// that is to be one product, of one otherwise.
///
/// # Errors
/// A device that cannot be opened.
pub fn values_bytes(device: Device, experts: usize, rows: usize, elements: usize) -> Result<u64> {
    if device.is_cpu() {
        return Ok(0);
    }
    let on = context::get(device)?;
    let one = elements / experts.max(1);
    let together = is_one_product(&on, [experts, rows, 2 * elements]);
    Ok(device.taken(2 * if together { elements } else { one } as u64))
}

fn is_one_product(on: &On, [count, rows, bytes]: [usize; 3]) -> bool {
    is_one_launch(on.queue()) && rows >= ROWS_FOR_VALUES * count && bytes <= VALUES
}

/// Whether the matrices of these runs are one product: they have values, or the values of all are made first. A matter of
/// speed, not of bits.
fn are_one_product<'a>(on: &On, runs: impl Iterator<Item = (&'a Tensor, &'a [usize])>) -> bool {
    let packed = runs.filter(|(right, _)| right.dtype() == DType::Packed);
    let [count, rows, bytes] = packed.fold([0; 3], |[count, rows, bytes], (right, run)| {
        [count + 1, rows + run[1] - run[0], bytes + 2 * right.numel()]
    });
    count == 0 || is_one_product(on, [count, rows, bytes])
}

/// Rows `starts[g]..starts[g + 1]` of A times B_g, run by run, in the type of A.
pub(crate) fn grouped(on: &On, a: &Tensor, rights: &[Tensor], starts: &[usize], n: usize) -> Result<Tensor> {
    let mut c = on.scratch("grouped_linear", [a.dims()[0], n], a.dtype())?;
    if c.numel() == 0 {
        return Ok(c);
    }
    let kind = a.dtype();
    // Those that have rows: no other's values are wanted.
    let runs = || rights.iter().zip(starts.windows(2)).filter(|(_, run)| run[0] < run[1]);
    if kind != DType::F32 && are_one_product(on, runs()) {
        let (views, plain): (Vec<Tensor>, Vec<bool>) =
            runs().map(|(right, _)| dense(right)).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        match quantised::values_of_each(on, &views, kind) {
            // As in `finished`, the layout of a weight is the kernel's plain one.
            Ok(dense) if plain.iter().all(|p| *p == plain[0]) => {
                let cells = dense.iter().map(Tensor::cells).collect::<Result<Vec<_>>>()?;
                let starts: Vec<usize> = std::iter::once(0).chain(runs().map(|(_, run)| run[1])).collect();
                let a = a.contiguous()?;
                matmul_runs(on.queue(), c.cells_mut()?, n, a.cells()?, &cells, !plain[0], &starts)?;
                return Ok(c);
            }
            // The values of one at a time may find it: a plan by a step of few rows has not seen more.
            Err(error) if !error.is_no_room() => return Err(error),
            _ => {}
        }
    }
    for (right, run) in runs() {
        let rows = run[1] - run[0];
        let part = c.cells_mut()?.part(run[0] * n, rows * n)?;
        finished(on, (&a.narrow(0, run[0], rows)?, right), None, None, part, Epilogue::default())?;
    }
    Ok(c)
}

/// The same for a C that is not empty.
fn finished(
    on: &On,
    (a, b): (&Tensor, &Tensor),
    update: Option<(&Tensor, &Tensor)>,
    bias: Option<&Tensor>,
    mut c: SliceMut<'_>,
    epilogue: Epilogue<'_>,
) -> Result<()> {
    let (m, n) = (a.dims()[0], b.dims()[1]);
    let kind = computed_in(a.dtype(), b.dtype(), c.dtype() != Type::F32);
    let wide = kind == DType::F32;
    let right = |t: Tensor| if wide && t.dtype() != DType::Packed { Ok(t) } else { t.rounded(kind) };
    let (a, a_transposed) = dense(a)?;
    let a = a.to_dtype(kind)?;
    // The kernel calls the layout of a weight, (n, k), the plain one.
    let (b, b_plain) = dense(b)?;
    let layout = Layout { a_transposed, b_transposed: !b_plain };
    // The factors of the update must lie as A and B do.
    let like = |t: &Tensor, transposed: bool| match transposed {
        false => t.contiguous(),
        true => t.transpose(0, 1)?.contiguous(),
    };
    let update = match update {
        None => None,
        Some((u, v)) => {
            // A rank that is no multiple of 8 would send the whole product away from the tensor cores.
            let rank = if wide { u.dims()[1] } else { u.dims()[1].next_multiple_of(ROW) };
            let u = filled(on, like(&u.to_dtype(kind)?, a_transposed)?, usize::from(!a_transposed), rank)?;
            // Turned first: a weight that then lies as it is kept has been rounded before.
            let v = filled(on, right(like(v, b_plain)?)?, usize::from(b_plain), rank)?;
            Some((u, v, rank))
        }
    };
    let depth = if a_transposed { a.dims()[0] } else { a.dims()[1] };
    let second = match &update {
        None => None,
        Some((u, v, depth)) => Some(Term { a: u.cells()?, b: v.cells()?, depth: *depth }),
    };
    // Which adds no bias.
    let plain = !epilogue.add && epilogue.alpha == 1.0 && bias.is_none();
    let forward = layout == Layout::FORWARD && plain;
    if forward && quantised::few_rows(on, [m, n, depth], &a, &b, second.as_ref(), c.reborrow())? {
        return Ok(());
    }
    let b = right(b)?;
    let mut terms = vec![Term { a: a.cells()?, b: b.cells()?, depth }];
    terms.extend(second);
    // A weight like the others: in the type that the product is computed in.
    let bias = bias.map(|bias| bias.rounded(kind)).transpose()?;
    let epilogue = Epilogue { bias: bias.as_ref().map(Tensor::cells).transpose()?, ..epilogue };
    Ok(matmul(on.queue(), c, [m, n], layout, &terms, epilogue)?)
}

/// Every row of y += bias.
pub(crate) fn add_bias(on: &On, y: &mut Tensor, bias: &Tensor) -> Result<()> {
    if y.numel() == 0 {
        return Ok(());
    }
    let bias = bias.to_dtype(DType::F32)?.contiguous()?;
    Ok(elementwise::add_row(on.queue(), y.cells_mut()?, bias.cells()?)?)
}
