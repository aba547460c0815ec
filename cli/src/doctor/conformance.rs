//! `planish doctor --conformance`: every instruction on a device and on the emulator, bit by bit.

use std::io;

use planish_cuda::conformance::{self, Outcome};
use planish_tensor::Device;
use serde::Serialize;

use crate::output::line;

/// A row: [`Outcome`] as JSON, numbers of bits in hexadecimal.
#[derive(Serialize)]
pub(crate) struct Row {
    instruction: String,
    passed: bool,
    inputs: usize,
    approximate: bool,
    held_against_host: bool,
    differ: usize,
    differ_from_host: usize,
    most_steps: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<First>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
}

/// An input on which two do not agree.
#[derive(Serialize)]
struct First {
    operands: Vec<String>,
    device: String,
    emulator: String,
    host: Option<String>,
}

impl From<Outcome> for Row {
    fn from(outcome: Outcome) -> Row {
        let hex = |bits: u64| format!("{bits:#x}");
        Row {
            passed: outcome.passed(),
            instruction: outcome.instruction,
            inputs: outcome.inputs,
            approximate: outcome.approximate,
            held_against_host: outcome.host,
            differ: outcome.differ,
            differ_from_host: outcome.differ_from_host,
            most_steps: outcome.most_steps,
            first: outcome.first.map(|first| First {
                operands: first.operands.into_iter().map(hex).collect(),
                device: hex(first.device),
                emulator: hex(first.emulator),
                host: first.host.map(hex),
            }),
            skipped: outcome.skipped,
        }
    }
}

/// What a device makes of every instruction.
pub(crate) struct Conformance {
    pub(crate) rows: Vec<Row>,
}

impl Conformance {
    pub(crate) fn of(device: Device) -> anyhow::Result<Conformance> {
        let outcomes = device.with_gpu(|gpu| conformance::run(gpu.driver().as_ref()))??;
        Ok(Conformance { rows: outcomes.into_iter().map(Row::from).collect() })
    }

    pub(crate) fn passed(&self) -> bool {
        self.rows.iter().all(|row| row.passed)
    }

    pub(crate) fn print(&self, device: Device) -> io::Result<()> {
        line(format_args!("{device}: {}\n", device.name().unwrap_or_else(|error| error.to_string())))?;
        line(format_args!(
            "{:<24}{:>8}{:>9}{:>12}  {:<7} first that differs",
            "instruction", "inputs", "differ", "from host", ""
        ))?;
        for row in &self.rows {
            let name = &row.instruction;
            if let Some(why) = &row.skipped {
                line(format_args!("{name:<24}{:>8}{:>9}{:>12}  {:<7} {why}", "", "", "", "skipped"))?;
                continue;
            }
            let verdict = match (row.passed, row.approximate) {
                (true, false) => "ok".to_owned(),
                (true, true) => format!("≤ {}", row.most_steps),
                (false, _) => "FAILED".to_owned(),
            };
            let host = if row.held_against_host { row.differ_from_host.to_string() } else { "-".into() };
            let first = row.first.as_ref().map(|first| {
                let host = first.host.as_ref().map(|host| format!(", host {host}")).unwrap_or_default();
                format!("{}: {}, emulator {}{host}", first.operands.join(" "), first.device, first.emulator)
            });
            let (inputs, differ, first) = (row.inputs, row.differ, first.unwrap_or_default());
            line(format!("{name:<24}{inputs:>8}{differ:>9}{host:>12}  {verdict:<7} {first}").trim_end())?;
        }
        let (all, skipped) = (self.rows.len(), self.rows.iter().filter(|row| row.skipped.is_some()).count());
        let failed = self.rows.iter().filter(|row| !row.passed).count();
        line(format_args!("\n{all} instructions, of which {skipped} were skipped and {failed} FAILED"))?;
        line("differ: inputs whose bits are not the emulator's; ≤ N: numbers between the two where PTX leaves room")
    }
}
