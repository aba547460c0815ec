//! How text is split before BPE, by the names that GGUF files use.
//!
//! A GGUF file does not hold the pre-tokenizer, only its name in llama.cpp. The expressions are those in the
//! tokenizer.json of the models that the names stand for.

use serde_json::{Value, json};

/// The one built into the library's byte-level pre-tokenizer.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// How a byte-level vocabulary splits text.
pub(super) struct PreTokenizer {
    names: &'static [&'static str],
    split: Split,
    /// Text is composed (NFC) first.
    pub(super) nfc: bool,
    /// A word that is in the vocabulary is one token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// BOS is added where the file does not say.
    pub(super) add_bos: bool,
}

enum Split {
    /// GPT-2's expression, which is built into the byte-level pre-tokenizer.
    Gpt2,
    /// The same after cutting out each digit.
    DigitsThenGpt2,
    Regex(&'static str),
}

const fn plain(names: &'static [&'static str], split: Split) -> PreTokenizer {
    PreTokenizer { names, split, nfc: false, ignore_merges: false, add_bos: false }
}

static KNOWN: [PreTokenizer; 7] = [
    // "default" is what old converters wrote when they knew nothing better, for models with GPT-2's split.
    plain(&["default", "gpt-2", "phi-2", "olmo", "jais", "mpt", "roberta-bpe"], Split::Gpt2),
    plain(&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"], Split::DigitsThenGpt2),
    PreTokenizer {
        ignore_merges: true,
        add_bos: true,
        ..plain(&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"], Split::Regex(LLAMA3))
    },
    plain(&["dbrx", "smaug-bpe"], Split::Regex(LLAMA3)),
    PreTokenizer { nfc: true, ..plain(&["qwen2", "deepseek-r1-qwen", "megrez"], Split::Regex(QWEN2)) },
    PreTokenizer { ignore_merges: true, add_bos: true, ..plain(&["tekken"], Split::Regex(TEKKEN)) },
    plain(&["gpt-4o", "llama4", "kanana2"], Split::Regex(GPT4O)),
];

/// The pre-tokenizer of a name.
pub(super) fn find(name: &str) -> Option<&'static PreTokenizer> {
    KNOWN.iter().find(|p| p.names.contains(&name))
}

/// All names, for an error.
pub(super) fn known() -> String {
    KNOWN.iter().flat_map(|p| p.names).copied().collect::<Vec<_>>().join(", ")
}

/// The expression that a pre-tokenizer of tokenizer.json cuts words by, if it is one of those here, and whether it cuts out
/// every digit first.
pub(super) fn expression_of(pre_tokenizer: &Value) -> Option<(bool, &'static str)> {
    let wanted = without_offsets(pre_tokenizer);
    let known = KNOWN.iter().find(|p| without_offsets(&p.json()) == wanted)?;
    Some(match known.split {
        Split::Gpt2 => (false, GPT2),
        Split::DigitsThenGpt2 => (true, GPT2),
        Split::Regex(expression) => (false, expression),
    })
}

/// Every pre-tokenizer as tokenizer.json has it, and whether text is composed first.
#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = (Value, bool)> {
    KNOWN.iter().map(|p| (p.json(), p.nfc))
}

/// The name of a pre-tokenizer that tokenizer.json has, with what stands around it: the first of those it goes by.
pub(crate) fn name_of(pre_tokenizer: &Value, nfc: bool, ignore_merges: bool) -> Option<&'static str> {
    let wanted = without_offsets(pre_tokenizer);
    let same =
        |p: &&PreTokenizer| p.nfc == nfc && p.ignore_merges == ignore_merges && without_offsets(&p.json()) == wanted;
    // "default" says less than the name that follows it.
    KNOWN.iter().find(same).and_then(|p| p.names.iter().find(|n| **n != "default")).copied()
}

/// Without what changes no token.
fn without_offsets(pre_tokenizer: &Value) -> Value {
    let mut copy = pre_tokenizer.clone();
    if let Value::Object(map) = &mut copy {
        map.remove("trim_offsets");
        if let Some(Value::Array(all)) = map.get_mut("pretokenizers") {
            all.iter_mut().for_each(|p| *p = without_offsets(p));
        }
    }
    copy
}

impl PreTokenizer {
    /// As tokenizer.json has it.
    pub(super) fn json(&self) -> Value {
        let byte_level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        match self.split {
            Split::Gpt2 => byte_level(true),
            Split::DigitsThenGpt2 => json!({
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level(true)],
            }),
            Split::Regex(expression) => json!({
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false},
                    byte_level(false),
                ],
            }),
        }
    }
}
