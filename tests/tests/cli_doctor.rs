//! The program from outside: `doctor`, and the figures of `generate`.

use planish_autograd::registry::ops;
use planish_tests::program::{planish, refused};
use serde_json::Value;

#[test]
fn doctor_checks_every_op_and_says_what_is_here() {
    let done = planish(&["doctor", "--threads", "1", "--json"]);
    assert_eq!(done.code, 0, "{}\n{}", done.stdout, done.stderr);
    let json: Value = serde_json::from_str(&done.stdout).unwrap();
    for key in ["gflops_one_core", "read_gb_per_second", "copy_gb_per_second_one_core"] {
        assert!(json["ceilings"][key].as_f64().unwrap() > 0.1, "{key}");
    }
    assert!(json["cpu"]["cores"].as_u64().unwrap() >= 1);
    assert_eq!(json["cuda"]["usable"], json["cuda"]["why"].is_null());
    assert_eq!(json["passed"], true);
    let rows = json["ops"].as_array().unwrap();
    for op in ops() {
        let of: Vec<&Value> = rows.iter().filter(|row| row["op"] == op.name).collect();
        assert!(!of.is_empty(), "{} is not in the report", op.name);
        for row in of {
            let said = row["skipped"].as_str().is_some_and(|why| !why.is_empty());
            assert!(said || row["passed"] == true, "{row}");
        }
    }
    assert!(json["certificate"].is_null() && json["speeds"].as_array().unwrap().is_empty());
}

#[test]
fn doctor_prints_tables_and_certifies_the_builtin_model() {
    let done = planish(&["doctor", "--threads", "2", "--certify"]);
    assert_eq!(done.code, 0, "{}\n{}", done.stdout, done.stderr);
    for words in
        ["lm_head", "largest in", "law 3: the gradient, full", "law 5: log-probabilities, LoRA", "All checks passed."]
    {
        assert!(done.stdout.contains(words), "{words}: {}", done.stdout);
    }
    let long = done.stdout.lines().filter(|line| !line.starts_with("--device")).map(|line| line.chars().count()).max();
    assert!(long.unwrap() <= 110, "a line of {long:?} characters");
}

/// Machines differ in their vector instructions; what is tested on one of them should hold on the others.
#[test]
fn every_op_passes_with_older_instructions() {
    for simd in ["portable", "avx2"] {
        let done = planish(&["doctor", "--threads", "2", "--simd", simd, "--json"]);
        if done.code == 2 && done.stderr.contains("does not have these instructions") {
            continue;
        }
        assert_eq!(done.code, 0, "{simd}: {}\n{}", done.stdout, done.stderr);
        let json: Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!(json["passed"], true, "{simd}");
    }
}

#[test]
fn doctor_refuses_what_it_cannot_do() {
    refused(&["doctor", "--threads", "0"], "--threads");
    refused(&["doctor", "--simd", "mmx"], "--simd");
    refused(&["doctor", "--model", "builtin"], "--certify");
    refused(&["doctor", "--certify", "--model", "no/such/model/here"], "no/such/model/here");
}

#[test]
fn generate_takes_as_many_tokens_as_asked_and_says_how_long_it_took() {
    let prompts = ["--prompt", "Tell me where a butterfly lives.", "--prompt", "Now planish cow, lime, leaf."];
    let generate = |extra: &[&str]| {
        let command = ["generate", "--model", "builtin", "--json", "--timing"];
        let done = planish(&[&command[..], &prompts[..], extra].concat());
        assert_eq!(done.code, 0, "{}", done.stderr);
        let answers: Vec<Value> = serde_json::from_str(&done.stdout).unwrap();
        let lengths: Vec<usize> = answers.iter().map(|a| a["ids"].as_array().unwrap().len()).collect();
        (lengths, serde_json::from_str::<Value>(done.stderr.trim()).unwrap())
    };
    let (free, _) = generate(&["--max-new-tokens", "60"]);
    assert!(free.iter().all(|n| *n < 60), "the answers end by themselves: {free:?}");
    let (all, timing) = generate(&["--max-new-tokens", "60", "--min-new-tokens", "60"]);
    assert_eq!(all, [60, 60]);
    assert_eq!(timing["new_tokens"], 120);
    let seconds = |key: &str| timing[key].as_f64().unwrap();
    assert!(seconds("prefill_seconds") > 0.0 && seconds("decode_seconds") > 0.0);
    let rate = seconds("decoded_tokens") / seconds("decode_seconds");
    assert!((rate / seconds("tokens_per_second") - 1.0).abs() < 1e-9);
    assert!((1.0..=119.0).contains(&seconds("decoded_tokens")));
    let words =
        [&["generate", "--model", "builtin", "--max-new-tokens", "5", "--min-new-tokens", "6"], &prompts[..]].concat();
    refused(&words, "min_new_tokens is 6");
}
