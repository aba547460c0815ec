//! What multi-head latent attention is made of.

use super::fields::ConfigError;

/// Attention whose keys and values are made from a narrow latent vector of each token.
///
/// c = norm(W_a x), (kv_rank); a head's key is its `nope` rows of W_b c and, behind them, one rotated vector of `rope`
/// numbers that all heads share; its value is its other `value` rows of W_b c. Queries likewise, from x or from a
/// latent vector of their own.
///
/// # Source
/// DeepSeek-AI, "DeepSeek-V2", arXiv:2405.04434, section 2.1, equations 37 to 47.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latent {
    /// Width of the queries' latent vector; queries come from x itself if `None`.
    pub q_rank: Option<usize>,
    /// Width of the keys' and values'.
    pub kv_rank: usize,
    /// Numbers of a head's query and key that are not rotated.
    pub nope: usize,
    /// Those that are.
    pub rope: usize,
    /// Width of a head's value.
    pub value: usize,
    /// Whether pairs that turn together lie side by side (x₀, x₁), (x₂, x₃), …, not half a head apart.
    pub interleaved: bool,
    /// Whether the projections into latent vectors and out of the heads have a bias.
    pub bias: bool,
}

impl Latent {
    /// Numbers of a head's query and key.
    pub fn query_size(&self) -> usize {
        self.nope + self.rope
    }

    /// Numbers that attention is computed with in a head: queries and keys, or values, get zeros up to the wider.
    pub fn head_dim(&self) -> usize {
        self.query_size().max(self.value)
    }

    /// Refuses what cannot be. `max_width` bounds the ranks.
    pub(super) fn validate(&self, max_width: usize) -> Result<(), ConfigError> {
        let sizes = [
            ("q_lora_rank", self.q_rank.unwrap_or(1), max_width),
            ("kv_lora_rank", self.kv_rank, max_width),
            ("qk_nope_head_dim", self.nope, 2048),
            ("qk_rope_head_dim", self.rope, 2048),
            ("v_head_dim", self.value, 4096),
        ];
        for (key, value, most) in sizes {
            if value == 0 || value > most {
                let expected = format!("from 1 to {most}");
                return Err(ConfigError::Value { key, value: value.to_string(), expected });
            }
        }
        Ok(())
    }
}
