//! Several products at once: experts, each of which has few rows and a matrix of its own.

use std::ops::Range;

use super::driver::{Product, Term};
use super::few_rows::{FEW_ROWS, Ticket, few_rows_runs};
use super::{Mat, Right, Store};
use crate::dtype::Real;

/// Tasks for each thread: threads are never quite equally fast, and products of few rows differ in what they wait for.
const TASKS: usize = 4;

/// C_g = or += A_g B_g for each of the products (A, B, C), with the bits of [`gemm`](super::gemm) one after the other.
///
/// The work of all is split once: large products into blocks of columns and rows, small ones not at all, and what a
/// thread does next is the next block of whichever product. Threads wait for each other once, not once a product.
///
/// # Panics
/// If sizes of a product do not agree: callers validate shapes first.
pub fn gemm_grouped<R: Real, B: Right<R>>(products: Vec<(Mat<'_, R>, B, &mut [R])>, store: Store) {
    let threads = rayon::current_num_threads();
    let products: Vec<_> =
        products.into_iter().map(|p| Whole::new(p, store)).filter(|p| p.of.m > 0 && p.of.n > 0).collect();
    let mut left = products.iter().map(|p| p.of.work()).sum::<usize>();
    let share = left.div_ceil(threads * TASKS).max(1);
    let mut tasks: Vec<(usize, Range<usize>, Range<usize>)> = Vec::new();
    for (g, p) in products.iter().enumerate() {
        if p.of.m <= FEW_ROWS && threads > 1 {
            few_rows_runs(p.of.sizes(), threads, &mut left, |cols| tasks.push((g, 0..p.of.m, cols)));
            continue;
        }
        left -= p.of.work();
        let parts = if threads == 1 { 1 } else { p.of.work().div_ceil(share) };
        let (Product { m, n, .. }, (rows, cols)) = (p.of, p.of.blocks(parts));
        for j in (0..n).step_by(cols) {
            tasks.extend((0..m).step_by(rows).map(|i| (g, i..m.min(i + rows), j..n.min(j + cols))));
        }
    }
    // Maps of one input: a thread packs its rows once for all.
    let of_one = products
        .split_first()
        .is_some_and(|(first, others)| others.iter().all(|p| p.of.base.a.same(&first.of.base.a) && p.of.packs_rows()));
    let ticket = Ticket::new();
    crate::team::for_each(tasks.len(), |t| {
        let (g, rows, cols) = tasks[t].clone();
        let Whole { of, c } = &products[g];
        // SAFETY: the blocks of a product are disjoint and inside its C, which holds m rows of n; no two products share one.
        unsafe { of.task(of_one.then_some(ticket), rows, cols, *c) }
    });
}

/// A product, and where its C is.
#[derive(Clone, Copy)]
struct Whole<'a, R, B> {
    of: Product<'a, 'a, R, B, Mat<'a, R>>,
    c: *mut R,
}

impl<'a, R: Real, B: Right<R>> Whole<'a, R, B> {
    fn new((a, b, c): (Mat<'a, R>, B, &mut [R]), store: Store) -> Self {
        let (m, n) = (a.rows(), b.cols());
        assert_eq!(a.cols(), b.rows(), "inner sizes");
        assert_eq!(c.len(), m * n, "size of C");
        Whole { of: Product { base: Term { a, b }, update: None, m, n, store }, c: c.as_mut_ptr() }
    }
}

// SAFETY: C is written in disjoint blocks, one task each, while its borrow lasts; the rest is read alone.
unsafe impl<R: Real, B: Right<R>> Sync for Whole<'_, R, B> {}
