//! Tensor names of llama.cpp, as Hugging Face has them, and what the converter did to the values.

/// Architectures with a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arch {
    Llama,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Phi3,
    Olmo2,
    SmolLm3,
    Granite,
}

/// What llama.cpp's converter did to a tensor, to be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Nothing,
    /// The rows of each query head were interleaved, (2, d/2) to (d/2, 2), for ggml's pairing of
    /// neighbouring dimensions in RoPE. transformers pairs dimension i with i + d/2.
    QueryRows,
    /// The same for each key head.
    KeyRows,
    /// 1 was added: Gemma's norms scale by 1 + w, and llama.cpp's by w.
    PlusOne,
}

impl Arch {
    pub(crate) const ALL: [Arch; 9] = [
        Arch::Llama,
        Arch::Qwen2,
        Arch::Qwen3,
        Arch::Gemma2,
        Arch::Gemma3,
        Arch::Phi3,
        Arch::Olmo2,
        Arch::SmolLm3,
        Arch::Granite,
    ];

    /// `general.architecture`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
            Arch::Gemma2 => "gemma2",
            Arch::Gemma3 => "gemma3",
            Arch::Phi3 => "phi3",
            Arch::Olmo2 => "olmo2",
            Arch::SmolLm3 => "smollm3",
            Arch::Granite => "granite",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Arch> {
        Arch::ALL.into_iter().find(|arch| arch.name() == name)
    }

    /// Whether the converter interleaved the rows of queries and keys.
    fn interleaved(self) -> bool {
        matches!(self, Arch::Llama | Arch::SmolLm3 | Arch::Granite)
    }

    fn gemma(self) -> bool {
        matches!(self, Arch::Gemma2 | Arch::Gemma3)
    }
}

/// The Hugging Face name of a tensor and what to undo, or `None` if the architecture has no such tensor.
pub(crate) fn to_hf(arch: Arch, name: &str) -> Option<(String, Change)> {
    let (stem, suffix) = name.rsplit_once('.')?;
    if suffix != "weight" && suffix != "bias" {
        return None;
    }
    let norm = if arch.gemma() { Change::PlusOne } else { Change::Nothing };
    let (module, change) = match stem {
        "token_embd" => ("model.embed_tokens".to_owned(), Change::Nothing),
        "output_norm" => ("model.norm".to_owned(), norm),
        "output" => ("lm_head".to_owned(), Change::Nothing),
        _ => {
            let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
            // As the converter writes it: no sign, no leading zero.
            let number: u32 = layer.parse().ok().filter(|n: &u32| n.to_string() == layer)?;
            let (part, change) = block(arch, part)?;
            (format!("model.layers.{number}.{part}"), if part.ends_with("norm") { norm } else { change })
        }
    };
    Some((format!("{module}.{suffix}"), change))
}

/// The module of a layer, e.g. `attn_q` to `self_attn.q_proj`.
fn block(arch: Arch, part: &str) -> Option<(&'static str, Change)> {
    let (query, key) = match arch.interleaved() {
        true => (Change::QueryRows, Change::KeyRows),
        false => (Change::Nothing, Change::Nothing),
    };
    let has_qk_norm = matches!(arch, Arch::Qwen3 | Arch::Gemma3 | Arch::Olmo2);
    // Gemma normalises before and after each sub-layer, OLMo 2 only after.
    let sandwich = arch.gemma();
    let after = sandwich || arch == Arch::Olmo2;
    let fused = arch == Arch::Phi3;
    let module = match part {
        "attn_norm" if arch != Arch::Olmo2 => "input_layernorm",
        "attn_q" if !fused => return Some(("self_attn.q_proj", query)),
        "attn_k" if !fused => return Some(("self_attn.k_proj", key)),
        "attn_v" if !fused => "self_attn.v_proj",
        "attn_qkv" if fused => "self_attn.qkv_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" if has_qk_norm => "self_attn.q_norm",
        "attn_k_norm" if has_qk_norm => "self_attn.k_norm",
        "ffn_norm" if sandwich => "pre_feedforward_layernorm",
        "ffn_norm" if !after => "post_attention_layernorm",
        "post_attention_norm" if after => "post_attention_layernorm",
        "post_ffw_norm" if after => "post_feedforward_layernorm",
        "ffn_gate" if !fused => "mlp.gate_proj",
        "ffn_up" if fused => "mlp.gate_up_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some((module, Change::Nothing))
}

/// Tensors that are settings in Hugging Face's format: they go into the config.
pub(crate) fn is_setting(name: &str) -> bool {
    matches!(name, ROPE_FREQS | ROPE_FACTORS_LONG | ROPE_FACTORS_SHORT)
}

pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";
pub(crate) const ROPE_FACTORS_LONG: &str = "rope_factors_long.weight";
pub(crate) const ROPE_FACTORS_SHORT: &str = "rope_factors_short.weight";
