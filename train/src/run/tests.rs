//! Run directories under every mistake and crash that a user can arrange.

use std::fs;
use std::path::Path;

use super::*;

fn step(step: u64) -> StepMetrics {
    StepMetrics {
        step,
        epoch: step as f64 / 7.0,
        loss: 1.0 / step as f64,
        learning_rate: 1e-5 / 3.0,
        tokens: 1 << 40,
        extra: vec![("eval_loss".into(), 0.1 + step as f64)],
        ..StepMetrics::default()
    }
}

fn fill(content: &'static str) -> impl FnOnce(&Path) -> Result<(), RunError> {
    move |dir| {
        fs::write(dir.join("state"), content).unwrap();
        Ok(())
    }
}

#[test]
fn a_new_run_refuses_what_is_there() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    fs::write(&file, "x").unwrap();
    assert!(matches!(RunDir::create(&file, false), Err(RunError::NotADirectory { .. })));
    assert!(matches!(RunDir::create(&file, true), Err(RunError::NotADirectory { .. })));
    assert!(matches!(RunDir::create(file.join("under"), false), Err(RunError::Unwritable { .. })));

    let full = place.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("thesis.txt"), "years of work").unwrap();
    fs::create_dir(full.join("checkpoint-007")).unwrap();
    assert!(matches!(RunDir::create(&full, false), Err(RunError::NotEmpty { .. })));
    assert_eq!(fs::read_dir(&full).unwrap().count(), 2);

    // Overwriting removes a run, and only what a run makes.
    for name in ["config.yaml", "metrics.jsonl", "events.out.tfevents.1.planish.2.0"] {
        fs::write(full.join(name), "old").unwrap();
    }
    fs::create_dir_all(full.join("checkpoint-7/deep")).unwrap();
    RunDir::create(&full, true).unwrap();
    assert_eq!(fs::read_to_string(full.join("thesis.txt")).unwrap(), "years of work");
    assert!(full.join("checkpoint-007").exists());
    assert_eq!(fs::read_dir(&full).unwrap().count(), 2);

    RunDir::create(place.path().join("new/deep/run"), false).unwrap();
    let empty = place.path().join("empty");
    fs::create_dir(&empty).unwrap();
    RunDir::create(&empty, false).unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn an_unwritable_place_is_found_out_at_once() {
    // /proc takes no directories, even from root.
    let error = RunDir::create("/proc/planish-run", false).unwrap_err();
    assert!(matches!(error, RunError::Unwritable { .. }), "{error}");
    let error = RunDir::create("/proc", true).unwrap_err();
    assert!(matches!(error, RunError::Unwritable { .. }), "{error}");
}

#[test]
fn numbers_survive_metrics_bit_for_bit() {
    let place = tempfile::tempdir().unwrap();
    let run = RunDir::create(place.path(), false).unwrap();
    let mut metrics = run.metrics().unwrap();
    let mut line = step(3);
    line.loss = f64::from(0.1_f32);
    line.grad_norm = f64::NAN;
    metrics.write_start(&[("eval_loss".into(), 2.5)]).unwrap();
    metrics.write(&line).unwrap();
    let lines = read_metrics(&place.path().join("metrics.jsonl")).unwrap();
    assert_eq!(lines[0]["step"], 0);
    assert_eq!(lines[0]["eval_loss"], 2.5);
    let back = |key: &str| lines[1][key].as_f64().unwrap().to_bits();
    assert_eq!(back("loss"), f64::from(0.1_f32).to_bits());
    assert_eq!(back("learning_rate"), (1e-5_f64 / 3.0).to_bits());
    assert_eq!(back("eval_loss"), 3.1_f64.to_bits());
    assert!(lines[1]["grad_norm"].is_null());
    assert_eq!(lines[1]["tokens"].as_u64(), Some(1 << 40));
    let keys: Vec<&str> = lines[1].keys().map(String::as_str).collect();
    let design = [
        "step",
        "epoch",
        "loss",
        "grad_norm",
        "learning_rate",
        "tokens",
        "num_tokens",
        "tokens_per_second",
        "step_seconds",
        "peak_memory_bytes",
        "eval_loss",
    ];
    assert_eq!(keys, design);
}

#[test]
fn a_resumed_file_is_that_of_a_run_never_stopped() {
    let place = tempfile::tempdir().unwrap();
    let whole = RunDir::create(place.path().join("whole"), false).unwrap();
    let mut metrics = whole.metrics().unwrap();
    (1..=9).for_each(|n| metrics.write(&step(n)).unwrap());

    let path = place.path().join("stopped");
    let stopped = RunDir::create(&path, false).unwrap();
    let mut metrics = stopped.metrics().unwrap();
    for n in 1..=6 {
        metrics.write(&step(n)).unwrap();
        if n == 4 {
            stopped.save_checkpoint(n, fill("four")).unwrap();
        }
    }
    drop(metrics);
    // The crash: half a line, and a checkpoint that was being written.
    let file = path.join("metrics.jsonl");
    let mut bytes = fs::read(&file).unwrap();
    bytes.extend(b"{\"step\":7,\"lo");
    fs::write(&file, bytes).unwrap();
    fs::create_dir(path.join(".checkpoint-6.99.0.planish.tmp")).unwrap();

    let from = Checkpoint::find("latest", &path).unwrap();
    assert_eq!(from.step, 4);
    let elsewhere = RunDir::resume(place.path().join("elsewhere"), &from).unwrap();
    let resumed = RunDir::resume(&path, &from).unwrap();
    assert!(!path.join(".checkpoint-6.99.0.planish.tmp").exists());
    for run in [&resumed, &elsewhere] {
        assert_eq!(run.resumed(), Some(4));
        let mut metrics = run.metrics().unwrap();
        (5..=9).for_each(|n| metrics.write(&step(n)).unwrap());
        let bytes = fs::read(run.path().join("metrics.jsonl")).unwrap();
        assert_eq!(bytes, fs::read(whole.path().join("metrics.jsonl")).unwrap());
    }
    // Another run's directory is not a place to resume into.
    assert!(matches!(RunDir::resume(whole.path(), &from), Err(RunError::NotEmpty { .. })));
}

#[test]
fn a_run_is_not_rewound_in_place() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("run");
    let run = RunDir::create(&path, false).unwrap();
    let mut metrics = run.metrics().unwrap();
    for n in 1..=4 {
        metrics.write(&step(n)).unwrap();
        run.save_checkpoint(n, fill("x")).unwrap();
    }
    let second = Checkpoint::find(path.join("checkpoint-2").to_str().unwrap(), &path).unwrap();
    let error = RunDir::resume(&path, &second).unwrap_err();
    assert!(matches!(&error, RunError::LaterCheckpoint { later, .. } if later.ends_with("checkpoint-4")), "{error}");
    assert_eq!(read_metrics(&path.join("metrics.jsonl")).unwrap().len(), 4);
    RunDir::resume(place.path().join("branch"), &second).unwrap();
    (3..=4).for_each(|n| fs::remove_dir_all(path.join(format!("checkpoint-{n}"))).unwrap());
    RunDir::resume(&path, &second).unwrap();
}

#[test]
fn damaged_metrics_name_the_line() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("metrics.jsonl");
    fs::write(&file, "{\"step\":1}\nnonsense\n{\"step\":3}\n").unwrap();
    let error = read_metrics(&file).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl:2: not a line of metrics"), "{error}");
    // A line without end is refused instead of being read into memory.
    fs::write(&file, vec![b'1'; 3 << 20]).unwrap();
    assert!(matches!(read_metrics(&file), Err(RunError::Line { line: 1, .. })));
}

#[test]
fn checkpoints_are_found_by_number() {
    let place = tempfile::tempdir().unwrap();
    let at = place.path();
    let none = Checkpoint::find("latest", at).unwrap_err();
    assert!(matches!(none, RunError::NoCheckpoint { exists: true, .. }), "{none}");
    let nowhere = Checkpoint::find("latest", &at.join("nowhere")).unwrap_err();
    assert!(matches!(nowhere, RunError::NoCheckpoint { exists: false, .. }), "{nowhere}");
    for name in ["checkpoint-9", "checkpoint-10", "checkpoint-x", "checkpoint-+11", "checkpoint-012"] {
        fs::create_dir(at.join(name)).unwrap();
    }
    fs::write(at.join("checkpoint-99"), "a file").unwrap();
    assert_eq!(Checkpoint::find("latest", at).unwrap().step, 10);
    let nine = at.join("checkpoint-9");
    assert_eq!(Checkpoint::find(nine.to_str().unwrap(), Path::new("x")).unwrap().step, 9);
    assert_eq!(Checkpoint::find(at.to_str().unwrap(), Path::new("x")).unwrap().step, 10);
    let wrong = at.join("checkpoint-x");
    let error = Checkpoint::find(wrong.to_str().unwrap(), at).unwrap_err();
    assert!(matches!(error, RunError::NotACheckpoint { .. }), "{error}");
}

#[test]
fn rotation_keeps_the_newest_and_the_best() {
    let place = tempfile::tempdir().unwrap();
    let run = RunDir::create(place.path(), false).unwrap();
    let steps = |run: &RunDir| run.checkpoints().unwrap().iter().map(|c| c.step).collect::<Vec<_>>();
    for n in [2, 10, 9, 30] {
        run.save_checkpoint(n, fill("x")).unwrap();
    }
    assert_eq!(run.rotate(9, None).unwrap(), []);
    assert_eq!(run.rotate(2, Some(2)).unwrap().len(), 2);
    assert_eq!(steps(&run), [2, 30]);
    assert_eq!(run.rotate(1, Some(2)).unwrap(), []);
    run.rotate(1, None).unwrap();
    assert_eq!(steps(&run), [30]);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn a_checkpoint_that_fails_leaves_the_old_one() {
    let place = tempfile::tempdir().unwrap();
    let run = RunDir::create(place.path(), false).unwrap();
    run.save_checkpoint(5, fill("old")).unwrap();
    let state = place.path().join("checkpoint-5/state");
    let full = |dir: &Path| {
        fs::write(dir.join("state"), "half").unwrap();
        Err(RunError::DiskFull { path: dir.to_owned() })
    };
    assert!(matches!(run.save_checkpoint(5, full), Err(RunError::DiskFull { .. })));
    assert_eq!(fs::read_to_string(&state).unwrap(), "old");
    assert!(run.save_checkpoint(6, full).is_err());
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    run.save_checkpoint(5, fill("new")).unwrap();
    assert_eq!(fs::read_to_string(&state).unwrap(), "new");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_said_to_be_full() {
    let error =
        MetricsWriter::open(Path::new("/dev/full"), None).and_then(|mut metrics| metrics.write(&step(1))).unwrap_err();
    assert!(matches!(error, RunError::DiskFull { .. }), "{error}");
}

/// Reads an event file back: framing, both checksums, and the four messages.
mod events {
    use super::super::tensorboard::masked_crc;

    pub(super) struct Event {
        pub(super) step: u64,
        pub(super) version: Option<String>,
        pub(super) scalars: Vec<(String, f32)>,
        pub(super) start: bool,
    }

    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return value;
            }
        }
        unreachable!()
    }

    /// Fields of a message: number, and the bytes or the little-endian number.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes);
            let length = match tag & 7 {
                0 => {
                    out.push((tag >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => varint(&mut bytes) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            out.push((tag >> 3, bytes[..length].to_vec()));
            bytes = &bytes[length..];
        }
        out
    }

    pub(super) fn read(mut file: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            let crc = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
            assert_eq!(crc(8), masked_crc(&file[..8]));
            let data = &file[12..12 + length];
            assert_eq!(crc(12 + length), masked_crc(data));
            file = &file[16 + length..];
            let mut event = Event { step: 0, version: None, scalars: vec![], start: false };
            for (number, value) in fields(data) {
                match number {
                    1 => assert!(f64::from_le_bytes(value.try_into().unwrap()) > 1.6e9),
                    2 => event.step = u64::from_le_bytes(value.try_into().unwrap()),
                    3 => event.version = Some(String::from_utf8(value).unwrap()),
                    5 => {
                        for (_, scalar) in fields(&value) {
                            let parts = fields(&scalar);
                            let number = f32::from_le_bytes(parts[1].1.clone().try_into().unwrap());
                            let tag = String::from_utf8(parts[0].1.clone()).unwrap();
                            event.scalars.push((tag, number));
                        }
                    }
                    7 => event.start = fields(&value)[0].1[0] == 1,
                    other => panic!("field {other}"),
                }
            }
            events.push(event);
        }
        events
    }
}

#[test]
fn the_checksum_is_that_of_tensorflow() {
    // From TensorFlow's own crc32c_test: crc32c of 32 zero bytes, and the mask's formula.
    assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    let expected = 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8);
    assert_eq!(super::tensorboard::masked_crc(&[0; 32]), expected);
}

#[test]
fn event_files_hold_the_numbers_under_the_tags_of_transformers() {
    let place = tempfile::tempdir().unwrap();
    let run = RunDir::create(place.path(), false).unwrap();
    let mut writer = run.events().unwrap();
    writer.write(&step(300)).unwrap();
    let second = EventWriter::create(place.path(), Some(4)).unwrap();
    drop((writer, second));
    let mut files: Vec<_> = fs::read_dir(place.path()).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 2);
    let first = events::read(&fs::read(&files[0]).unwrap());
    assert_eq!(first[0].version.as_deref(), Some("brain.Event:2"));
    assert_eq!(first[1].step, 300);
    let scalar = |tag: &str| first[1].scalars.iter().find(|(name, _)| name == tag).map(|s| s.1);
    assert_eq!(scalar("train/loss"), Some((1.0_f64 / 300.0) as f32));
    assert_eq!(scalar("eval/loss"), Some(300.1_f64 as f32));
    assert_eq!(scalar("train/tokens"), Some((1_u64 << 40) as f32));
    assert_eq!(scalar("train/step"), None);
    let second = events::read(&fs::read(&files[1]).unwrap());
    assert!(second[1].start && second[1].step == 5);
}
