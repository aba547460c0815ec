//! What a tokenizer may make of a text: files can hold parts that blow every text up, one by a factor of ten after
//! another, until there is no memory.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// Bytes that normalisers, or decoders, may make of one. A space becomes `▁` with three, and prepended ones each take
/// part: honest files stay below 16.
const MAX_GROWTH: usize = 256;
/// Parts in a sequence of normalisers, pre-tokenizers, post-processors or decoders, at all depths; the most in use have
/// a dozen.
const MAX_PARTS: usize = 128;
/// Tokens that a post-processor may add to a text; BOS and EOS are two.
const MAX_ADDED: usize = 256;
/// Bytes of a part's JSON; the largest in use are SentencePiece's tables of characters with 400 KB.
const MAX_JSON: usize = 16 << 20;

/// The parts of tokenizer.json that do something to a text, unparsed: the vocabulary between them is large.
#[derive(Deserialize)]
struct Parts<'a> {
    #[serde(borrow, default)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow, default)]
    post_processor: Option<&'a RawValue>,
    #[serde(borrow, default)]
    decoder: Option<&'a RawValue>,
}

/// What is wrong with a tokenizer.json of which nothing has been built yet, as the end of a sentence.
pub(super) fn check(json: &[u8]) -> Result<(), String> {
    let parts: Parts<'_> = match serde_json::from_slice(json) {
        Ok(parts) => parts,
        // A part given twice would be checked once; of what is no such JSON at all, the library says more.
        Err(e) if e.to_string().starts_with("duplicate field") => return Err(e.to_string()),
        Err(_) => return Ok(()),
    };
    let named = [
        ("normalizer", parts.normalizer),
        ("pre_tokenizer", parts.pre_tokenizer),
        ("post_processor", parts.post_processor),
        ("decoder", parts.decoder),
    ];
    for (name, raw) in named {
        let Some(raw) = raw else { continue };
        if raw.get().len() > MAX_JSON {
            return Err(format!("its `{name}` takes {} bytes, more than the {MAX_JSON} allowed", raw.get().len()));
        }
        // What cannot be parsed here cannot be there.
        let Ok(part) = serde_json::from_str::<Value>(raw.get()) else { continue };
        let mut all = Vec::new();
        flatten(&part, &mut all);
        if all.len() > MAX_PARTS {
            return Err(format!("its `{name}` has {} parts, more than the {MAX_PARTS} allowed", all.len()));
        }
        let grown = all.iter().fold(1_usize, |bytes, part| grow(bytes, part));
        if grown > MAX_GROWTH {
            return Err(format!("its `{name}` makes up to {grown} bytes of one, more than the {MAX_GROWTH} allowed"));
        }
        let mut added = 0_usize;
        for part in all {
            added = added.saturating_add(added_by(part)?);
        }
        if added > MAX_ADDED {
            return Err(format!("its `{name}` adds {added} tokens to a text, more than the {MAX_ADDED} allowed"));
        }
    }
    Ok(())
}

/// The parts of a sequence of sequences, in order.
fn flatten<'a>(part: &'a Value, all: &mut Vec<&'a Value>) {
    let inner = ["normalizers", "pretokenizers", "processors", "decoders"].iter().find_map(|key| part[*key].as_array());
    match inner {
        Some(inner) => inner.iter().for_each(|part| flatten(part, all)),
        None => all.push(part),
    }
}

/// The most bytes that a part makes of so many.
fn grow(bytes: usize, part: &Value) -> usize {
    let text = |value: &Value| value.as_str().map_or(0, str::len);
    match part["type"].as_str() {
        Some("Replace") => {
            let content = text(&part["content"]);
            // An expression matches a byte at the least, or nothing, which is also between all bytes.
            let pattern = text(&part["pattern"]["String"]);
            let factor = match pattern {
                0 => content.saturating_add(1),
                n => content.div_ceil(n).max(1),
            };
            bytes.saturating_mul(factor)
        }
        Some("Prepend") => bytes.saturating_add(text(&part["prepend"])),
        _ => bytes,
    }
}

/// How many tokens a template adds to a pair of texts, and that it knows each.
fn added_by(part: &Value) -> Result<usize, String> {
    if part["type"] != "TemplateProcessing" {
        return Ok(0);
    }
    let pieces = [&part["single"], &part["pair"]].into_iter().map(|p| p.as_array().map_or(&[][..], Vec::as_slice));
    let mut most = 0;
    for pieces in pieces {
        let mut added = 0_usize;
        for name in pieces.iter().filter_map(|piece| piece["SpecialToken"]["id"].as_str()) {
            let Some(ids) = part["special_tokens"][name]["ids"].as_array() else {
                return Err(format!("its `post_processor` adds {name:?}, which its `special_tokens` do not have"));
            };
            added = added.saturating_add(ids.len());
        }
        // A text in several places is as good as tokens added.
        most = most.max(added.saturating_add(pieces.len()));
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn says(part: &str, value: Value) -> String {
        check(json!({ part: value }).to_string().as_bytes()).err().unwrap_or_default()
    }

    #[test]
    fn what_blows_a_text_up_is_refused() {
        let replace = |from: Value, to: &str| json!({"type": "Replace", "pattern": from, "content": to});
        let sequence = |n: usize, part: Value| json!({"type": "Sequence", "normalizers": vec![part; n]});
        let tenfold = replace(json!({"String": "a"}), "aaaaaaaaaa");
        assert_eq!(says("normalizer", sequence(2, tenfold.clone())), "");
        assert!(says("normalizer", sequence(12, tenfold.clone())).contains("makes up to 1000000000000 bytes of one"));
        assert!(says("normalizer", sequence(2, sequence(2, tenfold.clone()))).contains("makes up to 10000 bytes"));
        assert!(says("normalizer", sequence(64, tenfold.clone())).contains(&usize::MAX.to_string()));
        assert!(says("decoder", json!({"decoders": vec![tenfold; 3]})).contains("its `decoder` makes up to 1000"));
        let expression = replace(json!({"Regex": "b*"}), &"x".repeat(300));
        assert!(says("normalizer", expression).contains("makes up to 301"));
        let honest = [json!({"type": "Prepend", "prepend": "▁"}), replace(json!({"String": " "}), "▁")];
        assert_eq!(says("normalizer", json!({"type": "Sequence", "normalizers": honest})), "");
        assert!(says("normalizer", sequence(200, json!({"type": "NFC"}))).contains("has 200 parts"));
    }

    #[test]
    fn what_is_added_is_counted_and_known() {
        let template = |ids: usize, name: &str| {
            json!({
                "type": "TemplateProcessing", "pair": [],
                "single": [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": vec![0; ids], "tokens": vec!["<s>"; ids]}},
            })
        };
        assert_eq!(says("post_processor", template(1, "<s>")), "");
        assert!(says("post_processor", template(3000, "<s>")).contains("adds 3002 tokens"));
        assert!(says("post_processor", template(1, "<t>")).contains("adds \"<t>\", which its `special_tokens`"));
        let both = json!({"type": "Sequence", "processors": [template(200, "<s>"), template(200, "<s>")]});
        assert!(says("post_processor", both).contains("adds 404 tokens"));
        assert!(check(b"{\"normalizer\": null, \"normalizer\": null}").is_err());
        assert!(check(b"[").is_ok() && check(b"[]").is_ok());
    }
}
