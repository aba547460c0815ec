//! What a run that goes on may be told otherwise, and what refuses it: nothing of the run is changed then.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use planish_tests::program::{Done, planish};

/// Every file under a directory, with its bytes.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(tree(&path)),
            false => drop(found.insert(path.clone(), fs::read(path).unwrap())),
        }
    }
    found
}

fn rows(path: &Path, count: usize) {
    let row = |n| format!("{{\"prompt\": \"{n} and {n} is\", \"completion\": \" {}\"}}\n", 2 * n);
    fs::write(path, (0..count).map(row).collect::<String>()).unwrap();
}

/// A run of four steps in `place`, of 40 rows.
struct Run {
    place: tempfile::TempDir,
}

impl Run {
    fn new() -> Run {
        let run = Run { place: tempfile::tempdir().unwrap() };
        rows(&run.path("data.jsonl"), 40);
        let done = run.planish(&["--max-steps", "4", "--save-steps", "4"]);
        assert_eq!(done.code, 0, "{done:?}");
        run
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn planish(&self, more: &[&str]) -> Done {
        let (data, run) = (self.path("data.jsonl"), self.path("run"));
        let mut all = vec!["sft", "--model", "builtin", "--dataset", data.to_str().unwrap(), "--threads", "1"];
        all.extend(["--output-dir", run.to_str().unwrap(), "--per-device-train-batch-size", "2"]);
        if !more.contains(&"--no-use-peft") {
            all.extend(["--use-peft", "--template-time", "1700000000"]);
        }
        planish(&[&all[..], more].concat())
    }

    /// Goes on to step 6, with these settings besides.
    fn resumed(&self, more: &[&str]) -> Done {
        let fixed: &[&str] = if more.contains(&"--max-steps") { &[] } else { &["--max-steps", "6"] };
        self.planish(&[fixed, &["--resume-from-checkpoint", "latest"], more].concat())
    }

    /// It is refused with these words, and nothing is other than before.
    #[track_caller]
    fn refuses(&self, more: &[&str], words: &[&str]) {
        let before = tree(&self.path("run"));
        let done = self.resumed(more);
        assert_eq!(done.code, 2, "{done:?}");
        let errors: Vec<&str> = done.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && words.iter().all(|w| errors[0].contains(w)), "{more:?}: {done:?}");
        let after = tree(&self.path("run"));
        let changed: Vec<_> = after.iter().filter(|(path, bytes)| before.get(*path) != Some(bytes)).collect();
        assert!(changed.is_empty() && after.len() == before.len(), "{more:?}: {:?}", changed.iter().map(|c| c.0));
    }
}

#[test]
fn what_made_a_checkpoint_cannot_be_another() {
    let run = Run::new();
    run.refuses(&["--lora-r", "4"], &["lora_r is 4", "checkpoint-4 was made with 16", "begin a new run"]);
    run.refuses(&["--lora-target-modules", "q_proj"], &["lora_target_modules"]);
    run.refuses(&["--optim", "sgd"], &["optim is sgd", "adamw_torch"]);
    run.refuses(&["--dtype", "bfloat16"], &["dtype is bfloat16", "float32"]);
    run.refuses(&["--load-in-4bit"], &["load_in_4bit is true"]);
    run.refuses(&["--max-steps", "2"], &["checkpoint-4", "of step 4", "to have 2", "raise max_steps"]);
    // What may be another is said, once.
    let done = run.resumed(&["--learning-rate", "1e-3", "--seed", "7", "--logging-steps", "1"]);
    assert_eq!(done.code, 0, "{done:?}");
    let said: Vec<&str> = done.stderr.lines().filter(|line| line.contains("other settings")).collect();
    assert_eq!(said.len(), 1, "{done:?}");
    let told = |word: &str| said[0].contains(word);
    assert!(
        told("learning_rate 0.001 (was ")
            && told("seed 7 (was 42)")
            && told("max_steps 6 (was 4)")
            && !told("logging_steps"),
        "{said:?}"
    );
    // The same settings are not worth a word.
    let done = run.resumed(&["--learning-rate", "1e-3", "--seed", "7"]);
    assert!(done.code == 0 && !done.stderr.contains("other settings"), "{done:?}");
}

#[test]
fn a_run_that_cannot_go_on_is_left_as_it_is() {
    let run = Run::new();
    let data = run.path("data.jsonl");
    let all = fs::read(&data).unwrap();
    rows(&data, 3);
    run.refuses(&[], &[]);
    fs::write(&data, all).unwrap();
    let of = |name: &str| run.path("run/checkpoint-4").join(name);
    let whole = fs::read(of("optimizer.safetensors")).unwrap();
    fs::write(of("optimizer.safetensors"), &whole[..whole.len() / 2]).unwrap();
    run.refuses(&[], &["optimizer.safetensors"]);
    fs::write(of("optimizer.safetensors"), &whole).unwrap();
    let state = fs::read_to_string(of("trainer_state.json")).unwrap();
    fs::write(of("trainer_state.json"), state.replacen("\"step\": 4", "\"step\": 99999999999", 1)).unwrap();
    run.refuses(&[], &["checkpoint-4", "trainer_state.json is of step 99999999999, and not of 4"]);
    fs::write(of("trainer_state.json"), state).unwrap();
    let done = run.resumed(&[]);
    assert_eq!(done.code, 0, "{done:?}");
}

#[test]
fn scores_do_not_take_the_place_of_the_data() {
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("data.jsonl");
    rows(&data, 3);
    let before = fs::read(&data).unwrap();
    let name = data.to_str().unwrap();
    // By another name too.
    let other = place.path().join("./data.jsonl");
    for output in [name, other.to_str().unwrap()] {
        let done = planish(&["score", "--model", "builtin", "--dataset", name, "--output", output]);
        assert!(done.code == 2 && done.stderr.contains("is one of the data sets"), "{done:?}");
    }
    assert!(fs::read(&data).unwrap() == before);
    let scores = place.path().join("scores.jsonl");
    let own = ["score", "--model", "builtin", "--dataset", "builtin", "--output", scores.to_str().unwrap()];
    let done = planish(&own);
    assert!(done.code == 0 && fs::read_to_string(&scores).unwrap().lines().count() > 100, "{done:?}");
}
