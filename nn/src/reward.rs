//! Reward models: a decoder with a small head in place of the vocabulary, in the formats of transformers'
//! `…ForSequenceClassification` (one number for a whole answer) and `…ForTokenClassification` (two labels for each step).

use std::path::Path;

use planish_autograd::ops::cast::cast;
use planish_autograd::ops::{index_select, linear};
use planish_autograd::{Param, Var};
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Tensor};
use serde_json::json;

use crate::adapters::WEIGHTS_FILE;
use crate::config::ModelConfig;
use crate::decoder::{LoadOptions, Model, TensorSource};
use crate::modules::Weight;
use crate::pretrained::Pretrained;
use crate::weights::WeightsReader;
use crate::{Ctx, Error, Result};

/// The head's name in the weights file.
pub const SCORE: &str = "score.weight";
/// The name of its bias, which the heads of steps have.
pub const SCORE_BIAS: &str = "score.bias";

/// What a reward model judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RewardKind {
    /// A whole answer, by one number at its last token: `…ForSequenceClassification` of one label.
    Outcome,
    /// Each step of an answer, by the logits of wrong and right at its last token: `…ForTokenClassification` of two
    /// labels.
    Process,
}

impl RewardKind {
    /// Numbers that the head gives for a token.
    pub fn outputs(self) -> usize {
        match self {
            RewardKind::Outcome => 1,
            RewardKind::Process => 2,
        }
    }

    /// PEFT's `task_type`.
    pub fn task_type(self) -> &'static str {
        match self {
            RewardKind::Outcome => "SEQ_CLS",
            RewardKind::Process => "TOKEN_CLS",
        }
    }

    /// What transformers puts after the name of the family.
    fn class(self) -> &'static str {
        match self {
            RewardKind::Outcome => "ForSequenceClassification",
            RewardKind::Process => "ForTokenClassification",
        }
    }

    fn of_outputs(outputs: usize) -> Option<RewardKind> {
        [RewardKind::Outcome, RewardKind::Process].into_iter().find(|kind| kind.outputs() == outputs)
    }
}

impl std::fmt::Display for RewardKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            RewardKind::Outcome => "a reward model of whole answers",
            RewardKind::Process => "a reward model of steps",
        })
    }
}

/// A source of a decoder's weights without those of any head.
struct Body<'a>(&'a dyn TensorSource);

impl TensorSource for Body<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        self.0.tensor(name, shape)
    }

    fn names(&self) -> Vec<String> {
        let heads = [SCORE, SCORE_BIAS, "lm_head.weight"];
        self.0.names().into_iter().filter(|n| !heads.contains(&n.as_str())).collect()
    }
}

impl Pretrained {
    /// Builds a reward model: the decoder, and the head of the files or, where they are a language model's, a new
    /// one, normal with `initializer_range` (0.02) by `seed`, its bias 0, as transformers makes it.
    ///
    /// # Errors
    /// Weights that do not fit the config; a head of another kind.
    pub fn load_reward(&self, options: LoadOptions, kind: RewardKind, seed: u64) -> Result<Model> {
        let mut config: ModelConfig = self.config.clone();
        let shape = [kind.outputs(), config.hidden_size];
        let given = self.source().tensor(SCORE, &shape)?;
        if let Some(found) = given.as_ref().map(Tensor::dims) {
            let class = self.class();
            if found != shape || !self.is_of(kind) {
                let error = Error::RewardHead { kind, class, found: found.to_vec(), expected: shape.to_vec() };
                return Err(error.of_model(&self.path));
            }
        }
        let with_bias = match &given {
            Some(_) => self.source().names().iter().any(|name| name == SCORE_BIAS),
            None => kind == RewardKind::Process && config.source["token_classification_bias"] != json!(false),
        };
        describe(&mut config.source, kind);
        // No head on the vocabulary is looked for.
        config.tie_word_embeddings = true;
        let range = config.source["initializer_range"].as_f64().unwrap_or(0.02);
        let mut model = self.build(options.dtype, |source| Model::load(config, &Body(source), options))?;
        let own = model.embed_tokens.base.value().dtype();
        let dtype = options.dtype.unwrap_or(if own.is_float() { own } else { DType::F32 });
        let head = match given {
            Some(head) => head.to_dtype(dtype)?,
            None => {
                let stream = Stream::new(seed, Purpose::Init, 0);
                let values: Vec<f64> = (0..(shape[0] * shape[1]) as u64).map(|i| stream.normal(i) * range).collect();
                Tensor::from_vec(values, shape)?.to_dtype(dtype)?
            }
        };
        let make = if options.trainable { Param::trainable } else { Param::frozen };
        model.score = Some(Weight::new(make(SCORE.to_owned(), head)));
        if with_bias {
            let shape = [kind.outputs()];
            let bias = match self.source().tensor(SCORE_BIAS, &shape)? {
                Some(bias) if bias.dims() == shape => bias.to_dtype(dtype)?,
                Some(bias) => {
                    let (found, expected) = (bias.dims().to_vec(), shape.to_vec());
                    let error = Error::TensorShape { name: SCORE_BIAS.to_owned(), found, expected };
                    return Err(error.of_model(&self.path));
                }
                None => Tensor::zeros(shape, dtype)?,
            };
            model.score_bias = Some(Weight::new(make(SCORE_BIAS.to_owned(), bias)));
        }
        Ok(model)
    }

    fn class(&self) -> String {
        self.config.source["architectures"][0].as_str().unwrap_or("a model without `architectures`").to_owned()
    }

    /// Whether the files say to be a model of that kind; those that say nothing may be.
    fn is_of(&self, kind: RewardKind) -> bool {
        match self.config.source["architectures"][0].as_str() {
            Some(class) if class.ends_with("Classification") => class.ends_with(kind.class()),
            _ => true,
        }
    }

    /// What the head of the files judges, if they have one.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn reward_head(&self) -> Result<Option<RewardKind>> {
        if !self.source().names().iter().any(|name| name == SCORE) {
            return Ok(None);
        }
        let head = self.source().tensor(SCORE, &[1, self.config.hidden_size])?;
        let kind = head.and_then(|head| RewardKind::of_outputs(head.dims()[0]));
        Ok(kind.filter(|&kind| self.is_of(kind)))
    }
}

/// What the head that an adapter carries judges, if it has one.
///
/// # Errors
/// A file that cannot be read.
pub fn adapter_head(dir: &Path) -> Result<Option<RewardKind>> {
    let weights = WeightsReader::open(dir.join(WEIGHTS_FILE))?;
    let name = weights.names().iter().find(|name| name.ends_with(&format!(".{SCORE}")));
    let outputs = match name {
        Some(name) => weights.get(name)?.dims().first().copied(),
        None => None,
    };
    Ok(outputs.and_then(RewardKind::of_outputs))
}

/// Makes a language model's config.json that of a classifier.
fn describe(config: &mut serde_json::Value, kind: RewardKind) {
    if let Some(class) = config["architectures"][0].as_str().and_then(|c| c.strip_suffix("ForCausalLM")) {
        config["architectures"] = json!([format!("{class}{}", kind.class())]);
    }
    let labels: Vec<String> = (0..kind.outputs()).map(|i| format!("LABEL_{i}")).collect();
    config["id2label"] = labels.iter().enumerate().map(|(i, l)| (i.to_string(), json!(l))).collect();
    config["label2id"] = labels.iter().enumerate().map(|(i, l)| (l.clone(), json!(i))).collect();
    // transformers finds a sequence's last token by what is not padding, and refuses batches without it.
    if kind == RewardKind::Outcome && config["pad_token_id"].is_null() {
        let end = &config["eos_token_id"];
        config["pad_token_id"] = if end.is_array() { end[0].clone() } else { end.clone() };
    }
}

impl Model {
    /// Rewards at tokens, such as the last one of each segment: W h + b, (rows, 1), or the logits of wrong and right,
    /// (rows, 2); f32 whatever activations are. `hidden`: (tokens, hidden).
    ///
    /// # Errors
    /// Those of the kernels.
    ///
    /// # Panics
    /// If the model has no such head.
    pub fn rewards(&self, ctx: &Ctx, hidden: &Var, rows: &[u32]) -> Result<Var> {
        let score = self.score.as_ref().expect("a reward model has a head");
        let bias = self.score_bias.as_ref().map(|bias| bias.var(ctx));
        // A few rows: halves would round what rewards differ by.
        let hidden = cast(&index_select::index_select(hidden, rows)?, self.dtype())?;
        Ok(linear::linear(&hidden, &score.var(ctx), bias.as_ref())?)
    }

    /// What it judges, if it is a reward model.
    pub fn reward_kind(&self) -> Option<RewardKind> {
        self.score.as_ref().and_then(|score| RewardKind::of_outputs(score.base.value().dims()[0]))
    }
}
