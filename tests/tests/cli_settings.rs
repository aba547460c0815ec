//! The program from outside: settings from flags and files, and every way to get them wrong.

use planish_tests::program::{planish, refused};

/// Flags that make a complete configuration of `sft`.
const NEEDED: [&str; 6] = ["--model", "builtin", "--dataset", "a.jsonl", "--output-dir", "run"];

fn sft(extra: &[&str]) -> Vec<String> {
    ["config", "sft"].iter().chain(extra).chain(&NEEDED).map(|word| (*word).to_owned()).collect()
}

#[test]
fn help_and_version_go_to_stdout() {
    for arguments in [vec!["--help"], vec!["--version"], vec!["config", "sft", "--help"], vec!["doctor", "-h"]] {
        let done = planish(&arguments);
        assert_eq!(done.code, 0, "{arguments:?}: {}", done.stderr);
        assert!(done.stdout.contains("planish") && done.stderr.is_empty(), "{arguments:?}");
    }
    let nothing = planish::<&str>(&[]);
    assert!(nothing.code == 2 && nothing.stdout.is_empty() && nothing.stderr.contains("Usage"));
}

#[test]
fn the_help_shows_each_setting_with_its_default() {
    let help = planish(&["config", "sft", "--help"]).stdout;
    for words in ["--learning-rate", "--per-device-train-batch-size", "[default: 8]", "--lora-target-modules"] {
        assert!(help.contains(words), "{words}");
    }
}

#[test]
fn unknown_names_are_refused_with_the_nearest() {
    refused(&["sfft"], "there is no command `sfft`");
    refused(&["config", "stf"], "there is no command `stf`; did you mean `sft`?");
    refused(&sft(&["--learnin-rate", "1"]), "there is no flag `--learnin-rate`; did you mean `--learning-rate`?");
    refused(&sft(&["--learnin_rate=1"]), "did you mean `--learning-rate`?");
    refused(&sft(&["--fp16"]), "half activations are bfloat16 (`bf16`)");
    refused(&sft(&["--bf16"]), "`bf16` is of a GPU's activations, and the processor computes in float32");
    refused(&["doctor", "--jsn"], "did you mean `--json`?");
    refused(&sft(&["one.yaml", "two.yaml"]), "`two.yaml` is one argument too many");
}

#[test]
fn values_are_refused_with_what_is_accepted() {
    for (flag, value, accepted) in [
        ("--learning-rate", "-1e-5", "a number of at least 0"),
        ("--learning-rate", "nan", "a number of at least 0"),
        ("--learning-rate", "fast", "a number of at least 0"),
        ("--per-device-train-batch-size", "0", "a whole number of at least 1"),
        ("--gradient-accumulation-steps", "-2", "a whole number of at least 1"),
        ("--lora-dropout", "1", "from 0 to below 1"),
        ("--max-steps", "0", "-1 for no limit"),
        ("--num-train-epochs", "inf", "a number above 0"),
        ("--lr-scheduler-type", "cosin", "one of constant"),
        ("--max-length", "12.5", "a whole number"),
        ("--seed", "-3", "a whole number"),
        ("--dataset-type", "chats", "one of messages, conversations, prompt_completion"),
        ("--packing-strategy", "bfd_split", "one of bfd"),
        ("--template-time", "253402300800", "the year 9999"),
    ] {
        let error = refused(&sft(&[flag, value]), accepted);
        assert!(error.contains(flag) && error.contains(value), "{error}");
    }
    refused(&sft(&["--seed"]), "--seed");
    refused(&sft(&["--seed", "1", "--seed", "2"]), "--seed");
}

#[test]
fn what_is_missing_is_named() {
    refused(&["config", "sft"], "`model` is not set");
    refused(&["config", "sft", "--model", "builtin"], "`dataset` is not set");
    refused(&["config", "sft", "--model", "builtin", "--dataset", "a"], "`output_dir` is not set");
}

#[test]
fn switches_have_all_their_spellings() {
    for (words, expected) in [
        (vec!["--packing"], true),
        (vec!["--packing", "true"], true),
        (vec!["--packing=yes"], true),
        (vec!["--packing", "false"], false),
        (vec!["--no-packing"], false),
    ] {
        let done = planish(&[sft(&words), vec!["--json".into()]].concat());
        let json: serde_json::Value = serde_json::from_str(&done.stdout).expect(&done.stderr);
        assert_eq!(json["packing"], expected, "{words:?}");
    }
}

#[test]
fn a_file_sets_a_flag_overrides_and_the_result_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("train.yaml");
    let text = "model: builtin\ndataset: [a.jsonl, b.jsonl]\noutput-dir: run\nlearning_rate: 1e-5\npacking: yes\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    // A switch right before the file does not swallow it.
    let done = planish(&["config", "sft", "--use-peft", file, "--learning-rate", "3e-4"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let resolved = dir.path().join("config.yaml");
    std::fs::write(&resolved, &done.stdout).unwrap();
    let again = planish(&["config", "sft", resolved.to_str().unwrap()]);
    assert_eq!(again.stdout, done.stdout);
    let json = planish(&["config", "sft", resolved.to_str().unwrap(), "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["learning_rate"], 3e-4);
    assert_eq!(json["packing"], true);
    assert_eq!(json["use_peft"], true);
    assert_eq!(json["dataset"][1], "b.jsonl");
}

#[test]
fn mistakes_in_a_file_name_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("train.yaml");
    for (text, expected) in [
        ("seed: 1\nlearnin_rate: 2\n", "train.yaml:2: there is no setting `learnin_rate`; did you mean"),
        ("\nseed: many\n", "train.yaml:2: `seed` must be a whole number of at least 0, found `many`"),
        ("seed: 1\nseed: 2\n", "train.yaml:2:"),
        ("a: [1\n", "train.yaml:"),
        ("- 1\n", "train.yaml:1: expected a map of settings"),
    ] {
        std::fs::write(&file, text).unwrap();
        refused(&["config", "sft", file.to_str().unwrap()], expected);
    }
    std::fs::write(&file, [0xff, 0xfe, 0x00]).unwrap();
    refused(&["config", "sft", file.to_str().unwrap()], "train.yaml");
    refused(&["config", "sft", "missing.yaml"], "cannot read the settings file missing.yaml");
    refused(&["config", "sft", dir.path().to_str().unwrap()], "cannot read the settings file");
}

#[test]
fn the_template_and_the_end_token_of_the_settings_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let row = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    std::fs::write(path("data.jsonl"), row).unwrap();
    std::fs::write(path("t.jinja"), "THAT {{ messages[0].content }}{{ messages[1].content }}{{ eos_token }}").unwrap();
    let data = path("data.jsonl");
    let preview = ["data", "preview", "--model", "builtin", "--dataset", &data, "--json"];
    let template = path("t.jinja");
    let own = ["--chat-template-path", &template, "--eos-token", "<|endoftext|>"];
    let text = |extra: &[&str]| {
        let done = planish(&[&preview[..], extra].concat());
        assert_eq!(done.code, 0, "{}", done.stderr);
        done.stdout
    };
    let (before, after) = (text(&[]), text(&own));
    assert!(!before.contains("THAT") && !before.contains("endoftext"), "{before}");
    assert!(after.contains("THAT") && after.contains("<|endoftext|>"), "{after}");
}
