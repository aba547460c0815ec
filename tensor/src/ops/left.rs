//! Products of few rows that are left to a [`stream`]: maps of one input are one piece of work.

use std::ops::Range;

use super::linear::{matrix, with_right};
use crate::gemm::{ByColumns, FEW_ROWS, Ticket, few_rows_runs};
use crate::parallel::Filled;
use crate::{DType, Error, Result, Tensor, device, stream};

/// y = (x B + U V) · factor + bias, without what is not there.
pub(super) struct Map<'a> {
    /// B: (in, out), of any strides, or quantised.
    pub(super) right: &'a Tensor,
    /// U: (rows, r), V: (r, out).
    pub(super) update: Option<(&'a Tensor, &'a Tensor)>,
    pub(super) factor: Option<f64>,
    /// (out).
    pub(super) bias: Option<&'a Tensor>,
}

impl<'a> Map<'a> {
    pub(super) fn plain(right: &'a Tensor, bias: Option<&'a Tensor>) -> Map<'a> {
        Map { right, update: None, factor: None, bias }
    }
}

/// Whether products of x, (rows, in), can be left now.
pub(super) fn takes(x: &Tensor) -> bool {
    let few = x.rank() == 2 && (1..=FEW_ROWS).contains(&x.dims()[0]) && x.dims()[1] > 0;
    few && x.dtype() == DType::F32 && x.device().is_cpu() && stream::is_open()
}

/// A map that owns what it needs.
struct Left {
    right: Tensor,
    update: Option<(Tensor, Tensor)>,
    factor: Option<f32>,
    bias: Option<Tensor>,
    y: Filled<f32>,
    n: usize,
}

/// What each map makes of x, which [is taken](takes) and fits all of them: (rows, out).
///
/// # Errors
/// A weight on a device; a dtype that is no float; no room.
pub(super) fn products(op: &'static str, x: &Tensor, maps: &[Map<'_>]) -> Result<Vec<Tensor>> {
    let (rows, k, threads) = (x.dims()[0], x.dims()[1], rayon::current_num_threads());
    let work = |n: usize| rows * k * n;
    let mut left = maps.iter().map(|map| work(map.right.dims()[1])).sum();
    let (mut owned, mut outs, mut tasks) = (Vec::new(), Vec::new(), Vec::new());
    for (g, map) in maps.iter().enumerate() {
        let all = [map.right].into_iter().chain(map.bias).chain(map.update.into_iter().flat_map(|(u, v)| [u, v]));
        device::cpu_only(op, all)?;
        // A dtype that no product takes.
        with_right!(op, map.right, _b => ());
        let n = map.right.dims()[1];
        let mut y = Tensor::scratch([rows, n], DType::F32)?;
        few_rows_runs([rows, k, n], threads, &mut left, |cols| tasks.push((g, cols)));
        let f32s = |t: &Tensor| t.to_dtype(DType::F32)?.contiguous();
        owned.push(Left {
            right: map.right.clone(),
            update: map.update.map(|(u, v)| Ok::<_, Error>((u.clone(), v.to_dtype(DType::F32)?))).transpose()?,
            factor: map.factor.map(|factor| factor as f32),
            bias: map.bias.map(f32s).transpose()?,
            y: Filled::of(&mut y)?,
            n,
        });
        outs.push(y);
    }
    let (x, ticket) = (x.clone(), Ticket::new());
    stream::leave(tasks.len(), outs.clone(), move |i| {
        let (g, cols) = &tasks[i];
        owned[*g].run(op, &x, cols.clone(), ticket).expect("checked when it was left");
    });
    Ok(outs)
}

impl Left {
    /// Columns `cols` of y.
    fn run(&self, op: &'static str, x: &Tensor, cols: Range<usize>, ticket: Ticket) -> Result<()> {
        let (a, y) = (matrix::<f32>(x), self.y.ptr());
        let update = self.update.as_ref().map(|(u, v)| (matrix::<f32>(u), matrix::<f32>(v)));
        with_right!(op, &self.right, b => {
            let product = ByColumns { a, b, update, n: self.n };
            // SAFETY: runs of columns are disjoint; y lives, and holds n for each row of x.
            unsafe { product.columns(cols.clone(), y, ticket) }
        });
        for r in 0..a.rows() {
            // SAFETY: as above.
            let y = unsafe { self.y.part(r * self.n + cols.start, cols.len()) };
            if let Some(factor) = self.factor {
                y.iter_mut().for_each(|y| *y *= factor);
            }
            if let Some(bias) = &self.bias {
                y.iter_mut().zip(&bias.checked::<f32>()[cols.clone()]).for_each(|(y, b)| *y += b);
            }
        }
        Ok(())
    }
}
