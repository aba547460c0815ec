//! Which files of a repository are needed.

use std::path::Path;

use super::{HubError, RepoId, Result};
use crate::weights::{INDEX_FILE, SINGLE_FILE, WeightsReader};

/// What a caller needs of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Needs {
    /// Configuration, tokenizer, chat template and safetensors weights.
    Model,
    /// Configuration, tokenizer and chat template.
    Tokenizer,
    /// A GGUF file: the one of this name, or the only one there is.
    Gguf(Option<String>),
}

/// Small files that a model or its tokenizer may consist of.
fn is_small(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "config.json",
        "generation_config.json",
        "adapter_config.json",
        "added_tokens.json",
        "special_tokens_map.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
    ];
    NAMES.contains(&name)
        || (name.starts_with("tokenizer") && name.ends_with(".json"))
        || name.starts_with("chat_template")
        || (name.starts_with("additional_chat_templates/") && name.ends_with(".jinja"))
}

impl Needs {
    /// Picks files of a repository by name.
    pub(super) fn select(&self, repo: &RepoId, files: &[String]) -> Result<Vec<String>> {
        let has = |name: &str| files.iter().any(|f| f == name);
        let top_level = |ext: &str| -> Vec<String> {
            files.iter().filter(|f| f.ends_with(ext) && !f.contains('/')).cloned().collect()
        };
        let nothing = |wanted: String| {
            let kinds = [".safetensors", ".gguf", ".bin", ".pt", ".pth", ".onnx", ".h5", ".msgpack"];
            let found = files.iter().filter(|f| kinds.iter().any(|k| f.ends_with(k))).cloned().collect();
            Err(HubError::NothingToRead { repo: repo.to_string(), wanted, found })
        };
        if let Needs::Gguf(name) = self {
            let found = top_level(".gguf");
            return match (name, &found[..]) {
                (Some(name), _) if has(name) && name.ends_with(".gguf") => Ok(vec![name.clone()]),
                (Some(name), _) => nothing(format!("file {name:?}")),
                (None, [_]) => Ok(found),
                (None, []) => nothing("GGUF file".into()),
                (None, _) => nothing("single GGUF file: name one of them".into()),
            };
        }
        let mut wanted: Vec<String> = files.iter().filter(|f| is_small(f)).cloned().collect();
        if *self == Needs::Model {
            // Repositories hold the same weights in several cuts: one is enough.
            let weights = if has(SINGLE_FILE) {
                vec![SINGLE_FILE.to_owned()]
            } else if has(INDEX_FILE) {
                let shards = top_level(".safetensors").into_iter().filter(|f| f.starts_with("model-"));
                shards.chain([INDEX_FILE.to_owned()]).collect()
            } else {
                top_level(".safetensors")
            };
            if weights.is_empty() {
                return nothing("safetensors weights".into());
            }
            wanted.extend(weights);
        }
        if wanted.is_empty() {
            return nothing("configuration or tokenizer".into());
        }
        Ok(wanted)
    }

    /// Whether a snapshot, perhaps left by another tool that wanted less, has what is needed.
    pub(super) fn met_by(&self, snapshot: &Path) -> bool {
        let has = |name: &str| snapshot.join(name).is_file();
        let tokenizer = || has("tokenizer.json") || has("tokenizer.model") || has("vocab.json");
        match self {
            Needs::Gguf(Some(name)) => has(name),
            Needs::Gguf(None) => {
                let Ok(entries) = std::fs::read_dir(snapshot) else { return false };
                entries.flatten().filter(|e| e.path().extension().is_some_and(|x| x == "gguf")).count() == 1
            }
            Needs::Tokenizer => has("config.json") && tokenizer(),
            // Opening reads the headers only, and misses no shard. An adapter has no model's names.
            Needs::Model if has("adapter_config.json") => has("adapter_model.safetensors"),
            Needs::Model => has("config.json") && tokenizer() && WeightsReader::open(snapshot).is_ok(),
        }
    }
}
