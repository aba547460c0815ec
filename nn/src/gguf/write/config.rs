//! A model's settings as metadata, and the proof that they read back as the same model.

use super::error::ExportError;
use crate::config::{ModelConfig, Rope, RopeScaling};
use crate::gguf::metadata::Value;
use crate::gguf::names::{Arch, ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS};
use crate::gguf::{GgufFile, Metadata};

/// Types of models that llama.cpp has an architecture for, and which.
const ARCHITECTURES: [(&str, Arch); 11] = [
    ("llama", Arch::Llama),
    ("mistral", Arch::Llama),
    ("qwen2", Arch::Qwen2),
    ("qwen3", Arch::Qwen3),
    ("gemma2", Arch::Gemma2),
    ("gemma3", Arch::Gemma3),
    ("gemma3_text", Arch::Gemma3),
    ("phi3", Arch::Phi3),
    ("olmo2", Arch::Olmo2),
    ("smollm3", Arch::SmolLm3),
    ("granite", Arch::Granite),
];

/// The architecture of a model.
pub(super) fn architecture(config: &ModelConfig) -> Result<Arch, ExportError> {
    let found = ARCHITECTURES.iter().find(|(name, _)| *name == config.model_type);
    found.map(|(_, arch)| *arch).ok_or_else(|| ExportError::Architecture {
        model_type: config.model_type.clone(),
        supported: ARCHITECTURES.map(|(name, _)| name).join(", "),
    })
}

/// A tensor that is a setting in Hugging Face's format.
pub(super) type Setting = (&'static str, Vec<f32>);

/// Adds the settings to `metadata`; gives those that are tensors in GGUF.
pub(super) fn describe(config: &ModelConfig, arch: Arch, metadata: &mut Metadata) -> Result<Vec<Setting>, ExportError> {
    let name = arch.name();
    let mut set = |key: &str, value: Value| {
        metadata.insert(format!("{name}.{key}"), value);
    };
    let whole = |n: usize| Value::U32(u32::try_from(n).unwrap_or(u32::MAX));
    let real = |x: f64| Value::F32(x as f32);
    set("block_count", whole(config.num_layers()));
    set("context_length", whole(config.max_positions));
    set("embedding_length", whole(config.hidden_size));
    set("feed_forward_length", whole(config.intermediate_size));
    set("attention.head_count", whole(config.num_heads));
    set("attention.head_count_kv", whole(config.num_kv_heads));
    set("attention.key_length", whole(config.head_dim));
    set("attention.value_length", whole(config.head_dim));
    set("attention.layer_norm_rms_epsilon", real(config.norm_eps));
    set("vocab_size", whole(config.vocab_size));
    if let Some(window) = config.layers.iter().find_map(|l| l.window) {
        set("attention.sliding_window", whole(window));
    }
    match arch {
        Arch::Gemma2 => {
            set("attn_logit_softcapping", real(config.attention_softcap.unwrap_or(0.0)));
            set("final_logit_softcapping", real(config.final_softcap.unwrap_or(0.0)));
        }
        Arch::Granite => {
            set("attention.scale", real(config.attention_scale));
            set("embedding_scale", real(config.embedding_scale));
            set("residual_scale", real(config.residual_scale));
            // The file has the divisor of the logits.
            set("logit_scale", real(1.0 / config.logit_scale));
        }
        _ => {}
    }
    let Some(rope) = config.ropes.first() else { return Ok(Vec::new()) };
    set("rope.freq_base", real(rope.theta));
    set("rope.dimension_count", whole(rope.rotary_dim));
    if let (Arch::Gemma3, Some(local)) = (arch, config.ropes.get(1)) {
        set("rope.freq_base_swa", real(local.theta));
    }
    let inexpressible = |what: &str| ExportError::Inexpressible { architecture: name, what: what.to_owned() };
    let f32s = |xs: &[f64]| xs.iter().map(|&x| x as f32).collect::<Vec<_>>();
    Ok(match &rope.scaling {
        RopeScaling::Default => Vec::new(),
        RopeScaling::Linear { factor } => {
            set("rope.scaling.type", Value::String("linear".to_owned()));
            set("rope.scaling.factor", real(*factor));
            Vec::new()
        }
        RopeScaling::Yarn { factor, original, attention_factor, beta_fast, beta_slow, .. } => {
            set("rope.scaling.type", Value::String("yarn".to_owned()));
            set("rope.scaling.factor", real(*factor));
            set("rope.scaling.original_context_length", whole(*original));
            if let Some(factor) = attention_factor {
                set("rope.scaling.yarn_attn_factor", real(*factor));
            }
            set("rope.scaling.yarn_beta_fast", real(*beta_fast));
            set("rope.scaling.yarn_beta_slow", real(*beta_slow));
            Vec::new()
        }
        RopeScaling::Llama3 { .. } => vec![(ROPE_FREQS, divisors(rope))],
        RopeScaling::LongRope { short_factor, long_factor, original, .. } => {
            set("rope.scaling.original_context_length", whole(*original));
            set("rope.scaling.attn_factor", real(rope.frequencies(config.max_positions).1));
            vec![(ROPE_FACTORS_LONG, f32s(long_factor)), (ROPE_FACTORS_SHORT, f32s(short_factor))]
        }
        RopeScaling::Dynamic { .. } => return Err(inexpressible("dynamic RoPE scaling")),
    })
}

/// What the frequencies are divided by.
fn divisors(rope: &Rope) -> Vec<f32> {
    let plain = Rope::plain(rope.theta, rope.rotary_dim, rope.max_positions).frequencies(1).0;
    let scaled = rope.frequencies(1).0;
    plain.iter().zip(&scaled).map(|(plain, scaled)| (f64::from(*plain) / f64::from(*scaled)) as f32).collect()
}

/// Whether the settings that the file holds are those of the model, up to f32's rounding.
///
/// # Errors
/// [`ExportError::Inexpressible`] with what differs.
pub(super) fn compare(config: &ModelConfig, file: &GgufFile, arch: Arch) -> crate::Result<()> {
    let read = ModelConfig::from_json(&file.hf_config()?)?;
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a.abs().max(b.abs());
    let near_option = |a: Option<f64>, b: Option<f64>| match (a, b) {
        (Some(a), Some(b)) => near(a, b),
        (a, b) => a.is_none() && b.is_none(),
    };
    let ropes = || {
        config.ropes.len() == read.ropes.len()
            && config.ropes.iter().zip(&read.ropes).all(|(a, b)| {
                [1, config.max_positions].iter().all(|&length| {
                    let ((a, fa), (b, fb)) = (a.frequencies(length), b.frequencies(length));
                    let far = |(a, b): (&_, &_)| !near_f32(*a, *b);
                    a.len() == b.len() && !a.iter().zip(&b).any(far) && near(fa, fb)
                })
            })
    };
    let checks = [
        ("vocabulary's size", config.vocab_size == read.vocab_size),
        ("width", config.hidden_size == read.hidden_size && config.intermediate_size == read.intermediate_size),
        (
            "heads",
            (config.num_heads, config.num_kv_heads, config.head_dim)
                == (read.num_heads, read.num_kv_heads, read.head_dim),
        ),
        ("norms", near(config.norm_eps, read.norm_eps) && config.norm_offset == read.norm_offset),
        ("placement of norms", config.norm_placement == read.norm_placement && config.qk_norm == read.qk_norm),
        ("activation", config.activation == read.activation),
        ("biases", (config.qkv_bias, config.o_bias, config.mlp_bias) == (read.qkv_bias, read.o_bias, read.mlp_bias)),
        ("attention scale", near(config.attention_scale, read.attention_scale)),
        ("soft-cap on attention", near_option(config.attention_softcap, read.attention_softcap)),
        ("soft-cap on logits", near_option(config.final_softcap, read.final_softcap)),
        ("embedding scale", near(config.embedding_scale, read.embedding_scale)),
        ("residual scale", near(config.residual_scale, read.residual_scale)),
        ("logits' scale", near(config.logit_scale, read.logit_scale)),
        ("number of positions", config.max_positions == read.max_positions),
        ("tied embeddings", config.tie_word_embeddings == read.tie_word_embeddings),
        ("windows, or which layers rotate", config.layers == read.layers),
        ("RoPE", ropes()),
    ];
    match checks.iter().find(|(_, same)| !same) {
        None => Ok(()),
        Some((what, _)) => {
            Err(ExportError::Inexpressible { architecture: arch.name(), what: (*what).to_owned() }.into())
        }
    }
}

fn near_f32(a: f32, b: f32) -> bool {
    (a - b).abs() <= 1e-5 * a.abs().max(b.abs())
}
