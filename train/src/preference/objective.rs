//! What the objectives of this module have in common: how sums of steps become those of a step or of held-out data, and
//! what is kept beside a loss.

use std::ops::AddAssign;
use std::path::Path;
use std::sync::Arc;

use planish_nn::decoder::Model;
use planish_nn::weights::atomic_write;
use serde::{Deserialize, Serialize};

use super::Mode;
use super::reference::Reference;
use super::watch::{Seen, Watch};
use crate::config::OptimSettings;
use crate::data::{Batch, Cursor, Sampler, Step};
use crate::losses::Running;
use crate::run::report::LossUnit;
use crate::trainer::router::{Balance, Routers};
use crate::trainer::{OBJECTIVE_FILE, Objective, Sums};
use crate::{Error, Result};

/// What is kept beside a loss.
pub(super) struct Kept {
    /// What is compared with.
    pub(super) reference: Reference,
    /// Whether there is any dropout while training.
    pub(super) dropout: bool,
    /// Whether sequences share what they begin with.
    pub(super) share: bool,
    /// The losses of the model's routers.
    pub(super) balance: Balance,
    /// What looks at each step's sums.
    pub(super) watches: Vec<Watch>,
    /// BCO's δ.
    pub(super) delta: Option<Running>,
}

/// What of it is part of checkpoints, besides the reference.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    watches: Vec<Seen>,
    delta: Option<Running>,
}

impl Kept {
    /// Nothing is shared, and routers have no losses.
    pub(super) fn new(reference: Reference, dropout: bool, watches: Vec<Watch>) -> Kept {
        Kept { reference, dropout, share: false, balance: Balance::default(), watches, delta: None }
    }

    fn save(&self, dir: &Path) -> Result<()> {
        self.reference.save(dir)?;
        let state = State { watches: self.watches.iter().map(|watch| watch.seen).collect(), delta: self.delta };
        let text = serde_json::to_vec_pretty(&state).expect("plain numbers");
        Ok(atomic_write(dir.join(OBJECTIVE_FILE), |to| to.write_all(&text))?)
    }

    fn load(&mut self, dir: &Path) -> Result<()> {
        self.reference.load(dir)?;
        let bad = |problem: String| Error::Checkpoint { path: dir.to_path_buf(), problem };
        let path = dir.join(OBJECTIVE_FILE);
        if !path.is_file() && self.delta.is_none() {
            // Of a version that kept no watches: they begin anew.
            return Ok(());
        }
        let text = std::fs::read(&path).map_err(|e| bad(format!("{OBJECTIVE_FILE}: {e}")))?;
        let state: State = serde_json::from_slice(&text).map_err(|e| bad(format!("{OBJECTIVE_FILE}: {e}")))?;
        if state.watches.len() != self.watches.len() || state.delta.is_some() != self.delta.is_some() {
            return Err(bad(format!("{OBJECTIVE_FILE} is of a run with another loss")));
        }
        self.watches.iter_mut().zip(state.watches).for_each(|(watch, seen)| watch.seen = seen);
        self.delta = state.delta;
        Ok(())
    }
}

/// A loss over micro-batches; the rest of [`Objective`] follows from it.
pub(super) trait Preference {
    /// What is added up, step by step.
    type Totals: Default + AddAssign;

    fn kept(&self) -> &Kept;

    fn kept_mut(&mut self) -> &mut Kept;

    /// Takes the micro-batches of a step through the model and, in training, back. Of a training step of a model with
    /// routers, what they did.
    fn run(
        &self,
        model: &Model,
        optim: &OptimSettings,
        micro_batches: &[Batch],
        mode: Mode,
    ) -> Result<(Self::Totals, Option<Routers>)>;

    /// Keeps what a training step leaves for the next.
    fn keep(&mut self, _totals: &Self::Totals) {}

    /// How a curve of the loss is to be read.
    fn unit(&self) -> LossUnit;

    /// The loss, what it is divided by, and what was measured.
    fn together(&self, totals: Self::Totals, routers: Option<&Routers>) -> Sums;
}

impl<P: Preference> Objective for P {
    fn accumulate(&mut self, model: &Model, optim: &OptimSettings, step: &Step, done: u64) -> Result<Sums> {
        let mode = Mode::Train { done, dropout: self.kept().dropout };
        let (totals, routers) = self.run(model, optim, &step.micro_batches, mode)?;
        if let Some(routers) = &routers {
            self.kept_mut().balance.see(model, routers);
        }
        self.keep(&totals);
        Ok(self.together(totals, routers.as_ref()))
    }

    fn evaluate(&mut self, model: &Model, optim: &OptimSettings, sampler: &Arc<Sampler>) -> Result<Sums> {
        let mut all = P::Totals::default();
        for step in sampler.steps(Cursor::default())?.epochs(1) {
            all += self.run(model, optim, &step?.micro_batches, Mode::HeldOut)?.0;
        }
        Ok(self.together(all, None))
    }

    fn updated(&mut self, model: &Model, done: u64) -> Result<()> {
        self.kept_mut().reference.updated(model, done)
    }

    fn advice(&mut self, sums: &Sums) -> Vec<String> {
        let kept = self.kept_mut();
        let said: Vec<String> = kept.watches.iter_mut().flat_map(|watch| watch.look(sums)).collect();
        said.into_iter().chain(kept.balance.advice()).collect()
    }

    fn save(&self, dir: &Path) -> Result<()> {
        self.kept().save(dir)
    }

    fn load(&mut self, dir: &Path) -> Result<()> {
        self.kept_mut().load(dir)
    }

    fn unit(&self) -> LossUnit {
        Preference::unit(self)
    }
}
