//! What a checkpoint holds besides the model.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use planish_nn::adapters::is_training_file;
use planish_nn::weights::{WeightsReader, atomic_write, save_safetensors};
use serde::{Deserialize, Serialize};

use crate::data::Cursor;
use crate::optim::Optimizer;
use crate::run::{Checkpoint, RunError};
use crate::{Error, Result};

const STATE_FILE: &str = "trainer_state.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// Weights of a reference that follows the model.
pub(crate) const REFERENCE_FILE: &str = "reference.safetensors";

/// What else an objective goes on from.
pub(crate) const OBJECTIVE_FILE: &str = "objective.json";

/// Projections between a student's layers and a teacher's.
pub(crate) const PROJECTIONS_FILE: &str = "projections.safetensors";

/// Where a run stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerState {
    /// Optimizer steps done.
    pub step: u64,
    /// Where the data goes on.
    pub cursor: Cursor,
    /// Input tokens so far.
    pub num_tokens: u64,
    /// Best value of the metric that decides.
    pub best: Option<f64>,
    /// The step it was reached at.
    pub best_step: Option<u64>,
    /// Evaluations in a row without an improvement.
    pub bad_evaluations: u64,
    /// Whether early stopping has ended the run.
    pub stopped_early: bool,
    /// The time that chat templates see, seconds since 1970 UTC; `None` in checkpoints that do not know it.
    #[serde(default)]
    pub template_time: Option<u64>,
    /// Tokens of a pass, which a memory budget may have chosen.
    #[serde(default)]
    pub tokens_per_pass: Option<u64>,
}

impl TrainerState {
    /// Writes the state and that of the optimizer.
    pub(super) fn save(&self, dir: &Path, optimizer: &dyn Optimizer) -> Result<()> {
        save_safetensors(dir.join(OPTIMIZER_FILE), optimizer.state()?, &BTreeMap::new())?;
        let text = serde_json::to_vec_pretty(self).expect("plain numbers");
        Ok(atomic_write(dir.join(STATE_FILE), |to| to.write_all(&text))?)
    }

    /// Reads the state of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Checkpoint`]: no such file, or not what one holds.
    pub fn read(dir: &Path) -> Result<TrainerState> {
        let bad = |problem: String| Error::Checkpoint { path: dir.to_path_buf(), problem };
        let text = std::fs::read(dir.join(STATE_FILE)).map_err(|e| bad(format!("{STATE_FILE}: {e}")))?;
        serde_json::from_slice(&text).map_err(|e| bad(format!("{STATE_FILE}: {e}")))
    }

    /// Whether it is that of this checkpoint, for a run of so many steps in all.
    pub(super) fn check(&self, from: &Checkpoint, total: u64) -> Result<()> {
        let bad = |problem: String| Err(Error::Checkpoint { path: from.path.clone(), problem });
        match self.step {
            step if step != from.step => bad(format!("{STATE_FILE} is of step {step}, and not of {}", from.step)),
            step if step > total => bad(format!(
                "it is of step {step}, and the run is to have {total}: raise max_steps (num_train_epochs), or go on from an earlier one"
            )),
            _ => Ok(()),
        }
    }

    /// Reads the state, and that of the optimizer into it.
    pub(super) fn load(dir: &Path, optimizer: &mut dyn Optimizer) -> Result<TrainerState> {
        let bad = |problem: String| Error::Checkpoint { path: dir.to_path_buf(), problem };
        let state = TrainerState::read(dir)?;
        let reader = WeightsReader::open(dir.join(OPTIMIZER_FILE))?;
        optimizer.restore(state.step, &|name| {
            if !reader.contains(name) {
                return Err(bad(format!(
                    "{OPTIMIZER_FILE} has no `{name}`: it is of a run with other trained weights"
                )));
            }
            Ok(reader.get(name)?)
        })?;
        Ok(state)
    }
}

/// Copies a checkpoint's model, without the trainer's state.
pub(super) fn copy_model(from: &Path, to: &Path) -> Result<()> {
    let listed = |source| RunError::io("list", from, source);
    for entry in std::fs::read_dir(from).map_err(listed)? {
        let entry = entry.map_err(listed)?;
        let (name, path) = (entry.file_name(), entry.path());
        let not_the_model =
            [STATE_FILE, OPTIMIZER_FILE, REFERENCE_FILE, OBJECTIVE_FILE, PROJECTIONS_FILE].iter().any(|f| name == *f)
                || is_training_file(&name);
        if !not_the_model && path.is_file() {
            let mut file = File::open(&path).map_err(|source| RunError::io("read", &path, source))?;
            atomic_write(to.join(&name), |out| std::io::copy(&mut file, out).map(drop))?;
        }
    }
    Ok(())
}
