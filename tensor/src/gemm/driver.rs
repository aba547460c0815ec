//! Loops around the kernels: who computes which block, and what is packed when.

use std::ops::Range;
use std::sync::OnceLock;

use super::few_rows::{FEW_ROWS, PackedRows, Ticket, few_rows_runs};
use super::kernel::{Mode, Tile};
use super::pack::{Part, pack_lines};
use super::panels::{self, WIDTH, packs};
use super::right::Lines;
use super::{KC, Mat, Right, Store};
use crate::DType;
use crate::dtype::Real;
use crate::parallel::Disjoint;

/// Bytes of packed panels that a task keeps in its second-level cache: less than half of it, since A and C pass
/// through it too. Changes speed, never a sum.
fn panels_bytes() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        // Where the system does not say, what desktop and server cores have had at least since 2017.
        let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index2/size").unwrap_or_default();
        let kib = text.trim().strip_suffix('K').and_then(|kib| kib.parse::<usize>().ok()).unwrap_or(512);
        (kib.clamp(256, 4096) << 10) / 16 * 7
    })
}

/// Bytes of panels beside packed rows of A. These stay in the second-level cache, and are packed anew for each block
/// of columns; the panels come from the third, each once for all rows that are packed together.
const WIDE_BYTES: usize = 4 << 20;

/// Parts that the last blocks of a product are cut into: threads are never quite equally fast, and one waits for no more than a
/// part of a block. They are cut between panels, of which none is packed twice; a block of one panel between rows.
const LAST_PARTS: usize = 4;

/// Rows of A that are packed together at most, where they must be: with the panels they fit the second-level cache.
const PACKED_ROWS: usize = 64;

/// Depth of a piece of a panel when there are few rows: it is read a few times after it was packed, so it
/// should not leave the first-level cache in between.
const PIECE: usize = 96;

/// Panels whose pieces are copied together, where they are: neighbours in memory.
const PANELS: usize = 4;

/// Rows of C that pay for packing a panel of B anew: fewer are not split between tasks.
const MIN_ROWS: usize = 192;

/// One product A B.
#[derive(Clone, Copy)]
pub(super) struct Term<'a, R, B> {
    pub(super) a: Mat<'a, R>,
    pub(super) b: B,
}

/// C = or += base (+ update).
#[derive(Clone, Copy)]
pub(super) struct Product<'a, 'u, R, B, V> {
    pub(super) base: Term<'a, R, B>,
    pub(super) update: Option<Term<'u, R, V>>,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) store: Store,
}

impl<'u, R: Real, B: Right<R>, V: Right<R>> Product<'_, 'u, R, B, V> {
    /// Whether each task would pack its rows of A for itself.
    pub(super) fn packs_rows(&self) -> bool {
        let Term { a, b } = &self.base;
        let takes = R::DTYPE == DType::F32 && self.m <= FEW_ROWS && packs(self.m) && a.cols > 0;
        takes && matches!(b.lines(&(0..self.n), &(0..a.cols.min(KC))), Lines::Panels(..))
    }

    /// The same product, its rows of A packed by this thread if [each task would](Product::packs_rows), for the first of its tasks
    /// with this ticket: products that have one share A.
    pub(super) fn packed_once<'s>(&'s self, of: Ticket, packed: &'s mut PackedRows<R>) -> Product<'s, 'u, R, B, V> {
        if !self.packs_rows() {
            return *self;
        }
        let Term { a, b } = self.base;
        let width = self.m.next_multiple_of(WIDTH);
        let [rows] = parts(&mut packed.rows, [width * a.cols]);
        if packed.product != of {
            pack_a(rows, width, &a, 0..self.m, &(0..a.cols));
            packed.product = of;
        }
        Product { base: Term { a: Mat::strided(rows, self.m, a.cols, 1, width), b }, ..*self }
    }

    /// Computes all of C on all threads.
    ///
    /// # Panics
    /// If C is not m rows of n.
    pub(super) fn run(&self, c: &mut [R]) {
        assert_eq!(c.len(), self.m * self.n, "size of C");
        if self.m == 0 || self.n == 0 {
            return;
        }
        let threads = rayon::current_num_threads();
        if self.m <= FEW_ROWS && threads > 1 && !self.is_small() {
            let mut runs = Vec::new();
            few_rows_runs(self.sizes(), threads, &mut self.work(), |cols| runs.push(cols));
            let (c, ticket) = (Disjoint::new(c), Ticket::new());
            // SAFETY: runs are disjoint and inside C, which holds m rows of n.
            let run = |i: usize| unsafe { self.task(Some(ticket), 0..self.m, runs[i].clone(), c.ptr()) };
            return crate::team::for_each(runs.len(), run);
        }
        let (rows, cols) = self.blocks(threads);
        let (across, down) = (self.n.div_ceil(cols), self.m.div_ceil(rows));
        let whole = across * down;
        let panels = cols / R::shape().nr;
        // The last block of each thread, in parts. Where rows are packed, each part packs them anew, which only long ones pay for.
        let long = rows >= if panels > 1 && !self.packs_blocks() { MIN_ROWS } else { LAST_PARTS * MIN_ROWS };
        let last = if threads > 1 && long { threads.min(whole) } else { 0 };
        let [part_rows, part_cols] = match panels {
            0 | 1 => [rows.div_ceil(LAST_PARTS).next_multiple_of(R::shape().mr), cols],
            _ => [rows, panels.div_ceil(LAST_PARTS) * R::shape().nr],
        };
        let parts_down = rows.div_ceil(part_rows);
        let parts = parts_down * cols.div_ceil(part_cols);
        let c = Disjoint::new(c);
        let task = |i: usize| {
            let (block, part, height, width) = match i.checked_sub(whole - last) {
                Some(i) => (whole - last + i / parts, i % parts, part_rows, part_cols),
                None => (i, 0, rows, cols),
            };
            // Of a part the end is that of its block, and of that C's.
            let range = |block: usize, size: usize, part: usize, length: usize, end: usize| {
                let from = block * size;
                end.min(from + part * length)..end.min(from + size.min((part + 1) * length))
            };
            let is = range(block % down, rows, part % parts_down, height, self.m);
            let js = range(block / down, cols, part / parts_down, width, self.n);
            // SAFETY: blocks, and the parts of one, are disjoint and inside C, which holds m rows of n.
            unsafe { self.task(None, is, js, c.ptr()) }
        };
        crate::team::for_each(whole - last + last * parts, task);
    }

    /// A task: rows `rows` and columns `cols` of C. With a ticket this thread [packs A once](Product::packed_once).
    ///
    /// # Safety
    /// As [`Product::block`].
    pub(super) unsafe fn task(&self, of: Option<Ticket>, rows: Range<usize>, cols: Range<usize>, c: *mut R) {
        crate::scratch::with(|packed: &mut PackedRows<R>| {
            let product = of.map_or(*self, |of| self.packed_once(of, packed));
            // SAFETY: the caller's promise.
            crate::scratch::with(|scratch| unsafe { product.block(rows, cols, c, scratch) });
        });
    }

    /// Rows, depth and columns.
    pub(super) fn sizes(&self) -> [usize; 3] {
        [self.m, self.base.a.cols, self.n]
    }

    /// Multiply-adds.
    pub(super) fn work(&self) -> usize {
        self.m * self.n * self.base.a.cols.max(1)
    }

    /// Whether the rows of a block are packed.
    fn packs_blocks(&self) -> bool {
        self.base.a.cs != 1 && self.m > FEW_ROWS
    }

    /// Whether it is over before a second thread has begun.
    fn is_small(&self) -> bool {
        self.work() < (1 << 17)
    }

    /// Rows and columns of a task's block, of many rows: as many columns as there are panels for in the second-level cache,
    /// fewer where that leaves threads idle; then rows, as long as packing a panel again for each pays.
    pub(super) fn blocks(&self, threads: usize) -> (usize, usize) {
        let shape = R::shape();
        let kc = self.base.a.cols.clamp(1, KC);
        let panels = self.n.div_ceil(shape.nr);
        let bytes = if self.packs_blocks() { WIDE_BYTES } else { panels_bytes() };
        let most = (bytes / size_of::<R>() / kc / shape.nr).max(1);
        let small = self.is_small();
        if threads == 1 || small {
            return (self.m, if small { self.n } else { most * shape.nr });
        }
        // A whole number of rounds of equal tasks.
        let rounds = panels.div_ceil(most * threads);
        let mut down = 1;
        while panels * down < threads * rounds && self.m.div_ceil(down + 1) >= MIN_ROWS {
            down += 1;
        }
        let across = (threads * rounds).div_ceil(down).min(panels).max(panels.div_ceil(most));
        let cols = panels.div_ceil(across) * shape.nr;
        (self.m.div_ceil(down).next_multiple_of(shape.mr), cols)
    }

    /// Computes rows `rows` and columns `cols` of C on the calling thread.
    ///
    /// # Safety
    /// `c` points to the whole of C, of which this block must be writable by this call alone.
    pub(super) unsafe fn block(&self, rows: Range<usize>, cols: Range<usize>, c: *mut R, scratch: &mut Vec<R>) {
        if rows.is_empty() || cols.is_empty() {
            return;
        }
        let mut set = self.store == Store::Set;
        // SAFETY: the caller's promise.
        unsafe {
            let block = Block { rows, cols, c, n: self.n };
            let behind = self.update.as_ref().filter(|update| {
                let depth = self.base.a.cols.min(update.a.cols);
                block.rows.len() > FEW_ROWS && update.a.cs == 1 && depth > 0 && update.a.cols <= KC
            });
            set = block.add(&self.base, behind, set, scratch);
            if let Some(update) = self.update.as_ref().filter(|_| behind.is_none()) {
                set = block.add(update, None::<&Term<R, Mat<R>>>, set, scratch);
            }
            if set {
                // Nothing was summed: the product of empty matrices.
                for i in block.rows.clone() {
                    for j in block.cols.clone() {
                        *c.add(i * self.n + j) = R::ZERO;
                    }
                }
            }
        }
    }
}

/// A block of C, (.., n) row-major from `c`.
struct Block<R> {
    rows: Range<usize>,
    cols: Range<usize>,
    c: *mut R,
    n: usize,
}

impl<R: Real> Block<R> {
    /// C = (if `set`) or += the term, and += the one `behind` it, tile by tile: for that the block has more than
    /// [`FEW_ROWS`] rows, the term is not empty, and the other is one block of k, its A contiguous along it. Gives
    /// whether C is still to be set, which an empty term leaves so.
    ///
    /// # Safety
    /// The block must be writable by this call alone.
    unsafe fn add<B: Right<R>, V: Right<R>>(
        &self,
        term: &Term<R, B>,
        behind: Option<&Term<R, V>>,
        mut set: bool,
        scratch: &mut Vec<R>,
    ) -> bool {
        let k = term.a.cols;
        for k0 in (0..k).step_by(KC) {
            let depth = k0..k.min(k0 + KC);
            let mode = if set { Mode::Set } else { Mode::Add };
            // SAFETY: the caller's promise.
            unsafe {
                if self.in_panels(term, &depth, mode, scratch) {
                    set = false;
                    continue;
                }
                #[cfg(target_arch = "x86_64")]
                if self.gemv(term, &depth, mode, scratch) {
                    set = false;
                    continue;
                }
                if self.rows.len() <= FEW_ROWS {
                    self.few_rows(term, depth, mode, scratch);
                } else {
                    let behind = behind.filter(|_| depth.end == k);
                    self.many_rows(term, depth, behind, mode, scratch);
                }
            }
            set = false;
        }
        set
    }

    /// Few rows of f32 with a matrix in panels; false, and nothing done, for any other product.
    ///
    /// # Safety
    /// As [`Block::add`].
    unsafe fn in_panels<B: Right<R>>(
        &self,
        term: &Term<R, B>,
        depth: &Range<usize>,
        mode: Mode,
        scratch: &mut Vec<R>,
    ) -> bool {
        let Term { a, b } = term;
        if R::DTYPE != DType::F32 || self.rows.len() > FEW_ROWS || (a.cs != 1 && !packs(self.rows.len())) {
            return false;
        }
        let Lines::Panels(b, b_panel, stored) = b.lines(&self.cols, depth) else { return false };
        let (rows, cols, kc) = (self.rows.len(), self.cols.len(), depth.len());
        let width = rows.next_multiple_of(WIDTH);
        let are_packed = a.rs == 1 && a.cs == width && self.rows.start == 0 && a.data.len() >= width * a.cols;
        let (a, a_row) = if packs(rows) && are_packed {
            (a.data[depth.start * width..].as_ptr(), width)
        } else if packs(rows) {
            let [packed] = parts(scratch, [width * kc]);
            pack_a(packed, width, a, self.rows.clone(), depth);
            (packed.as_ptr(), width)
        } else {
            (a.data[self.rows.start * a.rs + depth.start..].as_ptr(), a.rs)
        };
        // SAFETY: R is f32; rows and columns of A and C are in range by `Mat`'s check and the caller's promise, the
        // panels by that of `lines`, which says how they are stored.
        unsafe {
            let c = self.c.add(self.rows.start * self.n + self.cols.start).cast();
            panels::FewRows { rows, cols, kc, a: a.cast(), a_row, stored, b, b_panel, c, c_row: self.n, mode }.run();
        }
        true
    }

    /// Few rows of f32 with a matrix whose depth is contiguous; false, and nothing done, for any other product.
    ///
    /// # Safety
    /// As [`Block::add`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn gemv<B: Right<R>>(
        &self,
        term: &Term<R, B>,
        depth: &Range<usize>,
        mode: Mode,
        scratch: &mut Vec<R>,
    ) -> bool {
        use super::gemv::{Gemv, lines, most_rows};
        let Term { a, b } = term;
        let (width, kc) = (lines(), depth.len());
        let fits = R::DTYPE == DType::F32 && self.rows.len() <= most_rows() && a.cs == 1 && width > 0;
        if !fits || self.cols.len() < width {
            return false;
        }
        let whole = self.cols.len() / width * width;
        // Columns from `from` on, read where `w` says.
        let run = |from: usize, lines: usize, w: *const u8, w_row: usize, dtype: DType| {
            let gemv = Gemv {
                rows: self.rows.len(),
                lines,
                kc,
                a: a.data[self.rows.start * a.rs + depth.start..].as_ptr().cast(),
                a_row: a.rs,
                w,
                w_row,
                dtype,
                // SAFETY: an element of the block.
                c: unsafe { self.c.add(self.rows.start * self.n + from) }.cast(),
                c_row: self.n,
                mode,
            };
            // SAFETY: R is f32; rows and columns of A and C are in range by `Mat`'s check and the caller's promise,
            // those of B by that of `lines` and `write_lines`.
            unsafe { gemv.run() }
        };
        match b.lines(&self.cols, depth) {
            Lines::No | Lines::Panels(..) => return false,
            Lines::Whole(w, w_row, dtype) => run(self.cols.start, whole, w, w_row, dtype),
            Lines::Made(together) => {
                let together = together.next_multiple_of(width);
                let [made] = parts(scratch, [together * kc]);
                for l in (0..whole).step_by(together) {
                    let (from, n) = (self.cols.start + l, together.min(whole - l));
                    b.write_lines(from..from + n, depth, &mut made[..n * kc]);
                    run(from, n, made.as_ptr().cast(), kc, DType::F32);
                }
            }
        }
        if whole < self.cols.len() {
            let rest = Block { rows: self.rows.clone(), cols: self.cols.start + whole..self.cols.end, ..*self };
            // SAFETY: the caller's promise.
            unsafe { rest.few_rows(term, depth.clone(), mode, scratch) }
        }
        true
    }

    /// Panels of B are packed once and stay in the second-level cache while the rows of A pass. Those of the term
    /// behind it too: its tile is added while C's is in the first-level cache.
    ///
    /// # Safety
    /// As [`Block::add`].
    unsafe fn many_rows<B: Right<R>, V: Right<R>>(
        &self,
        term: &Term<R, B>,
        depth: Range<usize>,
        behind: Option<&Term<R, V>>,
        mode: Mode,
        scratch: &mut Vec<R>,
    ) {
        let (shape, kc) = (R::shape(), depth.len());
        let packs_a = term.a.cs != 1;
        let columns = self.cols.len().next_multiple_of(shape.lanes);
        // Whole tiles of rows, whatever their height.
        let together = PACKED_ROWS / shape.mr * shape.mr;
        let more = behind.map_or(0, |behind| behind.a.cols);
        let lens = [columns * kc, columns * more, if packs_a { together * kc } else { 0 }];
        let [panels, panels_behind, packed_a] = parts(scratch, lens);
        term.b.pack_panels(panels, shape.nr, shape.lanes, self.cols.clone(), &depth);
        if let Some(behind) = behind {
            behind.b.pack_panels(panels_behind, shape.nr, shape.lanes, self.cols.clone(), &(0..more));
        }
        for i0 in self.rows.clone().step_by(together) {
            let rows = i0..self.rows.end.min(i0 + together);
            if packs_a {
                pack_a(packed_a, shape.mr, &term.a, rows.clone(), &depth);
            }
            let tile = |i: usize, j: usize| {
                let live = shape.mr.min(rows.end - i);
                let (a, a_row, a_k) = if packs_a {
                    (packed_a[(i - i0) * kc..].as_ptr(), 1, shape.mr)
                } else {
                    (term.a.data[i * term.a.rs + depth.start..].as_ptr(), term.a.rs, 1)
                };
                let cols = shape.nr.min(self.cols.end - j);
                let width = cols.next_multiple_of(shape.lanes);
                // All panels before are whole.
                let at = j - self.cols.start;
                let (b, b_behind) = (panels[at * kc..].as_ptr(), panels_behind[at * more..].as_ptr());
                // SAFETY: the panels hold kc (and `more`) × width, and A's rows i.. (packed or not) are `live`
                // long and as deep by `Mat`'s own check; C by the caller's promise.
                unsafe {
                    let c = self.c.add(i * self.n + j);
                    R::tile(&Tile { rows: live, cols, kc, a, a_row, a_k, b, width, c, c_row: self.n, mode });
                    if let Some(Term { a, .. }) = behind {
                        let (a, a_row, a_k) = (a.data[i * a.rs..].as_ptr(), a.rs, 1);
                        let (kc, b, mode) = (more, b_behind, Mode::Add);
                        R::tile(&Tile { rows: live, cols, kc, a, a_row, a_k, b, width, c, c_row: self.n, mode });
                    }
                }
            };
            let (is, js) = (rows.clone().step_by(shape.mr), self.cols.clone().step_by(shape.nr));
            // What is nearer in the caches stays, what is further passes: rows of A beside panels that the
            // second-level cache holds, panels beside rows that it holds.
            if packs_a {
                js.for_each(|j| is.clone().for_each(|i| tile(i, j)));
            } else {
                is.for_each(|i| js.clone().for_each(|j| tile(i, j)));
            }
        }
    }

    /// Few rows: each piece of a panel is used at once, by one tile of rows after the other, and the chains go on
    /// from piece to piece in a buffer. Pieces follow B as it lies in memory: down a panel where columns are
    /// contiguous, across panels where rows are.
    ///
    /// # Safety
    /// As [`Block::add`].
    unsafe fn few_rows<B: Right<R>>(&self, term: &Term<R, B>, depth: Range<usize>, mode: Mode, scratch: &mut Vec<R>) {
        let (shape, rows, kc) = (R::shape(), self.rows.len(), depth.len());
        let packs_a = term.a.cs != 1;
        let in_place = term.b.panel(depth.start, self.cols.start);
        // Columns that are copied together: at some distances of rows, few lines of one panel find room.
        let together = match in_place {
            Some((_, b_row)) if rows > shape.mr && !spreads(b_row * size_of::<R>()) => PANELS * shape.nr,
            _ => shape.nr,
        };
        let kept = if in_place.is_some() { self.cols.len().next_multiple_of(shape.nr) } else { shape.nr };
        let lens = [PIECE * together, rows * kept, if packs_a { rows.next_multiple_of(shape.mr) * kc } else { 0 }];
        let [piece, sums, packed_a] = parts(scratch, lens);
        if packs_a {
            pack_a(packed_a, shape.mr, &term.a, self.rows.clone(), &depth);
        }
        // Depths p.. of columns js, into `sums` from column `at`.
        let mut advance = |p: usize, js: Range<usize>, sums: &mut [R], at: usize| {
            let len = PIECE.min(kc - p);
            let width = js.len().next_multiple_of(shape.lanes);
            let (from, to) = (depth.start + p, depth.start + p + len);
            // Rows of B that need neither widening nor padding are a panel as they are.
            let as_it_is = term.b.panel(from, js.start).filter(|_| js.len() == width && together == shape.nr);
            let (b, width) = as_it_is.unwrap_or_else(|| {
                let piece = &mut piece[..len * width];
                term.b.pack(piece, width, js.clone(), &(from..to));
                (piece.as_ptr(), width)
            });
            let mode = if p == 0 { Mode::Set } else { Mode::Continue };
            for j in (0..js.len()).step_by(shape.nr) {
                for i in (0..rows).step_by(shape.mr) {
                    let (live, cols) = (shape.mr.min(rows - i), shape.nr.min(js.len() - j));
                    let (a, a_row, a_k) = if packs_a {
                        (packed_a[i * kc + p * shape.mr..].as_ptr(), 1, shape.mr)
                    } else {
                        (term.a.data[(self.rows.start + i) * term.a.rs + from..].as_ptr(), term.a.rs, 1)
                    };
                    let (c, c_row) = (sums[i * kept + at + j..].as_mut_ptr(), kept);
                    // SAFETY: as in `many_rows`, from depth p on; rows of B, packed or not, hold `cols` elements from
                    // column j on, rounded up to `lanes` where packed; `sums` holds `kept` for each row.
                    unsafe {
                        let b = b.add(j);
                        R::tile(&Tile { rows: live, cols, kc: len, a, a_row, a_k, b, width, c, c_row, mode })
                    }
                }
            }
        };
        // Columns j.. of C from the first of `sums`.
        let put = |sums: &[R], j: usize, cols: usize| {
            for (r, sums) in sums.chunks_exact(kept).enumerate() {
                for (l, &sum) in sums[..cols].iter().enumerate() {
                    // SAFETY: inside the block.
                    unsafe {
                        let c = self.c.add((self.rows.start + r) * self.n + j + l);
                        *c = if mode == Mode::Add { *c + sum } else { sum };
                    }
                }
            }
        };
        let ps = (0..kc).step_by(PIECE);
        let runs = self.cols.clone().step_by(together).map(|j| j..self.cols.end.min(j + together));
        if in_place.is_some() {
            ps.for_each(|p| runs.clone().for_each(|js| advance(p, js.clone(), sums, js.start - self.cols.start)));
            put(sums, self.cols.start, self.cols.len());
        } else {
            for js in runs {
                ps.clone().for_each(|p| advance(p, js.clone(), sums, 0));
                put(sums, js.start, js.len());
            }
        }
    }
}

/// Whether [`PIECE`] rows of one panel, so many bytes apart, find room in a first-level cache of 64 sets of 8 lines
/// together. Distances that powers of two divide do not: all rows fall into few sets.
fn spreads(bytes: usize) -> bool {
    const SETS: usize = 64;
    let lines = bytes / 64;
    let sets = SETS >> lines.trailing_zeros().min(SETS.trailing_zeros());
    8 * sets >= PIECE
}

/// Cuts `scratch`, grown as needed, into parts.
fn parts<R: Real, const N: usize>(scratch: &mut Vec<R>, lens: [usize; N]) -> [&mut [R]; N] {
    let need = lens.iter().sum();
    if scratch.len() < need {
        scratch.resize(need, R::ZERO);
    }
    let mut left = &mut scratch[..];
    lens.map(|len| {
        let (part, rest) = std::mem::take(&mut left).split_at_mut(len);
        left = rest;
        part
    })
}

/// Rows of A in panels of `mr`, one after the other. What the last is filled up with is whatever was there: rows that kernels
/// compute in vain.
///
/// # Panics
/// If `packed` is too short for them: a panel left out would be read as it was.
fn pack_a<R: Real>(packed: &mut [R], mr: usize, a: &Mat<R>, rows: Range<usize>, depth: &Range<usize>) {
    assert!(packed.len() >= rows.len().next_multiple_of(mr) * depth.len(), "{} rows of A have no room", rows.len());
    for (i, panel) in rows.clone().step_by(mr).zip(packed.chunks_exact_mut(mr * depth.len())) {
        let part = Part {
            data: a.data,
            l0: i,
            lines: mr.min(rows.end - i),
            k0: depth.start,
            kc: depth.len(),
            line_stride: a.rs,
            depth_stride: a.cs,
        };
        pack_lines(panel, mr, part);
    }
}
