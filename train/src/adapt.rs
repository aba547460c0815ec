//! From settings to a model with what is to be trained: all weights, some, or an adapter of any kind.
//!
//! Recipes call [`build`] and know no method by name.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use planish_nn::adapters::{
    self, AdaLoraConfig, AdapterConfig, AdapterError, BoftConfig, Encoder, Ia3Config, LnTuningConfig, LoraBias,
    LoraConfig, LoraInit, Method, Modules, OftConfig, PTuningConfig, Partial, PrefixTuningConfig, PromptInit,
    PromptTuningConfig, Targeting, Targets, VeraConfig, attach_within, is_adapter, load_adapter, of_task,
    replace_lora_weights_loftq, resume_adapter, train_only,
};
use planish_nn::decoder::Model;
use planish_nn::quantize::QuantizeAs;
use planish_nn::reward::RewardKind;

use crate::Result;
use crate::config::{
    BiasChoice, ConfigError, EncoderChoice, FinetuningType, LoraSettings, ModelSettings, OptimSettings, PeftType,
    PromptInitChoice,
};
use crate::models::{self, Opened};
use crate::optim::Rates;
use crate::plan;
use crate::run::Checkpoint;

/// PEFT's targets for these families, and those of (IA)³ and of LayerNorm tuning.
const ATTENTION: &[&str] = &["q_proj", "v_proj"];
const IA3: &[&str] = &["k_proj", "v_proj", "down_proj"];
const NORMS: &[&str] = &["input_layernorm", "post_attention_layernorm", "norm"];

/// Opens the model that a run trains: fresh, with the adapter it starts from, or as the checkpoint has it. With it
/// comes the adapter, if one is trained. `total_steps` are those of the run.
///
/// # Errors
/// Weights or an adapter that do not fit; settings that the model cannot have.
pub fn build(
    opened: &Opened,
    model: &ModelSettings,
    lora: &LoraSettings,
    optim: &OptimSettings,
    total_steps: u64,
    resume: Option<&Checkpoint>,
) -> Result<(Model, Option<AdapterConfig>)> {
    if !lora.use_peft && model.adapter.is_none() {
        let from = match resume {
            Some(from) if is_adapter(&from.path) => {
                let problem = "is not set, but the checkpoint to go on from is an adapter's; set what its run had";
                return Err(ConfigError::Conflict { key: "use_peft", problem }.into());
            }
            Some(from) => &models::open_path(&from.path)?,
            None => opened,
        };
        let mut loaded = from.load(model.dtype, lora.finetuning_type == FinetuningType::Full)?;
        if let Some(part) = partial(lora, &loaded)? {
            train_only(&mut loaded, &part).map_err(planish_nn::Error::from)?;
        }
        return Ok((loaded, None));
    }
    let mut loaded = opened.load(model.dtype, false)?;
    let adapter = match (resume, &model.adapter) {
        (Some(from), _) => resume_adapter(&mut loaded, &from.path)?,
        (None, Some(dir)) => load_adapter(&mut loaded, Path::new(dir))?,
        (None, None) if lora.peft_type == PeftType::Lora && opened.pretrained.quantizes().is_some() => {
            check_names(&mut loaded, lora).map_err(planish_nn::Error::from)?;
            let config = lora_config(lora, &model.model)?;
            Arc::new(on_quantised(&mut loaded, opened, config, optim.seed, plan::available_memory())?)
        }
        (None, None) => {
            let adapter = adapter_config(lora, &model.model, total_steps)?;
            put_on(&mut loaded, opened, lora, &*adapter, optim.seed)?;
            adapter
        }
    };
    Ok((loaded, Some(adapter)))
}

/// A new LoRA adapter of a base that is quantised as it is loaded: with `loftq` it begins with what that lost, and is saved
/// as plain LoRA, for what its files name is the base in full precision.
fn on_quantised(
    model: &mut Model,
    opened: &Opened,
    mut config: LoraConfig,
    seed: u64,
    memory: Option<u64>,
) -> Result<LoraConfig> {
    let LoraInit::LoftQ { bits, iterations } = config.init_lora_weights else {
        attach_within(model, &config, seed, None, memory)?;
        return Ok(config);
    };
    let has = if opened.pretrained.quantizes() == Some(QuantizeAs::Int8) { 8 } else { 4 };
    let wrong = |key, problem| Err(ConfigError::Conflict { key, problem }.into());
    if bits != has {
        return wrong(
            "loftq_bits",
            "are not those that the base is loaded in: 4 with load_in_4bit, 8 with load_in_8bit",
        );
    }
    if iterations > 1 {
        let problem =
            "is 1 where the base is quantised as it is loaded; more turns make another base (leave out load_in_4bit)";
        return wrong("loftq_iter", problem);
    }
    config.init_lora_weights = LoraInit::Default;
    attach_within(model, &config, seed, None, memory)?;
    replace_lora_weights_loftq(model, &config, &opened.pretrained)?;
    Ok(config)
}

/// As [`build`] for a reward model that judges `kind`, of which an adapter carries the head.
///
/// # Errors
/// As [`build`].
pub fn build_reward(
    opened: &Opened,
    (model, lora, optim): (&ModelSettings, &LoraSettings, &OptimSettings),
    kind: RewardKind,
    total_steps: u64,
    resume: Option<&Checkpoint>,
) -> Result<(Model, Option<AdapterConfig>)> {
    let (dtype, seed) = (model.dtype, optim.seed);
    if !lora.use_peft && model.adapter.is_none() {
        let from = match resume {
            Some(from) => &models::open_path(&from.path)?,
            None => opened,
        };
        return Ok((from.load_reward(dtype, kind, seed, true)?, None));
    }
    let mut loaded = opened.load_reward(dtype, kind, seed, false)?;
    let adapter = match (resume, &model.adapter) {
        (Some(from), _) => resume_adapter(&mut loaded, &from.path)?,
        (None, Some(dir)) => load_adapter(&mut loaded, Path::new(dir))?,
        (None, None) => {
            let mut lora = lora.clone();
            if !lora.lora_modules_to_save.iter().any(|name| name == "score") {
                lora.lora_modules_to_save.push("score".to_owned());
            }
            if kind == RewardKind::Process && lora.lora_target_modules == ["all-linear"] {
                // To PEFT the head of a token classifier is one of all linear modules.
                lora.lora_target_modules = linear_names(&loaded);
            }
            let adapter = adapter_config(&lora, &model.model, total_steps)?;
            let adapter = of_task(&*adapter, kind.task_type()).map_err(planish_nn::Error::from)?;
            put_on(&mut loaded, opened, &lora, &*adapter, seed)?;
            adapter
        }
    };
    Ok((loaded, Some(adapter)))
}

/// Puts a new adapter on a model.
fn put_on(loaded: &mut Model, opened: &Opened, lora: &LoraSettings, adapter: &dyn Method, seed: u64) -> Result<()> {
    let ids = match &lora.prompt_tuning_init_text {
        Some(text) if lora.prompt_tuning_init == PromptInitChoice::Text => {
            Some(opened.tokenizer.encode(text, true).map_err(planish_nn::Error::from)?)
        }
        _ => None,
    };
    check_names(loaded, lora).map_err(planish_nn::Error::from)?;
    Ok(attach_within(loaded, adapter, seed, ids.as_deref(), plan::available_memory())?)
}

/// The last parts of the names of a model's linear modules, each once.
fn linear_names(model: &Model) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for linear in model.layers.iter().flat_map(|layer| layer.linears()) {
        let name = linear.name.rsplit('.').next().unwrap_or(&linear.name);
        if !names.iter().any(|n| n == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// Refuses names in the settings that are those of no module, and layers that there are not.
fn check_names(model: &mut Model, lora: &LoraSettings) -> Result<(), AdapterError> {
    let among = if lora.peft_type == PeftType::LnTuning { Modules::Norm } else { Modules::Linear };
    adapters::check_names(model, "target_modules", &lora.lora_target_modules, among)?;
    adapters::check_names(model, "exclude_modules", &lora.exclude_modules, Modules::Any)?;
    adapters::check_layers(model, "layers_to_transform", &layers(lora).unwrap_or_default())
}

/// The layers that are adapted, if not all are.
fn layers(lora: &LoraSettings) -> Option<Vec<usize>> {
    let layers: Vec<usize> = lora.layers_to_transform.iter().map(|&n| n as usize).collect();
    (!layers.is_empty()).then_some(layers)
}

/// Learning rates of single parameters that the settings ask for.
pub fn rates(lora: &LoraSettings, optim: &OptimSettings) -> Rates {
    match lora.loraplus_lr_ratio {
        Some(ratio) => Rates::loraplus(ratio, lora.loraplus_lr_embedding, optim.learning_rate),
        None => Rates::default(),
    }
}

fn partial(lora: &LoraSettings, model: &Model) -> Result<Option<Partial>> {
    Ok(match lora.finetuning_type {
        FinetuningType::Full => None,
        FinetuningType::Bitfit => Some(Partial::Biases),
        FinetuningType::Freeze => {
            let (modules, extra) = (lora.freeze_trainable_modules.clone(), lora.freeze_extra_modules.clone());
            let part = Partial::layers(lora.freeze_trainable_layers, model.layers.len(), modules, extra);
            Some(part.map_err(planish_nn::Error::from)?)
        }
    })
}

/// The new adapter that the settings ask for.
///
/// # Errors
/// [`ConfigError`]: an entry of `rank_pattern` or `alpha_pattern` that is none; an unknown `init_lora_weights`.
pub fn adapter_config(lora: &LoraSettings, base: &str, total_steps: u64) -> Result<AdapterConfig> {
    let base = Some(base.to_string());
    let target = |default: &[&str]| Targeting {
        exclude_modules: excluded(lora),
        layers_to_transform: layers(lora),
        modules_to_save: lora.lora_modules_to_save.clone(),
        ..Targeting::new(Targets::from_list(&lora.lora_target_modules, default), base.clone())
    };
    let count = lora.num_virtual_tokens;
    Ok(match lora.peft_type {
        PeftType::Lora => Arc::new(lora_config(lora, base.as_deref().unwrap_or_default())?),
        PeftType::AdaLora => {
            let mut config = AdaLoraConfig::new(target(ATTENTION), total_steps);
            (config.init_r, config.target_r, config.delta_t) = (lora.init_r, lora.target_r, lora.delta_t);
            (config.tinit, config.tfinal, config.orth_reg_weight) = (lora.tinit, lora.tfinal, lora.orth_reg_weight);
            (config.lora_alpha, config.lora_dropout) = (lora.lora_alpha, lora.lora_dropout);
            Arc::new(config)
        }
        PeftType::Ia3 => Arc::new(Ia3Config::new(target(IA3), Targets::from_list(&lora.feedforward_modules, &[]))),
        PeftType::LnTuning => Arc::new(LnTuningConfig::new(target(NORMS))),
        PeftType::Vera => Arc::new(VeraConfig {
            r: lora.vera_r,
            vera_dropout: lora.lora_dropout,
            d_initial: lora.vera_d_initial,
            ..VeraConfig::new(target(ATTENTION))
        }),
        PeftType::Oft => Arc::new(OftConfig {
            r: lora.oft_r,
            oft_block_size: lora.oft_block_size,
            use_cayley_neumann: lora.use_cayley_neumann,
            ..OftConfig::new(target(ATTENTION))
        }),
        PeftType::Boft => Arc::new(BoftConfig {
            boft_block_size: lora.boft_block_size,
            boft_block_num: lora.boft_block_num,
            ..BoftConfig::new(target(ATTENTION))
        }),
        PeftType::PromptTuning => {
            let init = match lora.prompt_tuning_init {
                PromptInitChoice::Random => PromptInit::Random,
                PromptInitChoice::SampleVocab => PromptInit::SampleVocab,
                PromptInitChoice::Text => PromptInit::Text(lora.prompt_tuning_init_text.clone().unwrap_or_default()),
            };
            Arc::new(PromptTuningConfig::new(count, init, base))
        }
        PeftType::PrefixTuning => {
            let mut config = PrefixTuningConfig::new(count, lora.prefix_projection, base);
            config.encoder_hidden_size = lora.encoder_hidden_size;
            Arc::new(config)
        }
        PeftType::PTuning => {
            let mut config = PTuningConfig::new(count, lora.encoder_hidden_size, base);
            config.encoder = match lora.encoder_reparameterization_type {
                EncoderChoice::Mlp => Encoder::Mlp,
                EncoderChoice::Lstm => Encoder::Lstm,
            };
            config.encoder_num_layers = lora.encoder_num_layers;
            Arc::new(config)
        }
    })
}

fn excluded(lora: &LoraSettings) -> Option<Targets> {
    (!lora.exclude_modules.is_empty()).then(|| Targets::from_list(&lora.exclude_modules, &[]))
}

/// The LoRA adapter that the settings ask for.
///
/// # Errors
/// As [`adapter_config`].
pub fn lora_config(lora: &LoraSettings, base: &str) -> Result<LoraConfig, ConfigError> {
    Ok(LoraConfig {
        r: lora.lora_r,
        lora_alpha: lora.lora_alpha,
        lora_dropout: lora.lora_dropout,
        use_rslora: lora.use_rslora,
        use_dora: lora.use_dora,
        init_lora_weights: init(lora)?,
        bias: match lora.bias {
            BiasChoice::None => LoraBias::None,
            BiasChoice::All => LoraBias::All,
            BiasChoice::LoraOnly => LoraBias::LoraOnly,
        },
        target_modules: Targets::from_list(&lora.lora_target_modules, ATTENTION),
        target_parameters: lora.lora_target_parameters.clone(),
        exclude_modules: excluded(lora),
        layers_to_transform: layers(lora),
        modules_to_save: lora.lora_modules_to_save.clone(),
        rank_pattern: pattern("rank_pattern", &lora.rank_pattern, "must be NAME=RANK, with a whole rank from 1")?,
        alpha_pattern: pattern("alpha_pattern", &lora.alpha_pattern, "must be NAME=ALPHA, with a number")?,
        base_model: Some(base.to_string()),
        ..LoraConfig::default()
    })
}

fn init(lora: &LoraSettings) -> Result<LoraInit, ConfigError> {
    let wrong = |key, problem| ConfigError::Conflict { key, problem };
    let init = LoraInit::parse(&lora.init_lora_weights).ok_or(wrong(
        "init_lora_weights",
        "must be true, false, gaussian, pissa, pissa_niter_N, olora, loftq or orthogonal",
    ))?;
    match (init, lora.loftq_bits) {
        (LoraInit::LoftQ { .. }, bits @ (4 | 8)) => Ok(LoraInit::LoftQ { bits, iterations: lora.loftq_iter }),
        (LoraInit::LoftQ { .. }, _) => Err(wrong("loftq_bits", "must be 4 or 8")),
        (init, _) => Ok(init),
    }
}

/// Entries of the form `NAME=NUMBER`.
fn pattern<T: FromStr + PartialOrd + Default>(
    key: &'static str,
    entries: &[String],
    problem: &'static str,
) -> Result<BTreeMap<String, T>, ConfigError> {
    let read = |entry: &String| {
        let (name, value) = entry.rsplit_once('=')?;
        let value = value.trim().parse::<T>().ok().filter(|v| *v > T::default())?;
        (!name.is_empty()).then(|| (name.trim().to_string(), value))
    };
    entries.iter().map(|e| read(e).ok_or(ConfigError::Conflict { key, problem })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use planish_tensor::quant::FourBitKind;

    /// A quantised base is no way around the guard of memory.
    #[test]
    fn an_adapter_without_the_memory_is_refused_on_a_quantised_base_too() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("builtin");
        let Opened { tokenizer, pretrained } = models::open_path(&dir).unwrap();
        let four = QuantizeAs::FourBit { kind: FourBitKind::Nf4, block: 64, double: false };
        let opened = Opened { tokenizer, pretrained: pretrained.quantized(Some(four)) };
        for init in [LoraInit::Default, LoraInit::LoftQ { bits: 4, iterations: 1 }] {
            let mut model = opened.load(crate::config::WeightDtype::Float32, false).unwrap();
            let config = LoraConfig { init_lora_weights: init, ..LoraConfig::default() };
            let mut put = |memory| on_quantised(&mut model, &opened, config.clone(), 0, memory);
            let said = put(Some(10_000)).unwrap_err().to_string();
            assert!(said.contains("would have shape"), "{said}");
            put(Some(1 << 30)).unwrap();
        }
    }
}
