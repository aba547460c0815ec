//! Tokenizers out of GGUF metadata.
//!
//! The metadata has the vocabulary, the merges or scores, and the special tokens, but neither normaliser nor
//! pre-tokenizer; those follow from `tokenizer.ggml.model` and `.pre` as in transformers' conversion. What is
//! built is a tokenizer.json, loaded like any other, so that saving it gives transformers the same tokenizer.
//!
//! Deviations from transformers' conversion, towards what the models themselves do: `smollm` and its like
//! split digits; Llama 3's vocabulary takes whole words before merges; control tokens outside of the byte
//! alphabet (DeepSeek's) are special.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::load::{Surroundings, assemble};
use super::{Result, Tokenizer, TokenizerError, pretokenizers};
use crate::gguf::Metadata;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const TEMPLATE: &str = "tokenizer.chat_template";

// Token types of llama.cpp.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// SentencePiece's longest piece has 16 characters unless its training says otherwise.
const MAX_PIECE_CHARS: usize = 256;

/// Control tokens that end a turn in the families that have them: files often name only one EOS.
const TURN_ENDS: [&str; 5] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>"];

pub(super) fn from_gguf(metadata: &Metadata) -> Result<Tokenizer> {
    let missing = |key, expected| TokenizerError::GgufKey { key, expected };
    let model = metadata.string("tokenizer.ggml.model").ok_or(missing("tokenizer.ggml.model", "a string"))?;
    let tokens = metadata.strings(TOKENS).ok_or(missing(TOKENS, "an array of strings"))?;
    let types = metadata.i32s(TYPES).unwrap_or_default();
    if !types.is_empty() && types.len() != tokens.len() {
        return Err(TokenizerError::GgufLength { key: TYPES, len: types.len(), tokens: tokens.len() });
    }
    let source = Source { metadata, tokens, types, special: named_tokens(metadata, tokens)? };
    let (parts, add_bos) = match model {
        "gpt2" => source.byte_level()?,
        "llama" => source.sentencepiece()?,
        other => return Err(TokenizerError::GgufModel { model: other.to_owned() }),
    };
    let json = source.tokenizer_json(parts, add_bos);
    let mut around = Surroundings { config_file: "the GGUF metadata".to_owned(), ..Surroundings::default() };
    for (name, (token, _)) in &source.special {
        around.config.insert((*name).to_owned(), json!(token));
    }
    for key in ["eot_token_id", "eom_token_id"] {
        let id = metadata.u64(&format!("tokenizer.ggml.{key}"));
        around.stop_ids.extend(id.and_then(|id| u32::try_from(id).ok()));
    }
    let ends = tokens.iter().enumerate().filter(|(i, t)| source.kind(*i) == CONTROL && TURN_ENDS.contains(&t.as_str()));
    around.stop_ids.extend(ends.map(|(i, _)| i as u32));
    around.templates = templates(metadata);
    assemble(json.to_string().as_bytes(), "the GGUF metadata", around).map_err(|e| match e {
        // Places are in the JSON made here, which nobody has seen.
        TokenizerError::Invalid { file, reason } => {
            let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
            TokenizerError::Invalid { file, reason }
        }
        other => other,
    })
}

/// The special tokens that the metadata names, with their ids.
fn named_tokens(metadata: &Metadata, tokens: &[String]) -> Result<BTreeMap<&'static str, (String, u64)>> {
    let keys = [
        ("bos_token", "tokenizer.ggml.bos_token_id"),
        ("eos_token", "tokenizer.ggml.eos_token_id"),
        ("unk_token", "tokenizer.ggml.unknown_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
    ];
    let mut named = BTreeMap::new();
    for (name, key) in keys {
        let Some(id) = metadata.u64(key) else { continue };
        let token = usize::try_from(id).ok().and_then(|i| tokens.get(i));
        let token = token.ok_or(TokenizerError::GgufId { key, id, tokens: tokens.len() })?;
        named.insert(name, (token.clone(), id));
    }
    Ok(named)
}

/// `tokenizer.chat_template`, and `tokenizer.chat_template.NAME` for the others.
fn templates(metadata: &Metadata) -> BTreeMap<String, String> {
    let mut templates = BTreeMap::new();
    if let Some(default) = metadata.string(TEMPLATE) {
        templates.insert("default".to_owned(), default.to_owned());
    }
    for name in metadata.strings("tokenizer.chat_templates").unwrap_or_default() {
        if let Some(template) = metadata.string(&format!("{TEMPLATE}.{name}")) {
            templates.insert(name.clone(), template.to_owned());
        }
    }
    templates
}

struct Source<'a> {
    metadata: &'a Metadata,
    tokens: &'a [String],
    types: &'a [i32],
    special: BTreeMap<&'static str, (String, u64)>,
}

impl Source<'_> {
    /// `gpt2`: byte-level BPE.
    fn byte_level(&self) -> Result<(Map<String, Value>, bool)> {
        let name = self.metadata.string("tokenizer.ggml.pre").unwrap_or("default");
        let pre = pretokenizers::find(name)
            .ok_or_else(|| TokenizerError::GgufPre { pre: name.to_owned(), known: pretokenizers::known() })?;
        let merges = self
            .metadata
            .strings(MERGES)
            .ok_or(TokenizerError::GgufKey { key: MERGES, expected: "an array of strings" })?;
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.ignore_merges, "vocab": self.vocab(self.tokens), "merges": merges,
        });
        let decoder = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let normalizer = if pre.nfc { json!({"type": "NFC"}) } else { Value::Null };
        Ok((parts(normalizer, pre.json(), decoder, model), pre.add_bos))
    }

    /// `llama`: SentencePiece's BPE with byte fallback, its merges recovered from the pieces' scores.
    fn sentencepiece(&self) -> Result<(Map<String, Value>, bool)> {
        let gemma = self.metadata.string("general.architecture").is_some_and(|a| a.starts_with("gemma"));
        let phi3 = self.metadata.string("general.architecture") == Some("phi3");
        let prefix = !gemma && self.metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
        let respelled: Vec<String>;
        let tokens = if gemma {
            // Gemma's runs of spaces are stored as spaces, but looked up after normalisation.
            let blank = |t: &String| t.contains(' ') && t.trim().is_empty();
            respelled =
                self.tokens.iter().map(|t| if blank(t) { "▁".repeat(t.chars().count()) } else { t.clone() }).collect();
            &respelled
        } else {
            self.tokens
        };
        let merges = match self.metadata.strings(MERGES) {
            Some(merges) => json!(merges),
            None => json!(self.merges_from_scores(tokens, gemma)?),
        };
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": self.special.get("unk_token").map(|(t, _)| t),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "ignore_merges": false, "vocab": self.vocab(tokens), "merges": merges,
        });
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let (normalizer, pre_tokenizer) = if gemma {
            let split = json!({
                "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false,
            });
            (spaces, split)
        } else if phi3 {
            (json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces]}), Value::Null)
        } else {
            let scheme = if prefix { "first" } else { "never" };
            let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
            (Value::Null, metaspace)
        };
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let decoder = json!({"type": "Sequence", "decoders": decoders});
        Ok((parts(normalizer, pre_tokenizer, decoder, model), true))
    }

    /// Every cut of a piece into two pieces is a merge; the better piece's come first, then the cuts with
    /// the longer parts to the left. Gemma's scores do not follow its merges, its order does.
    fn merges_from_scores(&self, tokens: &[String], by_order: bool) -> Result<Vec<[String; 2]>> {
        let scores = match self.metadata.f32s(SCORES) {
            Some(scores) if scores.len() == tokens.len() => scores,
            Some(scores) => {
                return Err(TokenizerError::GgufLength { key: SCORES, len: scores.len(), tokens: tokens.len() });
            }
            None => return Err(TokenizerError::GgufKey { key: SCORES, expected: "an array of f32" }),
        };
        let ids: HashMap<&str, usize> = tokens.iter().enumerate().rev().map(|(i, t)| (t.as_str(), i)).collect();
        let mut merges = Vec::new();
        for (i, token) in tokens.iter().enumerate() {
            if !matches!(self.kind(i), NORMAL | USER_DEFINED) {
                continue;
            }
            if scores[i].is_nan() {
                return Err(TokenizerError::GgufToken { id: i, problem: "scored NaN" });
            }
            if token.len() > 4 * MAX_PIECE_CHARS {
                return Err(TokenizerError::GgufToken { id: i, problem: "longer than 1024 bytes" });
            }
            let mut cuts: Vec<(usize, usize, usize)> = Vec::new();
            for (cut, _) in token.char_indices().skip(1) {
                if let (Some(&left), Some(&right)) = (ids.get(&token[..cut]), ids.get(&token[cut..])) {
                    cuts.push((left, right, cut));
                }
            }
            cuts.sort_unstable();
            let score = if by_order { -(i as f64) } else { f64::from(scores[i]) };
            merges.extend(cuts.into_iter().map(|(_, _, cut)| {
                let (left, right) = token.split_at(cut);
                (score, left.chars().count(), right.chars().count(), left, right)
            }));
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
        Ok(merges.into_iter().map(|(_, _, _, left, right)| [left.to_owned(), right.to_owned()]).collect())
    }

    fn tokenizer_json(&self, parts: Map<String, Value>, add_bos: bool) -> Value {
        let added: Vec<Value> = (0..self.tokens.len())
            .filter(|&i| matches!(self.kind(i), CONTROL | USER_DEFINED) && !self.tokens[i].is_empty())
            .map(|i| {
                json!({
                    "id": i, "content": self.tokens[i], "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": self.kind(i) == CONTROL,
                })
            })
            .collect();
        let flag = |key: &str| self.metadata.bool(&format!("tokenizer.ggml.{key}"));
        let bos = self.special.get("bos_token").filter(|_| flag("add_bos_token").unwrap_or(add_bos));
        let eos = self.special.get("eos_token").filter(|_| flag("add_eos_token").unwrap_or(false));
        let mut json = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added});
        if let Some(object) = json.as_object_mut() {
            object.extend(parts);
            object.insert("post_processor".to_owned(), post_processor(bos, eos));
        }
        json
    }

    fn vocab(&self, tokens: &[String]) -> Map<String, Value> {
        let mut vocab = Map::with_capacity(tokens.len());
        for (i, token) in tokens.iter().enumerate() {
            // Of two tokens spelled alike only the first can be encoded.
            vocab.entry(token.clone()).or_insert(json!(i));
        }
        vocab
    }

    fn kind(&self, i: usize) -> i32 {
        self.types.get(i).copied().unwrap_or(NORMAL)
    }
}

fn parts(normalizer: Value, pre_tokenizer: Value, decoder: Value, model: Value) -> Map<String, Value> {
    let parts = [("normalizer", normalizer), ("pre_tokenizer", pre_tokenizer), ("decoder", decoder), ("model", model)];
    parts.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

/// Adds BOS and EOS around a text.
fn post_processor(bos: Option<&(String, u64)>, eos: Option<&(String, u64)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let around = |sequence: &str, type_id: u32| {
        let special = |token: &(String, u64)| json!({"SpecialToken": {"id": token.0, "type_id": type_id}});
        let mut items: Vec<Value> = bos.map(special).into_iter().collect();
        items.push(json!({"Sequence": {"id": sequence, "type_id": type_id}}));
        items.extend(eos.map(special));
        items
    };
    let single = around("A", 0);
    let pair: Vec<Value> = single.iter().cloned().chain(around("B", 1)).collect();
    let tokens: Map<String, Value> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(token, id)| (token.clone(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
}
