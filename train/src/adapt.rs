//! From settings to a model with what is to be trained: all weights, some, or an adapter of any kind.
//!
//! Recipes call [`build`] and know no method by name.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use planish_nn::adapters::{
    AdaLoraConfig, AdapterConfig, BoftConfig, Encoder, Ia3Config, LnTuningConfig, LoraBias, LoraConfig, LoraInit,
    OftConfig, PTuningConfig, Partial, PrefixTuningConfig, PromptInit, PromptTuningConfig, Targeting, Targets,
    VeraConfig, attach, is_adapter, load_adapter, resume_adapter, train_only,
};
use planish_nn::decoder::Model;

use crate::Result;
use crate::config::{
    BiasChoice, ConfigError, EncoderChoice, FinetuningType, LoraSettings, ModelSettings, OptimSettings, PeftType,
    PromptInitChoice,
};
use crate::models::{self, Opened};
use crate::optim::Rates;
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
        (None, None) => {
            let adapter = adapter_config(lora, &model.model, total_steps)?;
            let ids = match &lora.prompt_tuning_init_text {
                Some(text) if lora.prompt_tuning_init == PromptInitChoice::Text => {
                    Some(opened.tokenizer.encode(text, true).map_err(planish_nn::Error::from)?)
                }
                _ => None,
            };
            attach(&mut loaded, &*adapter, optim.seed, ids.as_deref())?;
            adapter
        }
    };
    Ok((loaded, Some(adapter)))
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
    let target = |default: &[&str]| {
        let layers: Vec<usize> = lora.layers_to_transform.iter().map(|&n| n as usize).collect();
        Targeting {
            exclude_modules: excluded(lora),
            layers_to_transform: (!layers.is_empty()).then_some(layers),
            modules_to_save: lora.lora_modules_to_save.clone(),
            ..Targeting::new(Targets::from_list(&lora.lora_target_modules, default), base.clone())
        }
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
    let layers: Vec<usize> = lora.layers_to_transform.iter().map(|&n| n as usize).collect();
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
        layers_to_transform: (!layers.is_empty()).then_some(layers),
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
