//! `planish plan`: what an sft run would take.

use clap::{ArgMatches, Command};
use planish_train::config::SftConfig;
use planish_train::recipes::sft;

use super::json_flag;
use crate::failure::DONE;
use crate::{model_args, output, settings};

pub(crate) fn command() -> Command {
    let command = Command::new("plan").about("Predict the steps, memory and time of `planish sft` with these settings");
    settings::with_flags::<SftConfig>(command).arg(json_flag()).next_line_help(true)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let config = settings::load_without_run::<SftConfig>(matches)?;
    model_args::set_threads(config.run.threads)?;
    let f = sft::plan(&config)?;
    if matches.get_flag("json") {
        output::json(&f)?;
        return Ok(DONE);
    }
    let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / (1u64 << 20) as f64);
    let m = &f.memory;
    output::line(format_args!("steps          {} ({} an epoch)", f.total_steps, f.steps_per_epoch))?;
    output::line(format_args!("tokens         {:.0} a step, {} in the largest pass", f.tokens_per_step, m.tokens))?;
    if let Some(what) = &f.recomputes {
        output::line(format_args!("recomputation  {what}"))?;
    }
    output::line(format_args!("peak memory    {}", mib(m.total())))?;
    for (name, bytes) in [
        ("program", m.program),
        ("weights", m.weights),
        ("gradients", m.gradients),
        ("optimizer", m.optimizer),
        ("activations", m.activations),
    ] {
        output::line(format_args!("  {name:<12} {}", mib(bytes)))?;
    }
    let of = if f.device.starts_with("emulator") { " in the emulator, which is no GPU" } else { "" };
    output::line(format_args!(
        "time           {:.0} s ({:.1} s a step, by what a few of its layers took just now{of})",
        f.seconds,
        f.seconds / f.total_steps as f64
    ))?;
    Ok(DONE)
}
