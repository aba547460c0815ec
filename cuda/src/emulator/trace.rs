//! What one warp does, instruction by instruction: for reading a kernel as it runs.

use super::block::Common;
use super::exec::Warp;
use super::fault::Line;
use super::isa::Kernel;

/// Which warp of each launch is watched, and for how many instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The block's index in the grid.
    pub block: [u32; 3],
    /// The warp's number in the block.
    pub warp: u32,
    /// Instructions to keep.
    pub most: usize,
}

/// What a watched warp of one launch did.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The kernel.
    pub kernel: String,
    /// Its instructions in the order in which they ran.
    pub steps: Vec<Step>,
    /// Whether it ran more than were kept.
    pub cut: bool,
}

/// An instruction that a warp ran.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The line of PTX, and that of CUDA C++.
    pub at: Line,
    /// The lanes that took part, a bit each.
    pub lanes: u32,
    /// What it wrote.
    pub written: Vec<Written>,
}

/// A register after an instruction wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Its name in the PTX.
    pub name: String,
    /// What its bits are to the instruction.
    pub kind: Kind,
    /// The bits in each lane; those of lanes that took no part are of earlier.
    pub lanes: [u64; 32],
}

/// How the bits of a register are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// 0 or 1.
    Predicate,
    /// An integer, a pointer, or packed numbers.
    Bits,
    /// An f32.
    Single,
    /// An f64.
    Double,
}

impl Written {
    /// The value of a lane in words.
    pub fn value(&self, lane: usize) -> String {
        let bits = self.lanes[lane % 32];
        match self.kind {
            Kind::Predicate => if bits == 0 { "false" } else { "true" }.to_owned(),
            Kind::Single => format!("{:?}", f32::from_bits(bits as u32)),
            Kind::Double => format!("{:?}", f64::from_bits(bits)),
            // Addresses are large, counts are small.
            Kind::Bits if bits >= 1 << 20 => format!("{bits:#x}"),
            Kind::Bits => bits.to_string(),
        }
    }
}

/// Registers that a line of PTX writes, `count` of them, and how their bits are to be read.
fn destinations(text: &str, count: usize) -> Vec<(&str, Kind)> {
    let text = match text.strip_prefix('@') {
        Some(guarded) => guarded.split_once(' ').map_or("", |(_, rest)| rest),
        None => text,
    };
    let Some((opcode, operands)) = text.split_once(' ') else { return Vec::new() };
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '%' | '_' | '$');
    let registers = operands.split(|c: char| !name(c)).filter(|word| word.starts_with('%'));
    // A conversion names the type of its result first, all others have one at the end.
    let types: Vec<&str> = opcode.split('.').filter(|word| matches!(*word, "f32" | "f64")).collect();
    let of = match opcode.starts_with("cvt") {
        true => opcode.split('.').find(|word| word.len() <= 5 && word.ends_with(|c: char| c.is_ascii_digit())),
        false => types.last().copied(),
    };
    let kind = |register: &str| match of {
        _ if register.starts_with("%p") && !register.starts_with("%pa") => Kind::Predicate,
        Some("f32") => Kind::Single,
        Some("f64") => Kind::Double,
        _ => Kind::Bits,
    };
    registers.take(count).map(|register| (register, kind(register))).collect()
}

/// Whether the result has 64 bits, by the opcode.
fn is_wide(text: &str) -> bool {
    let opcode = text.split_whitespace().find(|word| !word.starts_with('@')).unwrap_or_default();
    let of_64 = |word: &&str| matches!(*word, "u64" | "s64" | "b64" | "f64");
    let words: Vec<&str> = opcode.split('.').collect();
    let types = words.iter().filter(|word| word.len() <= 4 && word.ends_with(|c: char| c.is_ascii_digit()));
    let result = if opcode.starts_with("cvt") { types.clone().next() } else { types.clone().next_back() };
    words.contains(&"wide") || result.is_some_and(of_64)
}

impl Common<'_> {
    /// Notes what the instruction at `pc` has done to a warp.
    #[cold]
    pub(crate) fn note(&mut self, kernel: &Kernel, warp: &Warp, pc: u32, lanes: u32) {
        let Some((steps, most)) = &mut self.watched else { return };
        if steps.len() >= *most {
            self.cut = true;
            return;
        }
        let (inst, at) = (&kernel.code[pc as usize], kernel.line(pc));
        let slots = &kernel.pool[inst.at as usize..][..usize::from(inst.defs)];
        let found = destinations(&at.text, slots.len());
        let written = found.iter().zip(slots).map(|((name, kind), &slot)| {
            let (slot, registers) = (usize::from(slot), &warp.registers);
            let wide = name.starts_with("%rd") || name.starts_with("%fd") || is_wide(&at.text);
            let bits = |lane: usize| match kind {
                Kind::Predicate => registers.preds.get(slot).map_or(0, |bits| u64::from(bits >> lane & 1)),
                _ if wide => registers.wides.get(slot).map_or(0, |values| values[lane]),
                _ => registers.words.get(slot).map_or(0, |values| u64::from(values[lane])),
            };
            Written { name: (*name).to_owned(), kind: *kind, lanes: std::array::from_fn(bits) }
        });
        let written = written.collect();
        steps.push(Step { at, lanes, written });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_from_the_text() {
        let of = |text, count| {
            let found = destinations(text, count);
            found.iter().map(|(name, kind)| format!("{name} {kind:?}")).collect::<Vec<_>>()
        };
        assert_eq!(of("add.s32 %r2, %r2, %r3;", 1), ["%r2 Bits"]);
        assert_eq!(of("@%p1 fma.rn.f32 %r4, %r1, %r2, %r3;", 1), ["%r4 Single"]);
        assert_eq!(of("ld.global.v2.f32 {%r1, %r2}, [%rd3];", 2), ["%r1 Single", "%r2 Single"]);
        assert_eq!(of("setp.lt.f32 %p1, %r1, %r2;", 1), ["%p1 Predicate"]);
        assert_eq!(of("cvt.rn.f32.u32 %r1, %r2;", 1), ["%r1 Single"]);
        assert_eq!(of("cvt.rzi.s32.f32 %r1, %r2;", 1), ["%r1 Bits"]);
        assert_eq!(of("st.global.f32 [%rd1], %r2;", 0), Vec::<String>::new());
        assert_eq!(of("ret;", 0), Vec::<String>::new());
    }

    #[test]
    fn values_are_in_words() {
        let of = |kind, bits| Written { name: "%r1".into(), kind, lanes: [bits; 32] }.value(3);
        assert_eq!(of(Kind::Single, u64::from(1.5f32.to_bits())), "1.5");
        assert_eq!(of(Kind::Double, (-2.0f64).to_bits()), "-2.0");
        assert_eq!(of(Kind::Bits, 17), "17");
        assert_eq!(of(Kind::Bits, 0x10_0000_0000), "0x1000000000");
        assert_eq!(of(Kind::Predicate, 1), "true");
    }
}
