//! From settings to samplers: what the recipes on tokens have in common.

use std::path::PathBuf;
use std::sync::Arc;

use planish_nn::config::ModelConfig;
use planish_nn::decoder::Model;
use planish_nn::tokenizer::Tokenizer;
use planish_nn::weights::atomic_write;
use planish_tensor::Device;

use super::resumed;
use crate::Result;
use crate::builtin;
use crate::config::{
    DataSettings, DocumentChoice, Granularity, OptimSettings, PackingStrategy, Recipe, RowType, RunSettings,
    TruncationMode, to_yaml,
};
use crate::data::{
    Columns, Dataset, DatasetSpec, DatasetType, EncodeOptions, Encoder, Lengths, OnUnsupervised, Packing, Preflight,
    SampleBy, Sampler, SamplerOptions, StepOptions, Truncation, ValidationSplit, preflight,
};
use crate::models::BUILTIN;
use crate::plan::{self, Costs, MemoryPlan, Work};
use crate::run::{Checkpoint, Observer, RunDir, memory_use};
use crate::trainer::{TrainerState, total_steps};

/// Rows that the preflight report looks at before it turns to a sample.
const PREFLIGHT_ROWS: u64 = 20_000;

/// Training and held-out samplers, and the report on the former.
pub(super) struct Inputs {
    pub(super) sampler: Arc<Sampler>,
    pub(super) held_out: Option<Arc<Sampler>>,
    pub(super) report: Preflight,
    pub(super) lengths: Lengths,
    pub(super) steps_per_epoch: u64,
}

impl Inputs {
    /// Memory of training `model` on them, and what was measured for it. Takes a few short training steps.
    pub(super) fn memory(&self, model: &Model, optim: &OptimSettings, trial: usize) -> Result<(MemoryPlan, Costs)> {
        let worst = self.worst(optim);
        let (mean_length, supervised_share) = (self.lengths.mean, self.report.supervised_share);
        let tokens = self.pass(worst, optim.pass());
        let work = Work { tokens, mean_length, longest: self.lengths.max as u64, supervised_share };
        let measured = plan::measure(model, optim, &work, trial);
        let costs = measured.map_err(|e| e.advised(|| plan::room_for_step(optim)))?;
        // Now that its code, its threads' buffers and its heap have been in use; what tensors left is not the
        // program's.
        planish_tensor::pool::clear();
        Ok((self.plan(model, optim, &costs, optim.pass())?, costs))
    }

    /// The plan for passes of up to `limit` tokens, from costs that were measured for any other.
    fn plan(&self, model: &Model, optim: &OptimSettings, costs: &Costs, limit: u64) -> Result<MemoryPlan> {
        let worst = self.worst(optim);
        let tokens = self.pass(worst, limit);
        let parts = usize::try_from(worst.div_ceil(tokens.max(1))).unwrap_or(usize::MAX);
        let passes = optim.gradient_accumulation_steps.saturating_mul(parts);
        plan::memory(model, optim, costs, tokens, passes, costs.in_use_before.or_else(|| memory_of(model).0))
    }

    /// Tokens of the largest micro-batch.
    fn worst(&self, optim: &OptimSettings) -> u64 {
        let steps = total_steps(optim, self.steps_per_epoch);
        let micro_batches = steps.saturating_mul(optim.gradient_accumulation_steps as u64).max(1);
        plan::worst_micro_batch(&self.sampler, &self.lengths, self.lengths.max as u64, micro_batches)
    }

    /// Tokens that go through the model at once, of `worst`: passes are cut between examples.
    fn pass(&self, worst: u64, limit: u64) -> u64 {
        if limit == 0 { worst } else { worst.min(limit.max(self.lengths.max as u64)) }
    }
}

/// Memory in use where the model is, and still to be had there; of the processor, by the process and from the system.
fn memory_of(model: &Model) -> (Option<u64>, Option<u64>) {
    match model.device().memory() {
        Ok(Some(memory)) => (Some(memory.in_use), Some(memory.free)),
        _ => (memory_use().map(|m| m.current), plan::available_memory()),
    }
}

/// Tokens of the trial steps of the start of a run; the emulator is slow.
fn trial_tokens(model: &Model) -> usize {
    if matches!(model.device(), Device::Emulator(_)) { 8 } else { plan::MEMORY_TOKENS }
}

/// The shortest pass that a memory budget leads to: below, matrix products lose more than memory is won.
const SHORTEST_PASS: u64 = 256;

/// The first of `limit`, half of it and so on down to `least` that fits, or the last and what is wrong with it.
fn halved(mut limit: u64, least: u64, mut fits: impl FnMut(u64) -> Result<()>) -> (u64, Result<()>) {
    loop {
        match fits(limit) {
            Err(_) if limit / 2 >= least.max(1) => limit /= 2,
            found => return (limit, found),
        }
    }
}

/// Chooses the longest pass that fits, of the usual length of the device and its halves down to `least`, by the memory that was in
/// use and to be had before the trial.
fn settle(
    inputs: &Inputs,
    model: &Model,
    optim: &mut OptimSettings,
    costs: &Costs,
    least: u64,
    (in_use, available): (u64, Option<u64>),
) -> Result<()> {
    let (device, recomputes) = (model.device(), optim.recomputes_layers());
    let check = |costs: &Costs, limit| {
        plan::check_fits(&inputs.plan(model, optim, costs, limit)?, device, in_use, available, recomputes)
    };
    let fits = |limit| check(costs, limit).or_else(|_| check(&costs.at_least(), limit));
    let (limit, found) = halved(optim.pass(), least, fits);
    optim.tokens_per_pass = Some(limit);
    found
}

/// What a run would take, in the passes that it would choose, and within a memory budget with the recomputation; one that does not fit is
/// foreseen all the same, but for a budget that no choice keeps to. The trial is of `trial` tokens.
pub(super) fn foreseen(
    inputs: &Inputs,
    model: &Model,
    optim: &mut OptimSettings,
    trial: usize,
) -> Result<(MemoryPlan, Costs)> {
    if optim.memory_budget.is_some() {
        fit(inputs, model, optim, None)?;
        return inputs.memory(model, optim, trial);
    }
    let (in_use, available) = memory_of(model);
    let least = optim.settle_pass(model.device());
    // One trial: it leaves copies of weights on a device.
    let (_, costs) = inputs.memory(model, optim, trial)?;
    let _ = settle(inputs, model, optim, &costs, least, (in_use.unwrap_or(0), available));
    Ok((inputs.plan(model, optim, &costs, optim.pass())?, costs))
}

/// Refuses a run that will not fit into memory (law 7), on a device not before shorter passes than its usual ones; with a
/// memory budget, chooses the longest passes that fit, and recomputation, of MLPs and then of layers, only where the shortest
/// do not. A resumed run keeps the passes of its checkpoint.
pub(super) fn fit(
    inputs: &Inputs,
    model: &Model,
    optim: &mut OptimSettings,
    resume: Option<&Checkpoint>,
) -> Result<()> {
    let (in_use, available) = memory_of(model);
    let in_use = in_use.unwrap_or(0);
    let fixed = match resume {
        Some(from) => TrainerState::read(&from.path)?.tokens_per_pass,
        None => None,
    };
    // A run goes on as it began, whatever else would be chosen now.
    optim.tokens_per_pass = optim.tokens_per_pass.or(fixed);
    let least = optim.settle_pass(model.device());
    let Some(gib) = optim.memory_budget else {
        let (_, costs) = inputs.memory(model, optim, trial_tokens(model))?;
        return settle(inputs, model, optim, &costs, least, (in_use, available));
    };
    let budget = (gib * (1u64 << 30) as f64) as u64;
    let mut limits: Vec<u64> = fixed.into_iter().collect();
    if fixed.is_none() {
        limits.push(optim.pass());
        let mut next = inputs.pass(inputs.worst(optim), optim.pass()).next_power_of_two() / 2;
        while next >= SHORTEST_PASS {
            limits.push(next);
            next /= 2;
        }
    }
    let mut least = None;
    // An MLP's products again cost half of what a layer's do.
    for (recompute, what) in [(false, Granularity::Full), (true, Granularity::Selective), (true, Granularity::Full)] {
        (optim.gradient_checkpointing, optim.recompute_granularity) = (recompute, what);
        let (_, costs) = inputs.memory(model, optim, trial_tokens(model))?;
        for &limit in &limits {
            let plan = inputs.plan(model, optim, &costs, limit)?;
            if plan.total() <= budget {
                optim.tokens_per_pass = Some(limit);
                return plan::check_fits(&plan, model.device(), in_use, available, optim.recomputes_layers());
            }
            least = Some(plan);
        }
    }
    let plan = least.expect("at least one length of a pass was tried");
    Err(plan::over_budget(&plan, budget))
}

/// What rows a recipe takes, and what becomes of them.
pub(super) struct Rows<'a> {
    /// Types of each `dataset` and `eval_dataset`, in their order; the last goes for all that follow.
    pub(super) accepted: Vec<&'a [DatasetType]>,
    pub(super) packing: Packing,
    /// Of answers in steps.
    pub(super) steps: StepOptions,
}

impl<'a> Rows<'a> {
    pub(super) fn new(accepted: &'a [DatasetType], packing: Packing) -> Rows<'a> {
        Rows { accepted: vec![accepted], packing, steps: StepOptions::default() }
    }
}

/// Opens the data and looks it over.
pub(super) fn open(
    data: &DataSettings,
    optim: &OptimSettings,
    eval_batch: usize,
    tokenizer: &Tokenizer,
    model: &ModelConfig,
    rows: Rows<'_>,
) -> Result<Inputs> {
    let Rows { accepted, packing, steps } = rows;
    let options = EncodeOptions {
        max_length: data.max_length,
        truncation_mode: match data.truncation_mode {
            TruncationMode::KeepStart => Truncation::KeepStart,
            TruncationMode::KeepEnd => Truncation::KeepEnd,
            TruncationMode::Drop => Truncation::Drop,
        },
        completion_only_loss: data.completion_only_loss,
        assistant_only_loss: data.assistant_only_loss,
        on_unsupervised: match data.drop_unsupervised || data.drop_invalid {
            true => OnUnsupervised::Drop,
            false => OnUnsupervised::Error,
        },
        drop_invalid: data.drop_invalid,
        vocab_size: Some(model.vocab_size),
        window: Some(model.window()),
        template_time: data.template_time,
        steps,
        ..EncodeOptions::default()
    };
    let encoder = Encoder::new(Arc::new(tokenizer.clone()), options)?;
    let columns = columns(data);
    let seed = optim.data_seed.unwrap_or(optim.seed);
    let each = |specs: Vec<DatasetSpec>| {
        let all = accepted.iter().copied().chain(std::iter::repeat(accepted.last().copied().unwrap_or_default()));
        specs.into_iter().zip(all).collect::<Vec<_>>()
    };
    let own = specs(&data.dataset, &data.dataset_weights, builtin::instructions())?;
    let train = Arc::new(Dataset::open_each(&each(own), &columns)?);
    let (view, held) = match &data.eval_dataset[..] {
        [] => {
            let split = (data.validation_split > 0.0).then_some(ValidationSplit::Fraction(data.validation_split));
            train.split(split, seed)?
        }
        files => {
            let eval = Arc::new(Dataset::open_each(&each(specs(files, &[], builtin::heldout())?), &columns)?);
            (train.split(None, seed)?.0, Some(eval.all()))
        }
    };
    let options = SamplerOptions {
        seed,
        shuffle: data.shuffle,
        micro_batch: optim.per_device_train_batch_size,
        accumulation: optim.gradient_accumulation_steps,
        packing,
        ..SamplerOptions::default()
    };
    let held_out = match held {
        None => None,
        Some(view) => {
            let options = SamplerOptions {
                shuffle: false,
                micro_batch: eval_batch,
                accumulation: 1,
                packing: Packing::None,
                ..options.clone()
            };
            Some(Arc::new(Sampler::new(view, encoder.of_held_out(), options)?))
        }
    };
    let sampler = Arc::new(Sampler::new(view, encoder, options)?);
    let (report, lengths) = preflight(&sampler, PREFLIGHT_ROWS)?;
    let steps_per_epoch = sampler.steps_in_epoch(&lengths, 0);
    Ok(Inputs { sampler, held_out, report, lengths, steps_per_epoch })
}

/// What the columns of the files mean.
pub(super) fn columns(data: &DataSettings) -> Columns {
    Columns {
        prompt: data.prompt_column.clone(),
        completion: data.completion_column.clone(),
        text: data.dataset_text_field.clone(),
        messages: data.messages_column.clone(),
        kind: data.dataset_type.map(row_type),
        sample_by: match data.sample_by {
            DocumentChoice::Paragraph => SampleBy::Paragraph,
            DocumentChoice::Line => SampleBy::Line,
            DocumentChoice::Document => SampleBy::Document,
        },
        skip_invalid: data.drop_invalid,
    }
}

/// The checkpoint to go on from, if the settings name one.
pub(super) fn checkpoint(run: &RunSettings) -> Result<Option<Checkpoint>> {
    let Some(from) = &run.resume_from_checkpoint else { return Ok(None) };
    Ok(Some(Checkpoint::find(from, run.output_dir.as_ref())?))
}

/// Makes or reopens the run directory, into which the settings and the report are written when the run begins, and tells
/// the observer what the report warns of.
pub(super) fn begin<C: Recipe>(
    config: &C,
    run: &RunSettings,
    report: &Preflight,
    observer: &mut dyn Observer,
) -> Result<(RunDir, Option<Checkpoint>)> {
    if let Some(from) = checkpoint(run)? {
        resumed::compare(config, &from, observer)?;
    }
    let (mut dir, resume) = run_dir(run)?;
    dir.at_begin("config.yaml", to_yaml(config).into_bytes());
    dir.at_begin("preflight.json", serde_json::to_vec_pretty(report).expect("plain numbers and texts"));
    observer.preflight(report);
    Ok((dir, resume))
}

/// The time that chat templates see: the one set, else that of the run which is resumed, else (`None`) now.
pub(super) fn template_time(data: &DataSettings, resume: Option<&Checkpoint>) -> Result<Option<u64>> {
    match (data.template_time, resume) {
        (None, Some(from)) => Ok(TrainerState::read(&from.path)?.template_time),
        (set, _) => Ok(set),
    }
}

/// How the settings ask for packing.
pub(super) fn packing(data: &DataSettings) -> Packing {
    match (data.packing, data.packing_strategy) {
        (false, _) => Packing::None,
        (true, PackingStrategy::Bfd) => Packing::Bfd,
        (true, PackingStrategy::Wrapped) => Packing::Wrapped,
    }
}

fn row_type(named: RowType) -> DatasetType {
    match named {
        RowType::Messages => DatasetType::Messages,
        RowType::Conversations => DatasetType::ShareGpt,
        RowType::PromptCompletion => DatasetType::PromptCompletion,
        RowType::QuestionAnswer => DatasetType::QuestionAnswer,
        RowType::Alpaca => DatasetType::Alpaca,
        RowType::Text => DatasetType::Text,
        RowType::Tokenized => DatasetType::Tokenized,
    }
}

/// The files that settings name, `builtin` standing for the instructions inside the program.
///
/// # Errors
/// A name or weight that cannot be read; no room for the program's own rows.
pub fn datasets(files: &[String]) -> Result<Vec<DatasetSpec>> {
    specs(files, &[], builtin::instructions())
}

/// The files, `builtin` standing for `own`.
pub(super) fn specs(files: &[String], weights: &[f64], own: &str) -> Result<Vec<DatasetSpec>> {
    let mut specs = Vec::new();
    for (i, file) in files.iter().enumerate() {
        let mut spec = match file.as_str() {
            BUILTIN => DatasetSpec::new(as_file(own)?),
            _ => DatasetSpec::parse(file)?,
        };
        if let Some(weight) = weights.get(i) {
            spec.weight = *weight;
        }
        specs.push(spec);
    }
    Ok(specs)
}

/// The program's own rows as a file, which is where rows are read from: in the system's directory for
/// temporary files, under a name that says what is in it.
fn as_file(rows: &str) -> Result<PathBuf> {
    let hash = rows.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3));
    let path = std::env::temp_dir().join(format!("planish-builtin-{hash:016x}.jsonl"));
    if std::fs::read(&path).ok().as_deref() != Some(rows.as_bytes()) {
        atomic_write(&path, |to| to.write_all(rows.as_bytes()))?;
    }
    Ok(path)
}

/// Makes or reopens the run directory, and finds the checkpoint to go on from.
fn run_dir(run: &RunSettings) -> Result<(RunDir, Option<Checkpoint>)> {
    Ok(match checkpoint(run)? {
        None => (RunDir::create(&run.output_dir, run.overwrite_output_dir)?, None),
        Some(checkpoint) => (RunDir::resume(&run.output_dir, &checkpoint)?, Some(checkpoint)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigError;

    #[test]
    fn passes_are_halved_until_one_fits() {
        let up_to = |room: u64| {
            move |limit: u64| match limit <= room {
                true => Ok(()),
                false => Err(ConfigError::Conflict { key: "limit", problem: "is too much" }.into()),
            }
        };
        for (limit, least, room, want, fits) in [
            (8192, 1024, 10_000, 8192, true),
            (8192, 1024, 3000, 2048, true),
            (8192, 1024, 1000, 1024, false),
            // Said by the user, or not to be cut at all.
            (4096, 4096, 3000, 4096, false),
            (0, 0, 0, 0, true),
        ] {
            let (got, found) = halved(limit, least, up_to(room));
            assert_eq!((got, found.is_ok()), (want, fits), "{limit} down to {least} in {room}");
        }
        let mut optim = OptimSettings::default();
        assert_eq!((optim.settle_pass(Device::Cuda(0)), optim.tokens_per_pass), (1024, Some(8192)));
        assert_eq!((optim.settle_pass(Device::Cuda(0)), optim.pass()), (8192, 8192));
        let mut optim = OptimSettings::default();
        assert_eq!((optim.settle_pass(Device::Cpu), optim.tokens_per_pass), (704, Some(704)));
    }
}
