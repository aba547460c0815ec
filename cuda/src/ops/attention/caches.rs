//! Caches of sequences that are decoded; see `cuda/kernels/cache.cuh`.

use super::{Segments, hopper};
use crate::driver::{Arg, DevicePtr};
use crate::memory::{DeviceBuffer, Slice};
use crate::{DType, Error, Queue, Result};

const OP: &str = "attention";

/// Words of 64 bits of an entry, and of the tensor map in it.
const ENTRY: usize = 32;
const MAP: usize = 16;

/// What a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSizes {
    /// Layers.
    pub layers: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Size of a head.
    pub size: usize,
}

/// Caches of the segments of a batch, each a piece of memory of its own: a table on the device says where they are.
///
/// A cache is (layers, 2, capacity, kv_heads, size): keys and values of each layer. All of it must hold numbers, whether keys
/// were put there or not.
#[derive(Debug)]
pub struct Caches {
    table: DeviceBuffer,
    sizes: CacheSizes,
    dtype: DType,
    /// Keys that there is room for in each.
    capacities: Vec<usize>,
    /// Where each begins, and how long it is.
    places: Vec<(DevicePtr, usize)>,
}

fn places(caches: &[Slice<'_>]) -> Vec<(DevicePtr, usize)> {
    caches.iter().map(|cache| (cache.ptr(), cache.len())).collect()
}

/// The table's words, and the keys that there is room for in each cache.
fn entries(queue: Queue<'_>, caches: &[Slice<'_>], sizes: CacheSizes, dtype: DType) -> Result<(Vec<u64>, Vec<usize>)> {
    let key = 2 * sizes.layers * sizes.kv_heads * sizes.size;
    let (mut words, mut capacities) = (vec![0u64; ENTRY * caches.len()], Vec::with_capacity(caches.len()));
    for (cache, entry) in caches.iter().zip(words.chunks_exact_mut(ENTRY)) {
        cache.expect_compute(OP, "a cache")?;
        cache.expect_dtype(OP, "a cache", dtype)?;
        cache.expect_aligned(OP, "a cache")?;
        let capacity = cache.len() / key.max(1);
        if capacity == 0 || cache.len() != capacity * key {
            let expected = "a positive multiple of what a key and a value take in all layers";
            return Err(Error::Size { op: OP, what: "the length of a cache", expected, got: cache.len() });
        }
        if hopper::takes(queue, dtype, sizes.size) {
            let map = hopper::map(queue, *cache, sizes.kv_heads, sizes.size)?;
            for (word, bytes) in entry.iter_mut().zip(map.as_chunks().0) {
                *word = u64::from_le_bytes(*bytes);
            }
        }
        (entry[MAP], entry[MAP + 1]) = (cache.ptr().0, capacity as u64);
        capacities.push(capacity);
    }
    Ok((words, capacities))
}

impl Caches {
    /// The table of these caches, which must outlive it.
    ///
    /// # Errors
    /// A length that is no whole number of keys in every layer; types that differ; no room.
    pub fn new(queue: Queue<'_>, caches: &[Slice<'_>], sizes: CacheSizes) -> Result<Caches> {
        let dtype = caches.first().map_or(DType::F32, |cache| cache.dtype());
        let (words, capacities) = entries(queue, caches, sizes, dtype)?;
        let table = queue.upload("a table of caches", &words)?;
        Ok(Caches { table, sizes, dtype, capacities, places: places(caches) })
    }

    /// Puts other caches, as many and of the same kind, in the places of these: recorded work goes on with them. Whether any
    /// is another, and so the table was uploaded anew. From [`LONG`](super::LONG) keys on what is launched depends on the
    /// largest of them: work that was recorded over a smaller one is to be recorded anew, and traps if it is not.
    ///
    /// # Errors
    /// As [`new`](Caches::new); another number of caches.
    pub fn exchange(&mut self, queue: Queue<'_>, caches: &[Slice<'_>]) -> Result<bool> {
        if caches.len() != self.capacities.len() {
            let (expected, got) = (self.capacities.len(), caches.len());
            return Err(Error::Length { op: OP, what: "the number of caches", expected, got });
        }
        let places = places(caches);
        if places == self.places {
            return Ok(false);
        }
        let (words, capacities) = entries(queue, caches, self.sizes, self.dtype)?;
        self.table.upload(&words)?;
        (self.capacities, self.places) = (capacities, places);
        Ok(true)
    }

    /// Bytes of the table.
    pub fn bytes(&self) -> usize {
        self.table.bytes()
    }

    /// Keys that there is room for in the largest.
    pub(crate) fn longest(&self) -> usize {
        self.capacities.iter().copied().max().unwrap_or(0)
    }

    pub(crate) fn kv_heads(&self) -> usize {
        self.sizes.kv_heads
    }

    pub(crate) fn size(&self) -> usize {
        self.sizes.size
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn arg(&self) -> Arg<'static> {
        Arg::Ptr(self.table.ptr())
    }

    /// Whether there is this layer, and room for all keys that the table of segments speaks of.
    pub(crate) fn check(&self, op: &'static str, layer: usize, of: &Segments) -> Result<()> {
        if layer >= self.sizes.layers {
            return Err(Error::Size { op, what: "the layer", expected: "below the number of layers", got: layer });
        }
        let keys = of.cached_keys(op)?;
        if keys.len() != self.capacities.len() {
            let (expected, got) = (self.capacities.len(), keys.len());
            return Err(Error::Length { op, what: "the numbers of keys in caches", expected, got });
        }
        match keys.iter().zip(&self.capacities).find(|(keys, capacity)| **keys as usize > **capacity) {
            Some((&keys, _)) => {
                let expected = "at most what its cache has room for";
                Err(Error::Size { op, what: "the keys of a segment", expected, got: keys as usize })
            }
            None => Ok(()),
        }
    }
}
