//! The directory of a run: refuses to be where something is, and is never half-written.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use planish_nn::weights::{atomic::remove_leftovers, atomic_dir, atomic_write};

use super::checkpoint::{self, Checkpoint};
use super::error::RunError;
use super::metrics::MetricsWriter;
use super::report::LossUnit;
use super::tensorboard::EventWriter;

/// What the run said.
pub(super) const ADVICE: &str = "advice.jsonl";

/// How the loss is to be read.
pub(super) const UNIT: &str = "loss.json";

/// A run directory:
///
/// | name | what |
/// | --- | --- |
/// | `config.yaml` | the resolved settings |
/// | `preflight.json` | what was found in the data |
/// | `facts.json` | what the run was: model, parameters, machine |
/// | `metrics.jsonl` | a line per optimizer step |
/// | `advice.jsonl` | what the run said, with the step |
/// | `loss.json` | the unit of the loss |
/// | `events.out.tfevents.*` | the same for TensorBoard |
/// | `checkpoint-N/` | everything that step N + 1 depends on |
/// | `final/` | the resulting model or adapter |
/// | `samples.json` | answers before and after |
/// | `report.html` | the curves |
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
    /// The step after which this run goes on, if it was resumed.
    resumed: Option<u64>,
    /// What [`RunDir::begin`] writes.
    first: Vec<(&'static str, Vec<u8>)>,
}

impl RunDir {
    /// Makes the directory of a new run, with its parents. An existing directory must be empty
    /// unless `overwrite`, which removes an earlier run's files and nothing else.
    ///
    /// # Errors
    /// [`RunError::NotEmpty`], [`RunError::NotADirectory`], [`RunError::Unwritable`]; nothing has
    /// been changed then.
    pub fn create(path: impl AsRef<Path>, overwrite: bool) -> Result<RunDir, RunError> {
        let dir = RunDir::claim(path, overwrite)?;
        dir.clear()?;
        Ok(dir)
    }

    /// As [`RunDir::create`], but what an earlier run left stays until [`RunDir::clear`]: for a result that is made of it, or
    /// that may yet fail.
    ///
    /// # Errors
    /// As [`RunDir::create`].
    pub fn claim(path: impl AsRef<Path>, overwrite: bool) -> Result<RunDir, RunError> {
        let path = path.as_ref();
        match fs::metadata(path) {
            Ok(found) if !found.is_dir() => {
                return Err(RunError::NotADirectory { path: path.to_owned() });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path).map_err(|source| unwritable(path, source))?;
            }
            Err(source) => return Err(unwritable(path, source)),
        }
        let mut entries = fs::read_dir(path).map_err(|source| unwritable(path, source))?;
        if !overwrite && entries.next().is_some() {
            return Err(RunError::NotEmpty { path: path.to_owned() });
        }
        probe(path)?;
        Ok(RunDir { path: path.to_owned(), resumed: None, first: Vec::new() })
    }

    /// Removes an earlier run's files, and nothing else.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn clear(&self) -> Result<(), RunError> {
        let entries = fs::read_dir(&self.path).map_err(|source| unwritable(&self.path, source))?;
        for entry in entries {
            let old = entry.map_err(|source| unwritable(&self.path, source))?.path();
            if !old.file_name().and_then(|name| name.to_str()).is_some_and(is_ours) {
                continue;
            }
            let removed = if old.is_dir() { fs::remove_dir_all(&old) } else { fs::remove_file(&old) };
            removed.map_err(|source| RunError::io("remove", &old, source))?;
        }
        Ok(())
    }

    /// Opens the directory for going on after `from`. If the checkpoint belongs to this directory
    /// the run goes on in place, which it can only from its newest one; otherwise the directory must be
    /// new, and the metrics up to the checkpoint are copied from the run it belongs to.
    ///
    /// # Errors
    /// As [`RunDir::create`]; [`RunError::LaterCheckpoint`]; [`RunError::Line`] for metrics that cannot be
    /// read. Nothing has been changed then.
    pub fn resume(path: impl AsRef<Path>, from: &Checkpoint) -> Result<RunDir, RunError> {
        let path = path.as_ref();
        let owner = from.path.parent().unwrap_or(Path::new("."));
        let owner = if owner.as_os_str().is_empty() { Path::new(".") } else { owner };
        let in_place = match (fs::canonicalize(path), fs::canonicalize(owner)) {
            (Ok(a), Ok(b)) => a == b,
            _ => false,
        };
        if in_place {
            let newest = checkpoint::list(path)?.pop().filter(|newest| newest.step > from.step);
            if let Some(later) = newest.map(|newest| newest.path) {
                return Err(RunError::LaterCheckpoint { from: from.path.clone(), later });
            }
            probe(path)?;
            remove_leftovers(path)?;
        } else {
            RunDir::create(path, false)?;
            for name in ["metrics.jsonl", ADVICE] {
                let (own, to) = (owner.join(name), path.join(name));
                if own.is_file() {
                    fs::copy(&own, &to).map_err(|source| RunError::io("write", &to, source))?;
                }
            }
        }
        Ok(RunDir { path: path.to_owned(), resumed: Some(from.step), first: Vec::new() })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the resulting model or adapter goes.
    pub fn final_dir(&self) -> PathBuf {
        self.path.join("final")
    }

    /// The step after which this run goes on, if it was resumed.
    pub fn resumed(&self) -> Option<u64> {
        self.resumed
    }

    /// Writes a file of the run, whole or not at all.
    ///
    /// # Errors
    /// [`RunError::Weights`] with the path.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), RunError> {
        Ok(atomic_write(self.path.join(name), |to| to.write_all(bytes))?)
    }

    /// Has a file written when the run begins.
    pub fn at_begin(&mut self, name: &'static str, bytes: Vec<u8>) {
        self.first.push((name, bytes));
    }

    /// Writes what was left for now, when nothing can be refused any more: of a run that cannot go on nothing is changed.
    ///
    /// # Errors
    /// As [`RunDir::write`].
    pub fn begin(&mut self) -> Result<(), RunError> {
        let first = std::mem::take(&mut self.first);
        first.iter().try_for_each(|(name, bytes)| self.write(name, bytes))
    }

    /// Writes `facts.json`: pairs that the report shows, such as `("parameters", "134.5 M")`.
    ///
    /// # Errors
    /// As [`RunDir::write`].
    pub fn write_facts(&self, facts: &[(&str, String)]) -> Result<(), RunError> {
        let map: serde_json::Map<String, serde_json::Value> =
            facts.iter().map(|(key, value)| ((*key).to_owned(), value.clone().into())).collect();
        self.write("facts.json", format!("{:#}\n", serde_json::Value::Object(map)).as_bytes())
    }

    /// Opens `metrics.jsonl`; in a resumed run without the lines after the checkpoint.
    ///
    /// # Errors
    /// [`RunError::Io`], [`RunError::DiskFull`], [`RunError::Line`].
    pub fn metrics(&self) -> Result<MetricsWriter, RunError> {
        MetricsWriter::open(&self.path.join("metrics.jsonl"), self.resumed)
    }

    /// Opens `advice.jsonl`; in a resumed run without what was said after the checkpoint.
    ///
    /// # Errors
    /// As [`RunDir::metrics`].
    pub fn advice(&self) -> Result<MetricsWriter, RunError> {
        MetricsWriter::open(&self.path.join(ADVICE), self.resumed)
    }

    /// Writes `loss.json`.
    ///
    /// # Errors
    /// As [`RunDir::write`].
    pub fn write_unit(&self, unit: &LossUnit) -> Result<(), RunError> {
        self.write(UNIT, &serde_json::to_vec(unit).expect("plain numbers and texts"))
    }

    /// Opens a new file of TensorBoard events; in a resumed run it makes TensorBoard forget the
    /// steps after the checkpoint.
    ///
    /// # Errors
    /// [`RunError::Io`], [`RunError::DiskFull`].
    pub fn events(&self) -> Result<EventWriter, RunError> {
        EventWriter::create(&self.path, self.resumed)
    }

    /// Saves `checkpoint-STEP` through `fill`, which gets a directory to write into. It appears
    /// whole or not at all; one of the same step is replaced.
    ///
    /// # Errors
    /// What `fill` returns, and [`RunError`].
    pub fn save_checkpoint<E: From<RunError>>(
        &self,
        step: u64,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Checkpoint, E> {
        checkpoint::save(&self.path, step, fill)
    }

    /// Replaces `final/` through `fill`, whole or not at all.
    ///
    /// # Errors
    /// What `fill` returns, and [`RunError`].
    pub fn save_final<E: From<RunError>>(&self, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<PathBuf, E> {
        checkpoint::replace_dir(&self.path, "final", fill)
    }

    /// The checkpoints by step.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn checkpoints(&self) -> Result<Vec<Checkpoint>, RunError> {
        checkpoint::list(&self.path)
    }

    /// Removes the oldest checkpoints until `limit` are left; never the newest, never `best`.
    /// Returns those removed.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn rotate(&self, limit: usize, best: Option<u64>) -> Result<Vec<Checkpoint>, RunError> {
        checkpoint::rotate(&self.path, limit, best)
    }
}

fn unwritable(path: &Path, source: io::Error) -> RunError {
    match RunError::io("write to", path, source) {
        RunError::Io { path, source, .. } => RunError::Unwritable { path, source },
        other => other,
    }
}

/// Finds out now, not after the first hour, whether the directory takes files.
fn probe(path: &Path) -> Result<(), RunError> {
    let probe = path.join(".probe.planish.tmp");
    let written = fs::File::create(&probe).and_then(|mut file| file.write_all(b"planish"));
    let removed = fs::remove_file(&probe);
    written.and(removed).map_err(|source| unwritable(path, source))
}

fn is_ours(name: &str) -> bool {
    const FILES: [&str; 9] = [
        "config.yaml",
        "preflight.json",
        "facts.json",
        "metrics.jsonl",
        ADVICE,
        UNIT,
        "samples.json",
        "report.html",
        "final",
    ];
    FILES.contains(&name)
        || name.starts_with("events.out.tfevents.")
        || checkpoint::step_of(name).is_some()
        || (name.starts_with('.') && name.ends_with(".planish.tmp"))
}

/// As [`atomic_dir`], with this module's errors.
pub(super) fn fill_dir<E: From<RunError>>(path: &Path, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    /// Carries the caller's error through a function that wants errors of its own.
    struct Carry<E>(E);
    impl<E: From<RunError>> From<planish_nn::weights::WeightsError> for Carry<E> {
        fn from(error: planish_nn::weights::WeightsError) -> Self {
            Carry(RunError::from(error).into())
        }
    }
    atomic_dir(path, |dir| fill(dir).map_err(Carry)).map_err(|Carry(error)| error)
}
