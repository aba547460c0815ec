//! Writing a tokenizer as transformers reads it.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Result, Tokenizer, TokenizerError};
use crate::weights::atomic_write;

/// What tokenizer.json holds.
pub(super) fn text(tokenizer: &Tokenizer) -> Result<String> {
    let inner = &tokenizer.inner;
    let mut backend = inner.backend.clone();
    backend.with_post_processor(inner.post_processor.clone());
    backend
        .to_string(true)
        .map_err(|e| TokenizerError::Backend { action: "be written as tokenizer.json", reason: e.to_string() })
}

pub(super) fn save(tokenizer: &Tokenizer, dir: &Path) -> Result<()> {
    let inner = &tokenizer.inner;
    let text = text(tokenizer)?;
    write(dir, "tokenizer.json", &text)?;

    let mut config = inner.config.clone();
    // Files that were found elsewhere have no meaning in the new directory.
    for key in ["name_or_path", "tokenizer_file", "vocab_file", "auto_map"] {
        config.remove(key);
    }
    for (name, token) in &inner.special {
        config.entry(name.clone()).or_insert_with(|| json!(token));
    }
    config.entry("tokenizer_class").or_insert_with(|| json!("PreTrainedTokenizerFast"));
    config.entry("clean_up_tokenization_spaces").or_insert(json!(false));
    write_json(dir, "tokenizer_config.json", &config)?;

    let special: Map<String, Value> = inner.special.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    write_json(dir, "special_tokens_map.json", &special)?;

    for (name, template) in &inner.templates {
        if name == "default" {
            write(dir, "chat_template.jinja", template)?;
        } else if name.chars().all(|c| c.is_ascii_alphanumeric() || "_-. ".contains(c)) && !name.starts_with('.') {
            // The name comes out of a file that may be hostile, and goes into a path.
            let folder = dir.join("additional_chat_templates");
            std::fs::create_dir_all(&folder).map_err(|source| TokenizerError::Io { path: folder.clone(), source })?;
            write(&folder, &format!("{name}.jinja"), template)?;
        }
    }
    Ok(())
}

fn write_json(dir: &Path, name: &str, value: &Map<String, Value>) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|source| TokenizerError::Json { file: dir.join(name).display().to_string(), source })?;
    write(dir, name, &(text + "\n"))
}

fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    Ok(atomic_write(dir.join(name), |out| out.write_all(text.as_bytes()))?)
}
