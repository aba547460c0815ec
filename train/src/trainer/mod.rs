//! The training loop that recipes set up and run: batches, loss, backward, clip, update, log,
//! evaluate, save.
//!
//! Everything that step N + 1 depends on is in the checkpoint of step N: the weights (and their f32
//! masters), AdamW's moments, the data cursor, and counters. Randomness is a function of (seed, step),
//! so a resumed run is bitwise the run that never stopped (law 6 of the design).

mod evaluate;
mod objective;
mod reached;
pub mod router;
mod state;

pub use evaluate::evaluate;
pub use objective::{CrossEntropy, Objective, Sums};
pub use state::TrainerState;
pub(crate) use state::{OBJECTIVE_FILE, PROJECTIONS_FILE, REFERENCE_FILE};

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use planish_autograd::{Param, Tape};
use planish_nn::Ctx;
use planish_nn::adapters::{AdapterConfig, adapter_params, save_adapter, save_training};
use planish_nn::decoder::{Model, Packed};
use planish_nn::tokenizer::Tokenizer;
use planish_tensor::rng::{Purpose, Rows, Stream};
use planish_tensor::{DType, Device};

use crate::config::{EvalSettings, Interval, OptimSettings, RunSettings};
use crate::data::{Batch, Loader, Sampler, Step};
use crate::losses::{LossSum, Want, cross_entropy_unread};
use crate::optim::{Optimizer, Rates, Update, grad_norm, learning_rate, optimizer};
use crate::plan;
use crate::run::{Checkpoint, Observer, Outcome, RunDir, RunPlan, StepMetrics, memory_use};
use crate::{Error, Result};

/// Steps that are made ahead on the data thread.
const AHEAD: usize = 2;

/// What a recipe has set up.
pub struct Trainer<'a> {
    /// The model, with its adapter attached if there is one.
    pub model: Model,
    /// The adapter's settings; full fine-tuning if `None`.
    pub adapter: Option<AdapterConfig>,
    /// Learning rates of single parameters, relative to the others' (LoRA+).
    pub rates: Rates,
    /// What is minimised.
    pub objective: Box<dyn Objective>,
    /// Saved with the model.
    pub tokenizer: Tokenizer,
    /// Training data.
    pub sampler: Arc<Sampler>,
    /// Held-out data.
    pub held_out: Option<Arc<Sampler>>,
    /// Optimizer steps of an epoch.
    pub steps_per_epoch: u64,
    /// Batches and the optimizer.
    pub optim: &'a OptimSettings,
    /// Evaluation.
    pub eval: &'a EvalSettings,
    /// Checkpoints.
    pub run: &'a RunSettings,
    /// The run directory.
    pub dir: RunDir,
}

impl Trainer<'_> {
    /// Optimizer steps in all.
    pub fn total_steps(&self) -> u64 {
        total_steps(self.optim, self.steps_per_epoch)
    }

    /// Trains from `resume`, or from the start, to the end.
    ///
    /// # Errors
    /// Data, disk, numbers that are none any more; the last good checkpoint stays as it is.
    pub fn train(mut self, resume: Option<&Checkpoint>, observer: &mut dyn Observer) -> Result<Outcome> {
        let mut step = 0;
        let done = self.run_steps(resume, observer, &mut step);
        done.map_err(|error| self.explained(error, step))
    }

    /// Trains; `at` is the step that is being done.
    fn run_steps(&mut self, resume: Option<&Checkpoint>, observer: &mut dyn Observer, at: &mut u64) -> Result<Outcome> {
        let o = self.optim;
        let params = self.model.params();
        let made = optimizer(&params, o, &self.rates, self.dir.path());
        let mut optimizer = made.map_err(|e| e.advised(|| plan::ROOM_FOR_STATE))?;
        // What the adapter has a say in: its own parameters.
        let own = self.adapter.as_ref().map(|_| adapter_params(&self.model, 0)).unwrap_or_default();
        let mut state = match resume {
            Some(from) => {
                self.objective.load(&from.path)?;
                let state = TrainerState::load(&from.path, &mut *optimizer)?;
                state.check(from, self.total_steps())?;
                state
            }
            None => TrainerState::default(),
        };
        state.template_time = self.sampler.encoder().options().template_time;
        state.tokens_per_pass = Some(o.pass());
        let total = self.total_steps();
        let warmup = o.warmup(total);
        let trained = optimizer.params();
        let trainable: usize = trained.iter().map(|p| p.value().numel()).sum();
        let upcoming = self.sampler.steps(state.cursor)?;
        self.dir.begin()?;
        observer.started(&RunPlan {
            run_dir: self.dir.path().to_path_buf(),
            first_step: state.step,
            total_steps: total,
            trainable_parameters: trainable as u64,
            parameters: params.iter().map(|p| p.value().numel() as u64).sum(),
        });
        let (mut log, mut events, mut advice) = (self.dir.metrics()?, self.dir.events()?, self.dir.advice()?);
        self.dir.write_unit(&self.objective.unit())?;
        if self.eval.eval_on_start
            && state.step == 0
            && let Some(found) = self.evaluate(&mut state, observer)?
        {
            log.write_start(&found)?;
        }
        let mut steps = Loader::new(upcoming, AHEAD);
        let (mut saved, mut checked) = (None, false);
        while state.step < total && !state.stopped_early {
            *at = state.step + 1;
            let started = Instant::now();
            let Some(step) = steps.next().transpose()? else { break };
            let sum = self.objective.accumulate(&self.model, o, &step, state.step)?;
            let first = !std::mem::replace(&mut checked, true);
            if first {
                reached::check(&trained, state.step + 1)?.iter().for_each(|sentence| observer.note(sentence));
            }
            let scale = 1.0 / sum.count;
            let penalty = match &self.adapter {
                Some(adapter) => adapter.penalise(&own, sum.count)?,
                None => 0.0,
            };
            let loss = sum.mean() + penalty;
            let norm = grad_norm(&trained, scale)?;
            if first {
                if !(loss.is_finite() && norm.is_finite()) {
                    check_weights(&params)?;
                }
                reached::moves(&trained, state.step + 1, norm)?;
            }
            self.check_finite(state.step + 1, loss, norm)?;
            let clip = if o.max_grad_norm > 0.0 { (o.max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
            let rate =
                learning_rate(o.lr_scheduler_type, &o.lr_scheduler_kwargs, o.learning_rate, state.step, warmup, total);
            let watching = self.adapter.as_ref().filter(|a| a.wants_gradients());
            let gradients: Vec<_> = watching.iter().flat_map(|_| own.iter().map(|p| p.grad())).collect();
            optimizer.step(Update { learning_rate: rate, grad_scale: scale * clip })?;
            if let Some(adapter) = watching {
                adapter.stepped(&own, &gradients, scale * clip, state.step + 1)?;
            }

            let epoch_ended = step.cursor.epoch > state.cursor.epoch;
            state.step += 1;
            self.objective.updated(&self.model, state.step)?;
            state.cursor = step.cursor;
            state.num_tokens += step.tokens as u64;
            let seconds = started.elapsed().as_secs_f64();
            let mut metrics = StepMetrics {
                step: state.step,
                epoch: step.epoch,
                loss,
                grad_norm: norm,
                learning_rate: rate,
                tokens: step.supervised as u64,
                num_tokens: state.num_tokens,
                tokens_per_second: step.tokens as f64 / seconds,
                step_seconds: seconds,
                peak_memory_bytes: self.peak_memory()?,
                extra: sum.means(),
            };
            for sentence in self.objective.advice(&sum) {
                advice.write_advice(state.step, &sentence)?;
                observer.note(&sentence);
            }
            let last = state.step == total;
            if due(self.eval.eval_strategy, self.eval_every(), state.step, epoch_ended || last) {
                optimizer.averaged(true)?;
                metrics.extra.extend(self.evaluate(&mut state, observer)?.into_iter().flatten());
                optimizer.averaged(false)?;
            }
            log.write(&metrics)?;
            events.write(&metrics)?;
            observer.stepped(&metrics);
            let interrupted = observer.interrupted();
            if interrupted || due(self.run.save_strategy, self.run.save_steps, state.step, epoch_ended) {
                log.sync()?;
                advice.sync()?;
                optimizer.averaged(true)?;
                saved = Some(self.save(&state, &*optimizer, observer)?);
                optimizer.averaged(false)?;
            }
            if interrupted && !last {
                let checkpoint = saved.expect("just saved").path;
                let outcome = Outcome::Interrupted { checkpoint };
                observer.finished(&outcome);
                return Ok(outcome);
            }
        }
        drop(steps);
        optimizer.averaged(true)?;
        let result = self.save_result(&state)?;
        crate::run::report::write(self.dir.path())?;
        let outcome = Outcome::Finished { result };
        observer.finished(&outcome);
        Ok(outcome)
    }

    /// The most bytes ever in use: on the device by tensors, or by this process.
    fn peak_memory(&self) -> Result<u64> {
        Ok(match self.model.device().memory()? {
            Some(memory) => memory.peak,
            None => memory_use().map_or(0, |m| m.peak),
        })
    }

    fn check_finite(&self, step: u64, loss: f64, norm: f64) -> Result<()> {
        for (what, value) in [("loss", loss), ("gradient norm", norm)] {
            if !value.is_finite() {
                return Err(Error::NotFinite { step, what, value, hint: self.last_good() });
            }
        }
        Ok(())
    }

    /// Where to go on from, as a clause; nothing where there is no checkpoint.
    fn last_good(&self) -> String {
        let last = self.dir.checkpoints().ok().and_then(|mut all| all.pop());
        last.map_or(String::new(), |c| format!(" (the last checkpoint is {})", c.path.display()))
    }

    /// An error of the device with the last checkpoint, and what makes room if that is what it lacks.
    fn explained(&self, error: Error, step: u64) -> Error {
        match error.advised(|| plan::room_for_step(self.optim)) {
            Error::DeviceFull { source, advice, .. } => Error::DeviceFull { source, advice, hint: self.last_good() },
            other if step > 0 && other.of_device() => {
                Error::DeviceFailed { step, source: Box::new(other), hint: self.last_good() }
            }
            other => other,
        }
    }

    fn eval_every(&self) -> u64 {
        self.eval.eval_steps.unwrap_or(self.run.logging_steps)
    }

    /// Evaluates, notes the best, and decides on early stopping.
    fn evaluate(
        &mut self,
        state: &mut TrainerState,
        observer: &mut dyn Observer,
    ) -> Result<Option<Vec<(String, f64)>>> {
        let Some(sampler) = &self.held_out else { return Ok(None) };
        let started = Instant::now();
        let sum = self.objective.evaluate(&self.model, self.optim, sampler)?;
        let mut found = vec![("eval_loss".to_string(), sum.mean())];
        found.extend(sum.means().into_iter().map(|(name, mean)| (format!("eval_{name}"), mean)));
        found.push(("eval_runtime".to_string(), started.elapsed().as_secs_f64()));
        observer.evaluated(state.step, &found);
        let wanted = self.eval.metric_for_best_model.as_deref().unwrap_or("eval_loss");
        let name = if wanted.starts_with("eval_") { wanted.to_string() } else { format!("eval_{wanted}") };
        let Some((_, value)) = found.iter().find(|(n, _)| *n == name) else {
            let problem = "is not a metric of this recipe's evaluation; use eval_loss, eval_entropy, or another that metrics.jsonl has after an evaluation";
            return Err(crate::config::ConfigError::Conflict { key: "metric_for_best_model", problem }.into());
        };
        let greater = self.eval.greater_is_better.unwrap_or(!name.ends_with("loss"));
        let gain = state.best.map_or(f64::INFINITY, |best| if greater { value - best } else { best - value });
        if gain > 0.0 {
            state.best = Some(*value);
            state.best_step = Some(state.step);
        }
        // As in transformers: patience counts evaluations without a gain over the threshold.
        if gain > self.eval.early_stopping_threshold {
            state.bad_evaluations = 0;
        } else {
            state.bad_evaluations += 1;
        }
        if self.eval.early_stopping_patience.is_some_and(|p| state.bad_evaluations >= p) {
            observer.note(&format!("stopped early: {} evaluations without a better {name}", state.bad_evaluations));
            state.stopped_early = true;
        }
        Ok(Some(found))
    }

    fn save(&self, state: &TrainerState, optimizer: &dyn Optimizer, observer: &mut dyn Observer) -> Result<Checkpoint> {
        let checkpoint = self.dir.save_checkpoint(state.step, |dir| {
            self.save_model(dir)?;
            self.objective.save(dir)?;
            if let Some(adapter) = &self.adapter {
                save_training(&self.model, &**adapter, dir)?;
            }
            state.save(dir, optimizer)
        })?;
        observer.saved(&checkpoint.path);
        if let Some(limit) = self.run.save_total_limit {
            let best = state.best_step.filter(|_| self.eval.load_best_model_at_end);
            self.dir.rotate(limit, best)?;
        }
        Ok(checkpoint)
    }

    /// Writes the adapter, or the whole model, with the tokenizer.
    fn save_model(&self, dir: &Path) -> Result<()> {
        match &self.adapter {
            Some(config) => save_adapter(&self.model, &**config, dir)?,
            None => self.model.save(dir)?,
        }
        Ok(self.tokenizer.save(dir).map_err(planish_nn::Error::from)?)
    }

    /// Writes `final/`: the weights as they are, or those of the best checkpoint.
    fn save_result(&self, state: &TrainerState) -> Result<PathBuf> {
        let best = match state.best_step.filter(|s| self.eval.load_best_model_at_end && *s != state.step) {
            Some(step) => self.dir.checkpoints()?.into_iter().find(|c| c.step == step),
            None => None,
        };
        match best {
            Some(best) => self.dir.save_final(|dir| state::copy_model(&best.path, dir)),
            None => self.dir.save_final(|dir| self.save_model(dir)),
        }
    }
}

/// Finds out whether weights that no step has changed yet are to blame for a loss that is no number.
///
/// # Errors
/// [`Error::WeightNotFinite`] for the first that is.
fn check_weights(params: &[Param]) -> Result<()> {
    for param in params {
        let value = param.value();
        // Weights in blocks have no dtype of their own, and widen to what they stand for.
        let values = value.to_device(Device::Cpu)?.to_dtype(DType::F32)?.to_vec::<f32>()?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let (name, value) = (param.name().to_owned(), values[at]);
            return Err(Error::WeightNotFinite { name, value, at });
        }
    }
    Ok(())
}

/// Adds the gradient of the step's summed loss to the parameters, micro-batch by micro-batch, each in parts
/// of up to `tokens_per_pass` tokens.
///
/// `done` optimizer steps are behind. Dropout masks and NEFTune's noise are functions of the seed, `done`,
/// the example and the position in it ([`row_keys`]): how the step is split changes sums by rounding only.
///
/// # Errors
/// A token id outside the vocabulary; those of the kernels.
pub fn accumulate(model: &Model, optim: &OptimSettings, step: &Step, done: u64) -> Result<LossSum> {
    accumulate_sharing(model, optim, step, done, false)
}

/// As [`accumulate`]; with `share` for a run without dropout: what neighbouring examples begin with is computed once.
///
/// # Errors
/// As [`accumulate`].
pub fn accumulate_sharing(
    model: &Model,
    optim: &OptimSettings,
    step: &Step,
    done: u64,
    share: bool,
) -> Result<LossSum> {
    let mut unread = Vec::new();
    for (batch, ctx) in passes(optim, step, done, share) {
        let want = Want { recompute: optim.recomputes_layers(), beginnings: share, ..Want::default() };
        unread.push(cross_entropy_unread(model, &ctx, &packed(&batch), &batch.mask, want)?);
    }
    // All at the end: a device is not waited for between micro-batches.
    let mut sum = LossSum::default();
    for part in unread {
        sum += part.read()?;
    }
    Ok(sum)
}

/// A step that leaves nothing but gradients, as large as one of a run: to measure what it takes.
///
/// # Errors
/// As [`accumulate`].
pub(crate) fn trial(model: &Model, optim: &OptimSettings, step: &Step) -> Result<()> {
    match model.config.moe {
        None => accumulate(model, optim, step, 0).map(drop),
        Some(_) => {
            let terms = crate::losses::RouterTerms { balance: 1.0, z: 1.0 };
            router::accumulate(model, optim, step, 0, false, terms).map(drop)
        }
    }
}

/// The passes that a step's micro-batches are cut into, each with its context: a tape of its own, and its random
/// numbers (without dropout if examples `share` their beginnings).
pub(crate) fn passes(optim: &OptimSettings, step: &Step, done: u64, share: bool) -> Vec<(Batch, Ctx)> {
    let parts: Vec<Batch> = step.micro_batches.iter().flat_map(|b| b.split(optim.pass() as usize)).collect();
    let keys = row_keys(&parts);
    let context = |keys: Arc<[u64]>| {
        let rows = |purpose| Rows::new(Stream::new(optim.seed, purpose, done), keys.clone());
        let ctx = Ctx::training(&Tape::new(), (!share).then(|| rows(Purpose::Dropout))).lean(optim.recomputes_mlps());
        match optim.neftune_noise_alpha.filter(|a| *a > 0.0) {
            Some(alpha) => ctx.with_embedding_noise(alpha, rows(Purpose::Noise)),
            None => ctx,
        }
    };
    parts.into_iter().zip(keys).map(|(batch, keys)| (batch, context(keys))).collect()
}

/// The random key of each token of a step's micro-batches: a function of the example's number in the data
/// set, of how often it came before in the step, and of the position in it.
///
/// Examples that a weight above 1 shows twice in a step get masks of their own. The pieces that `wrapped`
/// packing cuts an example into count as times it came.
pub fn row_keys(micro_batches: &[Batch]) -> Vec<Arc<[u64]>> {
    let mut seen: HashMap<usize, u32> = HashMap::new();
    let mut keys = |batch: &Batch| -> Arc<[u64]> {
        let segments = batch.example_indices.iter().zip(batch.cu_seqlens.windows(2));
        let mut keys = Vec::with_capacity(batch.tokens());
        for (&example, segment) in segments {
            let times = seen.entry(example).or_default();
            keys.extend((0..segment[1] - segment[0]).map(|position| Rows::key(example as u64, *times, position)));
            *times += 1;
        }
        keys.into()
    };
    micro_batches.iter().map(&mut keys).collect()
}

/// Optimizer steps of a run.
pub fn total_steps(optim: &OptimSettings, steps_per_epoch: u64) -> u64 {
    match u64::try_from(optim.max_steps) {
        Ok(steps) if steps > 0 => steps,
        _ => ((optim.num_train_epochs * steps_per_epoch as f64).ceil() as u64).max(1),
    }
}

/// Whether something that is done every so often is due after `step`.
fn due(interval: Interval, every: u64, step: u64, epoch_ended: bool) -> bool {
    match interval {
        Interval::No => false,
        Interval::Steps => step.is_multiple_of(every.max(1)),
        Interval::Epoch => epoch_ended,
    }
}

/// The decoder's view of a batch.
pub fn packed(batch: &Batch) -> Packed {
    Packed {
        ids: batch.ids.as_slice().into(),
        positions: batch.positions.as_slice().into(),
        cu_seqlens: batch.cu_seqlens.as_slice().into(),
        stems: Arc::new([]),
    }
}
