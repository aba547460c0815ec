//! Encoding section by section, between the special tokens of a text.
//!
//! The tokenizer library cuts a text at its special tokens before anything else. Where nothing that comes after
//! looks across such a cut, the tokens of a section are those of the section alone; and sections come back: a
//! template's system prompt in every conversation, the prompt of an example once alone and once with its completion.
//! So each thread keeps the last few it has encoded.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use tokenizers::Tokenizer as Backend;

use super::guarded::{Piece, pieces};
use super::{Result, Tokenizer, guard};

/// Sections that a thread keeps.
const KEPT: usize = 32;

/// Longer sections, in bytes, are not kept.
const LONGEST: usize = 1 << 15;

/// A number that no other tokenizer of the process has.
pub(super) fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What a thread encoded last, the newest first.
#[derive(Default)]
struct Recent {
    /// Number of the tokenizer that did it.
    tokenizer: u64,
    sections: VecDeque<(Box<str>, Rc<[Piece]>)>,
}

thread_local! {
    static RECENT: RefCell<Recent> = RefCell::default();
}

impl Tokenizer {
    /// The pieces of `text`, the special tokens in which are `specials`; for tokenizers with
    /// [independent sections](Tokenizer::has_sections).
    pub(super) fn encode_sections(&self, text: &str, specials: &[(Range<usize>, u32)]) -> Result<Vec<Piece>> {
        let mut all = Vec::with_capacity(text.len() / 3);
        let mut at = 0;
        for (range, id) in specials {
            self.encode_section(text, at..range.start, &mut all)?;
            all.push(Piece { id: *id, bytes: range.clone() });
            at = range.end;
        }
        self.encode_section(text, at..text.len(), &mut all)?;
        Ok(all)
    }

    fn encode_section(&self, text: &str, section: Range<usize>, all: &mut Vec<Piece>) -> Result<()> {
        let (start, text) = (section.start, &text[section]);
        if text.is_empty() {
            return Ok(());
        }
        let found = RECENT.with_borrow_mut(|recent| {
            if recent.tokenizer != self.inner.number {
                *recent = Recent { tokenizer: self.inner.number, ..Recent::default() };
            }
            recent.sections.iter().find(|(known, _)| **known == *text).map(|(_, pieces)| pieces.clone())
        });
        let found = match found {
            Some(found) => found,
            None => {
                let new: Rc<[Piece]> = match self.encode_words(text)? {
                    Some(pieces) => pieces.into(),
                    None => {
                        let encoding = guard("encode", || self.inner.backend.encode(text, false))?;
                        pieces(&encoding, |offset| offset, |id| id).into()
                    }
                };
                if text.len() <= LONGEST {
                    RECENT.with_borrow_mut(|recent| {
                        recent.sections.truncate(KEPT - 1);
                        recent.sections.push_front((text.into(), new.clone()));
                    });
                }
                new
            }
        };
        all.extend(found.iter().map(|p| Piece { id: p.id, bytes: start + p.bytes.start..start + p.bytes.end }));
        Ok(())
    }

    /// Whether a text's tokens are those of its sections between special tokens, one after the other.
    pub(super) fn has_sections(&self) -> bool {
        *self.inner.has_sections.get_or_init(|| independent(&self.inner.backend))
    }
}

/// Whether every step of the tokenizer is known to look at one section at a time. What is not known is not.
fn independent(backend: &Backend) -> bool {
    let json = |part: Option<serde_json::Result<Value>>| part.transpose().map(Option::unwrap_or_default);
    let before = json(backend.get_pre_tokenizer().map(serde_json::to_value));
    let after = json(backend.get_post_processor().map(serde_json::to_value));
    let added = backend.get_added_tokens_decoder();
    // A special token that takes spaces along, or that overlaps with another added token, is not cut out as it
    // is written.
    let plain = added.values().filter(|t| t.special).all(|s| {
        let alone = !(s.lstrip || s.rstrip || s.single_word || s.normalized);
        alone && added.values().filter(|t| !t.special).all(|t| !overlap(&s.content, &t.content))
    });
    plain
        && backend.get_truncation().is_none()
        && backend.get_padding().is_none()
        && before.is_ok_and(|step| sectionwise(&step, false))
        && after.is_ok_and(|step| sectionwise(&step, true))
}

/// Whether an occurrence of one may reach into an occurrence of the other.
fn overlap(a: &str, b: &str) -> bool {
    let reaches = |a: &str, b: &str| (0..a.len()).any(|i| a.is_char_boundary(i) && b.starts_with(&a[i..]));
    a.contains(b) || b.contains(a) || reaches(a, b) || reaches(b, a)
}

/// Whether a pre-tokenizer or (`post`) a post-processor treats each section as if it were alone.
fn sectionwise(step: &Value, post: bool) -> bool {
    let all = |key: &str| step[key].as_array().is_some_and(|steps| steps.iter().all(|s| sectionwise(s, post)));
    match step["type"].as_str() {
        None => step.is_null(),
        Some("Sequence") => all("pretokenizers") || all("processors"),
        // A space before the first word goes by the word's place in the text.
        Some("ByteLevel") => step["add_prefix_space"] == false || (post && step["trim_offsets"] == false),
        // Adds special tokens, which are not asked for.
        Some("TemplateProcessing") => true,
        Some("Split" | "Digits" | "Punctuation" | "Whitespace" | "WhitespaceSplit") => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::tests::{byte_level, load};
    use super::*;

    fn with(changes: &[(&str, Value)]) -> Tokenizer {
        let mut all = byte_level();
        for (pointer, value) in changes {
            *all.pointer_mut(pointer).unwrap() = value.clone();
        }
        load(&all, &json!({})).unwrap()
    }

    #[test]
    fn steps_that_look_further_keep_texts_whole() {
        let sections = |changes: &[(&str, Value)]| with(changes).has_sections();
        assert!(sections(&[]));
        assert!(sections(&[("/pre_tokenizer", Value::Null)]));
        let metaspace = json!({"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": true});
        assert!(!sections(&[("/pre_tokenizer", metaspace)]));
        assert!(!sections(&[("/pre_tokenizer/add_prefix_space", json!(true))]));
        // As a post-processor that cuts nothing off it looks at nothing.
        let post = |trim: bool| json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": trim, "use_regex": true});
        let sequence = |trim: bool| json!({"type": "Sequence", "processors": [post(trim)]});
        assert!(sections(&[("/post_processor", sequence(false))]));
        assert!(!sections(&[("/post_processor", sequence(true))]));
        assert!(!sections(&[("/added_tokens/0/lstrip", json!(true))]));
        assert!(!sections(&[("/added_tokens/2/content", json!("<s>>"))]));
    }

    proptest! {
        /// Tokens and bytes, the section met for the first time and again.
        #[test]
        fn sections_are_the_whole(parts in prop::collection::vec(prop::sample::select(
            vec!["<s>", "<|end|>", "<think>", " ", "\n", "he", "hello", "é", " the", "12", "'s", "<", "🎉"]), 0..24)) {
            let digits = json!({"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true}, byte_level()["pre_tokenizer"]]});
            let composed = json!({"type": "NFD"});
            for t in [with(&[]), with(&[("/pre_tokenizer", digits)]), with(&[("/normalizer", composed)])] {
                let text = parts.concat();
                let whole = guard("encode", || t.inner.backend.encode(text.as_str(), false)).unwrap();
                let whole = pieces(&whole, |offset| offset, |id| id);
                prop_assert!(t.has_sections());
                for _ in 0..2 {
                    prop_assert_eq!(&t.encode_pieces(&text, &[]).unwrap(), &whole);
                }
            }
        }
    }

    #[test]
    fn overlapping_tokens_are_seen() {
        for (a, b) in [("<|a|>", "<|a|>b"), ("ab", "bc"), ("bc", "ab"), ("<s>", "<s>")] {
            assert!(overlap(a, b), "{a} {b}");
        }
        assert!(!overlap("<|im_end|>", "[x]") && !overlap("<think>", "_<|a|"));
    }
}
