//! Files in which the experts of a layer are one tensor, as transformers 5 holds them.
//!
//! `mlp.experts.gate_up_proj`: (experts, 2 · width, hidden), gates above the others; `mlp.experts.down_proj`:
//! (experts, hidden, width). transformers writes files with an entry an expert, as the hub's are, unless
//! `save_pretrained` is told otherwise (`save_original_format=False`); both are read here, and what is written has an
//! entry an expert, which every version of transformers reads.

use std::collections::HashMap;

use planish_tensor::Tensor;

use crate::config::{ExpertNames, ModelConfig};
use crate::decoder::TensorSource;
use crate::{Error, Result};

/// Which part of a fused tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Gate,
    Up,
    Down,
}

/// Where the weight of an expert is.
struct Place {
    tensor: String,
    expert: usize,
    part: Part,
}

/// A source of a model with experts, with an entry for each of them.
pub(crate) struct Unfused<'a> {
    inner: &'a dyn TensorSource,
    places: HashMap<String, Place>,
    /// Other names that fused files of Mixtral have.
    renamed: HashMap<String, String>,
    names: Vec<String>,
}

impl<'a> Unfused<'a> {
    /// `inner` with an entry an expert; `None` if it has that already.
    ///
    /// # Errors
    /// [`Error::TensorShape`] for a fused tensor that is not as config.json says; those of the source.
    pub(crate) fn new(config: &ModelConfig, inner: &'a dyn TensorSource) -> Result<Option<Unfused<'a>>> {
        let Some(moe) = &config.moe else { return Ok(None) };
        let theirs = inner.names();
        let fused = |name: &String| name.ends_with(".experts.gate_up_proj") || name.ends_with(".experts.down_proj");
        if !theirs.iter().any(fused) {
            return Ok(None);
        }
        let mixtral = moe.names == ExpertNames::Mixtral;
        let block = |name: &str| match name.strip_suffix(".mlp") {
            Some(layer) if mixtral => format!("{layer}.block_sparse_moe"),
            _ => name.to_owned(),
        };
        let (mut places, mut renamed, mut names) = (HashMap::new(), HashMap::new(), Vec::new());
        for tensor in theirs {
            let Some((at, kind)) = tensor.rsplit_once(".experts.").filter(|_| fused(&tensor)) else {
                let own = match tensor.strip_suffix(".gate.weight") {
                    Some(at) => format!("{}.gate.weight", block(at)),
                    None => tensor.clone(),
                };
                names.push(own.clone());
                renamed.insert(own, tensor);
                continue;
            };
            let (h, w) = (config.hidden_size, moe.width);
            let (parts, expected): (&[(Part, &str)], _) = match (kind, mixtral) {
                ("gate_up_proj", false) => {
                    (&[(Part::Gate, "gate_proj"), (Part::Up, "up_proj")], [moe.experts, 2 * w, h])
                }
                ("gate_up_proj", true) => (&[(Part::Gate, "w1"), (Part::Up, "w3")], [moe.experts, 2 * w, h]),
                (_, false) => (&[(Part::Down, "down_proj")], [moe.experts, h, w]),
                (_, true) => (&[(Part::Down, "w2")], [moe.experts, h, w]),
            };
            // Before as many names are made as config.json has experts.
            let found = inner.tensor(&tensor, &expected)?.map(|t| t.dims().to_vec()).unwrap_or_default();
            if found != expected {
                return Err(Error::TensorShape { name: tensor, found, expected: expected.to_vec() });
            }
            for expert in 0..moe.experts {
                for (part, name) in parts {
                    let own = format!("{}.experts.{expert}.{name}.weight", block(at));
                    names.push(own.clone());
                    places.insert(own, Place { tensor: tensor.clone(), expert, part: *part });
                }
            }
        }
        Ok(Some(Unfused { inner, places, renamed, names }))
    }

    /// One expert's weight out of the fused tensor: a view.
    fn cut(&self, place: &Place) -> Result<Option<Tensor>> {
        let Some(all) = self.inner.tensor(&place.tensor, &[])? else { return Ok(None) };
        let (rows, columns) = (all.dims()[1], all.dims()[2]);
        let own = all.narrow(0, place.expert, 1)?.reshape([rows, columns])?;
        let (start, len) = match place.part {
            Part::Gate => (0, rows / 2),
            Part::Up => (rows / 2, rows / 2),
            Part::Down => (0, rows),
        };
        Ok(Some(own.narrow(0, start, len)?))
    }
}

impl TensorSource for Unfused<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        match (self.places.get(name), self.renamed.get(name)) {
            (Some(place), _) => self.cut(place),
            (_, Some(theirs)) => self.inner.tensor(theirs, shape),
            _ => Ok(None),
        }
    }

    fn names(&self) -> Vec<String> {
        self.names.clone()
    }
}

#[cfg(test)]
mod tests {
    use planish_tensor::DType;
    use serde_json::json;

    use super::*;

    struct Files(HashMap<String, Tensor>);

    impl TensorSource for Files {
        fn tensor(&self, name: &str, _shape: &[usize]) -> Result<Option<Tensor>> {
            Ok(self.0.get(name).cloned())
        }

        fn names(&self) -> Vec<String> {
            self.0.keys().cloned().collect()
        }
    }

    fn counted(shape: &[usize]) -> Tensor {
        let n: usize = shape.iter().product();
        Tensor::from_vec((0..n).map(|i| i as f32).collect(), shape).unwrap()
    }

    fn config(model_type: &str) -> ModelConfig {
        let config = json!({
            "model_type": model_type, "vocab_size": 9, "hidden_size": 4, "intermediate_size": 3, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 3,
        });
        ModelConfig::from_json(&config).unwrap()
    }

    #[test]
    fn an_expert_is_a_slice() {
        for (model_type, block, names) in [
            ("qwen3_moe", "model.layers.0.mlp", ["gate_proj", "up_proj", "down_proj"]),
            ("mixtral", "model.layers.0.block_sparse_moe", ["w1", "w3", "w2"]),
        ] {
            let files = Files(HashMap::from([
                ("model.layers.0.mlp.experts.gate_up_proj".into(), counted(&[2, 6, 4])),
                ("model.layers.0.mlp.experts.down_proj".into(), counted(&[2, 4, 3])),
                ("model.layers.0.mlp.gate.weight".into(), counted(&[2, 4])),
                ("model.norm.weight".into(), counted(&[4])),
            ]));
            let config = config(model_type);
            let all = Unfused::new(&config, &files).unwrap().unwrap();
            let get =
                |name: String, shape: &[usize]| all.tensor(&name, shape).unwrap().unwrap().to_vec::<f32>().unwrap();
            let range = |from: usize| (from..from + 12).map(|i| i as f32).collect::<Vec<_>>();
            for (name, shape, from) in [(names[0], [3, 4], 24), (names[1], [3, 4], 36), (names[2], [4, 3], 12)] {
                assert_eq!(get(format!("{block}.experts.1.{name}.weight"), &shape), range(from), "{model_type} {name}");
            }
            assert_eq!(get(format!("{block}.gate.weight"), &[2, 4]).len(), 8);
            assert_eq!(all.names().len(), 2 * 3 + 2);
            assert!(all.tensor("model.layers.0.mlp.experts.2.gate_proj.weight", &[3, 4]).unwrap().is_none());
            let short = Files(HashMap::from([("model.layers.0.mlp.experts.gate_up_proj".into(), counted(&[2, 5, 4]))]));
            let error = Unfused::new(&config, &short).err().unwrap().to_string();
            assert!(error.contains("mlp.experts.gate_up_proj") && error.contains("[2, 6, 4]"), "{error}");
        }
        let plain = Files(HashMap::from([("model.norm.weight".into(), Tensor::zeros([4], DType::F32).unwrap())]));
        assert!(Unfused::new(&config("mixtral"), &plain).unwrap().is_none());
    }
}
