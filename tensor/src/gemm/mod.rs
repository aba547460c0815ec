//! Matrix products: C = A B, or C += A B, in f32 or f64, from inputs of any float dtype and stride.
//!
//! Both inputs are copied ("packed") block by block into panels that a register-tiled kernel reads
//! in order, and widened on the way: bf16 and f16 inputs cost the packing and nothing more.
//!
//! # Order of the sum
//! Every output element is, for each block of [`KC`] consecutive `k` in order, one chain of fused
//! multiply-adds over `k` in order from 0, and these block sums are added in order (to the old value
//! first, when accumulating). This order depends on nothing else: not on the other rows or columns,
//! on their number, on the tile, on the vector unit or on the threads. So a row's product has the
//! same bits in a batch of one and in a batch of thousands (law 5 of the design).
//!
//! Bound by arithmetic: 2 m n k operations against (m k + k n + m n) elements moved.

mod kernel;
mod pack;

pub use kernel::Kernel;

use crate::dtype::{Float, Real};
use pack::pack_panels;
use rayon::prelude::*;

/// Length of the k-blocks. Part of the arithmetic (see the order of the sum), not only a tuning knob.
pub const KC: usize = 512;

/// A matrix view: `data[i * rs + j * cs]` is element (i, j).
#[derive(Debug, Clone, Copy)]
pub struct Mat<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    rs: usize,
    cs: usize,
}

impl<'a, T: Float> Mat<'a, T> {
    /// A row-major matrix.
    ///
    /// # Panics
    /// If `data` is shorter than the matrix.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols, 1)
    }

    /// A matrix of any strides.
    ///
    /// # Panics
    /// If an element lies outside `data`.
    pub fn strided(data: &'a [T], rows: usize, cols: usize, rs: usize, cs: usize) -> Self {
        if rows > 0 && cols > 0 {
            assert!((rows - 1) * rs + (cols - 1) * cs < data.len(), "matrix reaches past its data");
        }
        Mat { data, rows, cols, rs, cs }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Mat { data: self.data, rows: self.cols, cols: self.rows, rs: self.cs, cs: self.rs }
    }

    /// Rows `start..start + len`.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn narrow_rows(self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.rows, "rows out of range");
        let skip = if len == 0 || self.cols == 0 { 0 } else { start * self.rs };
        Mat { data: &self.data[skip..], rows: len, ..self }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// What happens to the old values of C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// C = A B.
    Set,
    /// C += A B.
    Add,
}

/// C (m, n) = or += A (m, k) B (k, n), C row-major.
///
/// # Panics
/// If the sizes do not agree: callers validate shapes first.
pub fn gemm<R: Real, A: Float, B: Float>(a: Mat<A>, b: Mat<B>, c: &mut [R], store: Store) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(k, b.rows, "inner sizes");
    assert_eq!(c.len(), m * n, "size of C");
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if store == Store::Set {
            c.fill(R::ZERO);
        }
        return;
    }
    let (mr, nr) = R::tile();
    // Few rows: B is touched once, so each thread packs the panels of its own columns and uses them
    // while they are in its cache. Many rows: panels of B are packed once and shared by row blocks.
    if m <= 4 * mr {
        few_rows(a, b, c, store, mr, nr);
    } else {
        many_rows(a, b, c, store, mr, nr);
    }
}

/// Rows of C per task when there are many: A's packed block (KC rows deep) then fits half of L2.
const MC_BYTES: usize = 256 << 10;
/// Columns of B packed at a time: the shared panels stay in L3.
const NC: usize = 1024;

fn many_rows<R: Real, A: Float, B: Float>(a: Mat<A>, b: Mat<B>, c: &mut [R], store: Store, mr: usize, nr: usize) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    let kc_max = k.min(KC);
    let threads = rayon::current_num_threads();
    let cache_rows = (MC_BYTES / size_of::<R>() / kc_max / mr).max(1) * mr;
    let even_rows = m.div_ceil(threads).div_ceil(mr) * mr;
    // As many equal blocks as threads, each cut further until it fits the cache.
    let mc = even_rows.div_ceil(even_rows.div_ceil(cache_rows)).div_ceil(mr) * mr;
    let mut packed_b = vec![R::ZERO; NC.min(n).div_ceil(nr) * nr * kc_max];
    for j0 in (0..n).step_by(NC) {
        let nc = NC.min(n - j0);
        for k0 in (0..k).step_by(KC) {
            let kc = KC.min(k - k0);
            let panels = &mut packed_b[..nc.div_ceil(nr) * nr * kc];
            panels.par_chunks_mut(nr * kc).enumerate().with_min_len(4).for_each(|(p, panel)| {
                pack_panels(panel, b.data, j0 + p * nr, n, k0, kc, b.cs, b.rs, nr);
            });
            let panels = &*panels;
            let set = store == Store::Set && k0 == 0;
            c.par_chunks_mut(mc * n).enumerate().for_each(|(block, c)| {
                let i0 = block * mc;
                let rows = c.len() / n;
                let mut packed_a = vec![R::ZERO; rows.div_ceil(mr) * mr * kc];
                for (p, panel) in packed_a.chunks_mut(mr * kc).enumerate() {
                    pack_panels(panel, a.data, i0 + p * mr, m, k0, kc, a.rs, a.cs, mr);
                }
                let mut tile = [R::ZERO; kernel::MAX_TILE];
                for (pb, b_panel) in panels.chunks(nr * kc).enumerate() {
                    for (pa, a_panel) in packed_a.chunks(mr * kc).enumerate() {
                        R::kernel(kc, a_panel, b_panel, &mut tile);
                        let (i, j) = (pa * mr, pb * nr);
                        let width = nr.min(nc - j);
                        for r in 0..mr.min(rows - i) {
                            let at = (i + r) * n + j0 + j;
                            store_row(&mut c[at..at + width], &tile[r * nr..r * nr + width], set);
                        }
                    }
                }
            });
        }
    }
}

fn few_rows<R: Real, A: Float, B: Float>(a: Mat<A>, b: Mat<B>, c: &mut [R], store: Store, mr: usize, nr: usize) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    let a_rows = m.div_ceil(mr) * mr;
    let mut packed_a = vec![R::ZERO; a_rows * k];
    for k0 in (0..k).step_by(KC) {
        let kc = KC.min(k - k0);
        for (p, panel) in packed_a[a_rows * k0..a_rows * (k0 + kc)].chunks_mut(mr * kc).enumerate() {
            pack_panels(panel, a.data, p * mr, m, k0, kc, a.rs, a.cs, mr);
        }
    }
    let packed_a = &packed_a;
    // A group of columns: its sums for all rows stay in cache while B streams past.
    const GROUP: usize = 64;
    let group = GROUP.div_ceil(nr) * nr;
    let groups = n.div_ceil(group);
    let out = Columns { ptr: c.as_mut_ptr(), n, len: c.len() };
    (0..groups).into_par_iter().with_min_len(groups.div_ceil(4 * rayon::current_num_threads())).for_each_init(
        || vec![R::ZERO; nr * k.min(KC)],
        |panel, g| {
            let (j0, j1) = (g * group, n.min((g + 1) * group));
            let mut tile = [R::ZERO; kernel::MAX_TILE];
            for j in (j0..j1).step_by(nr) {
                let width = nr.min(j1 - j);
                for k0 in (0..k).step_by(KC) {
                    let kc = KC.min(k - k0);
                    let panel = &mut panel[..nr * kc];
                    pack_panels(panel, b.data, j, n, k0, kc, b.cs, b.rs, nr);
                    let set = store == Store::Set && k0 == 0;
                    for (pa, a_panel) in packed_a[a_rows * k0..a_rows * (k0 + kc)].chunks(mr * kc).enumerate() {
                        R::kernel(kc, a_panel, panel, &mut tile);
                        for r in 0..mr.min(m - pa * mr) {
                            // SAFETY: columns j..j + width belong to group g alone, so no other task
                            // touches them.
                            let row = unsafe { out.row(pa * mr + r, j, width) };
                            store_row(row, &tile[r * nr..r * nr + width], set);
                        }
                    }
                }
            }
        },
    );
}

/// As [`gemm`], bit for bit, on the calling thread: for small blocks inside a parallel task.
/// `scratch` is grown as needed and reused from call to call.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_serial<R: Real, A: Float, B: Float>(a: Mat<A>, b: Mat<B>, c: &mut [R], store: Store, scratch: &mut Vec<R>) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(k, b.rows, "inner sizes");
    assert_eq!(c.len(), m * n, "size of C");
    if k == 0 && store == Store::Set {
        c.fill(R::ZERO);
    }
    if m == 0 || n == 0 {
        return;
    }
    let (mr, nr) = R::tile();
    let mut tile = [R::ZERO; kernel::MAX_TILE];
    for k0 in (0..k).step_by(KC) {
        let kc = KC.min(k - k0);
        let set = store == Store::Set && k0 == 0;
        let a_len = m.div_ceil(mr) * mr * kc;
        let need = a_len + nr * kc;
        if scratch.len() < need {
            scratch.resize(need, R::ZERO);
        }
        let (packed_a, b_panel) = scratch[..need].split_at_mut(a_len);
        for (p, panel) in packed_a.chunks_mut(mr * kc).enumerate() {
            pack_panels(panel, a.data, p * mr, m, k0, kc, a.rs, a.cs, mr);
        }
        for j in (0..n).step_by(nr) {
            pack_panels(b_panel, b.data, j, n, k0, kc, b.cs, b.rs, nr);
            let width = nr.min(n - j);
            for (pa, a_panel) in packed_a.chunks(mr * kc).enumerate() {
                R::kernel(kc, a_panel, b_panel, &mut tile);
                for r in 0..mr.min(m - pa * mr) {
                    let at = (pa * mr + r) * n + j;
                    store_row(&mut c[at..at + width], &tile[r * nr..r * nr + width], set);
                }
            }
        }
    }
}

#[inline]
fn store_row<R: Real>(c: &mut [R], sums: &[R], set: bool) {
    if set {
        c.copy_from_slice(sums);
    } else {
        for (c, &s) in c.iter_mut().zip(sums) {
            *c += s;
        }
    }
}

/// C, written by several tasks in disjoint columns.
struct Columns<R> {
    ptr: *mut R,
    n: usize,
    len: usize,
}

// SAFETY: only `row` reaches the pointer, and its callers keep to disjoint columns.
unsafe impl<R: Send> Sync for Columns<R> {}

impl<R> Columns<R> {
    /// Columns `j..j + width` of row `i`.
    ///
    /// # Safety
    /// No other reference to these elements may live at the same time.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row(&self, i: usize, j: usize, width: usize) -> &mut [R] {
        assert!(j + width <= self.n && (i + 1) * self.n <= self.len);
        // SAFETY: inside C by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(i * self.n + j), width) }
    }
}

#[cfg(test)]
mod tests;
