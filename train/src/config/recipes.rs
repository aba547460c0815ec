//! The settings of each recipe: which blocks it takes, its own defaults, and what must agree.

use planish_tensor::Device;

use super::adapters;
use super::device::DeviceChoice;
use super::error::ConfigError;
use super::groups::{
    ArchitectureSettings, DataSettings, EvalSettings, FourBitType, Interval, LoraSettings, ModelSettings,
    OptimSettings, RunSettings, SharingSettings,
};
use super::replay::ReplaySettings;
use super::router::RouterSettings;
use super::schedule::Schedule;
use super::table::{Settings, recipe_settings};

/// A complete configuration of a recipe.
pub trait Recipe: Settings + Default {
    /// The name of the command: `sft`.
    const NAME: &'static str;

    /// Checks what no single setting can: what is missing, what contradicts what.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] or [`ConfigError::Conflict`].
    fn check_together(&self) -> Result<(), ConfigError>;
}

recipe_settings! {
    /// Supervised fine-tuning (`planish sft`).
    #[derive(Default)]
    pub struct SftConfig {
        /// The model to start from.
        model: ModelSettings,
        /// The examples.
        data: DataSettings,
        /// Batches and the optimizer.
        optim: OptimSettings,
        /// Losses of a router.
        router: RouterSettings,
        /// What examples share.
        sharing: SharingSettings,
        /// Low-rank adapters.
        lora: LoraSettings,
        /// Evaluation.
        eval: EvalSettings,
        /// The run directory and the machine.
        run: RunSettings,
    }
}

recipe_settings! {
    /// Training a model from nothing, or on plain text (`planish pretrain`).
    pub struct PretrainConfig {
        /// The model to make.
        model: ArchitectureSettings,
        /// The examples.
        data: DataSettings,
        /// Examples shown again.
        replay: ReplaySettings,
        /// Losses of a router.
        router: RouterSettings,
        /// Batches and the optimizer.
        optim: OptimSettings,
        /// Evaluation.
        eval: EvalSettings,
        /// The run directory and the machine.
        run: RunSettings,
    }
}

impl Default for PretrainConfig {
    /// The shared defaults, but for what a model that knows nothing needs.
    fn default() -> Self {
        let mut config = PretrainConfig {
            model: ArchitectureSettings::default(),
            data: DataSettings::default(),
            replay: ReplaySettings::default(),
            router: RouterSettings::default(),
            optim: OptimSettings::default(),
            eval: EvalSettings::default(),
            run: RunSettings::default(),
        };
        config.optim.learning_rate = 5e-4;
        config.optim.lr_scheduler_type = Schedule::Cosine;
        config.optim.weight_decay = 0.1;
        config.optim.adam_beta2 = 0.95;
        config.optim.num_train_epochs = 1.0;
        config.data.packing = true;
        config
    }
}

impl Recipe for SftConfig {
    const NAME: &'static str = "sft";

    fn check_together(&self) -> Result<(), ConfigError> {
        if self.model.model.is_empty() {
            return Err(ConfigError::Missing { key: "model" });
        }
        check_base(&self.model, &self.lora)?;
        check_data(&self.data)?;
        check_run(&self.optim, &self.run)?;
        check_eval(&self.data, &self.eval, &self.run)
    }
}

impl Recipe for PretrainConfig {
    const NAME: &'static str = "pretrain";

    fn check_together(&self) -> Result<(), ConfigError> {
        let model = &self.model;
        match (&model.model, &model.config_name, &model.tokenizer_name) {
            (None, None, _) => return Err(ConfigError::Missing { key: "config_name" }),
            (None, Some(_), None) => return Err(ConfigError::Missing { key: "tokenizer_name" }),
            (Some(_), Some(_), _) => {
                return Err(ConfigError::Conflict {
                    key: "config_name",
                    problem: "makes a new model and `model` continues one; give one of the two",
                });
            }
            _ => {}
        }
        if self.replay.replay_dataset.is_empty() != (self.replay.replay_share == 0.0) {
            return conflict(
                "replay_share",
                "and `replay_dataset` go together: files, and their share of the examples",
            );
        }
        check_data(&self.data)?;
        check_run(&self.optim, &self.run)?;
        check_eval(&self.data, &self.eval, &self.run)
    }
}

pub(super) fn conflict(key: &'static str, problem: &'static str) -> Result<(), ConfigError> {
    Err(ConfigError::Conflict { key, problem })
}

pub(super) fn check_base(model: &ModelSettings, lora: &LoraSettings) -> Result<(), ConfigError> {
    if model.load_in_4bit && model.load_in_8bit {
        return conflict("load_in_8bit", "and `load_in_4bit` are both set; keep one");
    }
    let key = if model.load_in_4bit { "load_in_4bit" } else { "load_in_8bit" };
    if (model.load_in_4bit || model.load_in_8bit) && !lora.use_peft && model.adapter.is_none() {
        return conflict(
            key,
            "makes weights that can't be trained themselves: set `use_peft` to train an adapter on them",
        );
    }
    adapters::check(model, lora)?;
    if model.use_bnb_nested_quant && !model.load_in_4bit {
        return conflict("use_bnb_nested_quant", "is for 4-bit weights: set `load_in_4bit` too");
    }
    if model.bnb_4bit_quant_type != FourBitType::Nf4 && !model.load_in_4bit {
        return conflict("bnb_4bit_quant_type", "is for 4-bit weights: set `load_in_4bit` too");
    }
    Ok(())
}

pub(super) fn check_data(data: &DataSettings) -> Result<(), ConfigError> {
    if data.dataset.is_empty() {
        return Err(ConfigError::Missing { key: "dataset" });
    }
    if !data.dataset_weights.is_empty() && data.dataset_weights.len() != data.dataset.len() {
        return conflict("dataset_weights", "must have one number for each `dataset`");
    }
    if data.packing && data.max_length.is_none() {
        return conflict("packing", "fills rows of `max_length` tokens, so set max_length");
    }
    if data.validation_split > 0.0 && !data.eval_dataset.is_empty() {
        return conflict("validation_split", "and `eval_dataset` both hold examples out; keep one");
    }
    Ok(())
}

/// A setting that the processor does not do, and what to do.
pub(crate) const BF16_ON_CPU: (&str, &str) = (
    "bf16",
    "is of a GPU's activations, and the processor computes in float32: leave it out, or choose a GPU with `device` \
     (weights in bfloat16 are `dtype: bfloat16`)",
);

pub(super) fn check_run(optim: &OptimSettings, run: &RunSettings) -> Result<(), ConfigError> {
    if run.output_dir.is_empty() {
        return Err(ConfigError::Missing { key: "output_dir" });
    }
    if run.overwrite_output_dir && run.resume_from_checkpoint.is_some() {
        return conflict(
            "overwrite_output_dir",
            "removes the run that `resume_from_checkpoint` would go on from; give one of the two",
        );
    }
    if run.bf16 == Some(true) && run.device == DeviceChoice::On(Device::Cpu) {
        return conflict(BF16_ON_CPU.0, BF16_ON_CPU.1);
    }
    if optim.warmup_steps > 0.0 && optim.warmup_ratio > 0.0 {
        return conflict("warmup_ratio", "and `warmup_steps` are both set; keep one");
    }
    if optim.warmup_steps > 1.0 && optim.warmup_steps.fract() != 0.0 {
        return conflict("warmup_steps", "must be a whole number, or a share below 1");
    }
    crate::optim::OptimArgs::of(optim)?;
    optim.lr_scheduler_kwargs.check(optim.lr_scheduler_type)
}

pub(super) fn check_eval(data: &DataSettings, eval: &EvalSettings, run: &RunSettings) -> Result<(), ConfigError> {
    let held_out = !data.eval_dataset.is_empty() || data.validation_split > 0.0;
    let evaluates = eval.eval_strategy != Interval::No;
    if (evaluates || eval.eval_on_start) && !held_out {
        return conflict(
            if evaluates { "eval_strategy" } else { "eval_on_start" },
            "needs held-out examples: set `eval_dataset` or `validation_split`",
        );
    }
    if eval.early_stopping_patience.is_some() && !evaluates {
        return conflict("early_stopping_patience", "needs evaluations: set `eval_strategy` to steps or epoch");
    }
    if !eval.load_best_model_at_end {
        return Ok(());
    }
    if !evaluates || eval.eval_strategy != run.save_strategy {
        return conflict(
            "load_best_model_at_end",
            "needs `eval_strategy` and `save_strategy` to be the same, steps or epoch",
        );
    }
    let every = eval.eval_steps.unwrap_or(run.logging_steps).max(1);
    if eval.eval_strategy == Interval::Steps && !run.save_steps.is_multiple_of(every) {
        return conflict(
            "load_best_model_at_end",
            "needs an evaluation at every checkpoint: make `save_steps` a multiple of `eval_steps`",
        );
    }
    Ok(())
}

/// Tokens of a pass where nothing is said: on the processor enough to keep it busy, on a device to fill one.
const PASS: [u64; 2] = [704, 8192];

/// And the fewest to which it may be cut, on either, if memory is short.
const LEAST: [u64; 2] = [PASS[0], 1024];

impl OptimSettings {
    /// Tokens of a pass; 0 for all.
    pub fn pass(&self) -> u64 {
        self.tokens_per_pass.unwrap_or(PASS[0])
    }

    /// Settles the tokens of a pass for a device, if nothing is said of them; the fewest that it may be changed to if memory is
    /// short.
    pub(crate) fn settle_pass(&mut self, device: Device) -> u64 {
        let kind = usize::from(!device.is_cpu());
        let least = self.tokens_per_pass.unwrap_or(LEAST[kind]);
        self.tokens_per_pass.get_or_insert(PASS[kind]);
        least
    }

    /// Steps of warm-up of a run of `total` steps: `warmup_steps` if at least 1, else
    /// `ceil(share * total)`, as in transformers.
    pub fn warmup(&self, total: u64) -> u64 {
        if self.warmup_steps >= 1.0 {
            return self.warmup_steps as u64;
        }
        let share = if self.warmup_steps > 0.0 { self.warmup_steps } else { self.warmup_ratio };
        (share * total as f64).ceil() as u64
    }
}
