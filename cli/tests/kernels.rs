//! `planish kernels` from outside.

// A test that skips says so.
#![allow(clippy::print_stderr)]

use std::process::{Command, Output};

use serde_json::Value;

fn planish(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_planish")).args(arguments).output().expect("planish starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_file_is_listed() {
    let output = planish(&["kernels", "list", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!(names, planish_cuda::kernels::ALL.iter().map(|kernel| kernel.name).collect::<Vec<_>>());
    let plain = planish(&["kernels", "list"]);
    assert!(String::from_utf8_lossy(&plain.stdout).contains("RMSNorm"));
}

#[test]
fn mistakes_are_named() {
    for (arguments, words) in [
        (&["kernels", "inspect", "rmsnorm"][..], "did you mean `rms_norm`?"),
        (&["kernels", "inspect", "cast", "--arch", "hopper"], "write it as sm_80 or sm_90a"),
        (&["kernels", "compile"], "--arch"),
    ] {
        let output = planish(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(words), "{arguments:?}: {}", stderr(&output));
    }
}

/// Skipped, and said so, without NVRTC; with `PLANISH_REQUIRE_NVRTC=1` its absence is a failure.
#[test]
fn a_kernel_is_inspected() {
    let place = tempfile::tempdir().unwrap();
    let cache = place.path().join("kernels");
    let arguments =
        ["kernels", "inspect", "elementwise", "--arch", "sm_80", "--cache-dir", cache.to_str().unwrap(), "--json"];
    let output = planish(&arguments);
    if stderr(&output).contains("NVRTC") {
        let required = std::env::var("PLANISH_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
        assert!(!required, "{}", stderr(&output));
        assert_eq!(output.status.code(), Some(1));
        eprintln!("skipped: {}", stderr(&output));
        return;
    }
    assert!(output.status.success(), "{}", stderr(&output));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let usage = found["usage"].as_array().unwrap();
    assert!(usage.iter().all(|row| row["registers"].as_u64().unwrap() > 0 && row["arch"] == "sm_80"));
    let emulated = found["emulated"].as_array().unwrap();
    // Both kernels of the small run read and write whole sectors.
    assert_eq!(emulated.len(), 2);
    assert!(emulated.iter().all(|run| run["global_sectors"] == run["global_sectors_needed"]), "{emulated:?}");
    assert!(cache.read_dir().unwrap().count() > 0, "the cache is where it was asked to be");
}
