//! What config.json says beside the decoder's shape, and must not contradict it in.

use serde_json::Value;

use super::{ConfigError, Fields, ModelConfig};

/// dtypes of torch, of which the files of a model can be.
const DTYPES: [&str; 16] = [
    "auto",
    "float64",
    "double",
    "float32",
    "float",
    "float16",
    "half",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "uint8",
    "int8",
    "int32",
    "int64",
];

/// Checks the class, the dtype and the special tokens.
pub(super) fn check(source: &Value, config: &ModelConfig) -> Result<(), ConfigError> {
    let fields = Fields::new(source)?;
    let classes = fields.opt_strs("architectures")?.unwrap_or_default();
    if let Some(class) = classes.iter().find(|class| !is_of(class, &config.model_type)) {
        return Err(ConfigError::Contradiction {
            what: format!("architectures has {class:?}, which is no model of the model_type {:?}", config.model_type),
        });
    }
    // transformers 5 writes `dtype`. The weights have dtypes of their own, so that it only has to be one.
    for key in ["torch_dtype", "dtype"] {
        if let Some(dtype) = fields.opt_str(key)?.filter(|d| !DTYPES.contains(&d.trim_start_matches("torch."))) {
            return Err(ConfigError::Value { key, value: format!("{dtype:?}"), expected: "a dtype of torch".into() });
        }
    }
    token_ids(&fields, "bos_token_id", None, config.vocab_size)?;
    token_ids(&fields, "eos_token_id", None, config.vocab_size)?;
    // -1 is "none" in the files of old models (LLaMA's among them), and torch takes it for the last row.
    token_ids(&fields, "pad_token_id", Some(-1), config.vocab_size)
}

/// Whether a class of transformers is one of this family's: `Qwen2MoeForCausalLM` is of `qwen2_moe`, whatever it is for
/// (`Qwen2MoeModel`, `…ForSequenceClassification`, a class of somebody's own). Letters' case is not told apart:
/// `LLaMAForCausalLM` was written for a while.
fn is_of(class: &str, model_type: &str) -> bool {
    let lower = class.to_ascii_lowercase();
    let family = model_type.replace('_', "");
    // Gemma 3's text model has the class of the family.
    let names = [family.as_str(), family.strip_suffix("text").unwrap_or(&family)];
    names.iter().any(|name| {
        lower
            .strip_prefix(name)
            .is_some_and(|rest| ["for", "model", "textmodel"].iter().any(|end| rest.starts_with(end)))
    })
}

/// An id or a list of ids, each of the vocabulary or `besides`.
fn token_ids(
    fields: &Fields<'_>,
    key: &'static str,
    besides: Option<i64>,
    vocabulary: usize,
) -> Result<(), ConfigError> {
    let Some(value) = fields.get(key) else { return Ok(()) };
    let ids = match value {
        Value::Array(ids) => ids.as_slice(),
        one => std::slice::from_ref(one),
    };
    let fits = |id: &Value| {
        id.as_u64().is_some_and(|id| id < vocabulary as u64) || besides.is_some_and(|other| id.as_i64() == Some(other))
    };
    match ids.iter().find(|id| !fits(id)) {
        None => Ok(()),
        Some(id) => Err(ConfigError::Value {
            key,
            value: id.to_string().chars().take(40).collect(),
            expected: format!("an id from 0 to {}, the last of vocab_size", vocabulary.saturating_sub(1)),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_told_by_their_family() {
        for (class, model_type) in [
            ("LlamaForCausalLM", "llama"),
            ("LLaMAForCausalLM", "llama"),
            ("LlamaModel", "llama"),
            ("LlamaForCausalLMEagle3", "llama"),
            ("Qwen2MoeForCausalLM", "qwen2_moe"),
            ("Qwen2ForRewardModel", "qwen2"),
            ("Gemma3ForCausalLM", "gemma3_text"),
            ("Gemma3TextModel", "gemma3_text"),
            ("DeepseekV3ForCausalLM", "deepseek_v3"),
            ("SmolLM3ForCausalLM", "smollm3"),
        ] {
            assert!(is_of(class, model_type), "{class} {model_type}");
        }
        for (class, model_type) in [
            ("FooForCausalLM", "llama"),
            ("MistralForCausalLM", "llama"),
            ("Qwen2MoeForCausalLM", "qwen2"),
            ("Qwen2ForCausalLM", "qwen2_moe"),
            ("", "llama"),
        ] {
            assert!(!is_of(class, model_type), "{class} {model_type}");
        }
    }
}
