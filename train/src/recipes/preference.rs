//! From settings to a trainer: what the recipes on preferences have in common.

use std::path::{Path, PathBuf};

use planish_nn::adapters::{AdapterConfig, load_adapter};
use planish_nn::decoder::Model;

use super::inputs;
use crate::config::{
    EvalSettings, LoraSettings, ModelSettings, OptimSettings, PreferenceDataSettings, ReferenceSettings, RunSettings,
    Settings,
};
use crate::data::{DatasetType, Packing};
use crate::models::{self, Opened};
use crate::optim::Rates;
use crate::preference::{Follow, Reference, precompute, same_vocabulary};
use crate::run::{Checkpoint, Observer, Outcome};
use crate::trainer::{Objective, Trainer, total_steps};
use crate::{Result, adapt};

/// The blocks that every recipe on preferences has.
pub(super) struct Blocks<'a> {
    pub(super) model: &'a ModelSettings,
    pub(super) data: &'a mut PreferenceDataSettings,
    pub(super) optim: &'a OptimSettings,
    pub(super) lora: &'a LoraSettings,
    pub(super) eval: &'a EvalSettings,
    pub(super) run: &'a RunSettings,
}

/// What a run begins with, before anything is written.
pub(super) struct Ready {
    opened: Opened,
    pub(super) model: Model,
    adapter: Option<AdapterConfig>,
    rates: Rates,
    inputs: inputs::Inputs,
    resume: Option<Checkpoint>,
}

/// A model, and the settings of its adapter if it has one.
type Built = (Model, Option<AdapterConfig>);

/// Opens model and data, and looks the data over. Settings that were left to the start of the run are set.
pub(super) fn ready(b: Blocks<'_>, accepted: &[DatasetType], observer: &mut dyn Observer) -> Result<Ready> {
    let (model, lora, optim) = (b.model.clone(), b.lora.clone(), b.optim.clone());
    ready_with(b, accepted, observer, |opened, steps_per_epoch, resume| {
        let steps = total_steps(&optim, steps_per_epoch);
        adapt::build(opened, &model, &lora, &optim, steps, resume)
    })
}

/// As [`ready`], with a model that `build` makes of the files, or of those of the checkpoint to go on from.
pub(super) fn ready_with(
    b: Blocks<'_>,
    accepted: &[DatasetType],
    observer: &mut dyn Observer,
    build: impl FnOnce(&Opened, u64, Option<&Checkpoint>) -> Result<Built>,
) -> Result<Ready> {
    inputs::check_device(b.run)?;
    let opened = Opened::by(b.model, &mut |p| observer.downloading(&p))?;
    let resume = match &b.run.resume_from_checkpoint {
        Some(from) => Some(Checkpoint::find(from, b.run.output_dir.as_ref())?),
        None => None,
    };
    b.data.template_time = inputs::template_time(&b.data.general(), resume.as_ref())?;
    let (tokenizer, vocabulary) = (&opened.tokenizer, opened.pretrained.config.vocab_size);
    let eval_batch = b.eval.per_device_eval_batch_size;
    let inputs = inputs::open(&b.data.general(), b.optim, eval_batch, tokenizer, vocabulary, accepted, Packing::None)?;
    b.data.template_time = inputs.sampler.encoder().options().template_time;
    let (model, adapter) = build(&opened, inputs.steps_per_epoch, resume.as_ref())?;
    let rates = adapt::rates(b.lora, b.optim);
    Ok(Ready { opened, model, adapter, rates, inputs, resume })
}

impl Ready {
    /// The reference that the settings ask for. `verbose` is LD-DPO's weight.
    pub(super) fn reference(
        &self,
        settings: &ReferenceSettings,
        model: &ModelSettings,
        run: &RunSettings,
        optim: &OptimSettings,
        verbose: f64,
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
        let known = precompute(&reference, &self.model, samplers, verbose, optim.tokens_per_pass, &dir, note)?;
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
        let own = |model| Reference::Model { model: Box::new(model), follow };
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
            return Ok(own(opened.load(model.dtype, false)?));
        }
        match (&self.adapter, &model.adapter) {
            // The base as it is, under the adapter switched off.
            (Some(_), None) => Ok(Reference::Base),
            // The adapter as it is given; the base's weights are shared if they are mapped.
            (Some(_), Some(dir)) => {
                let mut reference = self.opened.load(model.dtype, false)?;
                load_adapter(&mut reference, dir.as_ref())?;
                Ok(own(reference))
            }
            (None, _) => Ok(own(self.opened.load(model.dtype, false)?)),
        }
    }

    /// Tokens of the longest prompt with its completion.
    pub(super) fn max_length(&self) -> Option<usize> {
        self.inputs.sampler.encoder().options().max_length
    }

    /// Trains. `config` is written down with the `optim` that it was given by `optim_of`.
    pub(super) fn train<C: Settings + Clone>(
        self,
        config: &mut C,
        optim_of: fn(&mut C) -> &mut OptimSettings,
        (eval, run): (&EvalSettings, &RunSettings),
        objective: Box<dyn Objective>,
        observer: &mut dyn Observer,
    ) -> Result<Outcome> {
        let Ready { opened, model, adapter, rates, inputs, resume } = self;
        let tokenizer = opened.tokenizer.clone();
        drop(opened);
        inputs::fit(&inputs, &model, optim_of(config), resume.as_ref())?;
        let (dir, resume) = inputs::run_dir(run)?;
        dir.write_config(config)?;
        inputs::tell(&inputs.report, &dir, observer)?;
        let optim = optim_of(config).clone();
        Trainer {
            model,
            adapter,
            rates,
            objective,
            tokenizer,
            sampler: inputs.sampler,
            held_out: inputs.held_out,
            steps_per_epoch: inputs.steps_per_epoch,
            optim: &optim,
            eval,
            run,
            dir,
        }
        .train(resume.as_ref(), observer)
    }
}
