//! How panels hold their elements: floats as they are, or small integers with scales.
//!
//! A panel is a run of units, each of [`WIDTH`] columns by a number of depths:
//!
//! | stored | depths | unit |
//! | --- | --- | --- |
//! | f32, bf16, f16 | 1 | a line of elements |
//! | bytes | 32 or 16 | a line of scales, two lines of bytes for each two depths, 128 more than the integers |
//! | nibbles, codes | 32 | a line of scales, the same for 16 depths: those of depth 16 + i are the high halves of depth i's |
//! | either, with an offset | | a line of offsets behind the scales |
//!
//! Two lines of bytes are interleaved as [`PAIR`] says. Scales and offsets are f32. An element is `integer · scale`, `integer · scale + offset` or `code[nibble] · scale`,
//! every product and sum rounded: what its format says, see [`crate::quant`].

use std::marker::PhantomData;

use super::vectors::{PAIR, Vectors};
use super::{WIDTH, line_bytes};
use crate::{Float, bf16, f16};

/// Depths of blocks of GGUF files that are read together: of a unit, or of two.
pub(crate) const DEPTH: usize = 32;

/// A table of sixteen floats, and its bytes: those of place i in the numbers, for each i.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Table {
    pub(super) values: [f32; 16],
    pub(super) bytes: [[u8; 16]; 4],
}

impl Table {
    pub(crate) fn new(values: &[f32; 16]) -> Table {
        let bytes = std::array::from_fn(|i| values.map(|x| x.to_le_bytes()[i]));
        Table { values: *values, bytes }
    }
}

/// How elements are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stored {
    /// Floats.
    F32,
    /// Floats.
    Bf16,
    /// Floats.
    F16,
    /// Integers, a scale for 32 of them.
    Bytes,
    /// Integers, a scale for 32 of them that is an f16, finite.
    BytesHalf,
    /// Integers, a scale for 16 of them.
    Bytes16,
    /// Integers, a scale and an offset for 32 of them.
    BytesAbove,
    /// Integers, the first of sixteen that follow each other and a scale for 32.
    Nibbles(i8),
    /// As many, with an offset.
    NibblesAbove(i8),
    /// Codes, a scale for 32 of them.
    Codes(Table),
}

/// Evaluates an expression with the [`Source`] that something is stored as.
macro_rules! with_source {
    ($stored:expr, $source:ident => $body:expr) => {
        match $stored {
            Stored::F32 => with_source!(@ $source, Floats::<f32>::default(), $body),
            Stored::Bf16 => with_source!(@ $source, Floats::<bf16>::default(), $body),
            Stored::F16 => with_source!(@ $source, Floats::<f16>::default(), $body),
            Stored::Bytes => with_source!(@ $source, Bytes::<32, false, false>, $body),
            Stored::BytesHalf => with_source!(@ $source, Bytes::<32, false, true>, $body),
            Stored::Bytes16 => with_source!(@ $source, Bytes::<16, false, false>, $body),
            Stored::BytesAbove => with_source!(@ $source, Bytes::<32, true, false>, $body),
            Stored::Nibbles(first) => with_source!(@ $source, Codes::<2, false>::integers(first), $body),
            Stored::NibblesAbove(first) => with_source!(@ $source, Codes::<2, true>::integers(first), $body),
            Stored::Codes(table) => with_source!(@ $source, Codes::<4, false>(table), $body),
        }
    };
    (@ $name:ident, $value:expr, $body:expr) => {{
        let $name = $value;
        $body
    }};
}
pub(super) use with_source;

/// The elements of a unit.
pub(super) trait Source: Copy {
    /// Depths of a unit.
    const DEPTH: usize;
    /// Bytes of a unit.
    const BYTES: usize;
    /// Whether half of the depths are in the high halves of the bytes.
    const HALVES: bool = false;
    /// Whether lines cost more than to be read.
    const BLOCKS: bool = true;

    /// The line of a unit of one depth.
    ///
    /// # Safety
    /// V's instructions must be there, and the unit be readable.
    unsafe fn line<V: Vectors>(self, _unit: *const u8) -> V::Line {
        unreachable!("units of several depths have pairs of lines")
    }

    /// The lines of depths `i` and `i + 1`, `i` being even, which if HIGH are counted from the middle.
    ///
    /// # Safety
    /// As [`Source::line`].
    unsafe fn pair<V: Vectors, const HIGH: bool>(self, _unit: *const u8, _i: usize) -> [V::Line; 2] {
        unreachable!("units of one depth have a line")
    }

    /// The numbers of a line.
    ///
    /// # Safety
    /// V's instructions must be there.
    #[inline(always)]
    unsafe fn values<V: Vectors>(line: V::Line) -> [f32; WIDTH] {
        // SAFETY: the caller's promise.
        unsafe { V::values(line) }
    }

    /// The element of depth `i` in column `lane`: that of the line.
    ///
    /// # Panics
    /// If there is none.
    fn value(self, unit: &[u8], i: usize, lane: usize) -> f32;
}

/// Floats.
#[derive(Clone, Copy)]
pub(super) struct Floats<T>(PhantomData<T>);

impl<T> Default for Floats<T> {
    fn default() -> Self {
        Floats(PhantomData)
    }
}

/// Floats of panels.
pub(super) trait Element: Float {
    /// # Safety
    /// As [`Source::line`].
    unsafe fn line<V: Vectors>(at: *const Self) -> V::Line;

    /// # Safety
    /// As [`Source::values`].
    #[inline(always)]
    unsafe fn values<V: Vectors>(line: V::Line) -> [f32; WIDTH] {
        // SAFETY: the caller's promise.
        unsafe { V::values(line) }
    }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn line<V: Vectors>(at: *const f32) -> V::Line {
        // SAFETY: the caller's promise.
        unsafe { V::f32s(at) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn line<V: Vectors>(at: *const bf16) -> V::Line {
        // SAFETY: the caller's promise.
        unsafe { V::bf16s(at) }
    }

    #[inline(always)]
    unsafe fn values<V: Vectors>(line: V::Line) -> [f32; WIDTH] {
        // SAFETY: the caller's promise.
        unsafe { V::bf16_values(line) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn line<V: Vectors>(at: *const f16) -> V::Line {
        // SAFETY: the caller's promise.
        unsafe { V::f16s(at) }
    }
}

impl<T: Element> Source for Floats<T> {
    const DEPTH: usize = 1;
    const BYTES: usize = line_bytes::<T>();
    const BLOCKS: bool = false;

    #[inline(always)]
    unsafe fn line<V: Vectors>(self, unit: *const u8) -> V::Line {
        // SAFETY: the caller's promise.
        unsafe { T::line::<V>(unit.cast()) }
    }

    #[inline(always)]
    unsafe fn values<V: Vectors>(line: V::Line) -> [f32; WIDTH] {
        // SAFETY: the caller's promise.
        unsafe { T::values::<V>(line) }
    }

    #[inline(always)]
    fn value(self, unit: &[u8], _i: usize, lane: usize) -> f32 {
        bytemuck::pod_read_unaligned::<T>(&unit[lane * size_of::<T>()..][..size_of::<T>()]).widen()
    }
}

/// Where the integers of a unit begin.
const fn header(above: bool) -> usize {
    if above { 2 * line_bytes::<f32>() } else { line_bytes::<f32>() }
}

fn float(unit: &[u8], line: usize, lane: usize) -> f32 {
    Floats::<f32>::default().value(&unit[line * line_bytes::<f32>()..], 0, lane)
}

/// `q scale` or, if ABOVE, `q scale + offset`.
///
/// # Safety
/// As [`Source::line`].
#[inline(always)]
unsafe fn scaled<V: Vectors, const ABOVE: bool>(q: [V::Line; 2], unit: *const u8) -> [V::Line; 2] {
    // SAFETY: the caller's promise: a unit begins with these lines.
    unsafe {
        let scale = V::f32s(unit.cast());
        let [a, b] = [V::mul(q[0], scale), V::mul(q[1], scale)];
        if !ABOVE {
            return [a, b];
        }
        let offset = V::f32s(unit.cast::<f32>().add(WIDTH));
        [V::add(a, offset), V::add(b, offset)]
    }
}

/// The same for one element.
fn scaled_value(q: f32, unit: &[u8], lane: usize, above: bool) -> f32 {
    let x = q * float(unit, 0, lane);
    if above { x + float(unit, 1, lane) } else { x }
}

/// Where the byte of depth `i` in column `lane` is, behind the header.
fn place(i: usize, lane: usize) -> usize {
    i / 2 * 2 * WIDTH + PAIR[lane] + i % 2 * 8
}

/// The nibble of depth `i`, of 32 two in each byte, in column `lane`.
fn half(unit: &[u8], header: usize, i: usize, lane: usize) -> usize {
    let byte = unit[header + place(i % 16, lane)];
    (if i < 16 { byte & 15 } else { byte >> 4 }) as usize
}

/// What stands for 0 in bytes.
const ZERO: f32 = 128.0;

/// Integers from -128 to 127 of N depths; if HALF, scales are those of f16.
#[derive(Clone, Copy)]
pub(super) struct Bytes<const N: usize, const ABOVE: bool, const HALF: bool>;

impl<const N: usize, const ABOVE: bool, const HALF: bool> Source for Bytes<N, ABOVE, HALF> {
    const DEPTH: usize = N;
    const BYTES: usize = header(ABOVE) + N * WIDTH;

    #[inline(always)]
    unsafe fn pair<V: Vectors, const HIGH: bool>(self, unit: *const u8, i: usize) -> [V::Line; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let at = unit.add(header(ABOVE) + i * WIDTH);
            if HALF { V::bytes_times(at, V::f32s(unit.cast())) } else { scaled::<V, ABOVE>(V::bytes(at), unit) }
        }
    }

    fn value(self, unit: &[u8], i: usize, lane: usize) -> f32 {
        scaled_value(f32::from(unit[header(ABOVE) + place(i, lane)]) - ZERO, unit, lane, ABOVE)
    }
}

/// Sixteen numbers of which the upper N bytes are not zeros: two of small integers, four of codes.
#[derive(Clone, Copy)]
pub(super) struct Codes<const N: usize, const ABOVE: bool>(pub(super) Table);

impl<const ABOVE: bool> Codes<2, ABOVE> {
    /// Integers that follow each other.
    pub(super) fn integers(first: i8) -> Self {
        Codes(Table::new(&std::array::from_fn(|i| f32::from(first) + i as f32)))
    }
}

impl<const N: usize, const ABOVE: bool> Source for Codes<N, ABOVE> {
    const DEPTH: usize = 32;
    const BYTES: usize = header(ABOVE) + 16 * WIDTH;
    const HALVES: bool = true;

    #[inline(always)]
    unsafe fn pair<V: Vectors, const HIGH: bool>(self, unit: *const u8, i: usize) -> [V::Line; 2] {
        // SAFETY: the caller's promise.
        unsafe { scaled::<V, ABOVE>(V::codes::<HIGH, N>(unit.add(header(ABOVE) + i * WIDTH), &self.0), unit) }
    }

    fn value(self, unit: &[u8], i: usize, lane: usize) -> f32 {
        scaled_value(self.0.values[half(unit, header(ABOVE), i, lane)], unit, lane, ABOVE)
    }
}

/// [`DEPTH`] elements of one column, as formats of blocks have them.
pub(crate) struct Unit {
    /// Integers, or the places of codes.
    pub(crate) q: [i8; DEPTH],
    /// Of each half.
    pub(crate) scale: [f32; 2],
    pub(crate) offset: f32,
}

impl Stored {
    /// Depths and bytes of a unit.
    pub(crate) fn unit(self) -> (usize, usize) {
        fn of<S: Source>(_: S) -> (usize, usize) {
            (S::DEPTH, S::BYTES)
        }
        with_source!(self, s => of(s))
    }

    /// Puts a column's elements into zeros: [`DEPTH`] depths of one of the [`WIDTH`] columns.
    ///
    /// # Panics
    /// If these are stored as floats, or `to` is of another size.
    pub(crate) fn put(self, lane: usize, unit: &Unit, to: &mut [u8]) {
        let (depth, bytes) = self.unit();
        let above = matches!(self, Stored::BytesAbove | Stored::NibblesAbove(_));
        assert!(depth > 1 && to.len() == DEPTH / depth * bytes, "another size");
        for (n, to) in to.chunks_exact_mut(bytes).enumerate() {
            let (heading, integers) = to.split_at_mut(header(above));
            let floats: &mut [[u8; 4]] = bytemuck::cast_slice_mut(heading);
            floats[lane] = unit.scale[n].to_ne_bytes();
            if above {
                floats[WIDTH + lane] = unit.offset.to_ne_bytes();
            }
            for (i, &q) in unit.q[n * depth..(n + 1) * depth].iter().enumerate() {
                match self {
                    Stored::Nibbles(first) | Stored::NibblesAbove(first) => {
                        integers[place(i % 16, lane)] |= ((q - first) as u8) << (i / 16 * 4)
                    }
                    Stored::Codes(_) => integers[place(i % 16, lane)] |= (q as u8) << (i / 16 * 4),
                    _ => integers[place(i, lane)] = (i32::from(q) + ZERO as i32) as u8,
                }
            }
        }
    }

    /// Writes elements `from..` of column `lane`, depth after depth.
    ///
    /// # Panics
    /// If the panel is too short.
    pub(crate) fn read(self, panel: &[u8], lane: usize, from: usize, out: &mut [f32]) {
        fn go<S: Source>(s: S, panel: &[u8], lane: usize, from: usize, out: &mut [f32]) {
            for (p, o) in (from..).zip(out) {
                *o = s.value(&panel[p / S::DEPTH * S::BYTES..][..S::BYTES], p % S::DEPTH, lane);
            }
        }
        with_source!(self, s => go(s, panel, lane, from, out))
    }
}
