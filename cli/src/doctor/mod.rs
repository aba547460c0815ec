//! Every op of the registry on this machine: held against the same op in f64, and timed.
//!
//! The registry is walked, not a list of our own: an op without an entry here is a failure of `planish
//! doctor` and of its tests.

mod adapted;
pub(crate) mod bench;
mod case;
pub(crate) mod conformance;
mod dense;
mod moves;
mod rows;
mod sizes;
mod speed;

pub(crate) use case::{Checked, Outcome};
pub(crate) use speed::{Speed, Timed};

use case::{Case, Make};
use planish_autograd::registry::{Cuda, Op, ops};
use planish_tensor::Device;
use planish_train::ceilings::Ceilings;
use sizes::Sizes;

/// What there is to check of an op.
enum Entry {
    /// Its cases at these sizes.
    Cases(Make),
    /// Nothing, for this reason.
    None(&'static str),
}

/// The entry of the op of that name.
fn entry(name: &str) -> Option<Entry> {
    if name == "checkpoint" {
        return Some(Entry::None("runs other ops again: see `--certify`"));
    }
    let files = [dense::cases, adapted::cases, rows::cases, moves::cases];
    files.iter().find_map(|cases| cases(name)).map(Entry::Cases)
}

/// Checks every op on a device. A row for each case, in the order of the registry.
pub(crate) fn check(device: Device) -> Vec<Checked> {
    ops().iter().flat_map(|op| check_op(op, device)).collect()
}

fn check_op(op: &Op, device: Device) -> Vec<Checked> {
    let row = |variant, outcome| Checked { op: op.name, variant, bf16: false, outcome };
    match entry(op.name) {
        None => vec![row("", Outcome::Failed("there is no check of this op: a bug in planish".into()))],
        Some(Entry::None(why)) => vec![row("", Outcome::Skipped(why))],
        Some(Entry::Cases(make)) => {
            let emulated = matches!(device, Device::Emulator(_));
            let sizes = if emulated { &Sizes::EMULATED } else { &Sizes::CHECK };
            let mut rows = match make(sizes) {
                Ok(cases) => cases.iter().map(|case| row(case.variant, outcome(op, case, device))).collect(),
                Err(error) => vec![row("", Outcome::Failed(error.to_string()))],
            };
            if !device.is_cpu() && IN_BF16.contains(&op.name) {
                let sizes = if emulated { &Sizes::HALF_EMULATED } else { &Sizes::HALF };
                rows.extend(check_in_bf16(op, make, sizes, device));
            }
            rows
        }
    }
}

/// The ops that see a decoder's activations, which may be bf16 on a device.
const IN_BF16: [&str; 19] = [
    "linear",
    "lora_linear",
    "dora_linear",
    "block_rotate",
    "lm_head",
    "attention",
    "rms_norm",
    "rope",
    "swiglu",
    "geglu",
    "add",
    "mul",
    "scale",
    "dropout",
    "index_select",
    "concat",
    "narrow",
    "reshape",
    "transpose",
];

/// The cases with bf16 activations, at sizes that tensor cores take.
fn check_in_bf16(op: &Op, make: Make, sizes: &Sizes, device: Device) -> Vec<Checked> {
    let row = |variant, outcome| Checked { op: op.name, variant, bf16: true, outcome };
    let check = |case: Case| -> Checked {
        let variant = case.variant;
        let outcome = case.in_bf16().map(|case| case.check(device));
        row(variant, outcome.unwrap_or_else(|error| Outcome::Failed(error.to_string())))
    };
    match make(sizes) {
        Ok(cases) => cases.into_iter().filter(|case| case.cpu_only.is_none()).map(check).collect(),
        Err(error) => vec![row("", Outcome::Failed(error.to_string()))],
    }
}

/// An op that has no kernel must refuse a device, and one that has must be right there.
fn outcome(op: &Op, case: &Case, device: Device) -> Outcome {
    match op.cuda {
        Cuda::CpuOnly(reason) if !device.is_cpu() => match case.is_refused(device) {
            true => Outcome::Skipped(reason),
            false => Outcome::Failed("it has no kernel, but does not refuse the device: a bug in planish".into()),
        },
        Cuda::Kernel(stem) if planish_cuda::kernels::find(stem).is_none() => {
            Outcome::Failed(format!("there is no kernel file {stem}: a bug in planish"))
        }
        _ => match case.cpu_only.filter(|_| !device.is_cpu()) {
            Some(reason) if case.is_refused(device) => Outcome::Skipped(reason),
            Some(_) => Outcome::Failed("it is said to stay on the CPU, but does not refuse: a bug in planish".into()),
            None => case.check(device),
        },
    }
}

/// Times every op that has work to time, on one thread and on all.
///
/// # Errors
/// Those of the kernels; a system that gives no threads.
pub(crate) fn time(ceilings: &Ceilings, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Timed>> {
    time_at(&Sizes::SMOLLM2, ceilings, progress)
}

fn time_at(sizes: &Sizes, ceilings: &Ceilings, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Timed>> {
    let mut timed = Vec::new();
    for op in ops() {
        let Some(Entry::Cases(make)) = entry(op.name) else { continue };
        progress(op.name);
        for case in make(sizes)? {
            timed.extend(speed::time(op.name, &case, ceilings)?);
        }
    }
    Ok(timed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use planish_autograd::registry::Backward;

    #[test]
    fn every_op_of_the_registry_has_an_entry() {
        for op in ops() {
            match entry(op.name) {
                None => panic!("{}: give it cases in cli/src/doctor, or say why there is nothing to check", op.name),
                Some(Entry::None(why)) => assert!(!why.is_empty(), "{}", op.name),
                Some(Entry::Cases(make)) => {
                    let cases = make(&Sizes::CHECK).unwrap();
                    assert!(!cases.is_empty(), "{}", op.name);
                    let tracked = cases.iter().any(case::Case::has_gradient);
                    assert_eq!(tracked, op.backward == Backward::Rule, "{}: gradients checked", op.name);
                }
            }
        }
        assert!(entry("no such op").is_none());
    }

    #[test]
    fn every_op_is_within_its_bound() {
        let all = check(Device::Cpu);
        assert!(all.len() > ops().len(), "only {} checks", all.len());
        let failed: Vec<&Checked> = all.iter().filter(|checked| !checked.passed()).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }

    /// What has work is timed on one thread and on all, forward and, where there is a gradient, backward.
    #[test]
    fn every_op_with_work_is_timed() {
        let ceilings = planish_train::ceilings::Ceilings {
            vectors: "none",
            gflops_one_core: 10.0,
            gflops: 20.0,
            read_gb_per_second_one_core: 5.0,
            read_gb_per_second: 10.0,
            copy_gb_per_second_one_core: 4.0,
            copy_gb_per_second: 8.0,
            threads: 2,
        };
        let timed = time_at(&Sizes::EMULATED, &ceilings, &mut |_| {}).unwrap();
        for timed in &timed {
            let threads = |of: &[speed::Speed]| of.iter().map(|speed| speed.threads).collect::<Vec<_>>();
            let reads = timed.unit == speed::Unit::Reads;
            assert_eq!(threads(&timed.forward), [1, 2], "{timed:?}");
            assert!(timed.backward.is_empty() || !reads && threads(&timed.backward) == [1, 2], "{timed:?}");
            for speed in timed.forward.iter().chain(&timed.backward) {
                let [one, all] = match timed.unit {
                    speed::Unit::Gflops => [10.0, 20.0],
                    speed::Unit::Gigabytes => [4.0, 8.0],
                    speed::Unit::Reads => [5.0, 10.0],
                };
                let share = speed.rate / if speed.threads == 1 { one } else { all };
                assert!(
                    speed.seconds > 0.0 && speed.rate > 0.0 && (speed.share / share - 1.0).abs() < 1e-9,
                    "{timed:?}"
                );
            }
        }
        let named = |op: &str, variant: &str| timed.iter().any(|t| t.op == op && t.variant == variant);
        assert!(named("linear", "head, 1 row, bf16 panels") && named("rms_norm", "after an addition"));
        assert!(timed.iter().any(|t| !t.backward.is_empty()));
    }

    /// What the registry says of kernels is true: an op with one runs on the emulator and agrees with f64, and one
    /// without refuses.
    #[test]
    #[allow(clippy::print_stderr)]
    fn the_registry_is_right_about_kernels() {
        let cache = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tmp/kernels");
        let cache = planish_cuda::cache::KernelCache::new(Some(cache.into()));
        if let Err(error) = cache.compiler() {
            let required = std::env::var("PLANISH_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
            assert!(!required, "{error}; scripts/fetch-nvrtc gets it");
            eprintln!("skipped: {error}; scripts/fetch-nvrtc gets it");
            return;
        }
        let emulator = planish_cuda::emulator::Emulator::new((9, 0)).unwrap();
        let gpu = planish_cuda::Device::new(std::sync::Arc::new(emulator), std::sync::Arc::new(cache));
        let device = Device::Emulator(0);
        device.install(gpu).unwrap();
        let all = check(device);
        let failed: Vec<&Checked> = all.iter().filter(|checked| !checked.passed()).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        for op in ops().iter().filter(|op| matches!(op.cuda, Cuda::Kernel(_))) {
            let ran = |c: &&Checked| c.op == op.name && matches!(c.outcome, Outcome::Compared { .. });
            assert!(all.iter().any(|c| ran(&c)), "{} claims a kernel and was not run", op.name);
        }
        for name in IN_BF16 {
            assert!(all.iter().any(|c| c.bf16 && c.op == name), "{name} was not run with bf16 activations");
        }
    }
}
