//! Reward models: a decoder with a head of one number in place of the vocabulary, in the format of transformers'
//! `…ForSequenceClassification`.

use planish_autograd::ops::{index_select, linear};
use planish_autograd::{Param, Var};
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Tensor};
use serde_json::json;

use crate::config::ModelConfig;
use crate::decoder::{LoadOptions, Model, TensorSource};
use crate::modules::Weight;
use crate::pretrained::Pretrained;
use crate::{Ctx, Error, Result};

/// The head's name in the weights file.
pub const SCORE: &str = "score.weight";

/// A source of a decoder's weights without those of any head.
struct Body<'a>(&'a dyn TensorSource);

impl TensorSource for Body<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        self.0.tensor(name, shape)
    }

    fn names(&self) -> Vec<String> {
        self.0.names().into_iter().filter(|n| n != SCORE && n != "lm_head.weight").collect()
    }
}

impl Pretrained {
    /// Builds a reward model: the decoder, and the head of the files or, where they are a language model's, a new
    /// one, normal with `initializer_range` (0.02) by `seed`, as transformers makes it.
    ///
    /// # Errors
    /// Weights that do not fit the config; a head of several numbers.
    pub fn load_reward(&self, options: LoadOptions, seed: u64) -> Result<Model> {
        let mut config: ModelConfig = self.config.clone();
        let shape = [1, config.hidden_size];
        let given = self.source().tensor(SCORE, &shape)?;
        if let Some(found) = given.as_ref().map(Tensor::dims).filter(|dims| *dims != shape) {
            let (name, found, expected) = (SCORE.to_owned(), found.to_vec(), shape.to_vec());
            return Err(Error::TensorShape { name, found, expected });
        }
        describe(&mut config.source);
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
                let values: Vec<f64> = (0..shape[1] as u64).map(|i| stream.normal(i) * range).collect();
                Tensor::from_vec(values, shape)?.to_dtype(dtype)?
            }
        };
        let make = if options.trainable { Param::trainable } else { Param::frozen };
        model.score = Some(Weight::new(make(SCORE.to_owned(), head)));
        Ok(model)
    }
}

/// Makes a language model's config.json that of a classifier with one label.
fn describe(config: &mut serde_json::Value) {
    if let Some(class) = config["architectures"][0].as_str().and_then(|c| c.strip_suffix("ForCausalLM")) {
        config["architectures"] = json!([format!("{class}ForSequenceClassification")]);
    }
    config["id2label"] = json!({ "0": "LABEL_0" });
    config["label2id"] = json!({ "LABEL_0": 0 });
    // transformers finds a sequence's last token by what is not padding, and refuses batches without it.
    if config["pad_token_id"].is_null() {
        let end = &config["eos_token_id"];
        config["pad_token_id"] = if end.is_array() { end[0].clone() } else { end.clone() };
    }
}

impl Model {
    /// The reward of each segment: w · h of its last token, (segments, 1). `hidden`: (tokens, hidden).
    ///
    /// # Errors
    /// Those of the kernels.
    ///
    /// # Panics
    /// If the model has no such head.
    pub fn rewards(&self, ctx: &Ctx, hidden: &Var, cu_seqlens: &[u32]) -> Result<Var> {
        let score = self.score.as_ref().expect("a reward model has a head of one number");
        let last: Vec<u32> = cu_seqlens[1..].iter().map(|end| end - 1).collect();
        Ok(linear::linear(&index_select::index_select(hidden, &last)?, &score.var(ctx), None)?)
    }

    /// Whether it is a reward model.
    pub fn is_reward(&self) -> bool {
        self.score.is_some()
    }
}
