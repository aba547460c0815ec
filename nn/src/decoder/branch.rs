//! Sequences that begin alike: their common first tokens stand in the stream once.

use std::sync::Arc;

use planish_autograd::ops::attention::Stem;

use super::{Model, Packed};

impl Packed {
    /// The same with segments that begin alike, in runs of `run` segments: those behind the first of a run keep the
    /// tokens from their first that differs from its, and go on from its tokens before, if these are `least` or more.
    /// With it comes the row of the new stream for each token of the old one. `None` if no segment begins like its
    /// run, or if segments branch already.
    ///
    /// A token sees what it saw, at the position it had, so that its hidden state has the same bits.
    ///
    /// # Panics
    /// If `run` is 0.
    pub fn branched(&self, run: usize, least: usize) -> Option<(Packed, Vec<u32>)> {
        let segments = self.cu_seqlens.len() - 1;
        if !self.stems.is_empty() {
            return None;
        }
        let range = |s: usize| self.cu_seqlens[s] as usize..self.cu_seqlens[s + 1] as usize;
        let (mut ids, mut positions, mut cu) = (vec![], vec![], vec![0u32]);
        let (mut stems, mut at) = (vec![], Vec::with_capacity(self.len()));
        // Where the tokens of the run's first segment are in `at`.
        let mut first = 0;
        for s in 0..segments {
            let (own, stem) = (range(s), s / run * run);
            if stem == s {
                first = at.len();
            }
            let alike = if stem == s { 0 } else { common(&self.ids[range(stem)], &self.ids[own.clone()]) };
            let shared = if alike < least { 0 } else { alike };
            at.extend_from_within(first..first + shared);
            at.extend((own.start + shared..own.end).zip(ids.len() as u32..).map(|(_, row)| row));
            ids.extend_from_slice(&self.ids[own.start + shared..own.end]);
            positions.extend_from_slice(&self.positions[own.start + shared..own.end]);
            cu.push(ids.len() as u32);
            stems.push((shared > 0).then_some(Stem { of: stem as u32, len: shared as u32 }));
        }
        let packed =
            Packed { ids: ids.into(), positions: positions.into(), cu_seqlens: cu.into(), stems: stems.into() };
        packed.stems.iter().any(Option::is_some).then_some((packed, at))
    }

    /// Stems with `count` more tokens before every sequence.
    pub(super) fn longer_stems(&self, count: usize) -> Arc<[Option<Stem>]> {
        let longer = |stem: &Stem| Stem { of: stem.of, len: stem.len + count as u32 };
        self.stems.iter().map(|stem| stem.as_ref().map(longer)).collect()
    }
}

impl Model {
    /// Whether a token's hidden state is a function of what comes before it alone. It is not where rotations
    /// depend on the sequence's length (dynamic and LongRoPE scaling). On a device, attention has no kernel for it.
    pub fn can_branch(&self) -> bool {
        self.device().is_cpu() && !self.config.ropes.iter().any(|rope| rope.depends_on_length())
    }
}

/// Tokens that both begin with, leaving the second at least one of its own.
fn common(a: &[u32], b: &[u32]) -> usize {
    let alike = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    alike.min(b.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_part_where_they_differ() {
        let pairs: [&[u32]; 6] = [&[1, 2, 3, 4], &[1, 2, 5], &[7, 8], &[9], &[6, 6, 6], &[6, 6]];
        let (packed, at) = Packed::new(&pairs).branched(2, 1).unwrap();
        assert_eq!(&packed.ids[..], [1, 2, 3, 4, 5, 7, 8, 9, 6, 6, 6, 6]);
        assert_eq!(&packed.positions[..], [0, 1, 2, 3, 2, 0, 1, 0, 0, 1, 2, 1]);
        assert_eq!(&packed.cu_seqlens[..], [0, 4, 5, 7, 8, 11, 12]);
        let stem = |of, len| Some(Stem { of, len });
        assert_eq!(&packed.stems[..], [None, stem(0, 2), None, None, None, stem(4, 1)]);
        assert_eq!(at, [0, 1, 2, 3, 0, 1, 4, 5, 6, 7, 8, 9, 10, 8, 11]);
        assert!(packed.branched(2, 1).is_none(), "a stem has no stem");
        assert!(Packed::new(&[[1, 2], [2, 1]]).branched(2, 1).is_none());
        assert!(Packed::new(&[[1, 2]]).branched(2, 1).is_none());
    }

    #[test]
    fn runs_go_on_from_their_first() {
        let all: [&[u32]; 5] = [&[1, 2, 3], &[1, 2, 3, 4], &[1, 5], &[1, 2, 3, 4], &[1, 2, 6]];
        let (packed, at) = Packed::new(&all).branched(3, 2).unwrap();
        assert_eq!(&packed.ids[..], [1, 2, 3, 4, 1, 5, 1, 2, 3, 4, 6]);
        let stem = |of, len| Some(Stem { of, len });
        assert_eq!(&packed.stems[..], [None, stem(0, 3), None, None, stem(3, 2)]);
        assert_eq!(at, [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 6, 7, 10]);
    }
}
