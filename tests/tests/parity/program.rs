//! `planish sft` from outside against TRL's trainer: its data, batches, schedule, clipping, optimizer and log together.

use std::fs;

use planish_nn::pretrained::read_json;
use planish_tests::program::planish;
use planish_tests::tiny::tiny_model;
use serde_json::Value;

use crate::fixture;

#[test]
fn ten_steps_of_the_program_are_those_of_trl() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let rows = read_json(&fixture("sft/rows.json")).unwrap();
    let lines: String = rows.as_array().unwrap().iter().map(|row| format!("{row}\n")).collect();
    fs::write(path("rows.jsonl"), lines).unwrap();
    for run in crate::sft::RUNS {
        let steps = read_json(&fixture(&format!("sft/{run}/steps.json"))).unwrap();
        let name = steps["model"].as_str().unwrap().strip_prefix("models/").unwrap();
        tiny_model(name, &place.path().join(name));
        let (model, out, data) = (path(name), path(run), path("rows.jsonl"));
        let fixed =
            "sft --no-shuffle --optim adamw_torch --dtype float32 --threads 2 --save-strategy no --logging-steps 1";
        let mut arguments: Vec<String> = fixed.split(' ').map(str::to_owned).collect();
        let mut give = |flag: &str, value: String| arguments.extend([format!("--{flag}"), value]);
        give("model", model);
        give("dataset", data);
        give("output-dir", out.clone());
        for (key, value) in steps["settings"].as_object().unwrap() {
            give(&key.replace('_', "-"), value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
        let adapter = fixture(&format!("sft/{run}/adapter_init"));
        if adapter.exists() {
            give("adapter", adapter.to_str().unwrap().to_owned());
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let done = planish(&arguments);
        assert_eq!(done.code, 0, "{run}: {done:?}");
        let metrics = fs::read_to_string(place.path().join(run).join("metrics.jsonl")).unwrap();
        let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let wanted = steps["steps"].as_array().unwrap();
        assert_eq!(lines.len(), wanted.len(), "{run}");
        for (line, want) in lines.iter().zip(wanted) {
            // As between the peer's own f32 and f64 runs, with room.
            for (what, tolerance) in [("loss", 1e-5), ("grad_norm", 1e-4), ("learning_rate", 1e-9)] {
                let [got, want] = [line, want].map(|of| of[what].as_f64().unwrap());
                assert!((got - want).abs() <= tolerance * want, "{run} {}: {what} {got}, TRL {want}", line["step"]);
            }
            for what in ["step", "tokens", "num_tokens"] {
                assert_eq!(line[what], want[what], "{run} {}: {what}", line["step"]);
            }
        }
    }
}
