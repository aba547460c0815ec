//! `planish doctor`: what this machine is, what it could do at best, whether every op computes what it
//! should here and how fast, and on request whether a model keeps laws 3 and 5.

use std::io;

use anyhow::{Context, anyhow};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use planish_cuda::{CudaReport, Driver};
use planish_tensor::Device;
use planish_tensor::simd::{self, Simd};
use planish_train::ceilings::{Ceilings, measure};
use planish_train::certify::{Certificate, Options, certify};
use planish_train::config::DeviceChoice;
use planish_train::device::{self, Demands};
use planish_train::models;
use serde_json::{Value as Json, json};

use super::json_flag;
use crate::doctor::conformance::Conformance;
use crate::doctor::{Checked, Outcome, Speed, Timed, bench, check, time};
use crate::failure::{DONE, FAILED, UsageError};
use crate::machine::{Facts, facts};
use crate::model_args;
use crate::output::{self, line};

pub(crate) fn command() -> Command {
    let switch = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    Command::new("doctor")
        .about("Check every op on this machine against f64, and say how fast it could be")
        .arg(
            Arg::new("threads")
                .long("threads")
                .value_name("N")
                .value_parser(value_parser!(u16).range(1..=1024))
                .help("Threads to measure with [default: the processor's cores]"),
        )
        .arg(
            Arg::new("simd").long("simd").value_name("LEVEL").value_parser(["portable", "avx2", "avx512"]).help(
                "Use no vector instructions beyond these: what an older machine would do [default: all there are]",
            ),
        )
        .arg(model_args::device().help("Where to check the ops: cpu, cuda, cuda:N, emulator or auto"))
        .arg(switch("bench").help(
            "Time every op at SmolLM2-135M's shapes, on one thread and on all; on a device kernels, training steps and decoding",
        ))
        .arg(
            Arg::new("bench-only")
                .long("bench-only")
                .value_name("NAMES")
                .value_delimiter(',')
                .action(ArgAction::Append)
                .requires("bench")
                .help("Time only what has a name that begins so (attention, step/8b, …), and check nothing"),
        )
        .arg(switch("kernels").requires("bench").help(
            "On a device: after each training step and each decoding, list its kernels by the time that they take",
        ))
        .arg(
            switch("conformance")
                .conflicts_with_all(["bench", "certify"])
                .help("On a device: compare what it makes of each instruction with the emulator, and check nothing else"),
        )
        .arg(
            switch("certify")
                .help("Measure how far a step's gradient and log-probabilities depend on how they are computed"),
        )
        .arg(
            Arg::new("model")
                .long("model")
                .value_name("MODEL")
                .default_value(models::BUILTIN)
                .requires("certify")
                .help("What to certify: a directory, a .gguf file, a hub id, or `builtin`"),
        )
        .arg(
            Arg::new("model-revision")
                .long("model-revision")
                .value_name("REV")
                .default_value("main")
                .help("Branch, tag or commit of a hub model"),
        )
        .arg(json_flag())
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let facts = facts();
    let threads = matches.get_one::<u16>("threads").map_or(facts.cores, |n| usize::from(*n));
    let as_json = matches.get_flag("json");
    if let Some(name) = matches.get_one::<String>("simd") {
        let most = match name.as_str() {
            "avx512" => Simd::Avx512,
            "avx2" => Simd::Avx2,
            _ => Simd::Portable,
        };
        if most > simd::detected() {
            let sentence = format!("--simd {name}: this machine does not have these instructions");
            return Err(UsageError::Arguments { sentence }.into());
        }
        simd::restrict(most).map_err(|used| anyhow!("kernels already use {used:?}"))?;
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("cannot start the threads")?;
    let choice = matches.get_one::<DeviceChoice>("device").copied().expect("has a default");
    let demands = match matches.get_flag("certify") {
        true => Demands::none().lacks("--certify, which is about this processor,"),
        false => Demands::none(),
    };
    let device = device::choose(choice, &demands)?;
    let only: Vec<String> = matches.get_many("bench-only").into_iter().flatten().cloned().collect();
    let kernels = matches.get_flag("kernels");
    let conform = matches.get_flag("conformance");
    for (given, sentence) in [
        (!only.is_empty(), "--bench-only chooses among the benchmarks of a device: give one with --device"),
        (kernels, "--kernels lists what runs on a device: give one with --device"),
        (conform, "--conformance compares a device with the emulator: give one with --device"),
    ] {
        if given && device.is_cpu() {
            return Err(UsageError::Arguments { sentence: sentence.into() }.into());
        }
    }
    if !device.is_cpu()
        && let Err(refusal) = bench::check(device, &only)
    {
        return Err(UsageError::Arguments { sentence: refusal.to_string() }.into());
    }
    if conform {
        let found = Conformance::of(device)?;
        if as_json {
            let device = json!({ "kind": device.to_string(), "name": device.name()? });
            let (version, passed) = (env!("CARGO_PKG_VERSION"), found.passed());
            output::json(
                &json!({ "version": version, "device": device, "passed": passed, "conformance": found.rows }),
            )?;
        } else {
            found.print(device)?;
        }
        return Ok(if found.passed() { DONE } else { FAILED });
    }
    if !only.is_empty() {
        let report = bench_device(device, &only, kernels, as_json)?;
        if as_json {
            output::json(&json!({ "version": env!("CARGO_PKG_VERSION"), "passed": report.passed(), "bench": report }))?;
        }
        return Ok(if report.passed() { DONE } else { FAILED });
    }
    // What is wrong with the model is said before a minute of measuring.
    let text = |name: &str| matches.get_one::<String>(name).map(String::as_str).unwrap_or_default();
    let opened = match matches.get_flag("certify") {
        true => Some(models::open(text("model"), text("model-revision"), &mut |_| {})?),
        false => None,
    };
    let ceilings = measure(threads);
    let cuda = planish_cuda::probe();
    if !as_json {
        print_machine(&facts, &ceilings, &cuda)?;
    }
    let checks = check(device);
    if !as_json {
        print_checks(device, &checks)?;
    }
    let (mut speeds, mut measured) = (Vec::new(), None);
    if matches.get_flag("bench") && !device.is_cpu() {
        measured = Some(bench_device(device, &[], kernels, as_json)?);
    } else if matches.get_flag("bench") {
        speeds = time(&ceilings, &mut |op| tracing::debug!("timing {op}"))?;
        if !as_json {
            print_speeds(&speeds)?;
        }
    }
    let mut certificate = None;
    if let Some(opened) = opened {
        let options = Options { threads, ..Options::default() };
        let found = certify(&opened, options, &mut |what| tracing::debug!("{what}"))?;
        if !as_json {
            print_certificate(text("model"), &found)?;
        }
        certificate = Some(found);
    }
    let right = checks.iter().all(Checked::passed) && certificate.as_ref().is_none_or(Certificate::passed);
    let passed = right && measured.as_ref().is_none_or(bench::Report::passed);
    if as_json {
        output::json(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "cpu": facts,
            "ceilings": ceilings,
            "device": { "kind": device.to_string(), "name": device.name()? },
            "cuda": cuda_json(&cuda),
            "passed": passed,
            "ops": checks,
            "speeds": speeds,
            "bench": measured,
            "certificate": certificate,
        }))?;
    } else {
        line(match (right, passed) {
            (_, true) => "\nAll checks passed.",
            (true, false) => "\nAll checks passed, but a benchmark FAILED.",
            (false, _) => "\nA check FAILED: results on this machine are not to be trusted.",
        })?;
    }
    Ok(if passed { DONE } else { FAILED })
}

fn print_machine(facts: &Facts, ceilings: &Ceilings, cuda: &CudaReport) -> io::Result<()> {
    let row = |name: &str, value: String| line(format_args!("{name:<13} {value}"));
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
    row("", format!("by multiply-adds in registers, with {} vectors", ceilings.vectors))?;
    let memory = |one: f64, all: f64| format!("{one:.1} GB/s on one core, {all:.1} on {threads} threads");
    row("reading", memory(ceilings.read_gb_per_second_one_core, ceilings.read_gb_per_second))?;
    row("copying", memory(ceilings.copy_gb_per_second_one_core, ceilings.copy_gb_per_second))?;
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
    let works = |why: Option<String>| why.map_or("works".to_owned(), |why| format!("does not work: {why}"));
    row("--device cuda", works(cuda.unavailable()))?;
    row("--device emulator", works(cuda.no_compiler()))
}

/// A line for each case: the error, the bound, the verdict.
fn print_checks(device: Device, checks: &[Checked]) -> io::Result<()> {
    if !device.is_cpu() {
        let name = device.name().unwrap_or_else(|error| error.to_string());
        line(format_args!("\non {device}: {name}"))?;
    }
    line(format_args!("\n{:<14}{:<23}{:>11}{:>11}  {:<6} {}", "op", "case", "error", "bound", "", "largest in"))?;
    for row in checks {
        let case = if row.bf16 { format!("{} bf16", row.variant) } else { row.variant.to_owned() };
        let name = format!("{:<14}{:<23}", row.op, case.trim_start());
        match &row.outcome {
            Outcome::Skipped(why) => line(format_args!("{name}{:>11}{:>11}  {:<6} {why}", "", "", "none"))?,
            Outcome::Failed(why) => line(format_args!("{name}{:>11}{:>11}  {:<6} {why}", "", "", "FAILED"))?,
            Outcome::Compared { error, bound, of, passed, .. } => {
                let verdict = if *passed { "ok" } else { "FAILED" };
                let of = if *error == 0.0 { "" } else { of.as_str() };
                let text = format!("{name}{:>11}{:>11}  {verdict:<6} {of}", scientific(*error), scientific(*bound));
                line(text.trim_end())?;
            }
        }
    }
    line("error: largest difference from f64, over the largest magnitude; 0 demands the same bits")
}

/// Runs the benchmarks of a device. Each has its line as soon as it is done, on stdout or, with `as_json`, on stderr: the
/// rest may take minutes, or never come.
fn bench_device(device: Device, only: &[String], kernels: bool, as_json: bool) -> anyhow::Result<bench::Report> {
    let say = |text: &str| -> io::Result<()> {
        use io::Write;
        match as_json {
            true => write!(io::stderr(), "{text}").and_then(|()| io::stderr().flush()),
            false => write!(io::stdout(), "{text}").and_then(|()| io::stdout().flush()),
        }
    };
    say(&format!("\n{}\n", bench::head()))?;
    // A reader that has gone is no reason to measure nothing.
    let mut begun = |name: &str| drop(say(&format!("{name:<30}")));
    let mut done = |row: &bench::Row| drop(say(&format!("{}\n", bench::row(row))));
    let report = bench::run(device, only, kernels, &mut begun, &mut done)?;
    say(&format!("{}\n", report.card.sentence()))?;
    if report.card.emulated {
        say("Times of the emulator mean nothing: this shows that everything runs.\n")?;
    }
    Ok(report)
}

/// A line for each case: its rates and their shares of the ceiling.
fn print_speeds(speeds: &[Timed]) -> io::Result<()> {
    let of = |threads: &Speed| match threads.threads {
        1 => "1 thread".to_owned(),
        n => format!("{n} threads"),
    };
    let columns = |row: &Timed| row.forward.iter().map(of).collect::<Vec<_>>();
    let Some(first) = speeds.first() else { return Ok(()) };
    let mut head = format!("\n{:<14}{:<20}{:>8}", "op", "case", "");
    for threads in columns(first) {
        head += &format!("  {:>14}  {:>14}", format!("{threads} forw."), "backward");
    }
    line(head)?;
    let cell = |speed: Option<&Speed>| match speed {
        Some(speed) => format!("  {:>8.1} {:>4.0}%", speed.rate, 100.0 * speed.share),
        None => format!("  {:>14}", ""),
    };
    for row in speeds {
        let mut text = format!("{:<14}{:<20}{:>8}", row.op, row.variant, row.unit.name());
        for i in 0..row.forward.len() {
            text += &cell(row.forward.get(i));
            text += &cell(row.backward.get(i));
        }
        line(text.trim_end())?;
    }
    line(
        "%: of the multiply-adds in registers, of copying, or of reading, above; over 100% where the caches hold it all",
    )
}

fn print_certificate(model: &str, c: &Certificate) -> io::Result<()> {
    line(format_args!(
        "\n{model}: a step of {} examples, {} tokens, {} of them supervised; {} parameters, f32",
        c.examples, c.tokens, c.supervised, c.parameters
    ))?;
    for (training, title) in [("full", "full fine-tuning"), ("lora", "LoRA on all linear modules")] {
        for law in [3, 5] {
            let what = if law == 3 { "the gradient" } else { "log-probabilities" };
            line(format_args!("\n{:<54}{:>11}{:>11}", format!("law {law}: {what}, {title}"), "deviation", "bound"))?;
            for check in c.checks.iter().filter(|c| (c.training, c.law) == (training, law)) {
                let verdict = if check.passed { "ok" } else { "FAILED" };
                let tensor = check.tensor.as_deref().filter(|_| !check.passed).unwrap_or_default();
                let (deviation, bound) = (scientific(check.deviation), scientific(check.bound));
                let text = format!("  {:<52}{deviation:>11}{bound:>11}  {verdict} {tensor}", check.what);
                line(text.trim_end())?;
            }
        }
    }
    if let Some((check, share)) = c.nearest() {
        let tensor = check.tensor.as_deref().unwrap_or("the loss");
        line(format_args!("\nnearest to its bound, {:.0}% of it: {} ({})", 100.0 * share, check.what, check.training))?;
        line(format_args!("  at {tensor}"))?;
    }
    line("deviation: relative to the tensor's norm (law 3), in nats (law 5); bound 0 demands the same bits")
}

/// Three digits, and a plain 0 for what is none.
fn scientific(x: f64) -> String {
    if x == 0.0 { "0".into() } else { format!("{x:.2e}") }
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
        "usable": cuda.unavailable().is_none(),
        "why": cuda.unavailable(),
        "driver": driver,
        "driver_error": reason,
        "driver_supports_cuda": supports,
        "devices": devices,
        "nvrtc": cuda.nvrtc.as_ref().map(|n| json!({ "path": n.path, "version": version(n.version) })),
    })
}
