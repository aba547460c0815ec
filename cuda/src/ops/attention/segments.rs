//! Which keys belong to which queries.

use super::{Attention, OP, TILE, stored};
use crate::driver::{Arg, DevicePtr};
use crate::memory::DeviceBuffer;
use crate::ops::NULL;
use crate::{Error, Queue, Result};

/// Where keys are.
#[derive(Debug)]
enum Keys {
    /// In a stream.
    Stream,
    /// In pages of a cache: the table, and the same on the host, for other numbers of keys in it.
    Pages(DeviceBuffer, Vec<u32>),
    /// In a cache for each segment, the last ones new: how many are.
    Caches(Vec<u32>),
}

/// The segment table of a batch, on the device, with the sizes that the host needs for a launch.
#[derive(Debug)]
pub struct Segments {
    pub(super) len: usize,
    pub(super) queries: usize,
    key_rows: usize,
    /// Of each segment.
    pub(super) queries_of: Vec<usize>,
    max_queries: usize,
    pub(super) keys_of: Vec<u32>,
    /// A segment with more queries than keys, of which causal attention cannot say where the queries stand.
    overfull: Option<usize>,
    max_pages: usize,
    /// k_len (len), cu_q (len + 1), and of streams and of new keys cu_k (len + 1).
    table: DeviceBuffer,
    keys: Keys,
    pub(super) stored: stored::Known,
}

impl Segments {
    /// Segment s has queries `cu_q[s]..cu_q[s + 1]` and keys `cu_k[s]..cu_k[s + 1]` of the streams.
    ///
    /// # Errors
    /// Tables that do not rise from 0, or are of different lengths; no room.
    pub fn packed(queue: Queue<'_>, cu_q: &[u32], cu_k: &[u32]) -> Result<Segments> {
        if cu_k.len() != cu_q.len() {
            return Err(Error::Length { op: OP, what: "cu_k", expected: cu_q.len(), got: cu_k.len() });
        }
        for (what, cu) in [("cu_q", cu_q), ("cu_k", cu_k)] {
            rising(what, cu)?;
        }
        let k_len: Vec<u32> = lengths(cu_k).collect();
        Segments::new(queue, [&k_len, cu_q, cu_k], cu_k[cu_k.len() - 1] as usize, Keys::Stream)
    }

    /// Segment s has a cache of its own ([`Caches`](super::Caches)) with `k_len[s]` keys, of which the last are
    /// `cu_k[s]..cu_k[s + 1]` of a stream of new ones.
    ///
    /// # Errors
    /// As [`packed`](Segments::packed); a segment with fewer keys than new ones.
    pub fn cached(queue: Queue<'_>, cu_q: &[u32], cu_k: &[u32], k_len: &[u32]) -> Result<Segments> {
        for (what, cu) in [("cu_q", cu_q), ("cu_k", cu_k)] {
            rising(what, cu)?;
            if k_len.len() + 1 != cu.len() {
                return Err(Error::Length { op: OP, what: "k_len", expected: cu.len() - 1, got: k_len.len() });
            }
        }
        let new: Vec<u32> = lengths(cu_k).collect();
        hold_new(&new, k_len)?;
        Segments::new(queue, [k_len, cu_q, cu_k], cu_k[cu_k.len() - 1] as usize, Keys::Caches(new))
    }

    /// Segment s has `k_len[s]` keys in pages of [`TILE`] rows of a cache: key j is row
    /// `pages[s * max_pages + j / TILE] * TILE + j % TILE`.
    ///
    /// # Errors
    /// As [`packed`](Segments::packed); a segment with more keys than its pages hold.
    pub fn paged(queue: Queue<'_>, cu_q: &[u32], k_len: &[u32], pages: &[u32], max_pages: usize) -> Result<Segments> {
        rising("cu_q", cu_q)?;
        if k_len.len() + 1 != cu_q.len() {
            return Err(Error::Length { op: OP, what: "k_len", expected: cu_q.len() - 1, got: k_len.len() });
        }
        if pages.len() != k_len.len() * max_pages {
            let expected = k_len.len() * max_pages;
            return Err(Error::Length { op: OP, what: "the page table", expected, got: pages.len() });
        }
        let rows = rows_in_use(k_len, pages, max_pages)?;
        let keys = Keys::Pages(queue.upload("a page table", pages)?, pages.to_vec());
        Ok(Segments { max_pages, ..Segments::new(queue, [k_len, cu_q, &[]], rows, keys)? })
    }

    fn new(queue: Queue<'_>, [k_len, cu_q, cu_k]: [&[u32]; 3], key_rows: usize, keys: Keys) -> Result<Segments> {
        let queries_of: Vec<usize> = lengths(cu_q).map(|n| n as usize).collect();
        Ok(Segments {
            len: k_len.len(),
            queries: cu_q[cu_q.len() - 1] as usize,
            key_rows,
            max_queries: queries_of.iter().copied().max().unwrap_or(0),
            overfull: overfull(&queries_of, k_len),
            keys_of: k_len.to_vec(),
            queries_of,
            max_pages: 0,
            table: queue.upload("a segment table", &[k_len, cu_q, cu_k].concat())?,
            keys,
            stored: stored::Known::default(),
        })
    }

    /// Other numbers of keys in the same pages or caches. Only what lies on the device changes, so a recorded step of
    /// decoding, which has one query a segment, goes on with the next key.
    ///
    /// # Errors
    /// Keys in a stream; a number of segments that is another; a segment with more keys than its pages hold, or fewer than
    /// are new.
    pub fn set_keys(&mut self, k_len: &[u32]) -> Result<()> {
        let expected = if matches!(self.keys, Keys::Stream) { 0 } else { self.len };
        if k_len.len() != expected || expected == 0 {
            return Err(Error::Length { op: OP, what: "the numbers of keys in caches", expected, got: k_len.len() });
        }
        match &self.keys {
            Keys::Pages(_, pages) => self.key_rows = rows_in_use(k_len, pages, self.max_pages)?,
            Keys::Caches(new) => hold_new(new, k_len)?,
            Keys::Stream => {}
        }
        self.table.upload(k_len)?;
        self.keys_of = k_len.to_vec();
        self.overfull = overfull(&self.queries_of, k_len);
        Ok(())
    }

    /// Lets attention's backward pass store no more than so many bytes of the gradient of scores, where it would store up to a 64th
    /// of the device's memory.
    pub fn store_at_most(&mut self, bytes: u64) {
        self.stored.most = Some(bytes);
    }

    /// Number of segments.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no segment.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of queries of all segments.
    pub fn queries(&self) -> usize {
        self.queries
    }

    /// Rows of keys that the table speaks of.
    pub fn key_rows(&self) -> usize {
        self.key_rows
    }

    /// Whether keys lie in pages.
    pub fn is_paged(&self) -> bool {
        matches!(self.keys, Keys::Pages(..))
    }

    /// Whether each segment has a cache of its own.
    pub(super) fn are_cached(&self) -> bool {
        matches!(self.keys, Keys::Caches(_))
    }

    pub(super) fn max_queries(&self) -> usize {
        self.max_queries
    }

    pub(super) fn max_keys(&self) -> usize {
        self.keys_of.iter().copied().max().unwrap_or(0) as usize
    }

    pub(super) fn max_pages(&self) -> usize {
        self.max_pages
    }

    /// What depends on the kind of attention.
    pub(super) fn check(&self, attention: &Attention) -> Result<()> {
        match self.overfull {
            Some(queries) if attention.causal => {
                let expected = "at most its keys where attention is causal";
                Err(Error::Size { op: OP, what: "the queries of a segment", expected, got: queries })
            }
            _ => Ok(()),
        }
    }

    /// Keys of each segment's cache.
    pub(super) fn cached_keys(&self, op: &'static str) -> Result<&[u32]> {
        match self.keys {
            Keys::Caches(_) => Ok(&self.keys_of),
            _ => Err(Error::Length { op, what: "the numbers of keys in caches", expected: self.len, got: 0 }),
        }
    }

    /// New keys in caches.
    pub(crate) fn new_keys(&self) -> usize {
        self.key_rows
    }

    /// Of the segment that has most.
    pub(crate) fn max_new_keys(&self) -> usize {
        match &self.keys {
            Keys::Caches(new) => new.iter().copied().max().unwrap_or(0) as usize,
            _ => 0,
        }
    }

    /// The part of the table from a word on.
    fn part(&self, start: usize) -> Arg<'static> {
        Arg::Ptr(DevicePtr(self.table.ptr().0 + 4 * start as u64))
    }

    /// `cu_k` and `k_len` of new keys in caches.
    pub(crate) fn appended(&self) -> (Arg<'static>, Arg<'static>) {
        (self.part(2 * self.len + 1), self.part(0))
    }

    /// `cu_q`, `k_start`, `k_len`, `pages`.
    pub(super) fn args(&self) -> [Arg<'static>; 4] {
        let (start, pages) = match &self.keys {
            Keys::Stream => (self.part(2 * self.len + 1), NULL),
            Keys::Pages(pages, _) => (NULL, Arg::Ptr(pages.ptr())),
            Keys::Caches(_) => (NULL, NULL),
        };
        [self.part(self.len), start, self.part(0), pages]
    }
}

fn lengths(cu: &[u32]) -> impl Iterator<Item = u32> {
    cu.windows(2).map(|w| w[1] - w[0])
}

fn overfull(queries: &[usize], k_len: &[u32]) -> Option<usize> {
    queries.iter().zip(k_len).find(|&(&queries, &keys)| queries > keys as usize).map(|(&queries, _)| queries)
}

fn hold_new(new: &[u32], k_len: &[u32]) -> Result<()> {
    match new.iter().zip(k_len).find(|(new, keys)| new > keys) {
        Some((_, &keys)) => {
            let expected = "at least those that are new";
            Err(Error::Size { op: OP, what: "the keys of a segment", expected, got: keys as usize })
        }
        None => Ok(()),
    }
}

/// Rows of a cache that these keys reach to.
fn rows_in_use(k_len: &[u32], pages: &[u32], max_pages: usize) -> Result<usize> {
    if let Some(&keys) = k_len.iter().find(|&&keys| keys as usize > max_pages * TILE) {
        let expected = "at most what its pages hold";
        return Err(Error::Size { op: OP, what: "the keys of a segment", expected, got: keys as usize });
    }
    let used = k_len.iter().enumerate().flat_map(|(s, &keys)| {
        pages[s * max_pages..][..(keys as usize).div_ceil(TILE)].iter().map(|&page| page as usize + 1)
    });
    Ok(used.max().unwrap_or(0) * TILE)
}

fn rising(what: &'static str, cu: &[u32]) -> Result<()> {
    if cu.first() != Some(&0) || cu.windows(2).any(|w| w[0] > w[1]) {
        let got = cu.first().copied().unwrap_or_default() as usize;
        return Err(Error::Size { op: OP, what, expected: "rising from 0", got });
    }
    Ok(())
}
