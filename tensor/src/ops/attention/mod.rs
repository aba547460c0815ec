//! Attention over a packed stream of sequences, in tiles: no score matrix in memory.
//!
//! For each segment, query i and head h (of key/value group g = h / (heads / kv_heads)):
//!
//! s_j = cap(scale · q_i·k_j), p = softmax over the keys j that i may see, o_i = Σ_j p_j v_j,
//!
//! with cap(s) = c·tanh(s/c) if a soft-cap is set. Query i of a segment of `lq` queries and `lk` keys
//! stands at position i + lk - lq; causal: it sees keys at positions up to its own; with a window w:
//! only those less than w behind it.
//!
//! Shapes: q: (queries, heads, size), k: (keys, kv_heads, size), v: (keys, kv_heads, size),
//! out: (queries, heads, size), lse: (queries, heads), the log of the softmax's denominator (nats).
//! Segment s has queries `cu_q[s]..cu_q[s + 1]` and keys `cu_k[s]..cu_k[s + 1]`.
//!
//! A segment may go on from the first keys of an earlier one, its [`Stem`]: they come before its own and count as
//! its keys in all of the above. Sequences that begin alike so have their beginning in the stream once.
//!
//! # Order of the sum
//! Keys are taken in tiles of [`TILE`] counted from the segment's first key, which is its stem's if it has one, with
//! a running maximum.
//! A query's result depends on its own keys alone: the same bits in training, in prefill and in
//! decoding, whatever the rest of the batch (law 5 of the design).
//!
//! Bound by arithmetic: 4 size operations a query-key pair forward, 10 backward (scores recomputed).
//!
//! # Source
//! Dao, "FlashAttention-2", arXiv:2307.08691; soft-cap: Gemma 2, arXiv:2408.00118, section 2.

mod backward;
mod cached;
mod forward;

pub use crate::device::ops::attention::scratch_bytes;
pub use backward::{backward, backward_branched};
pub use cached::{CachedPass, KeyValues, Standing};
use forward::{Lying, forward_lying};
pub use forward::{forward, forward_branched};

use crate::{DType, Error, Real, Result, Tensor, device};

pub(crate) const OP: &str = "attention";

/// Keys per tile. Part of the arithmetic, not only a tuning knob.
pub const TILE: usize = 64;

/// Queries per task of the forward pass (times the heads that share keys: rows of the score block).
pub(crate) const BLOCK: usize = 32;

/// What kind of attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Factor on q·k, usually size^(-1/2).
    pub scale: f64,
    /// Whether keys after the query are hidden.
    pub causal: bool,
    /// Number of positions a query sees, itself included; needs `causal`.
    pub window: Option<usize>,
    /// Bound c of the soft-cap c·tanh(s/c).
    pub softcap: Option<f64>,
}

impl Attention {
    /// Plain causal attention.
    pub fn causal(scale: f64) -> Attention {
        Attention { scale, causal: true, window: None, softcap: None }
    }

    /// Range of keys that a query at `position` of a segment of `keys` keys sees.
    #[inline]
    pub(crate) fn visible(&self, position: usize, keys: usize) -> (usize, usize) {
        let end = if self.causal { (position + 1).min(keys) } else { keys };
        let start = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
        (start.min(end), end)
    }

    fn validate(&self) -> Result<()> {
        let bad = |name, value, expected| Err(Error::InvalidValue { op: OP, name, value, expected });
        if !self.scale.is_finite() {
            return bad("scale", self.scale, "finite");
        }
        if let Some(cap) = self.softcap.filter(|c| !(*c > 0.0 && c.is_finite())) {
            return bad("softcap", cap, "positive");
        }
        match self.window {
            Some(0) => bad("window", 0.0, "at least 1"),
            Some(w) if !self.causal => bad("window", w as f64, "absent without causal masking"),
            _ => Ok(()),
        }
    }
}

/// Keys that a segment sees before its own: the first `len` of segment `of`, which comes before it and has no stem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stem {
    /// Number of the segment.
    pub of: u32,
    /// How many of its keys.
    pub len: u32,
}

/// Where the segments of a stream lie.
#[derive(Debug, Clone, Copy)]
pub struct Segments<'a> {
    /// Segment s has queries `cu_q[s]..cu_q[s + 1]`: (segments + 1).
    pub cu_q: &'a [u32],
    /// And keys `cu_k[s]..cu_k[s + 1]` of its own: (segments + 1).
    pub cu_k: &'a [u32],
    /// And before these the keys of its stem: (segments), or empty if no segment has one.
    pub stems: &'a [Option<Stem>],
}

impl Segments<'_> {
    /// The rows of the keys of segment `s`: of its stem, and its own.
    pub(crate) fn keys(&self, s: usize) -> [std::ops::Range<usize>; 2] {
        let own = self.cu_k[s] as usize..self.cu_k[s + 1] as usize;
        let Some(stem) = self.stems.get(s).copied().flatten() else { return [own.start..own.start, own] };
        let start = self.cu_k[stem.of as usize] as usize;
        [start..start + stem.len as usize, own]
    }

    /// On a device there is no kernel for stems.
    fn refuse_stems(&self, q: &Tensor) -> Result<()> {
        match self.stems.iter().any(Option::is_some) {
            true => device::cpu_only(OP, [q]),
            false => Ok(()),
        }
    }

    fn check_stems(&self) -> Result<()> {
        let bad =
            |what, lhs: usize, rhs: usize| Err(Error::ShapeMismatch { op: OP, what, lhs: vec![lhs], rhs: vec![rhs] });
        let segments = self.cu_k.len() - 1;
        if !self.stems.is_empty() && self.stems.len() != segments {
            return bad("stems against segments", self.stems.len(), segments);
        }
        for (s, stem) in self.stems.iter().enumerate() {
            let Some(stem) = stem else { continue };
            let of = stem.of as usize;
            if of >= s || self.stems[of].is_some() {
                return bad("a stem must be an earlier segment without a stem", s, of);
            }
            let keys = (self.cu_k[of + 1] - self.cu_k[of]) as usize;
            if stem.len as usize > keys {
                return bad("a stem against the keys of its segment", stem.len as usize, keys);
            }
        }
        Ok(())
    }
}

/// Sizes of one call, validated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    /// Query heads that share a key/value head.
    pub(crate) group: usize,
    pub(crate) size: usize,
}

impl Sizes {
    pub(crate) fn new(heads: usize, kv_heads: usize, size: usize) -> Result<Sizes> {
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || heads == 0 {
            return Err(Error::ShapeMismatch {
                op: OP,
                what: "the number of query heads must be a multiple of the key/value heads",
                lhs: vec![heads],
                rhs: vec![kv_heads],
            });
        }
        Ok(Sizes { heads, kv_heads, group: heads / kv_heads, size })
    }
}

/// Checks q, k, v against each other and the segment tables.
pub(crate) fn validate(q: &Tensor, k: &Tensor, v: &Tensor, table: &Segments<'_>, options: &Attention) -> Result<Sizes> {
    let Segments { cu_q, cu_k, .. } = *table;
    options.validate()?;
    for t in [q, k, v] {
        if t.rank() != 3 {
            return Err(Error::Rank { op: OP, expected: 3, shape: t.dims().to_vec() });
        }
        if t.dtype() != q.dtype() {
            return Err(Error::DTypeMismatch { op: OP, expected: q.dtype(), got: t.dtype() });
        }
    }
    if k.dims() != v.dims() {
        let (lhs, rhs) = (k.dims().to_vec(), v.dims().to_vec());
        return Err(Error::ShapeMismatch { op: OP, what: "k and v", lhs, rhs });
    }
    if q.dims()[2] != k.dims()[2] {
        let (lhs, rhs) = (q.dims().to_vec(), k.dims().to_vec());
        return Err(Error::ShapeMismatch { op: OP, what: "head sizes of q and k", lhs, rhs });
    }
    check_table("cu_q", cu_q, q.dims()[0])?;
    check_table("cu_k", cu_k, k.dims()[0])?;
    if cu_q.len() != cu_k.len() {
        let (lhs, rhs) = (vec![cu_q.len()], vec![cu_k.len()]);
        return Err(Error::ShapeMismatch { op: OP, what: "segments of queries and keys", lhs, rhs });
    }
    table.check_stems()?;
    for (s, q) in cu_q.windows(2).enumerate() {
        fewer_queries((q[1] - q[0]) as usize, table.keys(s).map(|keys| keys.len()).iter().sum(), options)?;
    }
    Sizes::new(q.dims()[1], k.dims()[1], q.dims()[2])
}

fn fewer_queries(lq: usize, lk: usize, options: &Attention) -> Result<()> {
    if options.causal && lq > lk {
        let (lhs, rhs) = (vec![lq], vec![lk]);
        return Err(Error::ShapeMismatch { op: OP, what: "a causal segment has more queries than keys", lhs, rhs });
    }
    Ok(())
}

/// Checks q against caches of (…, kv_heads, size).
fn over_caches(
    q: &Tensor,
    [kv_heads, size]: [usize; 2],
    dtype: DType,
    cu_q: &[u32],
    options: &Attention,
) -> Result<Sizes> {
    options.validate()?;
    if q.rank() != 3 {
        return Err(Error::Rank { op: OP, expected: 3, shape: q.dims().to_vec() });
    }
    if q.dtype() != dtype {
        return Err(Error::DTypeMismatch { op: OP, expected: dtype, got: q.dtype() });
    }
    if q.dims()[2] != size {
        let (lhs, rhs) = (q.dims().to_vec(), vec![kv_heads, size]);
        return Err(Error::ShapeMismatch { op: OP, what: "head sizes of q and k", lhs, rhs });
    }
    check_table("cu_q", cu_q, q.dims()[0])?;
    Sizes::new(q.dims()[1], kv_heads, size)
}

fn check_table(what: &'static str, cu: &[u32], tokens: usize) -> Result<()> {
    if cu.first() != Some(&0) || cu.last().map(|&n| n as usize) != Some(tokens) || cu.windows(2).any(|w| w[0] > w[1]) {
        return Err(Error::ShapeMismatch {
            op: OP,
            what: if what == "cu_q" {
                "cu_q must rise from 0 to the number of queries"
            } else {
                "cu_k must rise from 0 to the number of keys"
            },
            lhs: cu.iter().map(|&x| x as usize).collect(),
            rhs: vec![tokens],
        });
    }
    Ok(())
}

/// cap(scale · s) and, for the backward pass, its derivative by s.
#[inline(always)]
pub(crate) fn cap<R: Real>(s: R, scale: R, softcap: Option<R>) -> R {
    match softcap {
        None => s * scale,
        Some(c) => c * (s * scale / c).tanh(),
    }
}

/// Appends rows `(token, head)` of the heads `h0..h0 + heads` of a (tokens, all_heads, size) slice
/// to a dense block, token by token.
pub(crate) fn gather<R: Real>(
    out: &mut Vec<R>,
    src: &[R],
    tokens: std::ops::Range<usize>,
    all_heads: usize,
    h0: usize,
    heads: usize,
    size: usize,
) {
    for t in tokens {
        let at = (t * all_heads + h0) * size;
        out.extend_from_slice(&src[at..at + heads * size]);
    }
}

#[cfg(test)]
mod tests;
