//! Tokenizers in small: what loads, what does not, and what text can do.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::gguf::{Array, Metadata, Value as Gguf};

/// A byte-level vocabulary of single bytes and a few merges, as tokenizer.json.
pub(super) fn byte_level() -> Value {
    let mut vocab = serde_json::Map::new();
    let mut alphabet: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let words = ["<s>", "<|end|>", "<think>"].map(str::to_owned);
    let tokens =
        words.into_iter().chain(alphabet.iter().map(char::to_string)).chain(["he", "hel", "Ġt"].map(str::to_owned));
    for (i, token) in tokens.enumerate() {
        vocab.insert(token, json!(i));
    }
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": special})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [added(0, "<s>", true), added(1, "<|end|>", true), added(2, "<think>", false)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": ["h e", "he l", "Ġ t"]},
    })
}

pub(super) fn load(json: &Value, config: &Value) -> Result<Tokenizer> {
    Tokenizer::from_json_bytes(json.to_string().as_bytes(), Some(config.to_string().as_bytes()), None)
}

pub(crate) fn small() -> Tokenizer {
    load(&byte_level(), &json!({"bos_token": "<s>", "eos_token": {"content": "<|end|>"}})).unwrap()
}

fn write(dir: &Path, name: &str, bytes: &[u8]) {
    fs::write(dir.join(name), bytes).unwrap();
}

#[test]
fn ordinary_text_makes_no_special_tokens() {
    let t = small();
    let end = t.token_to_id("<|end|>").unwrap();
    let text = "hello<|end|> there<think>";
    assert!(t.encode(text, false).unwrap().contains(&end));
    let ids = t.encode_ordinary(text).unwrap();
    assert!(!ids.contains(&end));
    assert_eq!(t.decode(&ids, true).unwrap(), text);
    // Added tokens that are not special stay whole.
    assert_eq!(ids.last(), t.token_to_id("<think>").as_ref());
    // Text with the characters aliases are spelled with, and with what an alias looks like.
    for text in ["\u{10FFFD}1\u{10FFFD}<|end|>", "\u{10FFFD}\u{10FFFC}\u{10FFFB}<s>"] {
        let ids = t.encode_ordinary(text).unwrap();
        assert_eq!(t.decode(&ids, false).unwrap(), text);
        assert!(!ids.contains(&end) && !ids.contains(&0), "{ids:?}");
    }
    let all = "\u{10FFFD}\u{10FFFC}\u{10FFFB}\u{10FFFA}<s>";
    assert!(matches!(t.encode_ordinary(all), Err(TokenizerError::Backend { .. })));
}

#[test]
fn guarded_parts_keep_bytes_and_neighbours() {
    let t = small();
    let text = "<s>hé<|end|>l<|end|>";
    // The first look-alike is the message's, the second the template's.
    let look_alike = text.find("<|end|>").unwrap();
    let message = 3..look_alike + "<|end|>l".len();
    let pieces = t.encode_pieces(text, std::slice::from_ref(&message)).unwrap();
    assert_eq!((pieces[0].id, pieces[0].bytes.clone()), (0, 0..3));
    let last = pieces.last().unwrap();
    assert_eq!((last.id, last.bytes.clone()), (1, message.end..text.len()));
    assert_eq!(pieces.iter().filter(|p| p.id == 1).count(), 1);
    // Both byte tokens of é stand for its two bytes.
    assert_eq!(pieces.iter().filter(|p| p.bytes == (4..6)).count(), 2, "{pieces:?}");
    // Without look-alikes, guarding changes nothing.
    let text = "<s>hello there<|end|>";
    assert_eq!(t.encode_pieces(text, std::slice::from_ref(&(3..14))).unwrap(), t.encode_pieces(text, &[]).unwrap());
    let ids: Vec<u32> = t.encode_pieces(text, &[]).unwrap().iter().map(|p| p.id).collect();
    assert_eq!(ids, t.encode(text, false).unwrap());
}

#[test]
fn streams_never_break_characters() {
    let t = small();
    let text = "hé🎉 the 漢字";
    let ids = t.encode(text, false).unwrap();
    let mut stream = t.stream_decoder();
    let mut out = String::new();
    for &id in &ids {
        let piece = stream.push(id).unwrap_or_default();
        assert!(!piece.contains('\u{FFFD}'));
        out += &piece;
    }
    assert_eq!(stream.finish(), None);
    assert_eq!(out, text);
    // Half a character at the end, an id nobody has, and a special token.
    let mut stream = t.stream_decoder();
    assert_eq!(stream.push(ids[0]), Some("h".to_owned()));
    assert_eq!(stream.push(ids[1]), None);
    assert_eq!(stream.push(4_000_000), None);
    assert_eq!(stream.push(1), None);
    assert_eq!(stream.finish(), Some("\u{FFFD}".to_owned()));
    // A model that emits nothing but halves is not waited for without end.
    let mut stream = t.stream_decoder();
    assert!((0..200).any(|_| stream.push(ids[1]).is_some()));
}

#[test]
fn ids_out_of_range_decode_to_nothing() {
    let t = small();
    assert_eq!(t.decode(&[u32::MAX, 1 << 30], false).unwrap(), "");
    assert_eq!(t.id_to_token(u32::MAX), None);
    assert_eq!(t.decode(&t.encode("a\0b", false).unwrap(), false).unwrap(), "a\0b");
}

#[test]
fn directories_that_are_wrong_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = |dir: &Path| Tokenizer::from_dir(dir).unwrap_err().to_string();
    write(dir.path(), "tokenizer.model", b"");
    let message = error(dir.path());
    assert!(message.contains("no tokenizer.json") && message.contains("tokenizer.model"), "{message}");
    for (bytes, says) in [
        (b"not json".as_slice(), "line 1 column 2"),
        (b"{}", "Model missing"),
        (b"", "EOF"),
        (
            b"{\"version\":\"1.0\",\"model\":{\"type\":\"BPE\",\"vocab\":{\"\\ud800\":0},\"merges\":[]}}",
            "tokenizer.json",
        ),
        (b"\xff\xfe", "tokenizer.json"),
    ] {
        write(dir.path(), "tokenizer.json", bytes);
        let message = error(dir.path());
        assert!(message.contains("tokenizer.json") && message.contains(says), "{message}");
    }
    let mut unknown_merge = byte_level();
    unknown_merge["model"]["merges"] = json!(["q q"]);
    write(dir.path(), "tokenizer.json", unknown_merge.to_string().as_bytes());
    assert!(error(dir.path()).contains("out of vocabulary"));
    write(dir.path(), "tokenizer.json", byte_level().to_string().as_bytes());
    write(dir.path(), "tokenizer_config.json", b"{\"bos_token\": \"\\ud800\"}");
    assert!(error(dir.path()).contains("tokenizer_config.json"));
    write(dir.path(), "tokenizer_config.json", b"{\"bos_token\": 7}");
    assert!(error(dir.path()).contains("`bos_token`"));
    write(dir.path(), "tokenizer_config.json", br#"{"added_tokens_decoder": {"5": {"content": "<s>"}}}"#);
    assert!(error(dir.path()).contains("id 5"));
    write(dir.path(), "tokenizer_config.json", br#"{"chat_template": [{"name": "default"}]}"#);
    assert!(error(dir.path()).contains("`chat_template`"));
}

#[test]
fn a_post_processor_adds_tokens_of_the_vocabulary_only() {
    let with = |id: u32| {
        let mut json = byte_level();
        let special = json!({"<s>": {"id": "<s>", "ids": [id], "tokens": ["<s>"]}});
        let single = json!([{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
        let pair = json!([{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}]);
        json["post_processor"] =
            json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special});
        load(&json, &json!({}))
    };
    assert_eq!(with(0).unwrap().encode("", true).unwrap(), [0]);
    let error = with(100_000).unwrap_err().to_string();
    assert!(error.contains("post-processor adds token 100000"), "{error}");
}

#[test]
fn the_template_and_the_end_can_be_replaced() {
    let t = small();
    let other = t.with_chat_template("{{ eos_token }}").with_eos_token("<think>").unwrap();
    assert_eq!((t.chat_template_source(), other.chat_template_source()), (None, Some("{{ eos_token }}")));
    assert_eq!((t.eos_token_ids(), other.eos_token_ids()), (&[1][..], &[2, 1][..]));
    assert!(other.is_special(2) && !t.is_special(2));
    // As it is used, and as it is after it was saved.
    let dir = tempfile::tempdir().unwrap();
    other.save(dir.path()).unwrap();
    for tokenizer in [other, Tokenizer::from_dir(dir.path()).unwrap()] {
        assert_eq!(tokenizer.eos_token_id(), Some(2));
        let messages = [crate::template::Message::new("user", "")];
        let chat = crate::template::encode_chat(&tokenizer, &messages, &Default::default()).unwrap();
        assert_eq!((chat.text.as_str(), &chat.ids[..]), ("<think>", &[2][..]));
        assert_eq!(tokenizer.decode(&[2], true).unwrap(), "");
    }
    let error = t.with_eos_token("<nope>").unwrap_err().to_string();
    assert!(error.contains("<nope>"), "{error}");
}

#[test]
fn the_configuration_adds_tokens_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "tokenizer.json", byte_level().to_string().as_bytes());
    let config = json!({"eos_token": "<|end|>", "pad_token": "[PAD]", "chat_template": "old",
        "added_tokens_decoder": {"2": {"content": "<think>", "special": true, "normalized": false}}});
    write(dir.path(), "tokenizer_config.json", config.to_string().as_bytes());
    write(dir.path(), "generation_config.json", br#"{"eos_token_id": [1, 0, 9999999]}"#);
    write(dir.path(), "chat_template.jinja", b"new");
    let t = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(t.eos_token_ids(), [1, 0]);
    assert_eq!(t.pad_token_id().map(|id| id as usize + 1), Some(t.vocab_size()));
    assert!(t.is_special(2), "the configuration's flags win");
    assert_eq!(t.inner.templates["default"], "new");
    // What is saved is what was loaded.
    let saved = tempfile::tempdir().unwrap();
    t.save(saved.path()).unwrap();
    let again = Tokenizer::from_dir(saved.path()).unwrap();
    assert_eq!(again.special_tokens(), t.special_tokens());
    assert_eq!(again.vocab_size(), t.vocab_size());
    let text = "hello <think>[PAD]";
    assert_eq!(again.encode(text, true).unwrap(), t.encode(text, true).unwrap());
    assert_eq!(again.inner.templates, t.inner.templates);
}

fn strings(values: &[&str]) -> Gguf {
    Gguf::Array(Array::String(values.iter().map(|&s| s.to_owned()).collect()))
}

fn metadata(pairs: Vec<(&str, Gguf)>) -> Metadata {
    let mut metadata = Metadata::default();
    for (key, value) in pairs {
        assert!(metadata.insert(key.to_owned(), value));
    }
    metadata
}

fn sentencepiece() -> Vec<(&'static str, Gguf)> {
    vec![
        ("tokenizer.ggml.model", Gguf::String("llama".into())),
        ("tokenizer.ggml.tokens", strings(&["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "ab", "▁ab", "c"])),
        ("tokenizer.ggml.token_type", Gguf::Array(Array::I32(vec![2, 3, 3, 6, 1, 1, 1, 1, 1, 1]))),
        ("tokenizer.ggml.scores", Gguf::Array(Array::F32(vec![0., 0., 0., 0., -9., -9., -9., -1., -2., -9.]))),
        ("tokenizer.ggml.bos_token_id", Gguf::U32(1)),
        ("tokenizer.ggml.eos_token_id", Gguf::U32(2)),
        ("tokenizer.ggml.unknown_token_id", Gguf::U32(0)),
    ]
}

#[test]
fn sentencepiece_from_gguf() {
    let t = Tokenizer::from_gguf(&metadata(sentencepiece())).unwrap();
    assert_eq!(t.encode("ab c\n", true).unwrap(), [1, 8, 4, 9, 3]);
    assert_eq!(t.encode("</s>", false).unwrap(), [2]);
    assert!(!t.encode_ordinary("</s>").unwrap().contains(&2));
    assert_eq!(t.decode(&[1, 8, 4, 9, 3], true).unwrap(), "ab c\n");
    assert_eq!((t.bos_token_id(), t.eos_token_ids()), (Some(1), [2].as_slice()));
}

#[test]
fn gguf_metadata_that_is_wrong_is_named() {
    type Change = fn(&mut Vec<(&str, Gguf)>);
    let cases: [(Change, &str); 7] = [
        (|m| m[0].1 = Gguf::String("bert".into()), "\"bert\""),
        (|m| m.truncate(1), "tokenizer.ggml.tokens"),
        (|m| m[2].1 = Gguf::Array(Array::I32(vec![1])), "10 tokens but 1"),
        (|m| m[3].1 = Gguf::Array(Array::F32(vec![f32::NAN; 10])), "NaN"),
        (|m| m[5].1 = Gguf::U32(10), "only 10 tokens"),
        (|m| drop(m.remove(3)), "tokenizer.ggml.scores"),
        (
            |m| {
                m[0].1 = Gguf::String("gpt2".into());
                m.push(("tokenizer.ggml.pre", Gguf::String("no-such".into())));
            },
            "\"no-such\"",
        ),
    ];
    for (change, says) in cases {
        let mut pairs = sentencepiece();
        change(&mut pairs);
        let message = Tokenizer::from_gguf(&metadata(pairs)).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    }
}
