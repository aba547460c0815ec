//! Errors of the training layer.

use std::path::PathBuf;

/// Result of a training operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a recipe.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The data.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// The run directory is in the way, or cannot be written.
    #[error(transparent)]
    Run(#[from] crate::run::RunError),
    /// The model, its files or an adapter.
    #[error(transparent)]
    Model(#[from] planish_nn::Error),
    /// Recording or differentiating failed.
    #[error(transparent)]
    Autograd(#[from] planish_autograd::Error),
    /// A kernel refused.
    #[error(transparent)]
    Tensor(#[from] planish_tensor::Error),
    /// The weights cannot be read or written.
    #[error(transparent)]
    Weights(#[from] planish_nn::weights::WeightsError),
    /// A row cannot be scored.
    #[error(transparent)]
    Score(#[from] crate::score::ScoreError),
    /// The loss or the gradient is no number any more.
    #[error("step {step}: the {what} is {value}; lower the learning rate, or look at the data of this step{hint}")]
    NotFinite {
        /// The optimizer step.
        step: u64,
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// The value.
        value: f64,
        /// Where to go on from, as a clause.
        hint: String,
    },
    /// A device failed in the middle of a run.
    #[error("step {step}: {source}; the program has to be started again to use the device{hint}")]
    DeviceFailed {
        /// The optimizer step.
        step: u64,
        /// What it said.
        source: Box<Error>,
        /// Where to go on from, as a clause.
        hint: String,
    },
    /// A device has no room.
    #[error("{source}; {advice}{hint}")]
    DeviceFull {
        /// For what.
        source: Box<Error>,
        /// What to change.
        advice: &'static str,
        /// Where to go on from, as a clause.
        hint: String,
    },
    /// A weight that was no number when it was read.
    #[error(
        "the weight `{name}` holds {value} (element {at}), so that the loss of the first step is no number: the model's \
         files are damaged, or it had diverged when they were written"
    )]
    WeightNotFinite {
        /// The parameter.
        name: String,
        /// The value.
        value: f32,
        /// Its place in the parameter's elements.
        at: usize,
    },
    /// Something that is to be trained and that the loss does not depend on.
    #[error(
        "step {step}: no gradient reached `{name}`{}, though it is to be trained: nothing in the loss depends on it; take \
         it out of the targets",
        if *others > 0 { format!(" (and {others} more)") } else { String::new() }
    )]
    NotReached {
        /// The optimizer step.
        step: u64,
        /// The parameter.
        name: String,
        /// How many more there are.
        others: usize,
    },
    /// Experts are all that is to be trained, and none of them was chosen.
    #[error(
        "step {step}: no token that the loss depends on chose `{name}`{}, and nothing else is to be trained, so that the step changes nothing; train \
         other experts or more of them, or give a step more tokens (per_device_train_batch_size, \
         gradient_accumulation_steps)",
        if *others > 0 { format!(" (or {others} more)") } else { String::new() }
    )]
    NoExpertChosen {
        /// The optimizer step.
        step: u64,
        /// The first expert.
        name: String,
        /// How many more there are.
        others: usize,
    },
    /// The run would need more memory than there is.
    #[error(
        "this run needs about {} MiB of memory ({} MiB of it for the {tokens} tokens of its largest pass), but {place} can give {} MiB; {advice}",
        needed >> 20, activations >> 20, available >> 20
    )]
    DoesNotFit {
        /// What has too little: the system or a device.
        place: String,
        /// Predicted peak, bytes.
        needed: u64,
        /// Part of it that goes by the micro-batch, bytes.
        activations: u64,
        /// Tokens of the largest micro-batch.
        tokens: u64,
        /// What it can give, bytes.
        available: u64,
        /// What to change.
        advice: &'static str,
    },
    /// A run that would take more memory than it may.
    #[error(
        "this run needs about {} MiB of memory even with short passes and recomputed layers ({} MiB of it for passes of {tokens} tokens), but memory_budget allows {} MiB; {advice}",
        needed >> 20, activations >> 20, budget >> 20
    )]
    OverBudget {
        /// The least predicted peak, bytes.
        needed: u64,
        /// Part of it that goes by the pass, bytes.
        activations: u64,
        /// Tokens of the pass.
        tokens: u64,
        /// What it may take, bytes.
        budget: u64,
        /// What to change.
        advice: &'static str,
    },
    /// A reference to which token ids mean something else.
    #[error(
        "the reference {reference} has another vocabulary than the model ({what}); compare with a model of the same tokenizer"
    )]
    ReferenceVocabulary {
        /// The reference.
        reference: String,
        /// How they differ.
        what: String,
    },
    /// A teacher to which token ids mean something else.
    #[error(
        "the teacher {teacher} has another vocabulary than the student ({what}); distill from a model of the same tokenizer, or train on its answers with `planish sft`"
    )]
    TeacherVocabulary {
        /// The teacher.
        teacher: String,
        /// How they differ.
        what: String,
    },
    /// A file of a teacher's predictions that is none, or not of this data.
    #[error("{}: {problem}", path.display())]
    TeacherScores {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A pair that the precomputed log-probabilities do not have.
    #[error(
        "example {example} has no precomputed log-probabilities: the data has changed since they were made; start the run again"
    )]
    NotPrecomputed {
        /// Its number in the data set.
        example: usize,
    },
    /// Something that is not computed on devices yet.
    #[error("--device {device}: {what} is not supported there yet; use --device cpu")]
    NotOnDevice {
        /// The device asked for.
        device: planish_tensor::Device,
        /// What it cannot do.
        what: String,
    },
    /// A setting that made what a checkpoint holds, and is another now.
    #[error(
        "{key} is {is}, but {} was made with {was}: go on with that, or begin a new run",
        .checkpoint.display()
    )]
    Resumed {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The setting.
        key: String,
        /// Its value in the run that the checkpoint is of.
        was: String,
        /// The one given.
        is: String,
    },
    /// A checkpoint that does not fit the run.
    #[error("{}: {problem}", .path.display())]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
}

impl Error {
    /// The error of a kernel or of a device, if it is one.
    fn of_tensor(&self) -> Option<&planish_tensor::Error> {
        match self {
            Error::Tensor(e) | Error::Autograd(planish_autograd::Error::Tensor(e)) => Some(e),
            Error::Model(e) => e.of_tensor(),
            Error::Score(crate::score::ScoreError::Model { source, .. }) => source.of_tensor(),
            Error::DeviceFailed { source, .. } | Error::DeviceFull { source, .. } => source.of_tensor(),
            _ => None,
        }
    }

    /// Whether a device failed or has no room: what the user wrote is right.
    pub(crate) fn of_device(&self) -> bool {
        matches!(self.of_tensor(), Some(planish_tensor::Error::Device(_)))
    }

    /// With what to change, if a device has no room.
    pub(crate) fn advised(self, advice: impl FnOnce() -> &'static str) -> Error {
        match self {
            Error::DeviceFull { .. } => self,
            _ if self.of_tensor().is_some_and(planish_tensor::Error::is_no_room) => {
                Error::DeviceFull { source: Box::new(self), advice: advice(), hint: String::new() }
            }
            other => other,
        }
    }

    /// Whether the user can mend it: bad input or wrong use, as opposed to a failure of the machine or
    /// of this program.
    pub fn is_usage(&self) -> bool {
        use planish_autograd::Error as A;
        if self.of_device() {
            return false;
        }
        !matches!(
            self,
            Error::Autograd(A::GradientShape { .. } | A::ForeignTape { .. } | A::NoRule { .. })
                | Error::Tensor(planish_tensor::Error::OutOfMemory { .. })
                | Error::NotFinite { .. }
                | Error::Score(crate::score::ScoreError::NotFinite { .. })
        )
    }
}
