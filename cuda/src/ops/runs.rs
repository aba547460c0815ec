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
        let order = sorted(index);
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

/// Positions in the order of what they hold, of equal ones the first.
fn sorted(index: &[u32]) -> Vec<u32> {
    let largest = index.iter().copied().max().unwrap_or(0) as usize;
    let mut order: Vec<u32> = (0..index.len() as u32).collect();
    // Counting takes time for each number that there might be.
    if largest > 4 * index.len() {
        order.sort_by_key(|&i| index[i as usize]);
        return order;
    }
    let mut next = vec![0; largest + 2];
    index.iter().for_each(|&row| next[row as usize + 1] += 1);
    (1..next.len()).for_each(|row| next[row] += next[row - 1]);
    for (i, &row) in (0..).zip(index) {
        order[next[row as usize]] = i;
        next[row as usize] += 1;
    }
    order
}

#[cfg(test)]
mod tests {
    use super::sorted;

    #[test]
    fn counting_and_sorting_give_one_order() {
        let index: Vec<u32> = (0..500u32).map(|i| i * i * 7 % 211).collect();
        let wide: Vec<u32> = index.iter().map(|i| i * 1_000_003).collect();
        assert_eq!(sorted(&index), sorted(&wide));
        assert_eq!(sorted(&[5, 1, 5, 0, 1]), [3, 1, 4, 0, 2]);
        assert!(sorted(&[]).is_empty());
    }
}
