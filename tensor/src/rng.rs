//! Counter-based random numbers (law 6 of the design).
//!
//! A number is a pure function of (seed, purpose, step, index): there is no state to save, and any
//! element can be drawn alone, in any order, on any number of threads.

use std::sync::Arc;

/// What random numbers are for. Different purposes never share a stream.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Purpose {
    /// Initial weights.
    Init = 1,
    /// Dropout masks.
    Dropout = 2,
    /// Order of the data.
    Shuffle = 3,
    /// Tokens sampled in generation.
    Sampling = 4,
    /// Noise on embeddings (NEFTune).
    Noise = 5,
    /// Generated data and tests.
    Data = 6,
}

/// Philox4x32-10: four 32-bit words from a 128-bit counter and a 64-bit key.
///
/// # Source
/// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for _ in 0..10 {
        let p0 = 0xD251_1F53u64 * c[0] as u64;
        let p1 = 0xCD9E_8D57u64 * c[2] as u64;
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// A stream of random numbers addressed by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    seed: u64,
    purpose: Purpose,
    step: u64,
}

impl Stream {
    /// The stream of `seed` for `purpose` at `step` (an optimizer step, a layer and step combined
    /// with [`Stream::substream`], an epoch, …).
    pub const fn new(seed: u64, purpose: Purpose, step: u64) -> Stream {
        Stream { seed, purpose, step }
    }

    /// Seed, purpose and step: for who draws the same numbers elsewhere.
    pub(crate) fn parts(&self) -> (u64, Purpose, u64) {
        (self.seed, self.purpose, self.step)
    }

    /// A stream of its own for `id` (a layer, a sample, …) under this one.
    pub fn substream(self, id: u64) -> Stream {
        let [a, b, c, d] = self.block(id ^ 0x5bd1_e995_0000_0000);
        Stream { seed: (a as u64) << 32 | b as u64, purpose: self.purpose, step: (c as u64) << 32 | d as u64 }
    }

    /// Block `i` of four words.
    #[inline]
    pub fn block(&self, i: u64) -> [u32; 4] {
        let counter =
            [i as u32, (i >> 32) as u32, self.step as u32, (self.step >> 32) as u32 ^ ((self.purpose as u32) << 24)];
        philox(counter, [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// Word `i`, uniform over all u32.
    #[inline]
    pub fn u32(&self, i: u64) -> u32 {
        self.block(i / 4)[(i % 4) as usize]
    }

    /// Two words, uniform over all u64, at index `i`.
    #[inline]
    pub fn u64(&self, i: u64) -> u64 {
        let b = self.block(i / 2);
        let at = (i % 2 * 2) as usize;
        (b[at] as u64) << 32 | b[at + 1] as u64
    }

    /// Uniform in [0, 1), a multiple of 2^-24.
    #[inline]
    pub fn uniform(&self, i: u64) -> f32 {
        (self.u32(i) >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    #[inline]
    pub fn uniform_f64(&self, i: u64) -> f64 {
        (self.u64(i) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in 0..n (bias below 2^-32 for n under 2^32). `n` must not be 0.
    #[inline]
    pub fn below(&self, i: u64, n: u64) -> u64 {
        ((self.u64(i) as u128 * n as u128) >> 64) as u64
    }

    /// Standard normal (Box and Muller).
    #[inline]
    pub fn normal(&self, i: u64) -> f64 {
        let b = self.block(i);
        // In (0, 1]: the logarithm is finite.
        let u = ((b[0] as u64) << 21 | (b[1] >> 11) as u64) as f64;
        let u = (u + 1.0) / (1u64 << 53) as f64;
        let v = b[2] as f64 / (1u64 << 32) as f64;
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

/// Random numbers for a matrix whose rows are tokens: row r draws what its *key* says, not its place.
///
/// A key names a token for good (its example and its position there), so that the numbers of a token do
/// not depend on which micro-batch it is in, or on what else is in there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    stream: Stream,
    keys: Arc<[u64]>,
}

impl Rows {
    /// Rows of `stream`; `keys`: (rows).
    pub fn new(stream: Stream, keys: Arc<[u64]>) -> Rows {
        Rows { stream, keys }
    }

    /// The key of the token at `position` of an example, of which the step has `occurrence` others before it.
    pub fn key(example: u64, occurrence: u32, position: u32) -> u64 {
        let b = philox([example as u32, (example >> 32) as u32, occurrence, position], [0x6b65_7973, 0]);
        (b[0] as u64) << 32 | b[1] as u64
    }

    /// The same rows in a stream of their own for `id` (a module).
    pub fn substream(&self, id: u64) -> Rows {
        Rows { stream: self.stream.substream(id), keys: self.keys.clone() }
    }

    /// Rows `which` of these.
    ///
    /// # Panics
    /// A row out of range.
    pub fn select(&self, which: &[u32]) -> Rows {
        Rows { stream: self.stream, keys: which.iter().map(|&r| self.keys[r as usize]).collect() }
    }

    /// What the numbers are drawn from.
    pub(crate) fn stream(&self) -> Stream {
        self.stream
    }

    /// The key of each row.
    pub(crate) fn keys(&self) -> &[u64] {
        &self.keys
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Row `r`.
    ///
    /// # Panics
    /// `r` out of range.
    pub fn row(&self, r: usize) -> Row {
        let b = self.stream.block(self.keys[r]);
        Row { a: b[0], b: b[1] }
    }
}

/// One row of [`Rows`]: a word for each column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    a: u32,
    b: u32,
}

impl Row {
    /// The word of `column`, uniform over all u32.
    ///
    /// Philox keys the row; the columns go through a mixer of 32-bit words alone, which vectorises and
    /// costs a tenth of Philox: enough for masks and noise, which need no more than that neighbours
    /// are independent.
    ///
    /// # Source
    /// The constants are C. Wellons's, "Prospecting for hash functions" (2018; two rounds of
    /// xorshift and multiply, measured bias 0.11).
    #[inline(always)]
    pub fn u32(self, column: u32) -> u32 {
        let mut h = column.wrapping_mul(0x9E37_79B9).wrapping_add(self.a);
        h = (h ^ (h >> 16)).wrapping_mul(0x21f0_aaad) ^ self.b;
        h = (h ^ (h >> 15)).wrapping_mul(0xd35a_2d97);
        h ^ (h >> 15)
    }

    /// Uniform in [0, 1), a multiple of 2^-24.
    #[inline(always)]
    pub fn uniform(self, column: u32) -> f32 {
        (self.u32(column) >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_known_answers() {
        // The Random123 distribution's kat_vectors for philox4x32, 10 rounds.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn streams_differ_and_are_uniform() {
        let s = Stream::new(7, Purpose::Dropout, 3);
        let n = 40_000u64;
        let mean = (0..n).map(|i| s.uniform(i) as f64).sum::<f64>() / n as f64;
        // Five standard errors of the mean of a uniform: 5 * 0.2887 / 200.
        assert!((mean - 0.5).abs() < 0.0073, "{mean}");
        let variance = (0..n).map(|i| s.normal(i).powi(2)).sum::<f64>() / n as f64;
        // Five standard errors of the mean square of a normal: 5 * sqrt(2) / 200.
        assert!((variance - 1.0).abs() < 0.036, "{variance}");
        for other in [
            Stream::new(8, Purpose::Dropout, 3),
            Stream::new(7, Purpose::Init, 3),
            Stream::new(7, Purpose::Dropout, 4),
            s.substream(0),
        ] {
            assert_ne!(s.block(5), other.block(5));
        }
    }

    #[test]
    fn rows_go_by_key_and_neighbours_are_independent() {
        let stream = Stream::new(7, Purpose::Dropout, 3);
        let keys: Vec<u64> = (0..200).map(|position| Rows::key(5, 0, position)).collect();
        let rows = Rows::new(stream, keys.clone().into());
        let moved = Rows::new(stream, vec![keys[9], keys[3]].into());
        assert_eq!((rows.row(9), rows.row(3)), (moved.row(0), moved.row(1)));
        // Products of centred uniforms of a word and its neighbours: mean 0, variance 1/144.
        let n = 500u32;
        let other = rows.substream(1);
        let at = |rows: &Rows, r: usize, c: u32| rows.row(r % 200).uniform(c) as f64 - 0.5;
        type Other<'a> = &'a dyn Fn(usize, u32) -> f64;
        let pairs: [(&str, Other<'_>); 6] = [
            ("the next column", &|r, c| at(&rows, r, c + 1)),
            ("the eighth column after", &|r, c| at(&rows, r, c + 8)),
            ("the next row", &|r, c| at(&rows, r + 1, c)),
            ("another module", &|r, c| at(&other, r, c)),
            ("a column far away", &|r, c| at(&rows, r, c + (1 << 16))),
            ("the mean", &|_, _| 1.0 / 12f64.sqrt()),
        ];
        for (what, pair) in pairs {
            let sum: f64 =
                (0..200).flat_map(|r| (0..n).map(move |c| (r, c))).map(|(r, c)| at(&rows, r, c) * pair(r, c)).sum();
            let count = 200.0 * n as f64;
            // Five standard errors.
            assert!((sum / count).abs() <= 5.0 / 12.0 / count.sqrt(), "{what}: {}", sum / count);
        }
        let distinct: std::collections::HashSet<u64> = [(5, 0, 1), (5, 1, 0), (6, 0, 0), (1 << 32, 0, 0), (0, 0, 0)]
            .map(|(example, occurrence, position)| Rows::key(example, occurrence, position))
            .into();
        assert_eq!(distinct.len(), 5);
    }
}
