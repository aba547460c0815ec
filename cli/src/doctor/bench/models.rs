//! Models of well-known shapes with random weights, made on the device: nothing is downloaded and nothing written.
//!
//! `models.json` is also what the peers' side of the comparison reads (`benches/peers/gpu`).

use std::cell::RefCell;
use std::collections::HashMap;

use planish_nn::config::ModelConfig;
use planish_nn::decoder::{LoadOptions, Model, TensorSource};
use planish_nn::quantize::{QuantizeAs, is_quantizable};
use planish_tensor::quant::{FourBitKind, Quantized};
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Device, Tensor};

use super::{Ground, Trouble};

/// A model's shape.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// Its name among benchmarks.
    pub(super) name: String,
    /// Tokens of a training step.
    pub(super) tokens: usize,
    pub(super) config: ModelConfig,
}

#[derive(serde::Deserialize)]
struct Listed {
    name: String,
    tokens: usize,
    config: serde_json::Value,
}

/// The shapes that are measured: on the emulator the tiny ones, on a card all others.
pub(super) fn shapes(emulated: bool) -> Vec<Shape> {
    let listed: Vec<Listed> =
        serde_json::from_str(include_str!("models.json")).expect("the list is part of the program");
    let shape = |Listed { name, tokens, config }| {
        let config = ModelConfig::from_json(&config).expect("the list is part of the program");
        Shape { name, tokens, config }
    };
    listed.into_iter().map(shape).filter(|shape| shape.name.starts_with("tiny") == emulated).collect()
}

impl Shape {
    /// Weights that a token is multiplied with: those of the linear modules and of the head.
    pub(super) fn multiplied(&self) -> usize {
        self.read(1)
    }

    /// Those that a pass of so many tokens reads: of experts no more than its tokens can choose.
    pub(super) fn read(&self, tokens: usize) -> usize {
        let experts = self.config.moe.as_ref().map_or(0, |moe| moe.experts.min(tokens * moe.per_token));
        self.of_layers(experts) + self.config.vocab_size * self.config.hidden_size
    }

    /// Weights of the linear modules, with so many experts in place of the MLP where there are experts.
    fn of_layers(&self, experts: usize) -> usize {
        let c = &self.config;
        let (q, kv) = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim);
        let mlp = match &c.moe {
            Some(moe) => moe.experts + 3 * experts * moe.width,
            None => 3 * c.intermediate_size,
        };
        c.num_layers() * c.hidden_size * (2 * q + 2 * kv + mlp)
    }

    /// Bytes of all weights, about, and of the values of the largest that a product dequantises.
    pub(super) fn weight_bytes(&self, held: Held) -> f64 {
        let (all, layers) = (self.parameters() as f64, self.of_layers(self.experts()) as f64);
        let largest = (self.config.hidden_size * self.config.intermediate_size) as f64;
        match held {
            Held::Frozen => 2.0 * all,
            // f32 masters, both moments and gradients.
            Held::Trained => 18.0 * all,
            // A byte for each moment in place of four, and a scale for each 256.
            Held::Trained8bit => 12.0 * all + 2.0 * 4.0 / 256.0 * all,
            Held::Nf4 => 2.0 * (all - layers) + NF4_BYTES * layers + (2.0 + 4.0 / 64.0) * largest,
        }
    }

    /// All of them, but for norms and biases.
    pub(super) fn parameters(&self) -> usize {
        let c = &self.config;
        self.read(self.experts()) + if c.tie_word_embeddings { 0 } else { c.vocab_size * c.hidden_size }
    }

    fn experts(&self) -> usize {
        self.config.moe.as_ref().map_or(0, |moe| moe.experts)
    }

    /// Operations of causal attention for a token of a row of `length`, forward: 2 products, of which half is masked.
    pub(super) fn attention_flops(&self, length: usize) -> f64 {
        let c = &self.config;
        (2 * length * c.num_heads * c.head_dim * c.num_layers()) as f64
    }

    /// Bytes that a token's activations take until the backward pass, about: what products and attention keep in bf16, and a
    /// third for the rest.
    pub(super) fn activation_bytes(&self) -> usize {
        let c = &self.config;
        let (q, kv) = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim);
        // Of each expert of a token what it is given and gives, too.
        let mlp =
            c.moe.as_ref().map_or(3 * c.intermediate_size, |moe| moe.per_token * (3 * c.hidden_size + 3 * moe.width));
        c.num_layers() * 2 * (4 * c.hidden_size + 2 * q + 2 * kv + mlp) * 4 / 3
    }
}

impl Held {
    /// Whether all weights are trained.
    pub(super) fn is_trained(self) -> bool {
        matches!(self, Held::Trained | Held::Trained8bit)
    }
}

/// How weights are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// bf16, frozen.
    Frozen,
    /// bf16, to be trained.
    Trained,
    /// The same, with the optimizer's state in 8 bits.
    Trained8bit,
    /// The linear modules of the layers as NF4, the others as bf16; all frozen.
    Nf4,
}

/// Of a weight: 4 bits, a scale of 8 bits for each 64 and of 32 for each 256 of these.
const NF4_BYTES: f64 = 0.5 + 1.0 / 64.0 + 4.0 / (64.0 * 256.0);

/// The model on the device, with activations in bf16 as soon as they are set.
pub(super) fn model(ground: &Ground<'_>, shape: &Shape, held: Held) -> Result<Model, Trouble> {
    let block = normals(if ground.emulated { 1 << 12 } else { (1 << 22) - 3 })?;
    let source = Random { device: ground.device, block, nf4: (held == Held::Nf4).then(RefCell::default) };
    let options = LoadOptions { dtype: Some(DType::BF16), trainable: held.is_trained() };
    let model = Model::load(shape.config.clone(), &source, options)?;
    model.to_device(ground.device)?;
    Ok(model)
}

fn normals(n: usize) -> planish_tensor::Result<Tensor> {
    let stream = Stream::new(5, Purpose::Init, 0);
    // The deviation that Llama and Qwen begin with.
    Tensor::from_vec((0..n as u64).map(|i| 0.02 * stream.normal(i) as f32).collect(), [n])?.to_dtype(DType::BF16)
}

/// Any tensor that is asked for: copies of one block of normal numbers, and ones for norms.
struct Random {
    device: Device,
    block: Tensor,
    /// Quantised weights, one of each shape.
    nf4: Option<RefCell<HashMap<Vec<usize>, Quantized>>>,
}

impl Random {
    fn filled(&self, device: Device, shape: &[usize]) -> planish_tensor::Result<Tensor> {
        let (n, len) = (shape.iter().product::<usize>(), self.block.numel());
        let block = self.block.to_device(device)?;
        let mut out = Tensor::zeros_on(device, [n], DType::BF16)?;
        for start in (0..n).step_by(len) {
            out.write(0, start, &block.narrow(0, 0, len.min(n - start))?)?;
        }
        out.reshape(shape)
    }

    fn quantized(&self, shape: &[usize]) -> planish_tensor::Result<Tensor> {
        let how = QuantizeAs::FourBit { kind: FourBitKind::Nf4, block: QuantizeAs::BLOCK, double: true };
        let quantise = || how.quantize(&self.filled(Device::Cpu, shape)?);
        let Some(made) = &self.nf4 else { return Ok(Tensor::packed(quantise()?)) };
        if let Some(found) = made.borrow().get(shape) {
            return Ok(Tensor::packed(found.clone()));
        }
        let new = quantise()?;
        made.borrow_mut().insert(shape.to_vec(), new.clone());
        Ok(Tensor::packed(new))
    }
}

impl TensorSource for Random {
    fn tensor(&self, name: &str, shape: &[usize]) -> planish_nn::Result<Option<Tensor>> {
        if name.ends_with("norm.weight") {
            return Ok(Some(Tensor::full(1.0_f32, shape)?.to_dtype(DType::BF16)?.to_device(self.device)?));
        }
        let quantised = self.nf4.is_some() && is_quantizable(name) && shape.len() == 2;
        Ok(Some(if quantised { self.quantized(shape)? } else { self.filled(self.device, shape)? }))
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shapes_are_those_of_their_names() {
        let of = |name: &str| shapes(false).into_iter().find(|shape| shape.name == name).unwrap();
        // 134.5, 494, 1544 and 8030 million parameters, as their model cards say, but for norms and biases.
        for (name, millions) in
            [("smollm2", 134.5), ("0.5b", 494.0), ("1.5b", 1544.0), ("8b", 8030.0), ("olmoe", 6919.0)]
        {
            let got = of(name).parameters() as f64 / 1e6;
            assert!((got / millions - 1.0).abs() < 2e-3, "{name}: {got}");
        }
        assert_eq!(of("8b").multiplied(), of("8b").parameters() - 128_256 * 4096);
        // Embedding and head in bf16, 6979 million weights of layers in 4 bits and a little.
        let bytes = of("8b").weight_bytes(Held::Nf4) / 1e9;
        assert!((bytes - (2.0 * 1.0507 + 0.5159 * 6.9793 + 0.1211)).abs() < 0.01, "{bytes}");
        assert_eq!(of("0.5b").multiplied(), of("0.5b").parameters());
        // 1.3 of 6.9 thousand millions are active, of which a token is multiplied with all but the embedding's.
        assert_eq!(of("olmoe").multiplied() / 1_000_000, 1178);
        assert_eq!(of("olmoe").read(8), of("olmoe").parameters() - 50_304 * 2048);
        assert_eq!(shapes(true).len(), 2);
    }
}
