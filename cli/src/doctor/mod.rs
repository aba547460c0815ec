//! Every op of the registry on this machine: held against the same op in f64, and timed.
//!
//! The registry is walked, not a list of our own: an op without an entry here is a failure of `planish
//! doctor` and of its tests.

mod adapted;
mod case;
mod dense;
mod moves;
mod rows;
mod sizes;
mod speed;

pub(crate) use case::{Checked, Outcome};
pub(crate) use speed::{Speed, Timed};

use case::Make;
use planish_autograd::registry::{Op, ops};
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

/// Checks every op. A row for each case, in the order of the registry.
pub(crate) fn check() -> Vec<Checked> {
    ops().iter().flat_map(|op| check_op(op)).collect()
}

fn check_op(op: &Op) -> Vec<Checked> {
    let row = |variant, outcome| Checked { op: op.name, variant, outcome };
    match entry(op.name) {
        None => vec![row("", Outcome::Failed("there is no check of this op: a bug in planish".into()))],
        Some(Entry::None(why)) => vec![row("", Outcome::Skipped(why))],
        Some(Entry::Cases(make)) => match make(&Sizes::CHECK) {
            Ok(cases) => cases.iter().map(|case| row(case.variant, case.check())).collect(),
            Err(error) => vec![row("", Outcome::Failed(error.to_string()))],
        },
    }
}

/// Times every op that has work to time, on one thread and on all.
///
/// # Errors
/// Those of the kernels; a system that gives no threads.
pub(crate) fn time(ceilings: &Ceilings, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Timed>> {
    let mut timed = Vec::new();
    for op in ops() {
        let Some(Entry::Cases(make)) = entry(op.name) else { continue };
        progress(op.name);
        for case in make(&Sizes::SMOLLM2)? {
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
        let all = check();
        assert!(all.len() > ops().len(), "only {} checks", all.len());
        let failed: Vec<&Checked> = all.iter().filter(|checked| !checked.passed()).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }
}
