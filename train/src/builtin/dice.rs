//! Draws for the generator, each a pure function of (seed, document, how many came before).

use planish_tensor::rng::{Purpose, Stream};

/// Random draws for one document.
pub(super) struct Dice {
    stream: Stream,
    drawn: u64,
}

impl Dice {
    /// The draws of document `index` under `seed`; `step` keeps different uses apart.
    pub(super) fn new(seed: u64, step: u64, index: u64) -> Dice {
        Dice { stream: Stream::new(seed, Purpose::Data, step).substream(index), drawn: 0 }
    }

    /// Uniform in 0..n, for n over 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.drawn += 1;
        self.stream.below(self.drawn, n as u64) as usize
    }

    /// True once in `n` draws.
    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of `items`, which must not be empty.
    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// `n` different ones of `items`, in random order; all of them if there are fewer.
    pub(super) fn several<T: Copy>(&mut self, items: &[T], n: usize) -> Vec<T> {
        let mut rest = items.to_vec();
        (0..n.min(rest.len()))
            .map(|_| {
                let at = self.below(rest.len());
                rest.swap_remove(at)
            })
            .collect()
    }
}
