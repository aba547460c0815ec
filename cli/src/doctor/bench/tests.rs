//! The benchmark runs on the emulator, and reports what fails.

use std::sync::Arc;

use planish_cuda::cache::KernelCache;
use planish_cuda::emulator::Emulator;
use planish_tensor::Device;
use serde_json::Value;

use super::*;

/// Emulator `number`; `None` without NVRTC.
#[allow(clippy::print_stderr)]
fn emulator(number: u32) -> Option<Device> {
    let cache = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tmp/kernels");
    let cache = KernelCache::new(Some(cache.into()));
    if let Err(error) = cache.compiler() {
        let required = std::env::var("PLANISH_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
        assert!(!required, "{error}; scripts/fetch-nvrtc gets it");
        eprintln!("skipped: {error}; scripts/fetch-nvrtc gets it");
        return None;
    }
    let gpu = planish_cuda::Device::new(Arc::new(Emulator::new((9, 0)).unwrap()), Arc::new(cache));
    let device = Device::Emulator(number);
    device.install(gpu).unwrap();
    Some(device)
}

/// Names of the table, and of whole steps.
const NAMED: [&str; 29] = [
    "card/copy",
    "card/product",
    "card/launch",
    "card/launch_recorded",
    "gemm/nt/64",
    "gemm/nn/64",
    "gemm/tn/64",
    "gemm/tt/64",
    "lora_linear/forward",
    "lora_linear/backward",
    "attention/forward/128",
    "attention/backward/128",
    "attention/forward/256",
    "attention/decode_long",
    "lm_head/loss_and_gradient",
    "lm_head/frozen",
    "swiglu/both",
    "rms_norm/forward",
    "rms_norm/backward",
    "nf4/dequantise",
    "adamw",
    "adamw8",
    "rope",
    "embedding/forward",
    "step/tiny/lora/16",
    "step/tiny/full/16",
    "step/tiny/qlora/16",
    "step/tiny/full_8bit/16",
    "decode/tiny/2",
];

#[test]
fn everything_runs_on_the_emulator() {
    let Some(device) = emulator(21) else { return };
    let mut seen = Vec::new();
    let report = run(device, &[], true, &mut |_| {}, &mut |row| seen.push(super::row(row))).unwrap();
    assert!(report.passed(), "{report:#?}");
    assert_eq!(seen.len(), report.rows.len());
    let json = serde_json::to_value(&report).unwrap();
    let card = &json["card"];
    assert_eq!((&card["emulated"], &card["compute_capability"]), (&Value::Bool(true), &Value::from("9.0")));
    assert!(card["nvrtc"].is_string() && card["multiprocessors"].as_u64().unwrap() > 0);
    let rows = json["rows"].as_array().unwrap();
    let find = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    assert!(NAMED.iter().all(|name| find(name)["shape"].is_string()));
    for row in rows {
        let positive = |key: &str| {
            let value = row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row}"));
            assert!(value > 0.0 && value.is_finite(), "{key} of {row}");
        };
        ["seconds", "fastest", "slowest", "rate"].into_iter().for_each(positive);
        let name = row["name"].as_str().unwrap();
        if name.starts_with("card/") {
            continue;
        }
        positive("share");
        if name.starts_with("step/") {
            ["peak_memory_bytes", "loss"].into_iter().for_each(positive);
            // Each kernel of a step, with its time.
            let kernels = row["kernels"].as_array().unwrap();
            let of = |name: &str| kernels.iter().find(|k| k["kernel"].as_str().unwrap().starts_with(name)).unwrap();
            let dequantised: &[&str] = if name.contains("/qlora/") { &["nf4"] } else { &[] };
            for name in ["matmul", "attention", "rms_norm", "lm_head_take"].iter().chain(dequantised) {
                let k = of(name);
                assert!(k["launches"].as_u64().unwrap() > 0 && k["seconds"].as_f64().unwrap() > 0.0, "{k}");
            }
        }
    }
    let names: std::collections::HashSet<_> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), rows.len(), "two have one name");
}

#[test]
fn one_that_fails_does_not_stop_the_rest() {
    let Some(device) = emulator(22) else { return };
    let entry = |name: &str, run: Run| Entry { name: name.into(), shape: String::new(), run };
    let add = || rows::entries(true).into_iter().find(|entry| entry.name == "add").unwrap();
    let outcomes = device
        .with_gpu(|gpu| {
            let ground = Ground {
                device,
                gpu,
                emulated: true,
                block: 64,
                copy_gb_per_second: None,
                product_tflops: None,
                kernels: false,
            };
            // A kernel that reads what nobody wrote: the emulator stops it, and everything after it, as a card would.
            let lost: Run = Box::new(|ground: &Ground<'_>| {
                let queue = ground.gpu.queue();
                let x = queue.alloc("never written", 8, planish_cuda::DType::F32)?;
                let mut y = queue.alloc("a result", 8, planish_cuda::DType::F32)?;
                let (x, y) = (x.slice(planish_cuda::DType::F32), y.slice_mut(planish_cuda::DType::F32));
                planish_cuda::ops::cast::cast(queue, y, x)?;
                Err(Trouble::Failed("nothing was noticed".into()))
            });
            let refuses: Run = Box::new(|ground: &Ground<'_>| {
                let mut odd = ground.gpu.queue().zeros("a tensor", 3, planish_cuda::DType::F32)?;
                let (a, b) = (odd.bytes(), 100);
                let from = planish_cuda::driver::DevicePtr(1);
                ground.gpu.driver().copy(from, odd.ptr(), a + b, ground.gpu.queue().stream)?;
                odd.fill(1)?;
                Err(Trouble::Failed("nothing was noticed".into()))
            });
            let large: Run = Box::new(|ground: &Ground<'_>| {
                ground.room(1 << 60)?;
                Err(Trouble::Failed("nothing was noticed".into()))
            });
            let entries = vec![
                entry("refused", refuses),
                entry("large", large),
                entry("panics", Box::new(|_| panic!("of this test"))),
                add(),
                entry("lost", lost),
                add(),
            ];
            entries.into_iter().map(|entry| one(&ground, entry, &mut |_| {}, &mut |_| {})).collect::<Vec<_>>()
        })
        .unwrap();
    let state = |i: usize| serde_json::to_value(&outcomes[i]).unwrap()["state"].as_str().unwrap().to_owned();
    assert_eq!([0, 1, 2].map(state), ["failed", "too_large", "failed"], "{outcomes:#?}");
    assert_eq!([3, 4, 5].map(state), ["measured", "failed", "not_run"], "{outcomes:#?}");
    for row in &outcomes {
        assert!(!super::row(row).contains("nothing was noticed"), "{row:?}");
    }
    let Outcome::TooLarge { needs_bytes, free_bytes } = outcomes[1].outcome else { panic!("{outcomes:#?}") };
    assert!(needs_bytes == 1 << 60 && free_bytes < needs_bytes && free_bytes > 0);
}

#[test]
fn names_choose() {
    let names = |only: &[&str]| {
        let only: Vec<String> = only.iter().map(|prefix| prefix.to_string()).collect();
        chosen(false, &only).map(|all| all.into_iter().map(|entry| entry.name).collect::<Vec<_>>())
    };
    assert_eq!(names(&["swiglu/b", "adamw"]).unwrap(), ["swiglu/backward", "swiglu/both", "adamw", "adamw8"]);
    assert_eq!(names(&["card/copy"]).unwrap(), Vec::<String>::new());
    assert!(names(&[]).unwrap().len() > 50);
    let refused = names(&["adamw", "flash"]).unwrap_err().to_string();
    assert!(refused.contains("--bench-only flash") && refused.contains("attention, lm_head"), "{refused}");
}

/// Python's string literals that look like names, what is filled in replaced by `*`: `attention/forward*`; of those without a
/// slash, the first arguments of calls that measure.
fn named_in(script: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = script;
    while let Some(at) = rest.find('"') {
        let (before, from) = (&rest[..at], &rest[at + 1..]);
        let Some(end) = from.find('"') else { break };
        let (text, after) = (&from[..end], &from[end + 1..]);
        let mut depth = 0;
        let name: String = text
            .chars()
            .filter_map(|c| match c {
                '{' => {
                    depth += 1;
                    Some('*')
                }
                '}' => {
                    depth -= 1;
                    None
                }
                c => (depth == 0).then_some(c),
            })
            .collect();
        let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || "_/*".contains(c));
        let measured = ["b.item(", "b.variants(", "square(b, ", "host("].iter().any(|call| before.ends_with(call));
        let of_a_group = name.split_once('/').is_some_and(|(group, rest)| !group.is_empty() && !rest.is_empty());
        // A unit.
        if is_name && (measured || of_a_group) && name != "tokens/s" {
            names.push(name);
        }
        rest = after;
    }
    names
}

/// Whether a name is of a pattern, whose stars stand for any text.
fn is_of(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((start, rest)) => name
            .strip_prefix(start)
            .is_some_and(|left| (0..=left.len()).any(|i| left.is_char_boundary(i) && is_of(&left[i..], rest))),
    }
}

/// Peers report the same work under the same names: each of theirs is one of ours, each of ours is theirs or is listed here with
/// why not, and what is asked for group by group is all there is.
#[test]
fn peers_know_the_names() {
    // Of 8 bits with f32 masters there is no other: bitsandbytes updates the bf16 weights themselves.
    const OURS_ALONE: [&str; 1] = ["adamw8"];
    let peers = |file: &str| {
        let path = format!("{}/../benches/peers/gpu/{file}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let theirs: Vec<String> = ["kernels.py", "steps.py"].iter().flat_map(|file| named_in(&peers(file))).collect();
    assert!(theirs.iter().any(|name| name == "adamw") && theirs.iter().any(|name| name == "step/*/*/*"), "{theirs:?}");
    let listed = [true, false].map(|emulated| -> Vec<String> {
        let own = card::NAMES.iter().map(|name| (*name).to_owned());
        own.chain(entries(emulated).into_iter().map(|entry| entry.name)).collect()
    });
    for pattern in &theirs {
        for (ours, what) in listed.iter().zip(["the emulator's", "a card's"]) {
            assert!(ours.iter().any(|name| is_of(name, pattern)), "{pattern} is none of {what} benchmarks");
        }
    }
    for name in listed.iter().flatten() {
        let known = theirs.iter().any(|pattern| is_of(name, pattern));
        let alone = OURS_ALONE.iter().any(|start| name.starts_with(start));
        assert!(known != alone, "{name}: peers measure it, or it is listed as ours alone, not both and not neither");
    }
    // measure.py asks for groups: lists of beginnings, each in quotes before a limit in seconds.
    let script = peers("measure.py");
    let groups: Vec<&str> = script
        .split("(\"")
        .skip(1)
        .filter_map(|piece| piece.split_once("\", "))
        .filter(|(_, limit)| limit.starts_with(|c: char| c.is_ascii_digit()))
        .flat_map(|(names, _)| names.split(','))
        .collect();
    assert!(groups.len() > 10, "{groups:?}");
    for group in &groups {
        let known = listed.iter().flatten().any(|name| name.starts_with(group));
        assert!(known, "measure.py asks for {group}, which begins no name");
    }
    for name in listed.iter().flatten() {
        assert!(groups.iter().any(|group| name.starts_with(group)), "measure.py does not ask for {name}");
    }
}
