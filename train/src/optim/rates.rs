//! [`Rates`]: learning rates of their own for some parameters.

use planish_autograd::Param;

/// Factors on the learning rate. LoRA+: B, and every vector, learns `ratio` times as fast as A, and the low-rank parts
/// of an embedding at a rate of their own.
///
/// # Source
/// Hayou et al., "LoRA+", arXiv:2402.12354; which parameters: PEFT's `create_loraplus_optimizer`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rates {
    /// Factor for B and vectors, and for embeddings, if there are any.
    plus: Option<(f64, f64)>,
}

impl Rates {
    /// LoRA+ with this ratio; embeddings learn at `embedding`, while the others do at `learning_rate`.
    pub fn loraplus(ratio: f64, embedding: f64, learning_rate: f64) -> Rates {
        Rates { plus: Some((ratio, if learning_rate > 0.0 { embedding / learning_rate } else { 0.0 })) }
    }

    /// The factor for a parameter.
    pub fn of(&self, param: &Param) -> f64 {
        let Some((ratio, embedding)) = self.plus else { return 1.0 };
        let name = param.name();
        if name.contains("lora_embedding_") {
            return embedding;
        }
        if name.contains("lora_B") || param.value().rank() == 1 { ratio } else { 1.0 }
    }
}
