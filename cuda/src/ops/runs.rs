//! Indices sorted on the host, so that a kernel can add rows in a fixed order.

use crate::driver::Stream;
use crate::memory::DeviceBuffer;
use crate::{DType, Queue, Result};

/// Which sources go to which row: for each distinct index a run of the positions that hold it, in order.
#[derive(Debug)]
pub struct Runs {
    distinct: usize,
    total: usize,
    largest: Option<u32>,
    rows: DeviceBuffer,
    starts: DeviceBuffer,
    order: DeviceBuffer,
}

impl Runs {
    /// Sorts `index`, stably, and copies the result to the device.
    ///
    /// # Errors
    /// Those of the allocator.
    pub fn new(queue: Queue<'_>, index: &[u32]) -> Result<Runs> {
        let mut order: Vec<u32> = (0..index.len() as u32).collect();
        order.sort_by_key(|&i| index[i as usize]);
        let (mut rows, mut starts) = (Vec::new(), Vec::new());
        for (at, &i) in order.iter().enumerate() {
            let row = index[i as usize];
            if rows.last() != Some(&row) {
                rows.push(row);
                starts.push(at as u32);
            }
        }
        starts.push(index.len() as u32);
        Ok(Runs {
            distinct: rows.len(),
            total: index.len(),
            largest: rows.last().copied(),
            rows: queue.upload("sorted indices", &rows)?,
            starts: queue.upload("sorted indices", &starts)?,
            order: queue.upload("sorted indices", &order)?,
        })
    }

    /// Number of indices.
    pub fn len(&self) -> usize {
        self.total
    }

    /// Whether there is no index.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Number of distinct indices.
    pub fn distinct(&self) -> usize {
        self.distinct
    }

    /// The largest index.
    pub fn largest(&self) -> Option<u32> {
        self.largest
    }

    /// The stream whose work may use it.
    pub fn stream(&self) -> Stream {
        self.rows.stream()
    }

    pub(super) fn args(&self) -> [crate::driver::Arg<'static>; 3] {
        [&self.rows, &self.starts, &self.order].map(|buffer| buffer.slice(DType::U32).arg())
    }
}
