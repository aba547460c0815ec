//! Tables of the host on the device: uploaded once, and kept while the same come again.
//!
//! A pass uses the same segment table in every layer and the same ids forward and backward. What was used last is kept,
//! a few of each kind, found by comparing the whole content: a wrong match is impossible, and the tables are small
//! beside what is done with them.

use std::collections::VecDeque;
use std::sync::Arc;

use planish_cuda::memory::DeviceBuffer;
use planish_cuda::ops::Runs;
use planish_cuda::ops::attention::{CacheSizes, Caches, Segments};

use super::Context;
use crate::{Result, Tensor};

/// Tables of each kind: those of a micro-batch (ids, targets, rows of the head, keys), and of batches that are decoded.
const MOST: usize = 64;

/// In recorded work even one that is found is refused: the next step's is another.
const WHAT: &str = "a table of the host";

#[derive(Default)]
pub(super) struct Kept {
    words: List<DeviceBuffer>,
    runs: List<Runs>,
    segments: List<Segments>,
    caches: List<Caches>,
}

/// The last used first.
struct List<T>(VecDeque<(Box<[u32]>, Arc<T>)>);

impl<T> Default for List<T> {
    fn default() -> Self {
        List(VecDeque::new())
    }
}

impl<T> List<T> {
    fn find(&mut self, key: &[u32]) -> Option<Arc<T>> {
        let at = self.0.iter().position(|(k, _)| **k == *key)?;
        let found = self.0.remove(at)?;
        let value = found.1.clone();
        self.0.push_front(found);
        Some(value)
    }

    fn put(&mut self, key: &[u32], value: T) -> Arc<T> {
        let value = Arc::new(value);
        self.0.truncate(MOST - 1);
        self.0.push_front((key.into(), value.clone()));
        value
    }
}

impl Context {
    /// `words` on the device.
    pub(crate) fn words(&self, words: &[u32]) -> Result<Arc<DeviceBuffer>> {
        self.not_recorded(WHAT)?;
        let mut kept = self.kept();
        if let Some(found) = kept.words.find(words) {
            return Ok(found);
        }
        self.uploaded(size_of_val(words));
        let made = self.queue().upload("a table of indices", words)?;
        Ok(kept.words.put(words, made))
    }

    /// Positions sorted by index, for sums by index.
    pub(crate) fn runs(&self, index: &[u32]) -> Result<Arc<Runs>> {
        self.not_recorded(WHAT)?;
        let mut kept = self.kept();
        if let Some(found) = kept.runs.find(index) {
            return Ok(found);
        }
        self.uploaded(3 * size_of_val(index));
        let made = Runs::new(self.queue(), index)?;
        Ok(kept.runs.put(index, made))
    }

    /// A segment table.
    pub(crate) fn segments(&self, cu_q: &[u32], cu_k: &[u32]) -> Result<Arc<Segments>> {
        self.not_recorded(WHAT)?;
        let key: Vec<u32> = [cu_q, cu_k].concat();
        let mut kept = self.kept();
        // Both tables have one length: the caller has checked.
        if let Some(found) = kept.segments.find(&key) {
            return Ok(found);
        }
        self.uploaded(3 * size_of_val(cu_q) - size_of::<u32>());
        let made = Segments::packed(self.queue(), cu_q, cu_k)?;
        Ok(kept.segments.put(&key, made))
    }

    /// Where caches of sequences are: in a steady batch the same at each step. Which they are is where they begin, how long
    /// they are and what they hold.
    pub(crate) fn caches(&self, caches: &[&Tensor], sizes: CacheSizes) -> Result<Arc<Caches>> {
        self.not_recorded(WHAT)?;
        let slices = caches.iter().map(|cache| cache.cells()).collect::<Result<Vec<_>>>()?;
        let kind = [sizes.layers, sizes.kv_heads, sizes.size, caches.first().map_or(0, |cache| cache.dtype() as usize)];
        let places = slices.iter().flat_map(|slice| [slice.address(), slice.len() as u64]);
        let key: Vec<u32> = kind
            .into_iter()
            .map(|n| n as u64)
            .chain(places)
            .flat_map(|word| [word as u32, (word >> 32) as u32])
            .collect();
        let mut kept = self.kept();
        if let Some(found) = kept.caches.find(&key) {
            return Ok(found);
        }
        let made = Caches::new(self.queue(), &slices, sizes)?;
        self.uploaded(made.bytes());
        Ok(kept.caches.put(&key, made))
    }
}
