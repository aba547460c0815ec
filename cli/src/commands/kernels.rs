//! `planish kernels`: what the CUDA kernels are, compiled ahead, and looked at. Needs NVRTC, but no GPU.

mod step;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command};
use planish_cuda::cache::{Defines, KernelCache};
use planish_cuda::emulator::{Emulator, Report};
use planish_cuda::kernels::{self, Define, Kernel};
use planish_cuda::nvrtc::Arch;
use planish_cuda::{Device, sample};
use planish_train::config::nearest;
use serde::Serialize;

use super::json_flag;
use crate::failure::{DONE, UsageError};
use crate::output;

pub(crate) fn command() -> Command {
    let arch = Arg::new("arch").long("arch").value_name("ARCH");
    let cache = Arg::new("cache").long("cache-dir").value_name("FOLDER").value_parser(clap::value_parser!(PathBuf));
    let cache = cache.help("Where compiled kernels are kept, instead of the user's cache folder");
    let list = Command::new("list").about("The kernel files and what each computes").arg(json_flag());
    let compile = Command::new("compile")
        .about("Compile kernels into the cache, so that the first step does not wait for them")
        .arg(Arg::new("names").value_name("NAME").num_args(0..).help("Files, by their stems, instead of all"))
        .arg(arch.clone().required(true).help("Architecture, such as sm_80 or sm_90a"))
        .arg(cache.clone())
        .arg(json_flag());
    let name = Arg::new("name").required(true).value_name("NAME").help("The file's stem, such as rms_norm");
    let step = step::command(name.clone(), cache.clone());
    let inspect = Command::new("inspect")
        .about("Registers, spills and shared memory of a file's kernels, and a small run in the emulator")
        .arg(name)
        .arg(arch.help("Only this architecture, instead of sm_80, sm_89, sm_90a and sm_100"))
        .arg(cache)
        .arg(json_flag());
    Command::new("kernels")
        .about("List, compile and inspect the CUDA kernels; needs NVRTC, but no GPU")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands([list, compile, inspect, step])
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    match matches.subcommand().expect("clap demands a subcommand") {
        ("list", matches) => list(matches),
        ("compile", matches) => compile(matches),
        ("step", matches) => step::run(named(matches)?, cache(matches).with_lines(), matches),
        (_, matches) => inspect(matches),
    }
}

fn list(matches: &ArgMatches) -> anyhow::Result<u8> {
    #[derive(Serialize)]
    struct File {
        name: &'static str,
        about: String,
        variants: usize,
    }
    let file = |k: &Kernel| File { name: k.name, about: k.about(), variants: k.variants.len() };
    let files: Vec<File> = kernels::ALL.iter().map(file).collect();
    if matches.get_flag("json") {
        output::json(&files)?;
        return Ok(DONE);
    }
    for file in files {
        output::line(format_args!("{:<20} {}", file.name, file.about))?;
    }
    Ok(DONE)
}

fn cache(matches: &ArgMatches) -> KernelCache {
    match matches.get_one::<PathBuf>("cache") {
        Some(dir) => KernelCache::new(Some(dir.clone())),
        None => KernelCache::of_user(),
    }
}

fn arch(matches: &ArgMatches) -> anyhow::Result<Option<Arch>> {
    let Some(text) = matches.get_one::<String>("arch") else { return Ok(None) };
    let parsed: Result<Arch, _> = text.parse();
    Ok(Some(parsed.map_err(|error| UsageError::Arguments { sentence: format!("--arch: {error}") })?))
}

fn defines(variant: &[Define]) -> Defines {
    variant.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// `T=bf16 W=bf16`.
fn spelled(variant: &[Define]) -> String {
    variant.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

fn compile(matches: &ArgMatches) -> anyhow::Result<u8> {
    #[derive(Serialize)]
    struct Done {
        arch: String,
        files: usize,
        kernels: usize,
        seconds: f64,
        cache_dir: Option<PathBuf>,
    }
    let (cache, arch) = (cache(matches), arch(matches)?.expect("clap demands it"));
    let begin = std::time::Instant::now();
    let (mut files, mut count) = (0, 0);
    let names: Vec<&String> = matches.get_many("names").into_iter().flatten().collect();
    let chosen = names.iter().map(|name| find(name)).collect::<anyhow::Result<Vec<&Kernel>>>()?;
    if let Some(kernel) = chosen.iter().find(|kernel| !kernel.is_for(arch)) {
        let only = kernel.only.map(|only| only.to_string()).unwrap_or_default();
        let sentence = format!("{} is for {only} only, not for {arch}", kernel.name);
        return Err(UsageError::Arguments { sentence }.into());
    }
    let chosen: Vec<&Kernel> = if chosen.is_empty() { kernels::ALL.iter().collect() } else { chosen };
    for kernel in chosen.into_iter().filter(|kernel| kernel.is_for(arch)) {
        for variant in kernel.variants {
            let compiled = cache.precompile(kernel, &defines(variant), arch)?;
            files += 1;
            count += compiled.usage.len();
        }
        output::note(format_args!("{:<20} {} variants", kernel.name, kernel.variants.len()));
    }
    let done = Done {
        arch: arch.to_string(),
        files,
        kernels: count,
        seconds: begin.elapsed().as_secs_f64(),
        cache_dir: cache.dir().map(PathBuf::from),
    };
    if matches.get_flag("json") {
        output::json(&done)?;
        return Ok(DONE);
    }
    let place = done.cache_dir.map_or("no folder".into(), |dir| dir.display().to_string());
    output::line(format_args!("{count} kernels in {files} variants for {arch}, {:.1} s, in {place}", done.seconds))?;
    Ok(DONE)
}

/// A row of the table.
#[derive(Serialize)]
struct Usage {
    kernel: String,
    variant: String,
    arch: String,
    registers: u32,
    spilled_bytes: u32,
    shared_bytes: u32,
}

/// The kernel file that is named.
fn named(matches: &ArgMatches) -> anyhow::Result<&'static Kernel> {
    find(matches.get_one::<String>("name").expect("clap demands it"))
}

/// The kernel file of this stem.
fn find(name: &str) -> anyhow::Result<&'static Kernel> {
    kernels::find(name).ok_or_else(|| {
        let names = kernels::ALL.iter().map(|kernel| kernel.name);
        let meant = nearest(name, names).map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
        let sentence = format!("there is no kernel file `{name}`{meant}; `planish kernels list` has all");
        UsageError::Arguments { sentence }.into()
    })
}

fn inspect(matches: &ArgMatches) -> anyhow::Result<u8> {
    let kernel = named(matches)?;
    let (cache, only) = (Arc::new(cache(matches)), arch(matches)?);
    let archs: Vec<Arch> = only.map_or(Arch::ALL.to_vec(), |arch| vec![arch]);
    let archs: Vec<Arch> = archs.into_iter().filter(|arch| kernel.is_for(*arch)).collect();
    let mut table = Vec::new();
    for (variant, arch) in kernel.variants.iter().flat_map(|variant| archs.iter().map(move |arch| (variant, *arch))) {
        for u in cache.get(kernel, &defines(variant), arch)?.usage {
            table.push(Usage {
                kernel: u.kernel,
                variant: spelled(variant),
                arch: arch.to_string(),
                registers: u.registers,
                spilled_bytes: u.spill_stores + u.spill_loads + u.stack,
                shared_bytes: u.shared,
            });
        }
    }
    table.sort_by(|a, b| (&a.kernel, &a.variant).cmp(&(&b.kernel, &b.variant)));
    let reports = emulated(kernel, cache)?;
    if matches.get_flag("json") {
        output::json(&serde_json::json!({
            "name": kernel.name,
            "about": kernel.about(),
            "usage": table,
            "emulated": reports,
        }))?;
        return Ok(DONE);
    }
    output::line(kernel.about())?;
    let headings = ("kernel", "architecture", "registers", "spilled bytes", "shared bytes");
    let (k, a, r, s, m) = headings;
    output::line(format_args!("\n{k:<28} {a:<13} {r:>9} {s:>14} {m:>13}  variant"))?;
    for u in &table {
        let (k, a, v) = (&u.kernel, &u.arch, &u.variant);
        output::line(format_args!(
            "{k:<28} {a:<13} {:>9} {:>14} {:>13}  {v}",
            u.registers, u.spilled_bytes, u.shared_bytes
        ))?;
    }
    output::line("\nA small run in the emulator (64 tokens, hidden 256, bf16):\n")?;
    for report in reports {
        output::line(report.text)?;
    }
    Ok(DONE)
}

/// What the emulator says of a launch.
#[derive(Serialize)]
struct Emulated {
    kernel: String,
    blocks: u64,
    /// Blocks of a cluster; 1 where there are none.
    cluster: u32,
    threads: u32,
    warp_instructions: u64,
    active_lanes: f64,
    /// Warp instructions by class.
    classes: BTreeMap<String, u64>,
    global_requests: u64,
    global_sectors: u64,
    global_sectors_needed: u64,
    shared_requests: u64,
    shared_passes: u64,
    shared_passes_needed: u64,
    barriers: u64,
    waste: Vec<Waste>,
    seconds: f64,
    #[serde(skip)]
    text: String,
}

/// A line that wastes memory traffic.
#[derive(Serialize)]
struct Waste {
    line: u32,
    ptx: String,
    /// File and line of CUDA C++, where the PTX says so.
    source: Option<(String, u32)>,
    unit: &'static str,
    requests: u64,
    used: u64,
    needed: u64,
}

impl From<Report> for Emulated {
    fn from(report: Report) -> Emulated {
        let waste = report.waste.iter().map(|waste| Waste {
            line: waste.at.line,
            ptx: waste.at.text.clone(),
            source: waste.at.source.clone(),
            unit: waste.unit,
            requests: waste.traffic.requests,
            used: waste.traffic.used,
            needed: waste.traffic.least,
        });
        Emulated {
            blocks: report.blocks,
            cluster: report.cluster,
            threads: report.threads,
            warp_instructions: report.warp_instructions,
            active_lanes: report.active_lanes(),
            classes: report.classes.iter().map(|(class, count)| (class.to_string(), *count)).collect(),
            global_requests: report.global.requests,
            global_sectors: report.global.used,
            global_sectors_needed: report.global.least,
            shared_requests: report.shared.requests,
            shared_passes: report.shared.used,
            shared_passes_needed: report.shared.least,
            barriers: report.barriers,
            waste: waste.collect(),
            seconds: report.seconds,
            text: report.to_string(),
            kernel: report.kernel,
        }
    }
}

fn emulated(kernel: &Kernel, cache: Arc<KernelCache>) -> anyhow::Result<Vec<Emulated>> {
    let emulator = Arc::new(Emulator::new(kernel.capability())?.with_reports());
    let device = Device::new(emulator.clone(), cache);
    sample::run(device.queue(), kernel.name).with_context(|| format!("running {} in the emulator", kernel.name))?;
    Ok(emulator.take_reports().into_iter().map(Emulated::from).collect())
}

#[cfg(test)]
mod tests {
    use planish_cuda::driver::{Arg, Driver, Image, Launch, Stream};

    use super::*;

    /// Every number and every line of the text is in the JSON.
    #[test]
    fn json_says_what_the_text_says() {
        // Lanes eight words apart, in shared memory and in global memory, and a barrier.
        let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry strided(.param .u64 x)\n{
            .reg .b32 %t, %s, %r; .reg .b64 %x, %d; .shared .align 4 .b8 words[1024];
            ld.param.u64 %x, [x]; mov.u32 %t, %tid.x; shl.b32 %s, %t, 5; mov.u32 %r, words; add.u32 %s, %s, %r;
            st.shared.u32 [%s], %t;
            mul.wide.u32 %d, %t, 32; add.u64 %x, %x, %d;
            st.global.u32 [%x], %t; bar.sync 0; ret; }";
        let emulator = Emulator::new((8, 0)).unwrap();
        let kernel = emulator.function(emulator.load(Image::Ptx(text)).unwrap(), "strided").unwrap();
        let x = emulator.alloc(1024, Stream::default()).unwrap();
        let launch = Launch { grid: [1; 3], block: [32, 1, 1], cluster: [1; 3], shared_bytes: 0 };
        emulator.launch(kernel, &launch, &[Arg::Ptr(x)], Stream::default()).unwrap();
        let emulated = Emulated::from(emulator.last_report().unwrap());
        let said = emulated.text.clone();
        let json = serde_json::to_value(emulated).unwrap();
        for (line, words) in [
            (
                0,
                format!(
                    "{}: {} blocks of {} threads",
                    json["kernel"].as_str().unwrap(),
                    json["blocks"],
                    json["threads"]
                ),
            ),
            (0, format!("{} warp instructions with 32.0 of 32 lanes active", json["warp_instructions"])),
        ] {
            assert!(said.lines().nth(line).unwrap().contains(&words), "{words}: {said}");
        }
        let classes = json["classes"].as_object().unwrap();
        assert_eq!(classes.keys().collect::<Vec<_>>(), ["barrier", "control", "global", "integer", "local", "shared"]);
        for (class, count) in classes {
            // A JSON number takes no width.
            let count = count.as_u64().unwrap();
            assert!(said.contains(&format!("  {class:<10} {count:>12} ")), "{class}: {said}");
        }
        assert_eq!(json["active_lanes"], 32.0);
        for (memory, unit) in [("global", "sectors"), ("shared", "passes")] {
            let keys = ["requests".to_owned(), unit.to_owned(), format!("{unit}_needed")];
            let [requests, used, needed] = keys.map(|key| &json[format!("{memory}_{key}")]);
            let words = format!("{memory} memory: {requests} requests, {used} {unit} (");
            assert!(said.contains(&words) && said.contains(&format!("), {needed} would do")), "{words}: {said}");
        }
        assert!(said.contains(&format!("barriers: reached {} times", json["barriers"])), "{said}");
        let waste = json["waste"].as_array().unwrap();
        assert_eq!(
            waste.iter().map(|waste| waste["unit"].as_str().unwrap()).collect::<Vec<_>>(),
            ["sectors", "passes"]
        );
        for waste in waste {
            let [used, unit, needed, line, ptx] = ["used", "unit", "needed", "line", "ptx"].map(|key| &waste[key]);
            let (unit, ptx) = (unit.as_str().unwrap(), ptx.as_str().unwrap());
            let words = format!("  {used} {unit} for {needed}: PTX line {line} `{ptx}`");
            assert!(said.contains(&words), "{words}: {said}");
            assert!(waste["source"].is_null() && waste["requests"] == 1);
        }
        assert!(json["seconds"].as_f64().unwrap() > 0.0);
    }
}
