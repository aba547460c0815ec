//! `planish kernels step`: a warp of a kernel, instruction by instruction, in the emulator.

use std::sync::Arc;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};
use planish_cuda::cache::KernelCache;
use planish_cuda::emulator::{Emulator, Step, Trace, Watch};
use planish_cuda::kernels::{self, Kernel};
use planish_cuda::{Device, sample};
use serde_json::json;

use super::super::json_flag;
use crate::failure::{DONE, UsageError};
use crate::output;

pub(super) fn command(name: Arg, cache: Arg) -> Command {
    let number = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("N").default_value(default).value_parser(value_parser!(u32)).help(help)
    };
    Command::new("step")
        .about("What a warp of a kernel does, instruction by instruction, in a small run in the emulator")
        .arg(name)
        .arg(Arg::new("kernel").long("kernel").value_name("KERNEL").help("A kernel of the file [the first that runs]"))
        .arg(number("block", "0", "The block, along x"))
        .arg(number("warp", "0", "The warp of the block"))
        .arg(number("lane", "0", "The lane whose values are shown").value_parser(value_parser!(u32).range(..32)))
        .arg(number("from", "0", "The first instruction to show"))
        .arg(number("count", "100", "How many instructions to show"))
        .arg(cache)
        .arg(json_flag())
}

/// The line of CUDA C++ that a step comes from: file, number and text.
fn source(kernel: &Kernel, step: &Step) -> Option<(String, u32, &'static str)> {
    let (file, line) = step.at.source.clone()?;
    let header = kernels::HEADERS.iter().find(|(name, _)| *name == file).map(|(_, text)| *text);
    let text = header.or_else(|| (file == format!("{}.cu", kernel.name)).then_some(kernel.text))?;
    Some((file, line, text.lines().nth((line as usize).checked_sub(1)?)?.trim()))
}

fn chosen(traces: Vec<Trace>, matches: &ArgMatches) -> anyhow::Result<Trace> {
    let mut names: Vec<String> = traces.iter().map(|trace| trace.kernel.clone()).collect();
    names.dedup();
    let wanted = matches.get_one::<String>("kernel");
    let found = traces.into_iter().find(|trace| wanted.is_none_or(|name| trace.kernel == *name));
    let known = names.join(", ");
    found.ok_or_else(|| {
        let sentence = match wanted {
            Some(name) => format!("--kernel: `{name}` does not run in the sample; these do: {known}"),
            None => "nothing runs in the sample".to_owned(),
        };
        UsageError::Arguments { sentence }.into()
    })
}

pub(super) fn run(kernel: &'static Kernel, cache: KernelCache, matches: &ArgMatches) -> anyhow::Result<u8> {
    let number = |name: &str| *matches.get_one::<u32>(name).expect("has a default");
    let (from, count, lane) = (number("from") as usize, number("count") as usize, number("lane") as usize);
    let watch = Watch { block: [number("block"), 0, 0], warp: number("warp"), most: from.saturating_add(count) };
    let emulator = Arc::new(Emulator::new(kernel.capability())?.with_watch(watch));
    let device = Device::new(emulator.clone(), Arc::new(cache));
    sample::run(device.queue(), kernel.name).with_context(|| format!("running {} in the emulator", kernel.name))?;
    let trace = chosen(emulator.take_traces(), matches)?;
    let steps = trace.steps.iter().enumerate().skip(from);
    if matches.get_flag("json") {
        let step = |(i, step): (usize, &Step)| {
            let written = step.written.iter().map(|w| {
                let values: Vec<String> = (0..32).map(|lane| w.value(lane)).collect();
                json!({ "register": w.name, "lanes": values })
            });
            let written: Vec<_> = written.collect();
            let source =
                source(kernel, step).map(|(file, line, text)| json!({ "file": file, "line": line, "text": text }));
            json!({ "number": i, "ptx": step.at.text, "source": source, "lanes": step.lanes, "written": written })
        };
        let steps: Vec<_> = steps.map(step).collect();
        output::json(&json!({ "kernel": trace.kernel, "block": watch.block, "warp": watch.warp, "steps": steps }))?;
        return Ok(DONE);
    }
    output::line(format_args!(
        "{}, block {}, warp {}; values of lane {lane}",
        trace.kernel, watch.block[0], watch.warp
    ))?;
    let mut shown = None;
    for (i, step) in steps {
        let line = source(kernel, step);
        if line != shown
            && let Some((file, number, text)) = &line
        {
            output::line(format_args!("\n{file}:{number}  {text}"))?;
        }
        shown = line;
        let values: Vec<String> = step.written.iter().map(|w| format!("{} = {}", w.name, w.value(lane))).collect();
        let lanes = match step.lanes {
            u32::MAX => String::new(),
            lanes => format!("  [{} lanes]", lanes.count_ones()),
        };
        let off = if step.lanes >> lane & 1 == 0 { "  (lane off)" } else { "" };
        output::line(
            format_args!("{i:>6}  {:<58}{}{lanes}{off}", step.at.text, values.join(", ")).to_string().trim_end(),
        )?;
    }
    match (trace.cut, trace.steps.len() <= from) {
        (true, _) => output::line(format_args!("\nIt goes on: --from {}", from + count))?,
        (_, true) => output::line(format_args!("It ran {} instructions.", trace.steps.len()))?,
        _ => output::line("\nThe warp has finished.")?,
    }
    Ok(DONE)
}
