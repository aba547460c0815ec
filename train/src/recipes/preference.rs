//! From settings to a trainer: what the recipes on preferences have in common.

use std::path::{Path, PathBuf};

use planish_nn::adapters::{AdapterConfig, load_adapter};
use planish_nn::decoder::Model;

use super::inputs;
use crate::config::{ModelSettings, OptimSettings, PreferenceBlocks, PreferenceRecipe, ReferenceSettings, RunSettings};
use crate::data::{DatasetType, Packing};
use crate::device::{self, Demands};
use crate::models::{self, Opened};
use crate::optim::Rates;
use crate::preference::{Follow, Reference, Scoring, precompute, same_vocabulary};
use crate::run::{Checkpoint, Observer, Outcome};
use crate::trainer::{Objective, Trainer, total_steps};
use crate::{Result, adapt};

/// Runs a recipe on preferences with the objective that `objective` makes of the settings, and of what the run
/// begins with.
pub(super) fn run<C: PreferenceRecipe>(
    config: &C,
    accepted: &[DatasetType],
    observer: &mut dyn Observer,
    objective: impl FnOnce(&C, &Ready, &mut dyn Observer) -> Result<Box<dyn Objective>>,
) -> Result<Outcome> {
    run_rows(config, inputs::Rows::new(accepted, Packing::None), observer, objective)
}

/// As [`run`], of other rows.
pub(super) fn run_rows<C: PreferenceRecipe>(
    config: &C,
    rows: inputs::Rows<'_>,
    observer: &mut dyn Observer,
    objective: impl FnOnce(&C, &Ready, &mut dyn Observer) -> Result<Box<dyn Objective>>,
) -> Result<Outcome> {
    let mut settings = config.clone();
    let blocks = settings.blocks();
    let (model, lora, optim) = (blocks.model.clone(), blocks.lora.clone(), blocks.optim.clone());
    let build: Build<'_> = Box::new(|opened, inputs, resume| {
        let steps = total_steps(&optim, inputs.steps_per_epoch);
        adapt::build(opened, &model, &lora, &optim, steps, resume)
    });
    run_with(config, rows, observer, build, objective)
}

/// As [`run`], with a model that `build` makes of the files, or of those of the checkpoint to go on from.
pub(super) fn run_with<C: PreferenceRecipe>(
    config: &C,
    rows: inputs::Rows<'_>,
    observer: &mut dyn Observer,
    build: Build<'_>,
    objective: impl FnOnce(&C, &Ready, &mut dyn Observer) -> Result<Box<dyn Objective>>,
) -> Result<Outcome> {
    let mut config = config.clone();
    let ready = ready(config.blocks(), rows, observer, build)?;
    let objective = objective(&config, &ready, observer)?;
    ready.train(&mut config, objective, observer)
}

/// What a run begins with, before anything is written.
pub(super) struct Ready {
    opened: Opened,
    pub(super) model: Model,
    adapter: Option<AdapterConfig>,
    rates: Rates,
    pub(super) inputs: inputs::Inputs,
    resume: Option<Checkpoint>,
}

/// A model, and the settings of its adapter if it has one.
type Built = (Model, Option<AdapterConfig>);

/// Makes the model: of the files that were opened, for these data, or of a checkpoint.
pub(super) type Build<'a> = Box<dyn FnOnce(&Opened, &inputs::Inputs, Option<&Checkpoint>) -> Result<Built> + 'a>;

/// Opens model and data, and looks the data over. Settings that were left to the start of the run are set.
fn ready(
    b: PreferenceBlocks<'_>,
    rows: inputs::Rows<'_>,
    observer: &mut dyn Observer,
    build: Build<'_>,
) -> Result<Ready> {
    let demands = Demands::none().training(b.optim).bf16(b.run.bf16);
    device::choose(b.run.device, &demands)?;
    let opened = Opened::by(b.model, &mut |p| observer.downloading(&p))?;
    let resume = inputs::checkpoint(b.run)?;
    b.data.template_time = inputs::template_time(&b.data.general(), resume.as_ref())?;
    let eval_batch = b.eval.per_device_eval_batch_size;
    let inputs =
        inputs::open(&b.data.general(), b.optim, eval_batch, &opened.tokenizer, &opened.pretrained.config, rows)?;
    b.data.template_time = inputs.sampler.encoder().options().template_time;
    let (mut model, adapter) = build(&opened, &inputs, resume.as_ref())?;
    device::place(&mut model, b.run.device, &demands)?;
    let rates = adapt::rates(b.lora, b.optim);
    Ok(Ready { opened, model, adapter, rates, inputs, resume })
}

impl Ready {
    /// The reference that the settings ask for. `verbose` is LD-DPO's weight; `share` is whether
    /// pairs share their prompts where it computes.
    pub(super) fn reference(
        &self,
        settings: &ReferenceSettings,
        (model, run, optim): (&ModelSettings, &RunSettings, &OptimSettings),
        verbose: f64,
        share: bool,
        observer: &mut dyn Observer,
    ) -> Result<Reference> {
        let reference = self.open_reference(settings, model, observer)?;
        if !settings.precompute_ref_log_probs {
            return Ok(reference);
        }
        let dir = match &settings.ref_cache_dir {
            Some(dir) => PathBuf::from(dir),
            None => Path::new(&run.output_dir).parent().unwrap_or(Path::new("")).join("reference-cache"),
        };
        let samplers = (&*self.inputs.sampler, self.inputs.held_out.as_deref());
        let note = &mut |sentence: &str| observer.note(sentence);
        let mut optim = optim.clone();
        optim.settle_pass(self.model.device());
        let how = Scoring { verbose_weight: verbose, tokens_per_pass: optim.pass(), share };
        let known = precompute(&reference, &self.model, samplers, how, &dir, note)?;
        Ok(Reference::Known(known))
    }

    fn open_reference(
        &self,
        settings: &ReferenceSettings,
        model: &ModelSettings,
        observer: &mut dyn Observer,
    ) -> Result<Reference> {
        let follow = settings
            .sync_ref_model
            .then_some(Follow { alpha: settings.ref_model_mixup_alpha, every: settings.ref_model_sync_steps });
        let own = |mut model: Model| -> Result<Reference> {
            device::beside(&mut model, &self.model)?;
            Ok(Reference::Model { model: Box::new(model), follow })
        };
        if settings.reference_free {
            return Ok(Reference::Free);
        }
        if let Some(name) = &settings.ref_model {
            let opened = models::open(name, &settings.ref_model_revision, &mut |p| observer.downloading(&p))?;
            let opened = opened.quantized(model);
            let of = |o: &Opened| o.pretrained.config.vocab_size;
            same_vocabulary(name, (&opened.tokenizer, of(&opened)), (&self.opened.tokenizer, of(&self.opened)))?;
            if name != &model.model || model.adapter.is_some() {
                let start = match &model.adapter {
                    Some(adapter) => format!("{} with {adapter}", model.model),
                    None => model.model.clone(),
                };
                observer.note(&format!(
                    "the reference {name} is not the model that the run starts from, {start}: at first step the loss already pulls towards {name}"
                ));
            }
            return own(opened.load(model.dtype, false)?);
        }
        match (&self.adapter, &model.adapter) {
            // The base as it is, under the adapter switched off.
            (Some(_), None) => Ok(Reference::Base),
            // The adapter as it is given; the base's weights are shared if they are mapped.
            (Some(_), Some(dir)) => {
                let mut reference = self.opened.load(model.dtype, false)?;
                load_adapter(&mut reference, dir.as_ref())?;
                own(reference)
            }
            (None, _) => own(self.opened.load(model.dtype, false)?),
        }
    }

    /// Whether rows share what they begin with, which the settings want or not: on devices attention has no kernel for it.
    pub(super) fn shares(&self, wanted: bool, observer: &mut dyn Observer) -> bool {
        let device = self.model.device();
        if wanted && !device.is_cpu() {
            observer.note(&format!(
                "share_prompts has no effect on {device}: each row's prompt goes through the model with every answer"
            ));
        }
        wanted && device.is_cpu()
    }

    /// Whether any file, held out or not, has rows of this type.
    pub(super) fn has(&self, kind: DatasetType) -> bool {
        let all = [Some(&self.inputs.sampler), self.inputs.held_out.as_ref()];
        all.into_iter().flatten().any(|sampler| sampler.view().data().files().iter().any(|file| file.kind == kind))
    }

    /// Tokens of the longest prompt with its completion.
    pub(super) fn max_length(&self) -> Option<usize> {
        self.inputs.sampler.encoder().options().max_length
    }

    /// Trains; the settings are written down as they then are.
    fn train<C: PreferenceRecipe>(
        self,
        config: &mut C,
        objective: Box<dyn Objective>,
        observer: &mut dyn Observer,
    ) -> Result<Outcome> {
        let Ready { opened, model, adapter, rates, inputs, resume } = self;
        let tokenizer = opened.tokenizer.clone();
        drop(opened);
        inputs::fit(&inputs, &model, config.blocks().optim, resume.as_ref())?;
        let run = config.blocks().run.clone();
        let (dir, resume) = inputs::begin(config, &run, &inputs.report, observer)?;
        let PreferenceBlocks { optim, eval, run, .. } = config.blocks();
        Trainer {
            model,
            adapter,
            rates,
            objective,
            tokenizer,
            sampler: inputs.sampler,
            held_out: inputs.held_out,
            steps_per_epoch: inputs.steps_per_epoch,
            optim,
            eval,
            run,
            dir,
        }
        .train(resume.as_ref(), observer)
    }
}
