//! `metrics.jsonl`: one line per optimizer step, in full precision, flushed as it is written.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::error::RunError;

/// What is known after an optimizer step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepMetrics {
    /// Optimizer steps done, this one included.
    pub step: u64,
    /// Passes over the data so far, with a fraction.
    pub epoch: f64,
    /// Mean loss over the supervised tokens of the step, nats.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Supervised tokens of the step.
    pub tokens: u64,
    /// Input tokens since the start of training, before any interruption included.
    pub num_tokens: u64,
    /// Input tokens of the step per second.
    pub tokens_per_second: f64,
    /// Duration of the step, seconds.
    pub step_seconds: f64,
    /// Largest memory of the process so far, bytes; 0 where it is not known.
    pub peak_memory_bytes: u64,
    /// The recipe's own and those of an evaluation after the step, under TRL's names
    /// (`rewards/chosen`, `eval_loss`).
    pub extra: Vec<(String, f64)>,
}

impl StepMetrics {
    /// The line of `metrics.jsonl`. A number that JSON cannot write (NaN, infinity) becomes null.
    pub fn to_json(&self) -> Map<String, Json> {
        let mut map = Map::new();
        let mut put = |key: &str, value: Json| drop(map.insert(key.to_owned(), value));
        put("step", self.step.into());
        put("epoch", self.epoch.into());
        put("loss", self.loss.into());
        put("grad_norm", self.grad_norm.into());
        put("learning_rate", self.learning_rate.into());
        put("tokens", self.tokens.into());
        put("num_tokens", self.num_tokens.into());
        put("tokens_per_second", self.tokens_per_second.into());
        put("step_seconds", self.step_seconds.into());
        put("peak_memory_bytes", self.peak_memory_bytes.into());
        for (key, value) in &self.extra {
            put(key, (*value).into());
        }
        map
    }
}

/// Appends to `metrics.jsonl`, or to `advice.jsonl`.
#[derive(Debug)]
pub struct MetricsWriter {
    file: File,
    path: PathBuf,
}

impl MetricsWriter {
    /// Opens the file. With `keep` the lines of later steps, and a line that a crash cut short,
    /// are removed first; without, the file is new.
    ///
    /// # Errors
    /// [`RunError::Io`], [`RunError::DiskFull`], [`RunError::Line`].
    pub fn open(path: &Path, keep: Option<u64>) -> Result<MetricsWriter, RunError> {
        let failed = |source| RunError::io("write", path, source);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(keep.is_none())
            .open(path)
            .map_err(failed)?;
        let end = match keep {
            Some(step) => end_of_step(&file, path, step)?,
            None => 0,
        };
        if file.metadata().map_err(failed)?.len() != end {
            file.set_len(end).map_err(failed)?;
        }
        file.seek(SeekFrom::Start(end)).map_err(failed)?;
        Ok(MetricsWriter { file, path: path.to_owned() })
    }

    /// Appends the line of a step.
    ///
    /// # Errors
    /// [`RunError::Io`], [`RunError::DiskFull`].
    pub fn write(&mut self, metrics: &StepMetrics) -> Result<(), RunError> {
        self.append(metrics.to_json())
    }

    /// Appends the evaluation before the first step, as a line of step 0.
    ///
    /// # Errors
    /// [`RunError::Io`], [`RunError::DiskFull`].
    pub fn write_start(&mut self, extra: &[(String, f64)]) -> Result<(), RunError> {
        let mut map = Map::new();
        map.insert("step".into(), 0.into());
        map.insert("epoch".into(), 0.0.into());
        map.extend(extra.iter().map(|(key, value)| (key.clone(), (*value).into())));
        self.append(map)
    }

    /// Appends what was said after a step.
    ///
    /// # Errors
    /// [`RunError::Io`], [`RunError::DiskFull`].
    pub fn write_advice(&mut self, step: u64, sentence: &str) -> Result<(), RunError> {
        let line = [("step".to_owned(), step.into()), ("advice".to_owned(), sentence.into())];
        self.append(line.into_iter().collect())
    }

    /// Waits until what was written is on the disk: a checkpoint must not outlive the lines up to it.
    ///
    /// # Errors
    /// [`RunError::Io`], [`RunError::DiskFull`].
    pub fn sync(&self) -> Result<(), RunError> {
        self.file.sync_data().map_err(|source| RunError::io("write", &self.path, source))
    }

    fn append(&mut self, map: Map<String, Json>) -> Result<(), RunError> {
        let mut line = Json::Object(map).to_string();
        line.push('\n');
        // One write call: another process that reads along sees whole lines.
        self.file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.flush())
            .map_err(|source| RunError::io("write", &self.path, source))
    }
}

/// A line longer than this is not one of ours.
const LONGEST_LINE: u64 = 1 << 20;

/// The offset after the last whole line whose step is at most `step`.
fn end_of_step(file: &File, path: &Path, step: u64) -> Result<u64, RunError> {
    let mut end = 0;
    each_line(file, path, |map, offset| {
        let keep = map.get("step").and_then(Json::as_u64).is_some_and(|s| s <= step);
        if keep {
            end = offset;
        }
        keep
    })?;
    Ok(end)
}

/// Reads the lines of a run's metrics, without a last line that is cut short.
///
/// # Errors
/// [`RunError::Line`] for a line that is no JSON object; [`RunError::Io`].
pub fn read_metrics(path: &Path) -> Result<Vec<Map<String, Json>>, RunError> {
    let file = File::open(path).map_err(|source| RunError::io("read", path, source))?;
    let mut lines = Vec::new();
    each_line(&file, path, |map, _| {
        lines.push(map);
        true
    })?;
    Ok(lines)
}

/// Calls `visit` with each whole line and the offset of its end, until it returns false.
fn each_line(file: &File, path: &Path, mut visit: impl FnMut(Map<String, Json>, u64) -> bool) -> Result<(), RunError> {
    let mut reader = BufReader::new(file);
    let mut offset = 0_u64;
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let read = reader
            .by_ref()
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut bytes)
            .map_err(|source| RunError::io("read", path, source))?;
        if bytes.last() != Some(&b'\n') && (read as u64) < LONGEST_LINE {
            return Ok(()); // The end, or the line that a crash cut short.
        }
        offset += read as u64;
        let map = serde_json::from_slice(&bytes).map_err(|error| RunError::Line {
            path: path.to_owned(),
            line,
            problem: format!("not a line of metrics: {error}"),
        })?;
        if !visit(map, offset) {
            break;
        }
    }
    Ok(())
}
