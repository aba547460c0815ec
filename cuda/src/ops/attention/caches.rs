//! Caches of sequences that are decoded; see `cuda/kernels/cache.cuh`.

use super::{Segments, hopper};
use crate::driver::Arg;
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
}

impl Caches {
    /// The table of these caches, which must outlive it.
    ///
    /// # Errors
    /// A length that is no whole number of keys in every layer; types that differ; no room.
    pub fn new(queue: Queue<'_>, caches: &[Slice<'_>], sizes: CacheSizes) -> Result<Caches> {
        let key = 2 * sizes.layers * sizes.kv_heads * sizes.size;
        let dtype = caches.first().map_or(DType::F32, |cache| cache.dtype());
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
        Ok(Caches { table: queue.upload("a table of caches", &words)?, sizes, dtype, capacities })
    }

    /// Bytes of the table.
    pub fn bytes(&self) -> usize {
        self.table.bytes()
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
