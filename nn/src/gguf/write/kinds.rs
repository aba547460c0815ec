//! Which type each tensor gets: what llama.cpp's quantiser chooses.

use crate::config::ModelConfig;
use crate::gguf::GgmlType;

/// How a model is quantised, under llama.cpp's names.
#[allow(non_camel_case_types, missing_docs, reason = "llama.cpp's own names")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quant {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
}

impl Quant {
    /// Every one, with the names it goes by.
    pub const NAMES: [(&'static str, Quant); 12] = [
        ("f32", Quant::F32),
        ("f16", Quant::F16),
        ("bf16", Quant::BF16),
        ("q8_0", Quant::Q8_0),
        ("q4_0", Quant::Q4_0),
        ("q4_k", Quant::Q4_K_M),
        ("q4_k_s", Quant::Q4_K_S),
        ("q4_k_m", Quant::Q4_K_M),
        ("q5_k", Quant::Q5_K_M),
        ("q5_k_s", Quant::Q5_K_S),
        ("q5_k_m", Quant::Q5_K_M),
        ("q6_k", Quant::Q6_K),
    ];

    /// The one of a name, in any case.
    pub fn parse(name: &str) -> Option<Quant> {
        let name = name.to_ascii_lowercase();
        Quant::NAMES.iter().find(|(n, _)| *n == name).map(|(_, quant)| *quant)
    }

    /// `general.file_type`.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Quant::F32 => 0,
            Quant::F16 => 1,
            Quant::Q4_0 => 2,
            Quant::Q8_0 => 7,
            Quant::Q4_K_S => 14,
            Quant::Q4_K_M => 15,
            Quant::Q5_K_S => 16,
            Quant::Q5_K_M => 17,
            Quant::Q6_K => 18,
            Quant::BF16 => 32,
        }
    }

    /// What most matrices get.
    fn main(self) -> GgmlType {
        match self {
            Quant::F32 => GgmlType::F32,
            Quant::F16 => GgmlType::F16,
            Quant::BF16 => GgmlType::BF16,
            Quant::Q8_0 => GgmlType::Q8_0,
            Quant::Q4_0 => GgmlType::Q4_0,
            Quant::Q4_K_S | Quant::Q4_K_M => GgmlType::Q4_K,
            Quant::Q5_K_S | Quant::Q5_K_M => GgmlType::Q5_K,
            Quant::Q6_K => GgmlType::Q6_K,
        }
    }

    /// The type of a tensor of this name in the file: vectors stay in f32, the head (and the embedding that is one) and
    /// what mixes say keep more bits.
    pub(super) fn kind(self, name: &str, shape: &[usize], config: &ModelConfig) -> GgmlType {
        if shape.len() < 2 || name.contains("norm") {
            return GgmlType::F32;
        }
        let main = self.main();
        if matches!(main, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::Q8_0) {
            return main;
        }
        let width = shape.last().copied().unwrap_or(0);
        if name == "output.weight" || name == "token_embd.weight" && config.tie_word_embeddings {
            return if width.is_multiple_of(main.block_len()) { GgmlType::Q6_K } else { GgmlType::Q8_0 };
        }
        let part = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let Some((layer, part)) = part.and_then(|(n, part)| Some((n.parse::<usize>().ok()?, part))) else {
            return main;
        };
        let n = config.num_layers();
        let value = part == "attn_v.weight";
        match self {
            Quant::Q4_K_M | Quant::Q5_K_M if (value || part == "ffn_down.weight") && more_bits(layer, n) => {
                GgmlType::Q6_K
            }
            Quant::Q4_K_M if part == "attn_qkv.weight" => GgmlType::Q5_K,
            Quant::Q5_K_M if part == "attn_qkv.weight" => GgmlType::Q6_K,
            Quant::Q4_K_S if value && layer < 4 => GgmlType::Q5_K,
            Quant::Q4_K_S if part == "ffn_down.weight" && layer < n / 8 => GgmlType::Q5_K,
            _ => main,
        }
    }
}

/// Whether a layer is one of those that the mixes give more bits.
fn more_bits(layer: usize, layers: usize) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

/// The type that rows of `width` numbers get in place of one whose blocks they do not fill.
pub(super) fn fitting(kind: GgmlType, width: usize) -> GgmlType {
    if width.is_multiple_of(kind.block_len()) {
        return kind;
    }
    let instead = match kind {
        GgmlType::Q4_K => GgmlType::Q5_0,
        GgmlType::Q5_K => GgmlType::Q5_1,
        GgmlType::Q6_K => GgmlType::Q8_0,
        _ => GgmlType::F16,
    };
    if width.is_multiple_of(instead.block_len()) { instead } else { GgmlType::F16 }
}
