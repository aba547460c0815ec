//! Metadata as the `config.json` of transformers.

use serde_json::{Map, Value as Json, json};

use super::metadata::widen;
use super::names::{Arch, ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS};
use super::{GgufError, GgufFile, Result};
use crate::config::ConfigError;

/// Keys of `config.json` that messages name, and the metadata they are read from.
const READ_FROM: [(&str, &str); 12] = [
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("hidden_size", "embedding_length"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("num_attention_heads", "attention.head_count"),
    ("head_dim", "attention.key_length"),
    ("max_position_embeddings", "context_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("rope_scaling", "rope.scaling"),
    ("sliding_window", "attention.sliding_window"),
    ("vocab_size", "vocab_size"),
];

impl GgufFile {
    /// What is wrong with the settings, by the metadata's keys: there is no config.json.
    pub(crate) fn in_its_words(&self, error: &ConfigError) -> GgufError {
        let mut problem = error.to_string().replace("config.json", "the metadata");
        for (key, own) in READ_FROM {
            // Names as whole words; `num_attention_heads` also stands without quotes.
            problem = problem.replace(key, &self.key(own));
        }
        GgufError::Settings { path: self.path().into(), problem }
    }

    /// The settings of the model, as transformers writes them into `config.json`.
    ///
    /// The vocabulary's size is that of the embedding, embeddings are tied if there is no
    /// `output.weight`, biases exist if the first layer has them. What llama.cpp has in its code and
    /// not in the file (Gemma's window pattern and query scale, Llama 3's frequency bounds) is filled
    /// in as its code has it.
    ///
    /// # Errors
    /// [`GgufError::UnsupportedArchitecture`]; [`GgufError::Key`] for a key that is missing or
    /// cannot be expressed; [`GgufError::Shape`].
    pub fn hf_config(&self) -> Result<Json> {
        let arch = self.arch()?;
        let window = self.metadata().u64(&self.key("attention.sliding_window")).filter(|&w| w > 0);
        let (model_type, class) = match arch {
            Arch::Llama if window.is_some() => ("mistral", "MistralForCausalLM"),
            Arch::Llama => ("llama", "LlamaForCausalLM"),
            Arch::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
            Arch::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
            Arch::Gemma2 => ("gemma2", "Gemma2ForCausalLM"),
            Arch::Gemma3 => ("gemma3_text", "Gemma3ForCausalLM"),
            Arch::Phi3 => ("phi3", "Phi3ForCausalLM"),
            Arch::Olmo2 => ("olmo2", "Olmo2ForCausalLM"),
            Arch::SmolLm3 => ("smollm3", "SmolLM3ForCausalLM"),
            Arch::Granite => ("granite", "GraniteForCausalLM"),
        };
        let hidden = self.need("embedding_length")?;
        let heads = self.n_heads()? as u64;
        let head_dim = self.head_dim(hidden, heads)?;
        let mut config = Map::new();
        let mut set = |key: &str, value: Json| {
            config.insert(key.into(), value);
        };
        set("architectures", json!([class]));
        set("model_type", model_type.into());
        set("hidden_size", hidden.into());
        set("intermediate_size", self.need("feed_forward_length")?.into());
        set("num_hidden_layers", self.need("block_count")?.into());
        set("num_attention_heads", heads.into());
        set("num_key_value_heads", (self.n_kv_heads()? as u64).into());
        set("head_dim", head_dim.into());
        set("max_position_embeddings", self.need("context_length")?.into());
        set("rms_norm_eps", self.need_f64("attention.layer_norm_rms_epsilon")?.into());
        set("rope_theta", self.metadata().f64(&self.key("rope.freq_base")).unwrap_or(10_000.0).into());
        set("vocab_size", self.vocab_size(hidden)?.into());
        set("tie_word_embeddings", self.info("output.weight").is_none().into());
        set("torch_dtype", "float32".into());
        let activation = if matches!(arch, Arch::Gemma2 | Arch::Gemma3) { "gelu_pytorch_tanh" } else { "silu" };
        set("hidden_act", activation.into());
        if !matches!(arch, Arch::Qwen2) {
            set("attention_bias", self.info("blk.0.attn_q.bias").is_some().into());
        }
        if matches!(arch, Arch::Llama | Arch::SmolLm3 | Arch::Granite) {
            set("mlp_bias", self.info("blk.0.ffn_up.bias").is_some().into());
        }
        for (key, id) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
            if let Some(id) = self.metadata().u64(&format!("tokenizer.ggml.{id}_token_id")) {
                set(key, id.into());
            }
        }
        config.extend(self.of_family(arch, window, hidden, heads, head_dim)?);
        if let Some(scaling) = self.rope_scaling(head_dim)? {
            config.insert("rope_scaling".into(), scaling);
        }
        self.refuse_partial_rotary(arch, head_dim)?;
        Ok(config.into())
    }

    /// Settings that one family alone has.
    fn of_family(
        &self,
        arch: Arch,
        window: Option<u64>,
        hidden: u64,
        heads: u64,
        head_dim: u64,
    ) -> Result<Map<String, Json>> {
        let f64 = |key: &str| self.metadata().f64(&self.key(key));
        let layers = self.need("block_count")?;
        let mut config = Map::new();
        let mut set = |key: &str, value: Json| {
            config.insert(key.into(), value);
        };
        match arch {
            Arch::Llama | Arch::Qwen2 | Arch::Qwen3 => {
                if let Some(window) = window {
                    set("sliding_window", window.into());
                    set("use_sliding_window", true.into());
                }
            }
            Arch::Gemma2 | Arch::Gemma3 => {
                set("hidden_activation", "gelu_pytorch_tanh".into());
                set("sliding_window", window.unwrap_or(if arch == Arch::Gemma2 { 4096 } else { 1024 }).into());
                // The 27B models, told by their layers as llama.cpp does, scale by another size.
                let big = layers == if arch == Arch::Gemma2 { 46 } else { 62 };
                set("query_pre_attn_scalar", if big { (hidden / heads).into() } else { head_dim.into() });
                let caps = arch == Arch::Gemma2;
                let cap = |key, default| f64(key).or(caps.then_some(default)).filter(|&cap| cap != 0.0);
                set("attn_logit_softcapping", json!(cap("attn_logit_softcapping", 50.0)));
                set("final_logit_softcapping", json!(cap("final_logit_softcapping", 30.0)));
                if arch == Arch::Gemma3 {
                    set("rope_local_base_freq", f64("rope.freq_base_swa").unwrap_or(10_000.0).into());
                    set("sliding_window_pattern", 6.into());
                }
            }
            Arch::Phi3 => {
                set("sliding_window", json!(window));
                if let Some(original) = self.metadata().u64(&self.key("rope.scaling.original_context_length")) {
                    set("original_max_position_embeddings", original.into());
                }
                if let Some(rotated) = self.metadata().u64(&self.key("rope.dimension_count")).filter(|&d| d != head_dim)
                {
                    set("partial_rotary_factor", (rotated as f64 / head_dim as f64).into());
                }
            }
            // A window makes it OLMo 3, under the same architecture.
            Arch::Olmo2 if window.is_some() => {
                return Err(self.bad_key("attention.sliding_window", "makes the model OLMo 3, which is not supported"));
            }
            Arch::Olmo2 => {}
            Arch::SmolLm3 => set("no_rope_layer_interval", 4.into()),
            Arch::Granite => {
                for (key, gguf) in [
                    ("attention_multiplier", "attention.scale"),
                    ("embedding_multiplier", "embedding_scale"),
                    ("residual_multiplier", "residual_scale"),
                    ("logits_scaling", "logit_scale"),
                ] {
                    set(key, self.need_f64(gguf)?.into());
                }
            }
        }
        Ok(config)
    }

    fn rope_scaling(&self, head_dim: u64) -> Result<Option<Json>> {
        let md = self.metadata();
        let original = md.u64(&self.key("rope.scaling.original_context_length"));
        let f64 = |key: &str| md.f64(&self.key(key));
        match md.string(&self.key("rope.scaling.type")) {
            Some("linear") => {
                Ok(Some(json!({ "rope_type": "linear", "factor": self.need_f64("rope.scaling.factor")? })))
            }
            Some("yarn") => {
                let mut yarn = json!({ "rope_type": "yarn", "factor": self.need_f64("rope.scaling.factor")? });
                let rest = [
                    ("attention_factor", f64("rope.scaling.yarn_attn_factor")),
                    ("beta_fast", f64("rope.scaling.yarn_beta_fast")),
                    ("beta_slow", f64("rope.scaling.yarn_beta_slow")),
                ];
                for (key, value) in rest.into_iter().filter_map(|(key, value)| Some((key, value?))) {
                    yarn[key] = value.into();
                }
                if let Some(original) = original {
                    yarn["original_max_position_embeddings"] = original.into();
                }
                Ok(Some(yarn))
            }
            None | Some("none" | "longrope") => {
                if let Some((long, short)) = self.setting(ROPE_FACTORS_LONG)?.zip(self.setting(ROPE_FACTORS_SHORT)?) {
                    let factors = |xs: Vec<f32>| xs.into_iter().map(widen).collect::<Vec<f64>>();
                    let (long, short) = (factors(long), factors(short));
                    return Ok(Some(json!({ "rope_type": "longrope", "long_factor": long, "short_factor": short })));
                }
                self.setting(ROPE_FREQS)?.map(|factors| self.llama3(&factors, head_dim)).transpose()
            }
            Some(_) => Err(self.bad_key("rope.scaling.type", "is neither none, linear, yarn nor longrope")),
        }
    }

    /// The parameters of Llama 3's scaling, from the divisors of the frequencies that it comes to.
    ///
    /// The file has the divisors only. The largest is the factor; the other parameters are the same in
    /// every Llama 3.1 to 3.3. That they are here too is checked by computing the divisors from them.
    fn llama3(&self, divisors: &[f32], head_dim: u64) -> Result<Json> {
        const ORIGINAL: f64 = 8192.0;
        const LOW: f64 = 1.0;
        const HIGH: f64 = 4.0;
        let base = self.metadata().f64(&self.key("rope.freq_base")).unwrap_or(10_000.0);
        let factor = divisors.iter().copied().fold(1.0f32, f32::max);
        let expected = |i: usize| {
            let wavelength = std::f64::consts::TAU * base.powf(2.0 * i as f64 / head_dim as f64);
            let smooth = ((ORIGINAL / wavelength - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
            1.0 / ((1.0 - smooth) / f64::from(factor) + smooth)
        };
        // The converter computes in f32: 1e-3 is far above that, far below any other parameters.
        let agree = divisors.len() as u64 == head_dim / 2
            && divisors.iter().enumerate().all(|(i, &d)| (f64::from(d) / expected(i) - 1.0).abs() <= 1e-3);
        if !agree {
            let shape = vec![divisors.len()];
            let expected = "its values are not those of Llama 3's rope scaling".into();
            return Err(GgufError::Shape { path: self.path().into(), name: ROPE_FREQS.into(), shape, expected });
        }
        Ok(json!({
            "rope_type": "llama3", "factor": widen(factor), "low_freq_factor": LOW, "high_freq_factor": HIGH,
            "original_max_position_embeddings": ORIGINAL as u64,
        }))
    }

    /// The values of a tensor that is a setting in Hugging Face's format.
    fn setting(&self, name: &str) -> Result<Option<Vec<f32>>> {
        match self.info(name) {
            None => Ok(None),
            Some(info) if info.shape.iter().product::<usize>() > 1 << 16 => Err(GgufError::Shape {
                path: self.path().into(),
                name: name.into(),
                shape: info.shape.clone(),
                expected: "a factor for each pair of dimensions of a head was expected".into(),
            }),
            Some(_) => Ok(Some(self.tensor(name)?.to_vec::<f32>()?)),
        }
    }

    fn head_dim(&self, hidden: u64, heads: u64) -> Result<u64> {
        let md = self.metadata();
        let Some(dim) = md.u64(&self.key("attention.key_length")) else {
            return match hidden % heads {
                0 => Ok(hidden / heads),
                _ => Err(self.bad_key("attention.head_count", "does not divide the embedding's length")),
            };
        };
        if md.u64(&self.key("attention.value_length")).is_some_and(|value| value != dim) {
            return Err(self.bad_key("attention.value_length", "differs from the key's, which is not supported"));
        }
        if dim == 0 {
            return Err(self.bad_key("attention.key_length", "is 0"));
        }
        Ok(dim)
    }

    fn refuse_partial_rotary(&self, arch: Arch, head_dim: u64) -> Result<()> {
        match self.metadata().u64(&self.key("rope.dimension_count")) {
            Some(rotated) if rotated != head_dim && arch != Arch::Phi3 => {
                Err(self.bad_key("rope.dimension_count", "differs from the head's size, which is not supported"))
            }
            _ => Ok(()),
        }
    }

    fn vocab_size(&self, hidden: u64) -> Result<u64> {
        const NAME: &str = "token_embd.weight";
        let Some(info) = self.info(NAME) else {
            return Err(GgufError::NoSuchTensor { path: self.path().into(), name: "model.embed_tokens.weight".into() });
        };
        match info.shape[..] {
            [vocab, width] if width as u64 == hidden => match self.metadata().u64(&self.key("vocab_size")) {
                // llama.cpp counts the tokens and passes over it; transformers builds its embedding by it, and fails.
                Some(said) if said != vocab as u64 => {
                    Err(self.bad_key("vocab_size", "differs from the rows of token_embd.weight"))
                }
                _ => Ok(vocab as u64),
            },
            _ => Err(GgufError::Shape {
                path: self.path().into(),
                name: NAME.into(),
                shape: info.shape.clone(),
                expected: format!("(vocabulary, {hidden}) was expected"),
            }),
        }
    }

    pub(super) fn n_heads(&self) -> Result<usize> {
        self.positive("attention.head_count")
    }

    pub(super) fn n_kv_heads(&self) -> Result<usize> {
        match self.metadata().get(&self.key("attention.head_count_kv")) {
            Some(_) => self.positive("attention.head_count_kv"),
            None => self.n_heads(),
        }
    }

    fn positive(&self, key: &str) -> Result<usize> {
        match self.need(key)? {
            0 => Err(self.bad_key(key, "is 0")),
            n => u32::try_from(n).map(|n| n as usize).map_err(|_| self.bad_key(key, "is too large")),
        }
    }

    /// `llama.rope.freq_base` of `rope.freq_base`.
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.metadata().string("general.architecture").unwrap_or_default())
    }

    fn need(&self, key: &str) -> Result<u64> {
        self.metadata()
            .u64(&self.key(key))
            .ok_or_else(|| self.absent(key, "is not a single integer that is not negative"))
    }

    fn need_f64(&self, key: &str) -> Result<f64> {
        let value = self.metadata().f64(&self.key(key)).ok_or_else(|| self.absent(key, "is not a float"))?;
        if value.is_finite() { Ok(value) } else { Err(self.bad_key(key, "is not finite")) }
    }

    fn absent(&self, key: &str, otherwise: &'static str) -> GgufError {
        let found = self.metadata().get(&self.key(key)).is_some();
        self.bad_key(key, if found { otherwise } else { "is missing" })
    }

    fn bad_key(&self, key: &str, problem: &'static str) -> GgufError {
        GgufError::Key { path: self.path().into(), key: self.key(key), problem }
    }
}
