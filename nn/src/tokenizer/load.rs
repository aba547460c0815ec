//! Tokenizers from the files of a Hugging Face directory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::{Map, Value};
use tokenizers::models::ModelWrapper;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, Tokenizer as Backend};

use super::{Inner, Result, Tokenizer, TokenizerError, growth, guard};

/// The largest tokenizers in use have 35 MB; a file beyond this is a mistake or an attack.
const MAX_TOKENIZER_BYTES: u64 = 512 << 20;
/// The configuration files beside it; those with an entry for each of many added tokens have under 1 MB.
const MAX_CONFIG_BYTES: u64 = 64 << 20;

/// The names that transformers gives special tokens by, and that templates see.
pub(super) const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What surrounds tokenizer.json.
#[derive(Default)]
pub(super) struct Surroundings {
    /// tokenizer_config.json, special tokens of special_tokens_map.json included.
    pub(super) config: Map<String, Value>,
    /// Which file a mistake in `config` is reported for.
    pub(super) config_file: String,
    /// Chat templates by name.
    pub(super) templates: BTreeMap<String, String>,
    /// Ids that end a generation, besides EOS.
    pub(super) stop_ids: Vec<u32>,
}

pub(super) fn from_dir(dir: &Path) -> Result<Tokenizer> {
    let file = dir.join("tokenizer.json");
    if !file.is_file() {
        let others = ["tokenizer.model", "tekken.json", "tiktoken.model", "vocab.json", "vocab.txt"];
        let found = others.into_iter().filter(|f| dir.join(f).is_file()).map(str::to_owned).collect();
        return Err(TokenizerError::Missing { dir: dir.to_owned(), found });
    }
    let bytes = read(&file, MAX_TOKENIZER_BYTES)?;
    let config_path = dir.join("tokenizer_config.json");
    let config_file = config_path.display().to_string();
    let mut config = object(&config_path)?.unwrap_or_default();
    if !config.contains_key("added_tokens_decoder")
        && let Some(map) = object(&dir.join("special_tokens_map.json"))?
    {
        config.extend(map);
    }
    let mut templates = templates_of(&config, &config_file)?;
    let from_files = template_files(dir)?;
    if !from_files.is_empty() {
        templates = from_files;
    }
    let generation = object(&dir.join("generation_config.json"))?;
    let stop_ids = match generation.as_ref().and_then(|g| g.get("eos_token_id")) {
        Some(ids) => id_list(ids),
        None => object(&dir.join("config.json"))?.and_then(|c| c.get("eos_token_id").map(id_list)).unwrap_or_default(),
    };
    assemble(&bytes, &file.display().to_string(), Surroundings { config, config_file, templates, stop_ids })
}

pub(super) fn from_json_bytes(json: &[u8], config: Option<&[u8]>, template: Option<&str>) -> Result<Tokenizer> {
    let config_file = "tokenizer_config.json".to_owned();
    let config = match config {
        None => Map::new(),
        Some(bytes) => parse_object(bytes, &config_file)?,
    };
    let mut templates = templates_of(&config, &config_file)?;
    if let Some(template) = template {
        templates = BTreeMap::from([("default".to_owned(), template.to_owned())]);
    }
    assemble(json, "tokenizer.json", Surroundings { config, config_file, templates, stop_ids: Vec::new() })
}

/// Puts a tokenizer together as transformers does: tokenizer.json first, then the added tokens and the named
/// special tokens of the configuration, which join the vocabulary where they are new.
pub(super) fn assemble(json: &[u8], file: &str, around: Surroundings) -> Result<Tokenizer> {
    let Surroundings { mut config, config_file, templates, stop_ids } = around;
    let invalid = |e: TokenizerError| match e {
        TokenizerError::Backend { reason, .. } => TokenizerError::Invalid { file: file.to_owned(), reason },
        other => other,
    };
    growth::check(json).map_err(|reason| TokenizerError::Invalid { file: file.to_owned(), reason })?;
    let mut backend = guard("load", || Backend::from_bytes(json)).map_err(invalid)?;
    // Both would silently change what a text is; here, truncation is a policy of the data and nothing pads.
    guard("load", || backend.with_truncation(None).map(|_| ())).map_err(invalid)?;
    backend.with_padding(None);
    if let ModelWrapper::BPE(bpe) = backend.get_model()
        && bpe.dropout.is_some_and(|p| p != 0.0)
    {
        let reason = "it drops merges at random (`dropout`), so that ids would differ from run to run".to_owned();
        return Err(TokenizerError::Invalid { file: file.to_owned(), reason });
    }

    let added = declared_tokens(&config, &config_file)?;
    let known = backend.get_added_tokens_decoder();
    for (&id, token) in &added {
        if known.get(&id) != Some(token) {
            let token = token.clone();
            guard("add its tokens", || backend.add_tokens([token]))?;
        }
        let actual = backend.token_to_id(&token.content);
        if let Some(actual) = actual.filter(|&a| a != id) {
            let token = token.content.clone();
            return Err(TokenizerError::AddedTokenId { file: config_file, token, declared: id, actual });
        }
    }
    let mut special = BTreeMap::new();
    let mut named = Vec::new();
    for name in NAMES {
        if let Some(content) = content_of(&config, name, &config_file)? {
            named.push(content.clone());
            special.insert(name.to_owned(), content);
        }
    }
    for key in ["extra_special_tokens", "additional_special_tokens"] {
        named.extend(contents_of(config.get(key)));
    }
    for content in named {
        let flags = backend.get_added_tokens_decoder().into_values().find(|t| t.content == content);
        match flags {
            Some(t) if t.special => {}
            Some(t) => add_special(&mut backend, t.special(true))?,
            None => add_special(&mut backend, AddedToken::from(content, true).normalized(false))?,
        }
    }
    config.remove("chat_template");
    let post_processor = backend.get_post_processor().cloned();
    if let Some(PostProcessorWrapper::ByteLevel(byte_level)) = &post_processor {
        // It does nothing but cut spaces off the offsets, by which tokens are traced to messages.
        backend.with_post_processor(Some(byte_level.trim_offsets(false)));
    }

    let vocab_size = backend.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
    // Found by fuzzing: what the post-processor adds to a text, here to none, goes by ids of its own.
    if let Ok(added) = guard("encode", || backend.encode_fast("", true))
        && let Some(id) = added.get_ids().iter().find(|id| **id as usize >= vocab_size)
    {
        let reason = format!("its post-processor adds token {id}, but there are only {vocab_size}");
        return Err(TokenizerError::Invalid { file: file.to_owned(), reason });
    }
    let decoder = backend.get_added_tokens_decoder();
    let special_ids: BTreeMap<u32, String> = decoder
        .into_iter()
        .filter(|(_, t)| t.special && !t.content.is_empty())
        .map(|(id, t)| (id, t.content))
        .collect();
    let id_of = |name: &str| backend.token_to_id(special.get(name)?);
    let mut eos_ids: Vec<u32> = id_of("eos_token").into_iter().collect();
    for id in stop_ids {
        if (id as usize) < vocab_size && !eos_ids.contains(&id) {
            eos_ids.push(id);
        }
    }
    let unk_id = id_of("unk_token");
    Ok(Tokenizer {
        inner: Arc::new(Inner {
            backend,
            guarded: OnceLock::new(),
            special_pattern: OnceLock::new(),
            has_sections: OnceLock::new(),
            words: OnceLock::new(),
            memories: Mutex::default(),
            number: super::sections::number(),
            special,
            special_ids,
            unk_id,
            eos_ids,
            vocab_size,
            config,
            parsed: templates.keys().map(|name| (name.clone(), OnceLock::new())).collect(),
            templates,
            post_processor,
        }),
    })
}

fn add_special(backend: &mut Backend, token: AddedToken) -> Result<()> {
    guard("add its special tokens", || backend.add_special_tokens([token]).map(|_| ()))
}

/// `added_tokens_decoder`: id to token with its flags.
fn declared_tokens(config: &Map<String, Value>, file: &str) -> Result<BTreeMap<u32, AddedToken>> {
    let field = |key: String, expected| TokenizerError::Field { file: file.to_owned(), key, expected };
    let mut tokens = BTreeMap::new();
    let declared = match config.get("added_tokens_decoder") {
        None | Some(Value::Null) => return Ok(tokens),
        Some(Value::Object(declared)) => declared,
        Some(_) => return Err(field("added_tokens_decoder".into(), "an object from ids to tokens")),
    };
    for (id, token) in declared {
        let key = || format!("added_tokens_decoder.{id}");
        let index: u32 = id.parse().map_err(|_| field(key(), "an entry whose name is a token id"))?;
        let Some(content) = token.get("content").and_then(Value::as_str) else {
            return Err(field(key(), "an object with the token's text as `content`"));
        };
        let flag = |name: &str| token.get(name).and_then(Value::as_bool);
        let special = flag("special").unwrap_or(false);
        let token = AddedToken::from(content, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special));
        tokens.insert(index, token);
    }
    Ok(tokens)
}

/// The text of a special token, which is a string or an object with `content`.
fn content_of(config: &Map<String, Value>, name: &str, file: &str) -> Result<Option<String>> {
    let expected = "a string, an object with `content`, or null";
    let wrong = || TokenizerError::Field { file: file.to_owned(), key: name.to_owned(), expected };
    match config.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.clone()).filter(|s| !s.is_empty())),
        Some(token) => match token.get("content").and_then(Value::as_str) {
            Some(s) => Ok(Some(s.to_owned()).filter(|s| !s.is_empty())),
            None => Err(wrong()),
        },
    }
}

/// The texts in a list of special tokens, or in an object whose values they are.
fn contents_of(value: Option<&Value>) -> Vec<String> {
    let text = |v: &Value| v.as_str().or_else(|| v.get("content")?.as_str()).map(str::to_owned);
    let texts: Vec<String> = match value {
        Some(Value::Array(list)) => list.iter().filter_map(text).collect(),
        Some(Value::Object(map)) => map.values().filter_map(text).collect(),
        _ => Vec::new(),
    };
    texts.into_iter().filter(|t| !t.is_empty()).collect()
}

/// `chat_template` of a configuration: a template, or a list of named ones.
fn templates_of(config: &Map<String, Value>, file: &str) -> Result<BTreeMap<String, String>> {
    let expected = "a template, or a list of objects with `name` and `template`";
    let wrong = || TokenizerError::Field { file: file.to_owned(), key: "chat_template".to_owned(), expected };
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::String(template)) => Ok(BTreeMap::from([("default".to_owned(), template.clone())])),
        Some(Value::Array(list)) => list
            .iter()
            .map(|entry| {
                let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
                text("name").zip(text("template")).ok_or_else(wrong)
            })
            .collect(),
        Some(_) => Err(wrong()),
    }
}

/// chat_template.jinja and additional_chat_templates/NAME.jinja.
fn template_files(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut templates = BTreeMap::new();
    let default = dir.join("chat_template.jinja");
    if default.is_file() {
        templates.insert("default".to_owned(), read_text(&default)?);
    }
    if let Ok(entries) = std::fs::read_dir(dir.join("additional_chat_templates")) {
        for path in entries.filter_map(|e| Some(e.ok()?.path())) {
            if path.extension().is_some_and(|e| e == "jinja")
                && let Some(name) = path.file_stem().and_then(|n| n.to_str())
            {
                templates.insert(name.to_owned(), read_text(&path)?);
            }
        }
    }
    Ok(templates)
}

/// An id or a list of ids. What is neither is ignored: the files that hold it are not the tokenizer's.
fn id_list(value: &Value) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(id).collect(),
        other => id(other).into_iter().collect(),
    }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let io = |source| TokenizerError::Io { path: path.to_owned(), source };
    let len = std::fs::metadata(path).map_err(io)?.len();
    if len > limit {
        return Err(TokenizerError::TooLarge { path: path.to_owned(), len, limit });
    }
    std::fs::read(path).map_err(io)
}

fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path, MAX_CONFIG_BYTES)?).map_err(|e| TokenizerError::Io {
        path: path.to_owned(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, format!("not UTF-8: {}", e.utf8_error())),
    })
}

/// The object in a JSON file; `None` if there is no such file.
fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.is_file() {
        return Ok(None);
    }
    parse_object(&read(path, MAX_CONFIG_BYTES)?, &path.display().to_string()).map(Some)
}

fn parse_object(bytes: &[u8], file: &str) -> Result<Map<String, Value>> {
    serde_json::from_slice(bytes).map_err(|source| TokenizerError::Json { file: file.to_owned(), source })
}
