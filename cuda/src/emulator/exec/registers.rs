//! A warp's registers, and operations on all lanes at once.

use crate::emulator::float::{bf16_to_f32, f16_to_f32};

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;
/// All lanes.
pub(crate) const FULL: u32 = u32::MAX;

/// Slots of a warp.
#[derive(Debug, Default)]
pub(crate) struct Registers {
    pub(crate) words: Vec<[u32; LANES]>,
    pub(crate) wides: Vec<[u64; LANES]>,
    /// A bit a lane.
    pub(crate) preds: Vec<u32>,
}

/// A value of a lane, kept in one of the banks.
pub(crate) trait Lane: Copy + Default {
    fn get(registers: &Registers, slot: u16) -> [Self; LANES];
    fn put(registers: &mut Registers, slot: u16, values: &[Self; LANES], mask: u32);
}

macro_rules! lane {
    ($ty:ty, $bank:ident, $word:ty, $get:expr, $put:expr) => {
        impl Lane for $ty {
            #[inline(always)]
            fn get(registers: &Registers, slot: u16) -> [Self; LANES] {
                let from = &registers.$bank[usize::from(slot)];
                let mut values = [<$ty>::default(); LANES];
                for lane in 0..LANES {
                    values[lane] = $get(from[lane]);
                }
                values
            }

            #[inline(always)]
            fn put(registers: &mut Registers, slot: u16, values: &[Self; LANES], mask: u32) {
                let to = &mut registers.$bank[usize::from(slot)];
                if mask == FULL {
                    for lane in 0..LANES {
                        to[lane] = $put(values[lane]);
                    }
                } else {
                    for lane in 0..LANES {
                        let keep = to[lane];
                        let new: $word = $put(values[lane]);
                        to[lane] = if mask >> lane & 1 == 1 { new } else { keep };
                    }
                }
            }
        }
    };
}

lane!(u16, words, u32, |x: u32| x as u16, |x: u16| u32::from(x));
lane!(i16, words, u32, |x: u32| x as i16, |x: i16| u32::from(x as u16));
lane!(u8, words, u32, |x: u32| x as u8, |x: u8| u32::from(x));
lane!(i8, words, u32, |x: u32| x as i8, |x: i8| u32::from(x as u8));
lane!(u32, words, u32, |x: u32| x, |x: u32| x);
lane!(i32, words, u32, |x: u32| x as i32, |x: i32| x as u32);
lane!(f32, words, u32, f32::from_bits, f32::to_bits);
lane!(u64, wides, u64, |x: u64| x, |x: u64| x);
lane!(i64, wides, u64, |x: u64| x as i64, |x: i64| x as u64);
lane!(f64, wides, u64, f64::from_bits, f64::to_bits);

impl Registers {
    #[inline(always)]
    pub(crate) fn unary<A: Lane, D: Lane>(&mut self, slots: &[u16], mask: u32, f: impl Fn(A) -> D) {
        let a = A::get(self, slots[1]);
        let mut d = [D::default(); LANES];
        for lane in 0..LANES {
            d[lane] = f(a[lane]);
        }
        D::put(self, slots[0], &d, mask);
    }

    #[inline(always)]
    pub(crate) fn binary<A: Lane, B: Lane, D: Lane>(&mut self, slots: &[u16], mask: u32, f: impl Fn(A, B) -> D) {
        let (a, b) = (A::get(self, slots[1]), B::get(self, slots[2]));
        let mut d = [D::default(); LANES];
        for lane in 0..LANES {
            d[lane] = f(a[lane], b[lane]);
        }
        D::put(self, slots[0], &d, mask);
    }

    #[inline(always)]
    pub(crate) fn ternary<A: Lane, B: Lane, C: Lane, D: Lane>(
        &mut self,
        slots: &[u16],
        mask: u32,
        f: impl Fn(A, B, C) -> D,
    ) {
        let (a, b, c) = (A::get(self, slots[1]), B::get(self, slots[2]), C::get(self, slots[3]));
        let mut d = [D::default(); LANES];
        for lane in 0..LANES {
            d[lane] = f(a[lane], b[lane], c[lane]);
        }
        D::put(self, slots[0], &d, mask);
    }

    #[inline(always)]
    pub(crate) fn compare<A: Lane>(&mut self, slots: &[u16], mask: u32, f: impl Fn(A, A) -> bool) {
        let (a, b) = (A::get(self, slots[1]), A::get(self, slots[2]));
        let mut bits = 0;
        for lane in 0..LANES {
            bits |= u32::from(f(a[lane], b[lane])) << lane;
        }
        self.put_pred(slots[0], bits, mask);
    }

    #[inline(always)]
    pub(crate) fn put_pred(&mut self, slot: u16, bits: u32, mask: u32) {
        let to = &mut self.preds[usize::from(slot)];
        *to = *to & !mask | bits & mask;
    }

    #[inline(always)]
    pub(crate) fn pred(&self, slot: u16) -> u32 {
        self.preds[usize::from(slot)]
    }
}

/// An f16 in a word.
#[derive(Clone, Copy, Default)]
pub(crate) struct F16(pub(crate) f32);

/// A bf16 in a word.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bf16(pub(crate) f32);

macro_rules! half_lane {
    ($ty:ident, $widen:expr) => {
        impl Lane for $ty {
            #[inline(always)]
            fn get(registers: &Registers, slot: u16) -> [Self; LANES] {
                u16::get(registers, slot).map(|bits| $ty($widen(bits)))
            }

            #[inline(always)]
            fn put(_: &mut Registers, _: u16, _: &[Self; LANES], _: u32) {
                unreachable!("halves are written as bits")
            }
        }
    };
}

half_lane!(F16, f16_to_f32);
half_lane!(Bf16, bf16_to_f32);
