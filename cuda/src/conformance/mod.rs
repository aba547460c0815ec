//! Does the emulator compute what a card computes? One small kernel for each instruction, run on both, bits compared.
//!
//! Each kernel is written here as PTX: a thread loads its operands, runs the one instruction and stores the result.
//! Operands are the edges of their types (zeros of both signs, subnormals, the largest numbers, infinities, NaN), each of
//! the first operand with each of the second, and then numbers from a counter. What the processor can say itself (whole
//! numbers; sums, products, quotients and roots rounded once to nearest; conversions) is held against it too, so that the
//! emulator alone is tested as well.
//!
//! Bits of a NaN count as one: which comes out PTX says for some instructions only. Instructions whose error PTX bounds
//! (`.approx`) are reported by how many steps from number to number they are apart, and cannot fail.

mod cases;
mod values;

use self::cases::Case;
use self::values::{Ty, inputs};
use crate::Result;
use crate::driver::{Arg, DevicePtr, Driver, Image, Launch, Stream};
use crate::emulator::Emulator;

/// What was found of an instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The instruction, with types and modifiers.
    pub instruction: String,
    /// Inputs that it was tried on.
    pub inputs: usize,
    /// Whether PTX bounds its error only, so that differences are no failure.
    pub approximate: bool,
    /// Whether the processor had its word.
    pub host: bool,
    /// Inputs whose result on the device is not the emulator's.
    pub differ: usize,
    /// Inputs whose result on the device is not the processor's.
    pub differ_from_host: usize,
    /// Numbers between the two results at most, where the emulator's differs and both are numbers.
    pub most_steps: u64,
    /// The first input whose result differs from either.
    pub first: Option<Difference>,
    /// Why it was not tried: the device is too old, or refuses it.
    pub skipped: Option<String>,
}

/// An input on which two do not agree; all are bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The operands.
    pub operands: Vec<u64>,
    /// What the device made of them.
    pub device: u64,
    /// What the emulator makes of them.
    pub emulator: u64,
    /// What the processor makes of them, if it has its word.
    pub host: Option<u64>,
}

impl Outcome {
    /// Whether nothing speaks against it.
    pub fn passed(&self) -> bool {
        self.approximate || (self.differ == 0 && self.differ_from_host == 0)
    }
}

/// Names of all instructions that are tried.
pub fn instructions() -> Vec<String> {
    cases::all().into_iter().map(|case| case.name).collect()
}

/// Tries every instruction on a device and on the emulator.
///
/// # Errors
/// Those of the device but for an instruction that it refuses to load.
pub fn run(device: &dyn Driver) -> Result<Vec<Outcome>> {
    let capability = device.properties().compute_capability;
    // The nearest that there is: arithmetic has been the same since.
    let emulator = Emulator::new(capability).or_else(|_| Emulator::new((9, 0)))?;
    cases::all().iter().map(|case| compare(case, device, &emulator)).collect()
}

fn compare(case: &Case, device: &dyn Driver, emulator: &Emulator) -> Result<Outcome> {
    let mut operands = inputs(&case.from);
    if case.below > 0 {
        operands[1..].iter_mut().flatten().for_each(|value| *value %= case.below);
    }
    let mut outcome = Outcome {
        instruction: case.name.clone(),
        inputs: operands[0].len(),
        approximate: case.approximate,
        host: case.host.is_some(),
        differ: 0,
        differ_from_host: 0,
        most_steps: 0,
        first: None,
        skipped: None,
    };
    let (major, minor) = device.properties().compute_capability;
    if major * 10 + minor < case.since {
        outcome.skipped = Some(format!("it is there from sm_{} on", case.since));
        return Ok(outcome);
    }
    let text = kernel(case);
    let module = match device.load(Image::Ptx(&text)) {
        Ok(module) => module,
        Err(error) => {
            outcome.skipped = Some(error.to_string());
            return Ok(outcome);
        }
    };
    let got = results(case, device, module, &operands);
    device.unload(module)?;
    let got = got?;
    let module = emulator.load(Image::Ptx(&text))?;
    let want = results(case, emulator, module, &operands)?;
    emulator.unload(module)?;
    for (at, (got, want)) in got.into_iter().zip(want).enumerate() {
        let all: Vec<u64> = operands.iter().map(|operand| operand[at]).collect();
        let host = case.host.map(|host| host(std::array::from_fn(|i| all.get(i).copied().unwrap_or_default())));
        let same = |a, b| case.to.canonical(a) == case.to.canonical(b);
        let (differs, from_host) = (!same(got, want), host.is_some_and(|host| !same(got, host)));
        outcome.differ += usize::from(differs);
        outcome.differ_from_host += usize::from(from_host);
        if differs {
            outcome.most_steps = outcome.most_steps.max(case.to.steps(got, want).unwrap_or(0));
        }
        if (differs || from_host) && outcome.first.is_none() {
            outcome.first = Some(Difference { operands: all, device: got, emulator: want, host });
        }
    }
    Ok(outcome)
}

/// The kernel of an instruction: out[i] = it of a[i], b[i], c[i], for i < n.
fn kernel(case: &Case) -> String {
    let target = if case.since >= 90 { "sm_90" } else { "sm_80" };
    let mut text = format!(
        ".version 8.0\n.target {target}\n.address_size 64\n.visible .entry k(.param .u64 out, .param .u64 a, \
         .param .u64 b, .param .u64 c, .param .u32 n)\n{{\n.reg .pred %p;\n.reg .b32 %i, %t, %n;\n.reg .b64 %at, %by;\n"
    );
    let mut say = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    say(format!(".reg .b{} %to;", case.to.bits()));
    for (number, ty) in case.from.iter().enumerate() {
        say(format!(".reg .b{} %from{number};", ty.bits()));
    }
    say("mov.u32 %i, %ctaid.x;\nmov.u32 %t, %ntid.x;\nmul.lo.u32 %i, %i, %t;\nmov.u32 %t, %tid.x;".into());
    say("add.u32 %i, %i, %t;\nld.param.u32 %n, [n];\nsetp.ge.u32 %p, %i, %n;\n@%p bra END;".into());
    let place = |name: &str, ty: Ty| {
        format!("ld.param.u64 %at, [{name}];\nmul.wide.u32 %by, %i, {};\nadd.u64 %at, %at, %by;", ty.bits() / 8)
    };
    for (number, (ty, name)) in case.from.iter().zip(["a", "b", "c"]).enumerate() {
        say(place(name, *ty));
        say(format!("ld.global.b{} %from{number}, [%at];", ty.bits()));
    }
    let from: Vec<String> = (0..case.from.len()).map(|number| format!("%from{number}")).collect();
    say(format!("{} %to, {}{};", case.name, from.join(", "), case.rest));
    say(place("out", case.to));
    say(format!("st.global.b{} [%at], %to;\nEND: ret;\n}}", case.to.bits()));
    text
}

/// Bytes of numbers of a type, and back.
fn bytes(values: &[u64], ty: Ty) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()[..ty.bits() as usize / 8].to_vec()).collect()
}

fn numbers(bytes: &[u8], ty: Ty) -> Vec<u64> {
    let number = |part: &[u8]| part.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
    bytes.chunks_exact(ty.bits() as usize / 8).map(number).collect()
}

fn results(case: &Case, device: &dyn Driver, module: crate::driver::Module, operands: &[Vec<u64>]) -> Result<Vec<u64>> {
    let (stream, count) = (Stream::default(), operands[0].len());
    let function = device.function(module, "k")?;
    let mut taken: Vec<DevicePtr> = Vec::new();
    let done = (|| {
        let mut take = |bytes: usize| -> Result<DevicePtr> {
            let ptr = device.alloc(bytes, stream)?;
            taken.push(ptr);
            Ok(ptr)
        };
        let mut got = vec![0; count * case.to.bits() as usize / 8];
        let out = take(got.len())?;
        let mut args = vec![Arg::Ptr(out)];
        for (values, ty) in operands.iter().zip(&case.from) {
            let data = bytes(values, *ty);
            let ptr = take(data.len())?;
            device.upload(ptr, &data, stream)?;
            args.push(Arg::Ptr(ptr));
        }
        args.resize(4, Arg::U64(0));
        args.push(Arg::U32(count as u32));
        let launch =
            Launch { grid: [count.div_ceil(128) as u32, 1, 1], block: [128, 1, 1], cluster: [1; 3], shared_bytes: 0 };
        device.launch(function, &launch, &args, stream)?;
        device.download(&mut got, out, stream)?;
        Ok(numbers(&got, case.to))
    })();
    for ptr in taken {
        device.free(ptr, stream)?;
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The emulator against itself and the processor: every kernel is read and runs, and the arithmetic is right.
    #[test]
    fn the_emulator_computes_what_the_processor_does() {
        let emulator = Emulator::new((9, 0)).unwrap();
        let outcomes = run(&emulator).unwrap();
        let wrong: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.passed()).collect();
        assert!(wrong.is_empty(), "{wrong:#x?}");
        let skipped: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.skipped.is_some()).collect();
        assert!(skipped.is_empty(), "{skipped:?}");
        assert!(outcomes.iter().all(|outcome| outcome.inputs > 1000));
        assert_eq!(outcomes.len(), instructions().len());
        assert_eq!(emulator.free_memory().unwrap(), emulator.properties().memory_bytes, "everything was given back");
    }

    #[test]
    fn an_older_card_is_not_asked_for_what_it_lacks() {
        let outcomes = run(&Emulator::new((8, 0)).unwrap()).unwrap();
        let of = |name: &str| outcomes.iter().find(|outcome| outcome.instruction == name).unwrap();
        assert_eq!(of("add.rn.bf16").skipped.as_deref(), Some("it is there from sm_90 on"));
        assert!(of("add.rn.f16").skipped.is_none());
    }

    /// A device that computes something else is found out: here the kernel of another instruction.
    #[test]
    fn differences_are_found() {
        let emulator = Emulator::new((9, 0)).unwrap();
        let case = |name: &str| cases::all().into_iter().find(|case| case.name == name).unwrap();
        // By the processor's word alone: device and emulator run the same.
        let add = case("add.rn.f32");
        let wrong = Case { name: "sub.rn.f32".into(), ..add.clone() };
        let outcome = compare(&wrong, &emulator, &emulator).unwrap();
        assert!(!outcome.passed() && outcome.differ == 0 && outcome.differ_from_host > 100, "{outcome:?}");
        let first = outcome.first.unwrap();
        assert_eq!(first.host, Some((add.host.unwrap())([first.operands[0], first.operands[1], 0])));
        // In rounding alone, which few inputs show.
        let wrong = Case { name: "add.rz.f32".into(), ..add };
        let outcome = compare(&wrong, &emulator, &emulator).unwrap();
        assert!(!outcome.passed() && outcome.differ_from_host < outcome.inputs / 2, "{outcome:?}");
    }
}
