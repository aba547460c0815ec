//! Which keys belong to which queries.

use super::{Attention, OP, TILE};
use crate::driver::Arg;
use crate::memory::DeviceBuffer;
use crate::ops::NULL;
use crate::{DType, Error, Queue, Result};

/// The segment table of a batch, on the device, with the sizes that the host needs for a launch.
#[derive(Debug)]
pub struct Segments {
    len: usize,
    queries: usize,
    key_rows: usize,
    /// Of each segment.
    queries_of: Vec<usize>,
    max_queries: usize,
    max_keys: usize,
    /// A segment with more queries than keys, of which causal attention cannot say where the queries stand.
    overfull: Option<usize>,
    max_pages: usize,
    cu_q: DeviceBuffer,
    k_start: Option<DeviceBuffer>,
    k_len: DeviceBuffer,
    pages: Option<DeviceBuffer>,
    /// The same on the host, for other numbers of keys in it.
    page_table: Vec<u32>,
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
        let k_len: Vec<u32> = cu_k.windows(2).map(|w| w[1] - w[0]).collect();
        let mut table = Segments::new(queue, cu_q, &k_len, cu_k[cu_k.len() - 1] as usize)?;
        table.k_start = Some(queue.upload("a segment table", &cu_k[..cu_k.len() - 1])?);
        Ok(table)
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
        let mut table = Segments::new(queue, cu_q, k_len, rows)?;
        table.max_pages = max_pages;
        table.pages = Some(queue.upload("a page table", pages)?);
        table.page_table = pages.to_vec();
        Ok(table)
    }

    fn new(queue: Queue<'_>, cu_q: &[u32], k_len: &[u32], key_rows: usize) -> Result<Segments> {
        let queries = cu_q.windows(2).map(|w| (w[1] - w[0]) as usize);
        Ok(Segments {
            len: k_len.len(),
            queries: cu_q[cu_q.len() - 1] as usize,
            key_rows,
            queries_of: queries.clone().collect(),
            max_queries: queries.clone().max().unwrap_or(0),
            max_keys: k_len.iter().copied().max().unwrap_or(0) as usize,
            overfull: queries.zip(k_len).find(|&(queries, &keys)| queries > keys as usize).map(|(queries, _)| queries),
            max_pages: 0,
            cu_q: queue.upload("a segment table", cu_q)?,
            k_start: None,
            k_len: queue.upload("a segment table", k_len)?,
            pages: None,
            page_table: Vec::new(),
        })
    }

    /// Other numbers of keys in the same pages. Only what lies on the device changes, so a recorded step of decoding, which
    /// has one query a segment, goes on with the next key.
    ///
    /// # Errors
    /// Keys in no pages; a number of segments that is another; a segment with more keys than its pages hold.
    pub fn set_keys(&mut self, k_len: &[u32]) -> Result<()> {
        if k_len.len() != self.len || !self.is_paged() {
            let expected = if self.is_paged() { self.len } else { 0 };
            return Err(Error::Length { op: OP, what: "the numbers of keys in pages", expected, got: k_len.len() });
        }
        let rows = rows_in_use(k_len, &self.page_table, self.max_pages)?;
        self.k_len.upload(k_len)?;
        self.key_rows = rows;
        self.max_keys = k_len.iter().copied().max().unwrap_or(0) as usize;
        let too_many = self.queries_of.iter().zip(k_len).find(|(queries, keys)| **queries > **keys as usize);
        self.overfull = too_many.map(|(queries, _)| *queries);
        Ok(())
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
        self.pages.is_some()
    }

    pub(super) fn max_queries(&self) -> usize {
        self.max_queries
    }

    pub(super) fn max_keys(&self) -> usize {
        self.max_keys
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

    /// `cu_q`, `k_start`, `k_len`, `pages`.
    pub(super) fn args(&self) -> [Arg<'static>; 4] {
        let arg = |buffer: &DeviceBuffer| buffer.slice(DType::U32).arg();
        [
            arg(&self.cu_q),
            self.k_start.as_ref().map_or(NULL, arg),
            arg(&self.k_len),
            self.pages.as_ref().map_or(NULL, arg),
        ]
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
