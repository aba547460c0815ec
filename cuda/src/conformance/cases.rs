//! The instructions that are tried, with what the processor says of those whose results have one right answer.

use half::{bf16, f16};

use super::values::Ty;

/// What the processor makes of the operands' bits.
pub(super) type Host = fn([u64; 3]) -> u64;

/// An instruction, in one spelling.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// With types and modifiers: `add.rz.f32`.
    pub(super) name: String,
    pub(super) to: Ty,
    pub(super) from: Vec<Ty>,
    /// What comes behind the operands: an immediate.
    pub(super) rest: &'static str,
    /// Compute capability times ten from which on it is there.
    pub(super) since: u32,
    /// PTX bounds its error only.
    pub(super) approximate: bool,
    /// The operands behind the first are below this; 0 if they may be anything.
    pub(super) below: u64,
    pub(super) host: Option<Host>,
}

impl Case {
    fn new(name: impl Into<String>, to: &str, from: &[&str], host: Option<Host>) -> Case {
        let from = from.iter().map(|suffix| Ty::of(suffix)).collect();
        Case { name: name.into(), to: Ty::of(to), from, rest: "", since: 80, approximate: false, below: 0, host }
    }
}

/// Bits of a whole number, without its sign's extension.
macro_rules! bits {
    ($t:ty, $value:expr) => {{
        let value: $t = $value;
        value as u64 & (u64::MAX >> (64 - <$t>::BITS))
    }};
}

/// Instructions of whole numbers: for a type, its suffixes and its instructions.
macro_rules! whole {
    ($all:ident, $t:ty, $wide:ty, $own:literal) => {{
        let own = $own;
        let mut add = |name: &str, arity: usize, host: Host| {
            $all.push(Case::new(format!("{name}.{own}"), own, &[own; 3][..arity], Some(host)));
        };
        add("add", 2, |[a, b, _]| bits!($t, (a as $t).wrapping_add(b as $t)));
        add("sub", 2, |[a, b, _]| bits!($t, (a as $t).wrapping_sub(b as $t)));
        add("mul.lo", 2, |[a, b, _]| bits!($t, (a as $t).wrapping_mul(b as $t)));
        add("mul.hi", 2, |[a, b, _]| {
            bits!($t, ((<$wide>::from(a as $t) * <$wide>::from(b as $t)) >> <$t>::BITS) as $t)
        });
        add("mad.lo", 3, |[a, b, c]| bits!($t, (a as $t).wrapping_mul(b as $t).wrapping_add(c as $t)));
        add("min", 2, |[a, b, _]| bits!($t, (a as $t).min(b as $t)));
        add("max", 2, |[a, b, _]| bits!($t, (a as $t).max(b as $t)));
        // PTX leaves division by zero open; cards give ones, quotient and remainder, and overflow wraps.
        add("div", 2, |[a, b, _]| bits!($t, if b as $t == 0 { !0 } else { (a as $t).wrapping_div(b as $t) }));
        add("rem", 2, |[a, b, _]| bits!($t, if b as $t == 0 { !0 } else { (a as $t).wrapping_rem(b as $t) }));
        // Beyond the number's bits, its sign.
        let shift: Host = |[a, b, _]| bits!($t, ((a as $t as i128) >> b.min(127)) as $t);
        $all.push(Case::new(format!("shr.{own}"), own, &[own, "u32"], Some(shift)));
    }};
}

/// Bits of a float.
macro_rules! to_bits {
    ($t:ty, $value:expr) => {{
        let value: $t = $value;
        u64::from(value.to_bits())
    }};
}

/// Instructions of floats that are rounded once, to nearest.
macro_rules! real {
    ($all:ident, $t:ty, $of:expr, $own:literal) => {{
        let own = $own;
        let mut add = |name: &str, arity: usize, host: Host| {
            $all.push(Case::new(format!("{name}.{own}"), own, &[own; 3][..arity], Some(host)));
        };
        add("add.rn", 2, |[a, b, _]| to_bits!($t, $of(a) + $of(b)));
        add("sub.rn", 2, |[a, b, _]| to_bits!($t, $of(a) - $of(b)));
        add("mul.rn", 2, |[a, b, _]| to_bits!($t, $of(a) * $of(b)));
        add("fma.rn", 3, |[a, b, c]| to_bits!($t, $of(a).mul_add($of(b), $of(c))));
        add("div.rn", 2, |[a, b, _]| to_bits!($t, $of(a) / $of(b)));
        add("sqrt.rn", 1, |[a, _, _]| to_bits!($t, $of(a).sqrt()));
        add("rcp.rn", 1, |[a, _, _]| to_bits!($t, 1.0 / $of(a)));
        add("abs", 1, |[a, _, _]| to_bits!($t, $of(a).abs()));
        add("neg", 1, |[a, _, _]| to_bits!($t, -$of(a)));
    }};
}

fn f32_of(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn f64_of(bits: u64) -> f64 {
    f64::from_bits(bits)
}

fn f16_of(bits: u64) -> f64 {
    f16::from_bits(bits as u16).to_f64()
}

fn bf16_of(bits: u64) -> f64 {
    bf16::from_bits(bits as u16).to_f64()
}

/// Everything that is tried.
pub(super) fn all() -> Vec<Case> {
    let mut all = Vec::new();
    whole(&mut all);
    floats(&mut all);
    halves(&mut all);
    conversions(&mut all);
    all
}

fn whole(all: &mut Vec<Case>) {
    whole!(all, u16, u32, "u16");
    whole!(all, i16, i32, "s16");
    whole!(all, u32, u64, "u32");
    whole!(all, i32, i64, "s32");
    whole!(all, u64, u128, "u64");
    whole!(all, i64, i128, "s64");
    let mut add = |name: &str, to: &str, from: &[&str], host: Host| all.push(Case::new(name, to, from, Some(host)));
    for (name, host) in [("and", (|[a, b, _]| a & b) as Host), ("or", |[a, b, _]| a | b), ("xor", |[a, b, _]| a ^ b)] {
        for own in ["b16", "b32", "b64"] {
            add(&format!("{name}.{own}"), own, &[own; 2], host);
        }
    }
    add("not.b32", "b32", &["b32"], |[a, _, _]| u64::from(!(a as u32)));
    add("not.b64", "b64", &["b64"], |[a, _, _]| !a);
    add("neg.s32", "s32", &["s32"], |[a, _, _]| bits!(i32, (a as i32).wrapping_neg()));
    add("abs.s32", "s32", &["s32"], |[a, _, _]| bits!(i32, (a as i32).wrapping_abs()));
    add("abs.s64", "s64", &["s64"], |[a, _, _]| bits!(i64, (a as i64).wrapping_abs()));
    add("add.sat.s32", "s32", &["s32"; 2], |[a, b, _]| bits!(i32, (a as i32).saturating_add(b as i32)));
    add("sub.sat.s32", "s32", &["s32"; 2], |[a, b, _]| bits!(i32, (a as i32).saturating_sub(b as i32)));
    add("mul.wide.u16", "u32", &["u16"; 2], |[a, b, _]| a * b);
    add("mul.wide.s32", "s64", &["s32"; 2], |[a, b, _]| bits!(i64, i64::from(a as i32) * i64::from(b as i32)));
    add("mul.wide.u32", "u64", &["u32"; 2], |[a, b, _]| a * b);
    add("mad.wide.u32", "u64", &["u32", "u32", "u64"], |[a, b, c]| (a * b).wrapping_add(c));
    add("mad.hi.u32", "u32", &["u32"; 3], |[a, b, c]| u64::from((((a * b) >> 32) as u32).wrapping_add(c as u32)));
    add("sad.u32", "u32", &["u32"; 3], |[a, b, c]| u64::from((a as u32).abs_diff(b as u32).wrapping_add(c as u32)));
    add("sad.s32", "s32", &["s32"; 3], |[a, b, c]| u64::from((a as i32).abs_diff(b as i32).wrapping_add(c as u32)));
    add("shl.b32", "b32", &["b32", "u32"], |[a, b, _]| if b > 31 { 0 } else { u64::from((a as u32) << b) });
    add("shl.b64", "b64", &["b64", "u32"], |[a, b, _]| if b > 63 { 0 } else { a << b });
    add("popc.b32", "u32", &["b32"], |[a, _, _]| a.count_ones().into());
    add("popc.b64", "u32", &["b64"], |[a, _, _]| a.count_ones().into());
    add("clz.b32", "u32", &["b32"], |[a, _, _]| (a as u32).leading_zeros().into());
    add("clz.b64", "u32", &["b64"], |[a, _, _]| a.leading_zeros().into());
    add("brev.b32", "b32", &["b32"], |[a, _, _]| (a as u32).reverse_bits().into());
    add("brev.b64", "b64", &["b64"], |[a, _, _]| a.reverse_bits());
    add("bfind.u32", "u32", &["u32"], |[a, _, _]| u64::from(31_u32.wrapping_sub((a as u32).leading_zeros())));
    add("bfe.u32", "u32", &["u32"; 3], |[a, at, len]| {
        let (at, len) = (at & 255, len & 255);
        let shifted = if at > 31 { 0 } else { a >> at };
        if len > 31 { shifted } else { shifted & ((1 << len) - 1) }
    });
    add("shf.l.wrap.b32", "b32", &["b32", "b32", "u32"], |[a, b, by]| ((b << 32 | a) << (by & 31)) >> 32);
    add("shf.r.wrap.b32", "b32", &["b32", "b32", "u32"], |[a, b, by]| ((b << 32 | a) >> (by & 31)) & 0xffff_ffff);
    add("shf.r.clamp.b32", "b32", &["b32", "b32", "u32"], |[a, b, by]| ((b << 32 | a) >> by.min(32)) & 0xffff_ffff);
    // Without a host's word.
    all.push(Case::new("bfe.s32", "s32", &["s32", "u32", "u32"], None));
    // Of 64 bits a card makes it of several instructions that do not take the low byte of place and length, as PTX says and
    // as those of 32 bits do.
    for (name, own) in [("bfe.u64", "u64"), ("bfe.s64", "s64")] {
        all.push(Case { below: 256, ..Case::new(name, own, &[own, "u32", "u32"], None) });
    }
    all.push(Case::new("prmt.b32", "b32", &["b32"; 3], None));
    all.push(Case::new("bfind.s32", "u32", &["s32"], None));
    all.push(Case::new("bfind.u64", "u32", &["u64"], None));
    let lop3: Host = |[a, b, c]| (a & b | !a & c) & 0xffff_ffff;
    all.push(Case { rest: ", 0xca", ..Case::new("lop3.b32", "b32", &["b32"; 3], Some(lop3)) });
    for name in ["dp4a.u32.u32", "dp4a.s32.s32", "dp4a.u32.s32"] {
        all.push(Case::new(name, "u32", &["u32"; 3], None));
    }
}

fn floats(all: &mut Vec<Case>) {
    real!(all, f32, f32_of, "f32");
    real!(all, f64, f64_of, "f64");
    let sign: Host = |[a, b, _]| to_bits!(f32, f32_of(b).copysign(f32_of(a)));
    all.push(Case::new("copysign.f32", "f32", &["f32"; 2], Some(sign)));
    // The other ways to round, subnormals as zeros, and saturation: the emulator's word alone.
    for round in ["rz", "rm", "rp"] {
        for (name, arity) in [("add", 2), ("sub", 2), ("mul", 2), ("fma", 3), ("div", 2), ("sqrt", 1), ("rcp", 1)] {
            all.push(Case::new(format!("{name}.{round}.f32"), "f32", &["f32"; 3][..arity], None));
        }
    }
    for name in
        ["add.rn.ftz", "mul.rn.ftz", "fma.rn.ftz", "div.rn.ftz", "sqrt.rn.ftz", "add.sat", "mul.sat", "fma.rn.sat"]
    {
        let arity = if name.starts_with("fma") {
            3
        } else if name.starts_with("sqrt") {
            1
        } else {
            2
        };
        all.push(Case::new(format!("{name}.f32"), "f32", &["f32"; 3][..arity], None));
    }
    // Of zeros of both signs PTX promises nothing but an order, and of NaNs that the number wins.
    for own in ["f32", "f64"] {
        for name in ["min", "max"] {
            all.push(Case::new(format!("{name}.{own}"), own, &[own; 2], None));
        }
    }
    for name in ["min.NaN", "max.NaN", "min.ftz", "max.ftz"] {
        all.push(Case::new(format!("{name}.f32"), "f32", &["f32"; 2], None));
    }
    for name in ["ex2", "lg2", "sin", "cos", "tanh", "rcp", "sqrt", "rsqrt"] {
        let case = Case::new(format!("{name}.approx.f32"), "f32", &["f32"], None);
        all.push(Case { approximate: true, ..case });
    }
    for name in ["div.approx.f32", "div.full.f32"] {
        all.push(Case { approximate: true, ..Case::new(name, "f32", &["f32"; 2], None) });
    }
}

fn halves(all: &mut Vec<Case>) {
    // The sum and the product of two f16 are exact in f64, and this conversion rounds once on every processor.
    let add: Host = |[a, b, _]| f16::from_f64_const(f16_of(a) + f16_of(b)).to_bits().into();
    let sub: Host = |[a, b, _]| f16::from_f64_const(f16_of(a) - f16_of(b)).to_bits().into();
    let mul: Host = |[a, b, _]| f16::from_f64_const(f16_of(a) * f16_of(b)).to_bits().into();
    for (name, host) in [("add.rn.f16", add), ("sub.rn.f16", sub), ("mul.rn.f16", mul)] {
        all.push(Case::new(name, "f16", &["f16"; 2], Some(host)));
    }
    for own in ["f16", "f16x2", "bf16", "bf16x2"] {
        for (name, arity) in [("fma.rn", 3), ("fma.rn.relu", 3), ("min", 2), ("max", 2), ("abs", 1), ("neg", 1)] {
            all.push(Case::new(format!("{name}.{own}"), own, &[own; 3][..arity], None));
        }
        let since = if own.starts_with('b') { 90 } else { 80 };
        for name in ["add.rn", "sub.rn", "mul.rn"] {
            if own != "f16" {
                all.push(Case { since, ..Case::new(format!("{name}.{own}"), own, &[own; 2], None) });
            }
        }
    }
    let product: Host = |[a, b, _]| bf16::from_f64(bf16_of(a) * bf16_of(b)).to_bits().into();
    let found = all.iter_mut().find(|case| case.name == "mul.rn.bf16");
    found.expect("made above").host = Some(product);
    for own in ["f16", "f16x2"] {
        for name in ["ex2.approx", "tanh.approx"] {
            all.push(Case { approximate: true, ..Case::new(format!("{name}.{own}"), own, &[own], None) });
        }
    }
}

fn conversions(all: &mut Vec<Case>) {
    let mut add = |name: &str, host: Option<Host>| {
        let types: Vec<&str> = name.rsplit('.').take(2).collect();
        all.push(Case::new(name, types[1], &[types[0]], host));
    };
    add("cvt.f64.f32", Some(|[a, _, _]| to_bits!(f64, f64::from(f32_of(a)))));
    add("cvt.rn.f32.f64", Some(|[a, _, _]| to_bits!(f32, f64_of(a) as f32)));
    add("cvt.f32.f16", Some(|[a, _, _]| to_bits!(f32, f16_of(a) as f32)));
    add("cvt.f32.bf16", Some(|[a, _, _]| to_bits!(f32, bf16_of(a) as f32)));
    add("cvt.rn.f16.f32", Some(|[a, _, _]| f16::from_f32(f32_of(a)).to_bits().into()));
    add("cvt.rn.bf16.f32", Some(|[a, _, _]| bf16::from_f32(f32_of(a)).to_bits().into()));
    add("cvt.rn.f32.s32", Some(|[a, _, _]| to_bits!(f32, a as i32 as f32)));
    add("cvt.rn.f32.u32", Some(|[a, _, _]| to_bits!(f32, a as u32 as f32)));
    add("cvt.rn.f32.s64", Some(|[a, _, _]| to_bits!(f32, a as i64 as f32)));
    add("cvt.rn.f32.u64", Some(|[a, _, _]| to_bits!(f32, a as f32)));
    add("cvt.rn.f64.s32", Some(|[a, _, _]| to_bits!(f64, f64::from(a as i32))));
    add("cvt.rn.f64.u64", Some(|[a, _, _]| to_bits!(f64, a as f64)));
    add("cvt.rzi.s32.f32", Some(|[a, _, _]| bits!(i32, f32_of(a) as i32)));
    add("cvt.rzi.u32.f32", Some(|[a, _, _]| bits!(u32, f32_of(a) as u32)));
    add("cvt.rni.s32.f32", Some(|[a, _, _]| bits!(i32, f32_of(a).round_ties_even() as i32)));
    add("cvt.rni.f32.f32", Some(|[a, _, _]| to_bits!(f32, f32_of(a).round_ties_even())));
    add("cvt.rmi.f32.f32", Some(|[a, _, _]| to_bits!(f32, f32_of(a).floor())));
    add("cvt.rpi.f32.f32", Some(|[a, _, _]| to_bits!(f32, f32_of(a).ceil())));
    add("cvt.s64.s32", Some(|[a, _, _]| bits!(i64, i64::from(a as i32))));
    add("cvt.u32.u64", Some(|[a, _, _]| a & 0xffff_ffff));
    add("cvt.sat.s16.s32", Some(|[a, _, _]| bits!(i16, (a as i32).clamp(-32768, 32767) as i16)));
    add("cvt.sat.u16.s32", Some(|[a, _, _]| bits!(u16, (a as i32).clamp(0, 65535) as u16)));
    for name in [
        "cvt.rz.f16.f32",
        "cvt.rz.bf16.f32",
        "cvt.rn.relu.f16.f32",
        "cvt.rn.relu.bf16.f32",
        "cvt.rz.f32.f64",
        "cvt.rm.f32.f64",
        "cvt.rp.f32.f64",
        "cvt.rz.f32.s32",
        "cvt.rp.f32.u64",
        "cvt.rn.f16.s32",
        "cvt.rn.f16.u16",
        "cvt.rzi.s64.f32",
        "cvt.rzi.u64.f64",
        "cvt.rmi.s32.f64",
        "cvt.rni.s32.f16",
        "cvt.rna.tf32.f32",
        "cvt.sat.f32.f32",
        "cvt.ftz.f64.f32",
    ] {
        add(name, None);
    }
    for own in ["f16x2", "bf16x2"] {
        all.push(Case::new(format!("cvt.rn.{own}.f32"), own, &["f32"; 2], None));
    }
    let widening = all.iter_mut().find(|case| case.name == "cvt.f32.bf16");
    widening.expect("made above").since = 90;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_listed_once() {
        let all = all();
        let names: std::collections::HashSet<_> = all.iter().map(|case| &case.name).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.len() > 200, "{}", all.len());
        assert!(all.iter().filter(|case| case.host.is_some()).count() > 100);
    }
}
