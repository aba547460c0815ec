//! A tokenizer as metadata.
//!
//! llama.cpp has no pre-tokenizer or normaliser in the file, only a name for one, so a tokenizer can be written if its
//! own is one of those that names stand for; and it has SentencePiece's scores instead of merges, for which the order
//! of the merges does. What is written is read back and tried before it counts.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::error::ExportError;
use crate::gguf::Metadata;
use crate::gguf::metadata::{Array, Value};
use crate::gguf::names::Arch;
use crate::tokenizer::Tokenizer;

// Token types of llama.cpp.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Texts that both tokenizers must split alike.
const PROBES: [&str; 8] = [
    "Hello, world! It's 12345 o'clock; they'll say DON'T.",
    "  two leading spaces,\ttabs\t and  runs   of    spaces \n\n\n and lines\r\n",
    "naïve café — “quotes” … 日本語のテキスト и русский, العربية 👩‍👩‍👧‍👦 e\u{301}",
    "def f(x):\n    return x[0] ** 2 != {\"a\": 1.5e-3}\n\n\tif True:  # comment",
    "",
    " ",
    "3.14159 + 2,718,281 = ½ · 10⁻⁷",
    "CamelCaseAndUPPERCASE under_scores http://example.org/?q=a&b=%20",
];

fn bad(problem: impl Into<String>) -> ExportError {
    ExportError::Tokenizer { problem: problem.into() }
}

/// Adds the tokenizer to `metadata`, with as many tokens as the embedding has rows.
///
/// # Errors
/// [`ExportError::Tokenizer`]: a kind, or a pre-tokenizer, that llama.cpp has not got.
pub(super) fn describe(tokenizer: &Tokenizer, arch: Arch, rows: usize, metadata: &mut Metadata) -> crate::Result<()> {
    let json = tokenizer.json()?;
    let model = &json["model"];
    if model["type"] != "BPE" {
        return Err(bad(format!(
            "its model is {}, and BPE is what llama.cpp and planish have in common",
            model["type"]
        ))
        .into());
    }
    let sentencepiece = model["byte_fallback"] == true;
    let (tokens, types) = vocabulary(&json, rows, sentencepiece, arch)?;
    let merges = merges(model)?;
    let mut set = |key: &str, value: Value| {
        metadata.insert(format!("tokenizer.{key}"), value);
    };
    let text = |s: &str| Value::String(s.to_owned());
    if sentencepiece {
        set("ggml.model", text("llama"));
        set("ggml.pre", text("default"));
        set("ggml.scores", Value::Array(Array::F32(scores(&tokens, &types, &merges))));
        set("ggml.add_space_prefix", Value::Bool(adds_space(&json)));
    } else {
        let nfc = json["normalizer"]["type"] == "NFC";
        if !nfc && !json["normalizer"].is_null() {
            return Err(bad("its normaliser is not one of llama.cpp's").into());
        }
        let whole_words = model["ignore_merges"] == true;
        let name = crate::tokenizer::pre_tokenizer_name(&json["pre_tokenizer"], nfc, whole_words)
            .ok_or_else(|| bad("its pre-tokenizer is not one that llama.cpp has a name for"))?;
        set("ggml.model", text("gpt2"));
        set("ggml.pre", text(name));
    }
    set("ggml.tokens", Value::Array(Array::String(tokens)));
    set("ggml.token_type", Value::Array(Array::I32(types)));
    set("ggml.merges", Value::Array(Array::String(merges.into_iter().map(|(a, b)| format!("{a} {b}")).collect())));
    let special = tokenizer.special_tokens();
    for (token, key) in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
    {
        if let Some(id) = special.get(token).and_then(|t| tokenizer.token_to_id(t)) {
            set(&format!("ggml.{key}_token_id"), Value::U32(id));
        }
    }
    let others = tokenizer.eos_token_ids().iter().filter(|&&id| Some(id) != tokenizer.eos_token_id());
    for (id, key) in others.zip(["eot", "eom"]) {
        set(&format!("ggml.{key}_token_id"), Value::U32(*id));
    }
    let (with, without) = (tokenizer.encode("a", true)?, tokenizer.encode("a", false)?);
    let begins = with.len() > without.len() && with.first() == tokenizer.bos_token_id().as_ref();
    let ends = with.len() > without.len() + usize::from(begins);
    set("ggml.add_bos_token", Value::Bool(begins));
    set("ggml.add_eos_token", Value::Bool(ends));
    if let Some(template) = tokenizer.chat_template_source() {
        set("chat_template", text(template));
    }
    Ok(())
}

/// Tokens by id, with their types; rows of the embedding that no token has are unused ones.
fn vocabulary(
    json: &Json,
    rows: usize,
    sentencepiece: bool,
    arch: Arch,
) -> Result<(Vec<String>, Vec<i32>), ExportError> {
    let mut tokens: Vec<String> = (0..rows).map(|i| format!("[PAD{i}]")).collect();
    let mut types = vec![UNUSED; rows];
    let mut put = |id: Option<u64>, token: &str, kind: i32| {
        let at = id.and_then(|id| usize::try_from(id).ok()).filter(|&id| id < rows);
        let at = at.ok_or_else(|| bad(format!("token {token:?} has no row in the embedding of {rows}")))?;
        (tokens[at], types[at]) = (token.to_owned(), kind);
        Ok(())
    };
    let unknown = json["model"]["unk_token"].as_str();
    for (token, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
        let byte = sentencepiece && token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        let kind = if byte {
            BYTE
        } else if sentencepiece && Some(token.as_str()) == unknown {
            UNKNOWN
        } else {
            NORMAL
        };
        put(id.as_u64(), token, kind)?;
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let token = added["content"].as_str().unwrap_or_default();
        if sentencepiece && Some(token) == unknown {
            continue;
        }
        let special = added["special"] == true;
        // Gemma's runs of spaces are looked up in the text as it is.
        let gemma = matches!(arch, Arch::Gemma2 | Arch::Gemma3);
        let spelled = if gemma && !special { token.replace('▁', " ") } else { token.to_owned() };
        put(added["id"].as_u64(), &spelled, if special { CONTROL } else { USER_DEFINED })?;
    }
    Ok((tokens, types))
}

/// The merges, in order; tokenizer.json has each as a pair, or as a text with a space.
fn merges(model: &Json) -> Result<Vec<(String, String)>, ExportError> {
    let one = |merge: &Json| match merge {
        Json::Array(pair) => Some((pair.first()?.as_str()?.to_owned(), pair.get(1)?.as_str()?.to_owned())),
        Json::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        _ => None,
    };
    let all = model["merges"].as_array().into_iter().flatten();
    all.map(|m| one(m).ok_or_else(|| bad("one of its merges is no pair"))).collect()
}

/// What llama.cpp merges by: the earlier the merge that makes a token, the higher its score.
fn scores(tokens: &[String], types: &[i32], merges: &[(String, String)]) -> Vec<f32> {
    let mut first = HashMap::new();
    for (rank, (a, b)) in merges.iter().enumerate() {
        first.entry(format!("{a}{b}")).or_insert(rank);
    }
    let score = |(token, kind): (&String, &i32)| match first.get(token) {
        Some(&rank) if *kind == NORMAL => -(rank as f32),
        _ => 0.0,
    };
    tokens.iter().zip(types).map(score).collect()
}

/// Whether a space is put before a text.
fn adds_space(json: &Json) -> bool {
    let metaspace = &json["pre_tokenizer"];
    let normalizers = json["normalizer"]["normalizers"].as_array();
    let prepends = |n: &Json| n["type"] == "Prepend";
    metaspace["type"] == "Metaspace" && metaspace["prepend_scheme"] != "never"
        || prepends(&json["normalizer"])
        || normalizers.is_some_and(|all| all.iter().any(prepends))
}

/// Whether the tokenizer that the file describes splits text as the original does.
///
/// # Errors
/// [`ExportError::Tokenizer`] with a text that they split otherwise.
pub(super) fn compare(tokenizer: &Tokenizer, metadata: &Metadata) -> crate::Result<()> {
    let read = Tokenizer::from_gguf(metadata)?;
    let special = tokenizer.special_tokens().values().map(|t| format!("{t}user\nHi{t}\n"));
    for text in PROBES.iter().map(|t| (*t).to_owned()).chain(special) {
        if tokenizer.encode(&text, true)? != read.encode(&text, true)? {
            return Err(bad(format!("the file's tokenizer splits {text:?} otherwise")).into());
        }
    }
    Ok(())
}
