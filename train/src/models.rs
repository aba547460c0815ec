//! What `--model` means: a directory, a GGUF file, a hub id, or `builtin`.

use std::path::Path;

use planish_nn::Error;
use planish_nn::decoder::{LoadOptions, Model};
use planish_nn::hub::{Hub, Needs, Progress, RepoId};
use planish_nn::pretrained::Pretrained;
use planish_nn::quantize::QuantizeAs;
use planish_nn::reward::RewardKind;
use planish_nn::template::TemplateError;
use planish_nn::tokenizer::Tokenizer;
use planish_tensor::DType;
use planish_tensor::quant::FourBitKind;

use crate::Result;
use crate::builtin;
use crate::config::{FourBitType, ModelSettings, WeightDtype, nearest};

/// The name of the model inside the program.
pub const BUILTIN: &str = "builtin";

/// A model's files and its tokenizer, opened and found to belong together.
pub struct Opened {
    /// The files.
    pub pretrained: Pretrained,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
}

/// Opens what `model` names. `progress` hears of downloads.
///
/// # Errors
/// A path that is no model; files that are missing or wrong; a hub that refuses; a tokenizer with more
/// tokens than the model's embedding has rows.
pub fn open(model: &str, revision: &str, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Opened> {
    let opened = match model {
        BUILTIN => open_builtin()?,
        _ if Path::new(model).exists() => open_path(Path::new(model))?,
        _ => match RepoId::parse(model) {
            Ok(repo) if model.contains('/') && !model.starts_with(['/', '.']) => {
                let repo = repo.with_revision(revision).map_err(Error::from)?;
                let hub = Hub::from_env().map_err(Error::from)?;
                open_path(&hub.snapshot(&repo, &Needs::Model, progress).map_err(Error::from)?)?
            }
            _ => return Err(no_such(model).into()),
        },
    };
    let (tokenizer, rows) = (opened.tokenizer.vocab_size(), opened.pretrained.config.vocab_size);
    if tokenizer > rows {
        let error = Error::TokenizerTooLarge { tokenizer, model: rows };
        return Err(error.of_model(&opened.pretrained.path).into());
    }
    Ok(opened)
}

pub(crate) fn open_path(path: &Path) -> Result<Opened> {
    let pretrained = Pretrained::open(path)?;
    let tokenizer = match pretrained.gguf() {
        Some(file) => Tokenizer::from_gguf(file.metadata()),
        None => Tokenizer::from_dir(path),
    };
    let tokenizer = tokenizer.map_err(Error::from).map_err(|e| match pretrained.gguf() {
        Some(_) => e.of_gguf(path),
        None => e,
    })?;
    Ok(Opened { tokenizer, pretrained })
}

/// A model that is neither a path nor a hub id.
fn no_such(model: &str) -> Error {
    let problem = match nearest(model, [BUILTIN]) {
        Some(_) => "there is no such file or directory; did you mean `builtin`?",
        None => {
            "there is no such file or directory; a model is a directory, a .gguf file, an id on the hub such as \
             `HuggingFaceTB/SmolLM2-135M-Instruct`, or `builtin`"
        }
    };
    Error::NotAModel { path: model.into(), problem }
}

/// A chat template: the file itself, or that of a tokenizer's directory.
fn read_template(path: &Path) -> Result<String> {
    if path.is_dir() {
        let tokenizer = Tokenizer::from_dir(path).map_err(Error::from)?;
        let template = tokenizer.chat_template_source().map(str::to_owned);
        return Ok(template.ok_or_else(|| Error::from(TemplateError::Missing { names: Vec::new() }))?);
    }
    Ok(std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?)
}

fn open_builtin() -> Result<Opened> {
    let file = |name: &str| builtin::file(name).expect("the program holds its own model");
    let pretrained = Pretrained::from_bytes(BUILTIN, file("config.json"), file("model.safetensors"))?;
    let template = String::from_utf8_lossy(file("chat_template.jinja"));
    let tokenizer =
        Tokenizer::from_json_bytes(file("tokenizer.json"), Some(file("tokenizer_config.json")), Some(&template));
    Ok(Opened { pretrained, tokenizer: tokenizer.map_err(Error::from)? })
}

impl Opened {
    /// Opens what the settings name, with the chat template and the end token that they put in place of the
    /// tokenizer's.
    ///
    /// # Errors
    /// As [`open`]; a template that cannot be read; a token that the vocabulary does not have.
    pub fn by(settings: &ModelSettings, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Opened> {
        let mut opened = open(&settings.model, &settings.model_revision, progress)?.quantized(settings);
        if let Some(path) = &settings.chat_template_path {
            let template = read_template(Path::new(path))?;
            opened.tokenizer = opened.tokenizer.with_chat_template(template);
            opened.tokenizer.template_for(false).map_err(Error::from)?;
        }
        if let Some(token) = &settings.eos_token {
            opened.tokenizer = opened.tokenizer.with_eos_token(token).map_err(Error::from)?;
        }
        Ok(opened)
    }

    /// The same, with weights quantised as the settings say when they are loaded.
    pub fn quantized(self, settings: &ModelSettings) -> Opened {
        Opened { pretrained: self.pretrained.quantized(quantization(settings)), ..self }
    }

    /// Builds the model with its weights held as `dtype` says.
    ///
    /// # Errors
    /// Weights that do not fit the config.
    pub fn load(&self, dtype: WeightDtype, trainable: bool) -> Result<Model> {
        Ok(self.pretrained.load(LoadOptions { dtype: storage(dtype), trainable })?)
    }

    /// Builds a reward model; a head that the files do not have is drawn by `seed`.
    ///
    /// # Errors
    /// Weights that do not fit the config; a head of another kind.
    pub fn load_reward(&self, dtype: WeightDtype, kind: RewardKind, seed: u64, trainable: bool) -> Result<Model> {
        Ok(self.pretrained.load_reward(LoadOptions { dtype: storage(dtype), trainable }, kind, seed)?)
    }
}

/// What the settings quantise the base to.
pub fn quantization(settings: &ModelSettings) -> Option<QuantizeAs> {
    let kind = match settings.bnb_4bit_quant_type {
        FourBitType::Nf4 => FourBitKind::Nf4,
        FourBitType::Fp4 => FourBitKind::Fp4,
    };
    let four = QuantizeAs::FourBit { kind, block: QuantizeAs::BLOCK, double: settings.use_bnb_nested_quant };
    match (settings.load_in_4bit, settings.load_in_8bit) {
        (true, _) => Some(four),
        (false, true) => Some(QuantizeAs::Int8),
        (false, false) => None,
    }
}

/// The dtype that weights are held in; as in the file if `None`.
pub fn storage(dtype: WeightDtype) -> Option<DType> {
    match dtype {
        WeightDtype::Float32 => Some(DType::F32),
        WeightDtype::Bfloat16 => Some(DType::BF16),
        WeightDtype::Auto => None,
    }
}
