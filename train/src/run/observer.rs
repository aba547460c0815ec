//! How a recipe tells the outside what it does, and hears that it should stop.

use std::path::{Path, PathBuf};

use super::metrics::StepMetrics;

/// What is known before step 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunPlan {
    /// The run directory.
    pub run_dir: PathBuf,
    /// The step after which a resumed run goes on, else 0.
    pub first_step: u64,
    /// Optimizer steps in all.
    pub total_steps: u64,
    /// Parameters that are trained.
    pub trainable_parameters: u64,
    /// Parameters in all.
    pub parameters: u64,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// All steps were done, or early stopping ended it.
    Finished {
        /// The resulting model or adapter.
        result: PathBuf,
    },
    /// It was asked to stop; the state is saved.
    Interrupted {
        /// The checkpoint to resume from.
        checkpoint: PathBuf,
    },
}

/// Watches a run. Every method but [`Observer::interrupted`] only receives.
pub trait Observer {
    /// While model files come from the hub.
    fn downloading(&mut self, _progress: &planish_nn::hub::Progress<'_>) {}
    /// What was found in the data, before step 1.
    fn preflight(&mut self, _report: &crate::data::Preflight) {}
    /// Before step 1.
    fn started(&mut self, _plan: &RunPlan) {}
    /// After each optimizer step.
    fn stepped(&mut self, _metrics: &StepMetrics) {}
    /// After each evaluation; names as in TRL (`eval_loss`).
    fn evaluated(&mut self, _step: u64, _metrics: &[(String, f64)]) {}
    /// After each checkpoint.
    fn saved(&mut self, _checkpoint: &Path) {}
    /// Something the user should know, in a sentence.
    fn note(&mut self, _sentence: &str) {}
    /// Asked after each step: true makes the run save a checkpoint and end.
    fn interrupted(&mut self) -> bool {
        false
    }
    /// After the last step.
    fn finished(&mut self, _outcome: &Outcome) {}
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {}
