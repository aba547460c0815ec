//! Attention over a packed stream of sequences; see `cuda/kernels/attention.cu`, `attention_long.cu`,
//! `attention_hopper.cu`, `attention_wide_hopper.cu` and `attention_backward.cu`.
//!
//! [`forward`] is training, prefill and decoding: [`Segments`] says which keys belong to which queries, in a stream of
//! keys or in pages of a cache; [`forward_cached`] is the same over [`Caches`] that lie apart. f32 and head sizes
//! other than 64, 128 and 256 go to the plain kernel.

mod backward;
mod caches;
mod hopper;
mod long;
mod segments;
mod stored;

pub use backward::backward;
pub use caches::{CacheSizes, Caches};
pub use long::LONG;
pub use segments::Segments;
pub use stored::stored_bytes;

use super::{NULL, types, with};
use crate::cache::Defines;
use crate::driver::Arg;
use crate::kernels::ATTENTION;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

const OP: &str = "attention";

/// Keys of a tile, and of a page.
pub const TILE: usize = 64;

/// The largest head: what the plain kernel's registers hold.
const MAX_SIZE: usize = 512;

/// Whether heads of this size and type are multiplied on tensor cores.
fn on_tensor_cores(dtype: DType, size: usize) -> bool {
    dtype != DType::F32 && matches!(size, 64 | 128 | 256)
}

/// What kind of attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, of which `heads` is a multiple.
    pub kv_heads: usize,
    /// Size of a head.
    pub size: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// Whether keys after the query are hidden.
    pub causal: bool,
    /// Number of positions that a query sees, itself included; needs `causal`.
    pub window: Option<usize>,
    /// Bound c of the soft-cap c tanh(s / c).
    pub softcap: Option<f32>,
}

/// What the heads of a section read again and again has this room, bytes: the second-level caches of large cards have 40 to 60
/// million, of which halves serve halves of a card. On an H200 from 4 to 35 million made no difference, all heads at a time
/// 3% more of 8192 tokens, one at a time 50% more in the gradient of keys of 4096.
const SECTION_BYTES: usize = 16 << 20;

impl Attention {
    fn check(&self) -> Result<()> {
        let wrong = |what, expected, got| Err(Error::Size { op: OP, what, expected, got });
        if !(1..=MAX_SIZE).contains(&self.size) {
            return wrong("the size of a head", "from 1 to 512", self.size);
        }
        if self.kv_heads == 0 || self.heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return wrong("the number of query heads", "a positive multiple of the key/value heads", self.heads);
        }
        match self.window {
            Some(0) => wrong("the window", "at least 1", 0),
            Some(window) if !self.causal => wrong("the window", "absent without causal masking", window),
            _ => Ok(()),
        }
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// `struct Options` of the kernels.
    fn bytes(&self, max_pages: usize) -> Result<[u8; 28]> {
        let words = [
            self.scale.to_bits(),
            self.softcap.unwrap_or(0.0).to_bits(),
            u32::from(self.causal),
            // A window beyond every length hides nothing.
            self.window.map_or(0, |window| u32::try_from(window).unwrap_or(u32::MAX)),
            super::size(OP, "heads", self.heads)?,
            super::size(OP, "heads", self.kv_heads)?,
            super::size(OP, "pages", max_pages)?,
        ];
        let mut bytes = [0; 28];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        Ok(bytes)
    }

    /// The grid of a kernel on tensor cores, `struct Piece` of the kernels: `pieces` of rows or keys of each head, whose
    /// blocks read two tensors of `hot` rows again and again.
    fn grid(&self, of: &Segments, pieces: usize, hot: usize, threads: u32) -> Shape {
        let bytes = 4 * hot * self.size;
        let divides = |heads: &usize| self.kv_heads.is_multiple_of(*heads) && heads * bytes <= SECTION_BYTES;
        let heads = (1..=self.kv_heads).rev().find(divides).unwrap_or(1);
        Shape::grid([heads, pieces, of.len() * (self.kv_heads / heads)], threads)
    }

    fn tensor_cores(&self, dtype: DType) -> bool {
        on_tensor_cores(dtype, self.size)
    }

    fn defines(&self, dtype: DType) -> Defines {
        with(types([("T", dtype)]), "D", self.size)
    }

    /// Checks tensors of queries and of keys against the sizes.
    fn expect(
        &self,
        queries: &[(&'static str, Slice<'_>)],
        keys: &[(&'static str, Slice<'_>)],
        of: &Segments,
    ) -> Result<()> {
        self.check()?;
        if !keys.is_empty() && of.are_cached() {
            let expected = "in a stream or in pages, not in caches that lie apart";
            return Err(Error::Size { op: OP, what: "the keys", expected, got: of.len() });
        }
        let dtype = queries[0].1.dtype();
        let rows = [(queries, of.queries() * self.heads), (keys, of.key_rows() * self.kv_heads)];
        for (tensors, rows) in rows {
            for (what, tensor) in tensors {
                tensor.expect_compute(OP, what)?;
                tensor.expect_dtype(OP, what, dtype)?;
                if self.tensor_cores(dtype) {
                    tensor.expect_aligned(OP, what)?;
                }
                if of.is_paged() && rows != of.queries() * self.heads {
                    // A cache may have more pages than are in use.
                    if tensor.len() < rows * self.size {
                        return Err(Error::Length { op: OP, what, expected: rows * self.size, got: tensor.len() });
                    }
                } else {
                    tensor.expect(OP, what, rows * self.size)?;
                }
            }
        }
        Ok(())
    }
}

/// out: (queries, heads, size) and lse: (queries, heads) f32, from q like out and k, v: (rows, kv_heads, size).
///
/// # Errors
/// Sizes or types that do not agree.
pub fn forward(
    queue: Queue<'_>,
    out: SliceMut<'_>,
    lse: SliceMut<'_>,
    q: Slice<'_>,
    k: Slice<'_>,
    v: Slice<'_>,
    of: &Segments,
    attention: &Attention,
) -> Result<()> {
    attention.expect(&[("q", q), ("the result", *out)], &[("k", k), ("v", v)], of)?;
    lse.expect(OP, "lse", of.queries() * attention.heads)?;
    lse.expect_dtype(OP, "lse", DType::F32)?;
    of.check(attention)?;
    if attention.tensor_cores(q.dtype()) && hopper::is_for(queue, of) {
        return hopper::forward(queue, &out, &lse, [q, k, v], of, attention);
    }
    launch(queue, &out, &lse, q, [k.arg(), v.arg()], None, of, attention)
}

/// As [`forward`], with the same bits, over a layer of the caches of the segments. The new keys are there already.
///
/// # Errors
/// Sizes or types that do not agree; no such layer; more keys than a cache has room for.
pub fn forward_cached(
    queue: Queue<'_>,
    out: SliceMut<'_>,
    lse: SliceMut<'_>,
    q: Slice<'_>,
    (caches, layer): (&Caches, usize),
    of: &Segments,
    attention: &Attention,
) -> Result<()> {
    attention.expect(&[("q", q), ("the result", *out)], &[], of)?;
    lse.expect(OP, "lse", of.queries() * attention.heads)?;
    lse.expect_dtype(OP, "lse", DType::F32)?;
    of.check(attention)?;
    caches.check(OP, layer, of)?;
    if (caches.kv_heads(), caches.size()) != (attention.kv_heads, attention.size) {
        let expected = "those of the caches";
        return Err(Error::Size { op: OP, what: "heads and their size", expected, got: attention.size });
    }
    if caches.dtype() != q.dtype() {
        return Err(Error::DType { op: OP, what: "q", expected: caches.dtype().name(), got: q.dtype() });
    }
    if hopper::takes(queue, q.dtype(), attention.size) {
        return hopper::forward_cached(queue, &out, &lse, q, (caches, layer), of, attention);
    }
    launch(queue, &out, &lse, q, [NULL; 2], Some((caches, layer)), of, attention)
}

/// The kernels of `attention.cu`.
fn launch(
    queue: Queue<'_>,
    out: &SliceMut<'_>,
    lse: &SliceMut<'_>,
    q: Slice<'_>,
    [k, v]: [Arg<'_>; 2],
    caches: Option<(&Caches, usize)>,
    of: &Segments,
    attention: &Attention,
) -> Result<()> {
    let options = attention.bytes(of.max_pages())?;
    let [cu_q, k_start, k_len, pages] = of.args();
    let (table, layer) = caches.map_or((NULL, 0), |(caches, layer)| (caches.arg(), layer as u32));
    let (layer, options) = (Arg::U32(layer), Arg::Bytes(&options));
    if attention.tensor_cores(q.dtype()) {
        let keys = long::bound(caches.map(|(caches, _)| caches), of);
        if long::takes(queue, keys, of, attention)
            && long::forward(queue, out, lse, q, [k, v], [table, layer], keys, of, attention)?
        {
            return Ok(());
        }
    }
    let args = [out.arg(), lse.arg(), q.arg(), k, v, cu_q, k_start, k_len, pages, table, layer, options];
    let mut defines = attention.defines(q.dtype());
    if attention.tensor_cores(q.dtype()) {
        defines = with(defines, "TENSOR_CORES", 1);
        let blocks = (of.max_queries() * attention.group()).div_ceil(64);
        // Of q one tile, of k and of v two each, or one of large heads.
        let tiles = if attention.size <= 128 { 5 } else { 3 };
        let shape = attention.grid(of, blocks, of.max_keys(), 128).shared(tiles * TILE * attention.size * 2);
        return queue.launch(&ATTENTION, "attention_forward", &defines, shape, &args);
    }
    let shape = Shape::grid([of.max_queries().div_ceil(4), attention.heads, of.len()], 128);
    queue.launch(&ATTENTION, "attention_forward_naive", &defines, shape, &args)
}
