//! Runs that are killed, interrupted, or meet a full disk, from outside: nothing but the step in flight is
//! lost, nothing half-written is ever taken for a checkpoint, and the resumed run is bit for bit the run
//! that was never stopped.
#![cfg(unix)]
// What was skipped, and what was met, is for whoever runs it.
#![allow(clippy::print_stderr)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use planish_tests::program::{Done, command, planish};
use serde_json::Value;

const STEPS: u64 = 24;

/// Trains an adapter of the builtin model and saves after every step.
fn arguments(run: &Path) -> Vec<String> {
    on_rows(40, &run.with_file_name("data.jsonl"), run)
}

/// The same on so many rows, in the file `data`.
fn on_rows(rows: u64, data: &Path, run: &Path) -> Vec<String> {
    let row = |n| format!("{{\"prompt\": \"{n} and {n} is\", \"completion\": \" {}\"}}\n", 2 * n);
    fs::write(data, (0..rows).map(row).collect::<String>()).unwrap();
    let text = "sft --model builtin --use-peft --lora-r 2 --lora-dropout 0.1 --per-device-train-batch-size 2 \
                --save-strategy steps --save-steps 1 --save-total-limit 2 --logging-steps 1 --threads 1 \
                --template-time 1700000000";
    let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    let paths = [("--dataset", data), ("--output-dir", run)];
    words.extend(paths.iter().flat_map(|(flag, path)| [(*flag).to_owned(), path.to_str().unwrap().to_owned()]));
    words.extend(["--max-steps".to_owned(), STEPS.to_string()]);
    words
}

fn with(mut arguments: Vec<String>, more: &[&str]) -> Vec<String> {
    arguments.extend(more.iter().map(|word| (*word).to_owned()));
    arguments
}

/// A run in progress and what it has said.
struct Running {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: std::thread::JoinHandle<()>,
}

impl Running {
    fn start(arguments: &[String]) -> Running {
        let mut child = command().args(arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (stderr, sink) = (BufReader::new(child.stderr.take().unwrap()), lines.clone());
        let reader = std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).for_each(|line| sink.lock().unwrap().push(line));
        });
        Running { child, lines, reader }
    }

    /// Waits for a line with `words`, or for the end.
    fn wait_for(&mut self, words: &str) {
        self.wait_for_lines(1, words);
    }

    /// Waits for so many lines with `words`, or for the end.
    fn wait_for_lines(&mut self, count: usize, words: &str) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.lines.lock().unwrap().iter().filter(|line| line.contains(words)).count() < count {
            assert!(Instant::now() < until, "no {words:?}: {:?}", self.lines.lock().unwrap());
            if self.child.try_wait().unwrap().is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end: the exit code, `None` after a signal, and all that was said.
    fn end(mut self) -> (Option<i32>, Vec<String>) {
        let code = self.child.wait().unwrap().code();
        self.reader.join().unwrap();
        (code, Arc::try_unwrap(self.lines).unwrap().into_inner().unwrap())
    }
}

/// Steps of the checkpoints under their names, each of which is whole.
fn checkpoints(run: &Path) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(run) else { return Vec::new() };
    let mut steps = Vec::new();
    for entry in entries.map(|entry| entry.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        let Some(step) = name.strip_prefix("checkpoint-") else { continue };
        let step: u64 = step.parse().unwrap();
        let state: Value = serde_json::from_slice(&fs::read(entry.path().join("trainer_state.json")).unwrap()).unwrap();
        assert_eq!(state["step"], step, "{name}");
        for file in ["adapter_model.safetensors", "optimizer.safetensors"] {
            let bytes = fs::read(entry.path().join(file)).unwrap();
            assert!(safetensors::SafeTensors::deserialize(&bytes).is_ok(), "{name}/{file}");
        }
        steps.push(step);
    }
    steps.sort_unstable();
    steps
}

/// What a run leaves that must be the same bits however often it was stopped.
#[derive(Debug, PartialEq)]
struct Left {
    files: BTreeMap<String, Vec<u8>>,
    metrics: Vec<Value>,
}

impl Left {
    fn by(run: &Path) -> Left {
        let mut files = BTreeMap::new();
        for dir in ["final".to_owned(), format!("checkpoint-{STEPS}")] {
            for entry in fs::read_dir(run.join(&dir)).unwrap().map(|entry| entry.unwrap()) {
                let name = format!("{dir}/{}", entry.file_name().into_string().unwrap());
                files.insert(name, fs::read(entry.path()).unwrap());
            }
        }
        assert!(files.len() > 8, "{:?}", files.keys());
        let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let metrics = text.lines().map(|line| {
            let mut map: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
            // What a clock and the kernel say of this process.
            for key in ["tokens_per_second", "step_seconds", "peak_memory_bytes"] {
                assert!(map.remove(key).is_some(), "{key}");
            }
            Value::Object(map)
        });
        let metrics: Vec<Value> = metrics.collect();
        assert_eq!(metrics.len() as u64, STEPS);
        Left { files, metrics }
    }

    fn assert_is(&self, whole: &Left) {
        assert_eq!(self.metrics, whole.metrics);
        let names = |left: &Left| left.files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(self), names(whole));
        for (name, bytes) in &self.files {
            assert!(*bytes == whole.files[name], "{name} has other bytes");
        }
    }
}

fn no_leftovers(run: &Path) {
    for entry in fs::read_dir(run).unwrap().map(|entry| entry.unwrap()) {
        assert!(!entry.file_name().to_str().unwrap().ends_with(".tmp"), "{entry:?}");
    }
}

/// A run from start to end.
fn whole(place: &Path) -> Left {
    whole_with(place, &[])
}

/// With more settings.
fn whole_with(place: &Path, more: &[&str]) -> Left {
    let run = place.join("whole");
    let done = planish(&with(arguments(&run), more));
    assert_eq!(done.code, 0, "{done:?}");
    Left::by(&run)
}

/// Seeded, so that what failed can be run again; where a blow falls also depends on the machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

/// The step after which a run said that it goes on.
fn first_step(said: &[String]) -> Option<u64> {
    let line = said.iter().find(|line| line.starts_with("training "))?;
    Some(line.split_once(", from step ").map_or(0, |(_, rest)| rest.split(' ').next().unwrap().parse().unwrap()))
}

/// The newest checkpoint that was announced.
fn announced(said: &[String]) -> Option<u64> {
    said.iter().filter_map(|line| line.split_once("checkpoint-")?.1.trim().parse().ok()).max()
}

#[test]
fn a_run_that_is_killed_again_and_again_is_the_run_that_was_never_stopped() {
    killed_again_and_again(&[], 0x0bad_c0de);
}

/// What is paged out when the blow falls is of no account: checkpoints hold the states.
#[test]
fn a_paged_run_that_is_killed_again_and_again_is_the_run_that_was_never_stopped() {
    // A budget of 1 KB leaves some of the states in memory.
    let paged = ["--optim", "paged_adamw_32bit", "--optim-memory-budget", "1e-6"];
    killed_again_and_again(&paged, 0xba9e_0ff5);
}

fn killed_again_and_again(more: &[&str], seed: u64) {
    let place = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let whole = whole_with(place.path(), more);
    // More than a step takes here and now, with the start of the program.
    let step = began.elapsed().as_micros() as u64 / STEPS;
    let run = place.path().join("killed");
    let mut dice = Dice(seed);
    let (mut kills, mut amid) = (0, 0);
    loop {
        let there = checkpoints(&run);
        let resume: &[&str] =
            if there.is_empty() { &["--overwrite-output-dir"] } else { &["--resume-from-checkpoint", "latest"] };
        let mut running = Running::start(&with(with(arguments(&run), more), resume));
        // Most blows fall while it trains and saves, some before that.
        if dice.below(8) > 0 {
            running.wait_for_lines(1 + dice.below(4) as usize, "saved ");
        }
        std::thread::sleep(Duration::from_micros(dice.below(step)));
        running.child.kill().unwrap();
        let (code, said) = running.end();
        assert!(matches!(code, None | Some(0)), "{said:?}");
        if let Some(first) = first_step(&said) {
            assert_eq!(first, there.last().copied().unwrap_or(0), "{said:?}");
        }
        let now = checkpoints(&run);
        let newest = now.last().copied().unwrap_or(0);
        // The newest that was announced is there, and at most one step was saved without being announced.
        let known = announced(&said).or(there.last().copied()).unwrap_or(0);
        assert!(newest == known || newest == known + 1, "{known} was announced, {now:?} is there: {said:?}");
        if code == Some(0) {
            break;
        }
        kills += 1;
        let half = |name: &str| name.starts_with(".checkpoint-") && name.ends_with(".tmp");
        amid += usize::from(
            fs::read_dir(&run).is_ok_and(|all| all.flatten().any(|entry| entry.file_name().to_str().is_some_and(half))),
        );
    }
    eprintln!("{kills} kills, {amid} of them while a checkpoint was written or removed");
    assert!(kills >= 3, "the run was over after {kills} kills");
    Left::by(&run).assert_is(&whole);
    no_leftovers(&run);
}

#[test]
fn an_interrupted_run_saves_and_goes_on() {
    let place = tempfile::tempdir().unwrap();
    let whole = whole(place.path());
    let run = place.path().join("stopped");
    // Without checkpoints of its own accord: the one there is, is that of the interruption.
    let rare = ["--save-steps", "1000"];
    let arguments = || {
        let mut words = arguments(&run);
        let at = words.iter().position(|word| word == rare[0]).unwrap();
        words[at + 1] = rare[1].into();
        words
    };
    let mut running = Running::start(&arguments());
    running.wait_for("step 3/");
    running.signal("INT");
    let (code, said) = running.end();
    assert_eq!(code, Some(130), "{said:?}");
    let saved = checkpoints(&run);
    assert!(saved.len() == 1 && saved[0] >= 3 && saved[0] < STEPS, "{saved:?}");
    assert!(said.iter().any(|line| line.contains("finishing the step")), "{said:?}");
    assert!(said.last().unwrap().contains("--resume-from-checkpoint latest"), "{said:?}");
    assert!(!run.join("final").exists());
    // SIGTERM, by which batch systems announce the end, is the same wish.
    let mut running = Running::start(&with(arguments(), &["--resume-from-checkpoint", "latest"]));
    running.wait_for(&format!("step {}/", saved[0] + 2));
    running.signal("TERM");
    let (code, said) = running.end();
    assert_eq!(code, Some(130), "{said:?}");
    assert_eq!(first_step(&said), Some(saved[0]));
    // The rest saves every step again, so that the last one can be compared.
    let done = planish(&with(self::arguments(&run), &["--resume-from-checkpoint", "latest"]));
    assert_eq!(done.code, 0, "{done:?}");
    Left::by(&run).assert_is(&whole);
}

#[test]
fn a_second_interrupt_ends_at_once() {
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("run");
    // One step goes through all the data: the first wish cannot be granted soon.
    let slow = ["--gradient-accumulation-steps", "1000000"];
    let mut running = Running::start(&with(on_rows(10_000, &place.path().join("many.jsonl"), &run), &slow));
    running.wait_for("training ");
    running.signal("INT");
    running.wait_for("finishing the step");
    let asked = Instant::now();
    running.signal("INT");
    let (code, said) = running.end();
    assert_eq!(code, Some(130), "{said:?}");
    assert!(asked.elapsed() < Duration::from_secs(10));
    assert_eq!(checkpoints(&run), [0; 0], "nothing was saved, and nothing says so: {said:?}");
}

/// Runs with no file larger than `blocks` of 512 bytes.
fn limited(blocks: u64, arguments: &[String]) -> Done {
    let binary = PathBuf::from(command().get_program());
    let script = format!("ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let output = Command::new("sh").args(["-c", &script]).arg(binary).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Done { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// One sentence at the end, which names `file` and what to do.
fn assert_says(done: &Done, file: &str, advice: &str) {
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stdout.is_empty(), "{done:?}");
    let errors: Vec<&str> = done.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{done:?}");
    assert_eq!(done.stderr.lines().last(), Some(errors[0]));
    assert!(errors[0].contains(file) && errors[0].contains(advice), "{}", errors[0]);
}

/// Every file under a directory, with its bytes.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(tree(&path));
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

#[test]
fn a_checkpoint_that_cannot_be_written_harms_none_before_it() {
    let place = tempfile::tempdir().unwrap();
    let whole = whole(place.path());
    let run = place.path().join("run");
    let mut running = Running::start(&arguments(&run));
    running.wait_for("step 3/");
    running.child.kill().unwrap();
    running.end();
    let saved = checkpoints(&run);
    let before: Vec<_> = saved.iter().map(|n| tree(&run.join(format!("checkpoint-{n}")))).collect();

    // Enough for everything but the tokenizer.
    let resume = || with(arguments(&run), &["--resume-from-checkpoint", "latest"]);
    let done = limited(128, &resume());
    let next = format!("checkpoint-{}/tokenizer.json: it would be larger", saved.last().unwrap() + 1);
    assert_says(&done, &next, "Raise the limit or choose another directory");
    assert_eq!(checkpoints(&run), saved);
    let after: Vec<_> = saved.iter().map(|n| tree(&run.join(format!("checkpoint-{n}")))).collect();
    assert!(before == after);
    no_leftovers(&run);

    let done = planish(&resume());
    assert_eq!(done.code, 0, "{done:?}");
    Left::by(&run).assert_is(&whole);
}

#[test]
fn a_result_that_cannot_be_written_leaves_nothing_that_looks_like_one() {
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("run");
    let mut words = arguments(&run);
    let at = words.iter().position(|word| word == "steps").unwrap();
    words[at] = "no".into();
    let steps = words.iter().position(|word| *word == STEPS.to_string()).unwrap();
    words[steps] = "2".into();
    let done = limited(128, &words);
    assert_says(&done, "final/tokenizer.json: it would be larger", "Raise the limit");
    assert!(!run.join("final").exists());
    no_leftovers(&run);
    // Not even the settings can be written.
    let tiny = place.path().join("tiny");
    let done =
        limited(1, &words.iter().map(|w| w.replace(run.to_str().unwrap(), tiny.to_str().unwrap())).collect::<Vec<_>>());
    assert_says(&done, "tiny/config.yaml: it would be larger", "Raise the limit");

    // An adapter to merge.
    let done = planish(&with(words, &["--overwrite-output-dir"]));
    assert_eq!(done.code, 0, "{done:?}");
    let merged = place.path().join("merged");
    let adapter = run.join("final");
    let merge = ["merge", "--model", "builtin", "--adapter", adapter.to_str().unwrap(), "-o", merged.to_str().unwrap()];
    let merge: Vec<String> = merge.iter().map(|word| (*word).to_owned()).collect();
    let done = limited(128, &merge);
    assert_says(&done, "model.safetensors: it would be larger", "Raise the limit");
    assert!(!merged.exists(), "{:?}", tree(&merged).keys());
    // What is in a directory that is to be overwritten stays whole, too.
    fs::create_dir(&merged).unwrap();
    fs::write(merged.join("config.json"), "mine").unwrap();
    let done = limited(128, &with(merge.clone(), &["--overwrite-output-dir"]));
    assert_says(&done, "model.safetensors: it would be larger", "Raise the limit");
    assert_eq!(tree(&merged).into_values().collect::<Vec<_>>(), [b"mine"]);
    assert_eq!(planish(&with(merge, &["--overwrite-output-dir"])).code, 0);
    no_leftovers(&merged);
    assert!(tree(&merged).len() > 5);
}

/// Commands that make one model or adapter of another: a new directory goes again, and one that is to be overwritten, or a
/// file, stays as it was, whatever the disk says.
#[test]
fn nothing_is_half_written_and_nothing_lost_where_the_disk_is_full() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_string_lossy().into_owned();
    let words = |text: &[&str]| -> Vec<String> { text.iter().map(|word| (*word).to_owned()).collect() };
    let ok = |arguments: &[String]| {
        let done = planish(arguments);
        assert_eq!(done.code, 0, "{done:?}");
    };
    let (run, small) = (path("run"), path("nf4"));
    let mut train = arguments(Path::new(&run));
    let steps = train.iter().position(|word| *word == STEPS.to_string()).unwrap();
    train[steps] = "2".into();
    ok(&train);
    ok(&words(&["quantize", "--model", "builtin", "-o", &small]));
    let adapter = format!("{run}/final");
    let (one, two) = ("fixtures/combined/one", "fixtures/combined/two");
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(name).to_string_lossy().into_owned();
    let adapters = format!("{},{}", fixture(one), fixture(two));
    let merged = ["merge", "--model", &small, "--adapter", &adapter, "--requantize", "--json"];
    let cases: [(&str, u64, Vec<String>); 3] = [
        ("model.safetensors", 128, words(&["quantize", "--model", "builtin", "--json"])),
        ("model.safetensors", 128, words(&merged)),
        ("adapter_model.safetensors", 1, words(&["combine", "--adapters", &adapters, "--weights", "1,1"])),
    ];
    for (file, blocks, command) in cases {
        let new = path("new");
        let done = limited(blocks, &with(command.clone(), &["-o", &new]));
        assert_says(&done, &format!("{file}: it would be larger"), "Raise the limit");
        assert!(!Path::new(&new).exists(), "{command:?}: {:?}", tree(Path::new(&new)).keys());
        if command[0] == "combine" {
            continue;
        }
        // Over a run, with its checkpoints and its result, which for merging is where the adapter is.
        let before = tree(Path::new(&run));
        let over = with(command.clone(), &["-o", &run, "--overwrite-output-dir"]);
        assert_says(&limited(blocks, &over), &format!("{file}: it would be larger"), "Raise the limit");
        assert!(before == tree(Path::new(&run)), "{command:?}");
    }
    let file = path("model.gguf");
    let export = with(words(&["export", "--model", "builtin", "--adapter", &adapter]), &["-o", &file]);
    assert_says(&limited(128, &export), "model.gguf: it would be larger", "Raise the limit");
    assert!(!Path::new(&file).exists());
    fs::write(&file, "mine").unwrap();
    let over = with(export, &["--overwrite"]);
    assert_says(&limited(128, &over), "model.gguf: it would be larger", "Raise the limit");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    // Nor where the comparison comes to nothing.
    fs::write(path("empty.txt"), "").unwrap();
    assert_eq!(planish(&with(over, &["--text", &path("empty.txt")])).code, 2);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    no_leftovers(place.path());
}

/// What is to be overwritten is gone when its successor is there, and not before.
#[test]
fn a_run_stays_until_what_is_made_of_it_is_whole() {
    let place = tempfile::tempdir().unwrap();
    let trained = |name: &str, more: &[&str]| {
        let run = place.path().join(name);
        let mut words = arguments(&run);
        let steps = words.iter().position(|word| *word == STEPS.to_string()).unwrap();
        words[steps] = "2".into();
        // Of prompts there is neither.
        if !more.is_empty() {
            let of_lora = words.iter().position(|word| word == "--lora-r").unwrap();
            words.drain(of_lora..of_lora + 4);
        }
        let done = planish(&with(words, more));
        assert_eq!(done.code, 0, "{done:?}");
        run
    };
    let merge = |run: &Path| -> Vec<String> {
        let (run, adapter) = (run.to_str().unwrap(), run.join("final"));
        let adapter = adapter.to_str().unwrap();
        ["merge", "--model", "builtin", "--adapter", adapter, "-o", run, "--overwrite-output-dir"]
            .map(String::from)
            .into()
    };
    let prompts = trained("prompts", &["--peft-type", "PROMPT_TUNING"]);
    let before = tree(&prompts);
    let done = planish(&merge(&prompts));
    assert!(done.code == 2 && done.stderr.contains("it cannot be merged"), "{done:?}");
    assert!(before == tree(&prompts));
    let lora = trained("lora", &[]);
    fs::write(lora.join("notes.txt"), "mine").unwrap();
    let done = planish(&merge(&lora));
    assert_eq!(done.code, 0, "{done:?}");
    let mut left: Vec<String> =
        fs::read_dir(&lora).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert!(left.contains(&"model.safetensors".to_owned()) && left.contains(&"notes.txt".to_owned()), "{left:?}");
    assert!(!left.iter().any(|name| name == "final" || name == "config.yaml" || name.ends_with(".tmp")), "{left:?}");
    assert!(!left.iter().any(|name| name.starts_with("checkpoint-")), "{left:?}");
}

/// Room for a paged optimizer's states is reserved before the first step.
#[test]
#[cfg(target_os = "linux")]
fn a_paging_file_without_room_ends_the_run_before_it_begins() {
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("run");
    let wide: Vec<String> = arguments(&run).into_iter().map(|w| if w == "2" { "16".to_owned() } else { w }).collect();
    let wide = with(wide, &["--lora-target-modules", "all-linear", "--optim", "paged_adamw_32bit"]);
    let done = limited(128, &wide);
    assert_says(
        &done,
        "run/.optimizer.planish.tmp: it would be larger",
        "Raise the limit, or keep more of them in memory",
    );
    assert!(!done.stderr.contains("resume"), "there is nothing to go on from: {done:?}");
    assert!(tree(&run).is_empty(), "{:?}", tree(&run).keys());
}

/// Runs with the directory `disk` as a file system of its own of `size`, which only this process sees and which goes
/// away with it: what the program left, and the names in `disk`/run. `None`, and a word why, where users may not mount.
#[cfg(target_os = "linux")]
fn on_a_disk_of(size: &str, disk: &Path, arguments: &[String]) -> Option<(Done, Vec<String>)> {
    fs::create_dir(disk).unwrap();
    let script =
        format!("mount -t tmpfs -o size={size} none \"$0\" || exit 77; \"$@\"; code=$?; ls -A \"$0/run\"; exit $code");
    let output = Command::new("unshare")
        .args(["-r", "-m", "sh", "-c", &script])
        .arg(disk)
        .arg(command().get_program())
        .args(arguments)
        .output();
    let Ok(output) = output else {
        eprintln!("skipped: there is no `unshare` here");
        return None;
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (listing, stderr) = (text(&output.stdout), text(&output.stderr));
    if !stderr.contains("error: ") && (output.status.code() == Some(77) || stderr.contains("unshare")) {
        eprintln!("skipped: no mounts for this user: {stderr}");
        return None;
    }
    let done = Done { code: output.status.code().unwrap_or(-1), stdout: String::new(), stderr };
    Some((done, listing.lines().map(str::to_owned).collect()))
}

/// The same where it is the disk that has no room, not a limit: the file is to grow to 1.2 MB.
#[test]
#[cfg(target_os = "linux")]
fn a_paging_file_on_a_full_disk_ends_the_run_before_it_begins() {
    let place = tempfile::tempdir().unwrap();
    let disk = place.path().join("disk");
    let words = on_rows(40, &place.path().join("data.jsonl"), &disk.join("run"));
    let wide: Vec<String> = words.into_iter().map(|w| if w == "2" { "16".to_owned() } else { w }).collect();
    let wide = with(wide, &["--lora-target-modules", "all-linear", "--optim", "paged_adamw_32bit"]);
    let Some((done, names)) = on_a_disk_of("400k", &disk, &wide) else { return };
    assert_says(&done, "run/.optimizer.planish.tmp: ", "the disk is full");
    assert!(done.stderr.contains("Free some space, or keep more of them in memory"), "{done:?}");
    assert!(!done.stderr.contains("resume"), "there is nothing to go on from: {done:?}");
    assert!(!done.stderr.contains("step 1/") && names.is_empty(), "{names:?}: {done:?}");
}

/// Room for two checkpoints, not for three.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_said_to_be_full() {
    let place = tempfile::tempdir().unwrap();
    let disk = place.path().join("disk");
    let words = on_rows(40, &place.path().join("data.jsonl"), &disk.join("run"));
    let Some((done, names)) = on_a_disk_of("400k", &disk, &words) else { return };
    assert_says(&done, "run/checkpoint-3/", "the disk is full; nothing was replaced. Free some space");
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert!(names.contains(&"checkpoint-1") && names.contains(&"checkpoint-2"), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("checkpoint-3") || *name == "final"), "{names:?}");
}
