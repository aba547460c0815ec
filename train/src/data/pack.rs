//! Packing by best-fit decreasing: examples into bins of `capacity` tokens.

use std::collections::{BTreeMap, VecDeque};

/// How examples are put together into the rows of a micro-batch; names are TRL's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Each example is a row of its own.
    #[default]
    None,
    /// Best-fit decreasing into rows of `max_length` tokens; examples stay whole.
    Bfd,
    /// All examples in one stream, cut every `max_length` tokens; what does not fit goes on in the
    /// next row as a segment of its own. For pretraining.
    Wrapped,
}

/// Best-fit decreasing: the longest first, each into the bin with the least room that is enough.
/// Returns the indices in each bin, in the order of `lengths`. Uses at most 11/9 of the optimal
/// number of bins plus one.
///
/// Lengths over `capacity` get a bin of their own; lengths of 0 are left out.
///
/// # Source
/// Johnson, "Near-optimal bin packing algorithms", 1973; as a strategy for sequences, Ding et al.,
/// "Fewer truncations improve language modeling", arXiv 2404.10830.
///
/// ```
/// let bins = planish_train::data::best_fit_decreasing(&[5, 3, 6, 2, 4], 10);
/// assert_eq!(bins, [vec![2, 4], vec![0, 1, 3]]);
/// ```
pub fn best_fit_decreasing(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).filter(|&i| lengths[i] > 0).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut bins: Vec<Vec<usize>> = Vec::new();
    // Bins by the room that is left in them, the oldest first.
    let mut room: BTreeMap<usize, VecDeque<usize>> = BTreeMap::new();
    for i in order {
        let fit = room.range(lengths[i]..).next().map(|(&left, _)| left);
        let bin = match fit.and_then(|left| Some((left, room.get_mut(&left)?))) {
            Some((left, queue)) => {
                let bin = queue.pop_front();
                if queue.is_empty() {
                    room.remove(&left);
                }
                bin.map(|bin| (bin, left))
            }
            None => None,
        };
        let (bin, left) = bin.unwrap_or_else(|| {
            bins.push(Vec::new());
            (bins.len() - 1, capacity)
        });
        bins[bin].push(i);
        room.entry(left.saturating_sub(lengths[i])).or_default().push_back(bin);
    }
    for bin in &mut bins {
        bin.sort_unstable();
    }
    bins
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_once_and_no_bin_too_full(lengths in prop::collection::vec(0usize..60, 0..300), capacity in 60usize..200) {
            let bins = best_fit_decreasing(&lengths, capacity);
            let mut all: Vec<usize> = bins.concat();
            all.sort();
            prop_assert_eq!(all, (0..lengths.len()).filter(|&i| lengths[i] > 0).collect::<Vec<_>>());
            let full: Vec<usize> = bins.iter().map(|b| b.iter().map(|&i| lengths[i]).sum()).collect();
            prop_assert!(full.iter().all(|&f| f > 0 && f <= capacity));
            // At most one bin is at most half full: two of them would have been one.
            prop_assert!(full.iter().filter(|&&f| f * 2 <= capacity).count() <= 1);
        }
    }
}
