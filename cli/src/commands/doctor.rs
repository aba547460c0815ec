//! `planish doctor`: what this machine is, what it could do at best, and what is missing.

use clap::{Arg, ArgMatches, Command, value_parser};
use planish_cuda::{CudaReport, Driver};
use serde_json::{Value as Json, json};

use super::json_flag;
use crate::failure::DONE;
use crate::machine::{Ceilings, Facts, facts, measure};
use crate::output;

pub(crate) fn command() -> Command {
    Command::new("doctor")
        .about("Say what works on this machine and how fast it could be")
        .arg(
            Arg::new("threads")
                .long("threads")
                .value_name("N")
                .value_parser(value_parser!(u16).range(1..=1024))
                .help("Threads to measure with [default: the processor's cores]"),
        )
        .arg(json_flag())
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let facts = facts();
    let threads = matches.get_one::<u16>("threads").map_or(facts.cores, |n| usize::from(*n));
    let ceilings = measure(threads);
    let cuda = planish_cuda::probe();
    if matches.get_flag("json") {
        output::json(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "cpu": facts,
            "ceilings": ceilings,
            "cuda": cuda_json(&cuda),
        }))?;
    } else {
        print(&facts, &ceilings, &cuda)?;
    }
    Ok(DONE)
}

fn print(facts: &Facts, ceilings: &Ceilings, cuda: &CudaReport) -> std::io::Result<()> {
    let row = |name: &str, value: String| output::line(format_args!("{name:<14}{value}"));
    let gigabytes = |bytes: Option<u64>| bytes.map_or("unknown".into(), |b| format!("{:.1} GB", b as f64 / 1e9));
    row("planish", env!("CARGO_PKG_VERSION").to_owned())?;
    row("processor", format!("{} ({})", facts.cpu.as_deref().unwrap_or("unknown"), facts.architecture))?;
    row("features", if facts.features.is_empty() { "none used".into() } else { facts.features.join(", ") })?;
    row("cores", facts.cores.to_string())?;
    let (all, free) = (gigabytes(facts.memory_bytes), gigabytes(facts.available_bytes));
    row("memory", format!("{all}, {free} available"))?;
    let one = ceilings.gflops_one_core;
    let threads = ceilings.threads;
    row("arithmetic", format!("{one:.0} GFLOP/s on one core, {:.0} on {threads} threads (f32)", ceilings.gflops))?;
    row("reading", format!("{:.1} GB/s on {threads} threads", ceilings.read_gb_per_second))?;
    match &cuda.driver {
        Driver::Works { cuda_version: (major, minor), devices } => {
            row("CUDA driver", format!("for CUDA {major}.{minor}"))?;
            for device in devices {
                let (major, minor) = device.compute_capability;
                let memory = device.memory_bytes as f64 / 1e9;
                row("GPU", format!("{}: {}, {memory:.1} GB, sm_{major}{minor}", device.ordinal, device.name))?;
            }
        }
        Driver::Failed { reason } => row("CUDA driver", format!("does not work: {reason}"))?,
        _ => row("CUDA driver", "none".into())?,
    }
    let nvrtc = cuda.nvrtc.as_ref().map(|found| {
        let (major, minor) = found.version;
        format!("{major}.{minor} ({})", found.path.display())
    });
    row("NVRTC", nvrtc.unwrap_or_else(|| "none".into()))?;
    row("--device cpu", "works".into())?;
    row("--device cuda", format!("does not work: {}", cuda.why_unavailable()))
}

fn cuda_json(cuda: &CudaReport) -> Json {
    let version = |(major, minor): (i32, i32)| format!("{major}.{minor}");
    let (driver, reason, supports, devices) = match &cuda.driver {
        Driver::Works { cuda_version, devices } => ("works", None, Some(version(*cuda_version)), devices.as_slice()),
        Driver::Failed { reason } => ("failed", Some(reason.as_str()), None, [].as_slice()),
        _ => ("missing", None, None, [].as_slice()),
    };
    let devices: Vec<Json> = devices
        .iter()
        .map(|device| {
            json!({
                "ordinal": device.ordinal,
                "name": device.name,
                "memory_bytes": device.memory_bytes,
                "compute_capability": version(device.compute_capability),
                "multiprocessors": device.multiprocessors,
            })
        })
        .collect();
    json!({
        "usable": false,
        "why": cuda.why_unavailable(),
        "driver": driver,
        "driver_error": reason,
        "driver_supports_cuda": supports,
        "devices": devices,
        "nvrtc": cuda.nvrtc.as_ref().map(|n| json!({ "path": n.path, "version": version(n.version) })),
    })
}
