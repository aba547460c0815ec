//! Encoding word by word.
//!
//! Byte-level BPE cuts a text into words before it merges, and no merge crosses a cut: the tokens of a text are those
//! of its words, one after the other. Words come back far more often than texts do, so their tokens are remembered,
//! and the library is asked only for words not met before. Where to cut is found here, for the
//! [pre-tokenizers](super::pretokenizers) that are known: their expressions end in `\s+(?!\S)|\s+`, which an automaton
//! finds as `\s+`, to be given back its last character where a word follows.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::PoisonError;

use foldhash::fast::RandomState;
use regex::Regex;
use regex_automata::meta::{self, Cache};
use regex_automata::{Anchored, Input};
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::{PostProcessorWrapper, Tokenizer as Backend};

use super::guarded::{Piece, pieces};
use super::{Result, Tokenizer, guard, pretokenizers};

/// What all expressions that are known end in.
const BLANKS: &str = r"|\s+(?!\S)|\s+";

/// Words that a memory holds before it begins anew.
const KEPT: usize = if cfg!(test) { 24 } else { 1 << 16 };

/// Longer words, in bytes, are not remembered.
const LONGEST: usize = 128;

/// Where a tokenizer cuts words.
pub(super) struct Words {
    /// Every digit is a word.
    digits: bool,
    pattern: meta::Regex,
    /// Blanks that end in a line's end are found by an alternative of their own, which gives nothing back.
    lines: bool,
    /// The text is composed first, which changes nothing in ASCII.
    composed: bool,
    /// Added tokens that are not special; a text that has one is left to the library.
    added: Option<Regex>,
    /// What is put around a text with `add_special_tokens`.
    around: Option<[Vec<u32>; 2]>,
}

impl Words {
    /// `None` for a tokenizer of another kind.
    pub(super) fn of(backend: &Backend) -> Option<Words> {
        let ModelWrapper::BPE(bpe) = backend.get_model() else { return None };
        let composed = match backend.get_normalizer() {
            None => false,
            Some(NormalizerWrapper::NFC(_)) => true,
            Some(_) => return None,
        };
        let none = |affix: &Option<String>| affix.as_deref().is_none_or(str::is_empty);
        let plain = none(&bpe.continuing_subword_prefix) && none(&bpe.end_of_word_suffix);
        let pre_tokenizer = serde_json::to_value(backend.get_pre_tokenizer()?).ok()?;
        let (digits, expression) = pretokenizers::expression_of(&pre_tokenizer).filter(|_| plain)?;
        let before = expression.strip_suffix(BLANKS)?;
        let added = backend.get_added_tokens_decoder();
        let added: Vec<String> =
            added.values().filter(|t| !t.special && !t.content.is_empty()).map(|t| regex::escape(&t.content)).collect();
        let added = match added.is_empty() {
            true => None,
            false => Some(Regex::new(&added.join("|")).ok()?),
        };
        Some(Words {
            digits,
            pattern: meta::Regex::new(&format!(r"{before}|\s+")).ok()?,
            lines: before.ends_with(r"|\s*[\r\n]+"),
            composed,
            added,
            around: around(backend.get_post_processor()),
        })
    }

    /// Whether the words found here are those of the tokenizer.
    fn cover(&self, text: &str) -> bool {
        (!self.composed || text.is_ascii()) && !self.added.as_ref().is_some_and(|a| a.is_match(text))
    }

    /// Every word's bytes, ascending. `states` is of this pattern.
    fn cut(&self, text: &str, states: &mut Cache, mut word: impl FnMut(Range<usize>) -> Result<()>) -> Result<()> {
        let mut from = 0;
        if self.digits {
            for (at, digit) in text.char_indices().filter(|(_, c)| c.is_numeric()) {
                self.cut_stretch(text, from..at, states, &mut word)?;
                from = at + digit.len_utf8();
                word(at..from)?;
            }
        }
        self.cut_stretch(text, from..text.len(), states, &mut word)
    }

    fn cut_stretch(
        &self,
        text: &str,
        stretch: Range<usize>,
        states: &mut Cache,
        word: &mut impl FnMut(Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let (start, text) = (stretch.start, &text[stretch]);
        let mut at = 0;
        while at < text.len() {
            // Nearly every character begins a word or is in one: where a match begins need not be searched for.
            let here = Input::new(text).range(at..).anchored(Anchored::Yes);
            let found = self.pattern.search_with(states, &here).or_else(|| {
                let ahead = here.clone().anchored(Anchored::No);
                self.pattern.search_with(states, &ahead)
            });
            let found = found.map_or(text.len()..text.len(), |m| m.range());
            if found.start > at {
                word(start + at..start + found.start)?;
            }
            if found.is_empty() {
                break;
            }
            at = found.start + self.kept(&text[found.clone()], found.end == text.len());
            word(start + found.start..start + at)?;
        }
        Ok(())
    }

    /// How much of a match is its word: `\s+(?!\S)` leaves a blank to the word that follows, if it has more than one.
    fn kept(&self, found: &str, last: bool) -> usize {
        let blank = |c: char| c.is_whitespace();
        if last || !found.chars().all(blank) || (self.lines && found.ends_with(['\r', '\n'])) {
            return found.len();
        }
        match found.char_indices().next_back() {
            Some((begin, _)) if begin > 0 => begin,
            _ => found.len(),
        }
    }
}

/// The ids that a post-processor puts before and behind a text; `None` if it is of a kind not known.
fn around(post_processor: Option<&PostProcessorWrapper>) -> Option<[Vec<u32>; 2]> {
    fn extend(step: &Value, ends: &mut [Vec<u32>; 2]) -> Option<()> {
        match step["type"].as_str()? {
            "ByteLevel" => Some(()),
            "Sequence" => step["processors"].as_array()?.iter().try_for_each(|s| extend(s, ends)),
            "TemplateProcessing" => {
                let mut side = 0;
                for item in step["single"].as_array()? {
                    if item.get("Sequence").is_some() {
                        side += 1;
                        continue;
                    }
                    let token = item["SpecialToken"]["id"].as_str()?;
                    let ids = step["special_tokens"][token]["ids"].as_array()?;
                    let ids = ids.iter().map(|id| u32::try_from(id.as_u64()?).ok());
                    ends.get_mut(side)?.extend(ids.collect::<Option<Vec<u32>>>()?);
                }
                // The text once; two templates, one around the other, are not a thing to guess at.
                (side == 1).then_some(())
            }
            _ => None,
        }
    }
    let mut ends = [Vec::new(), Vec::new()];
    if let Some(step) = post_processor {
        extend(&serde_json::to_value(step).ok()?, &mut ends)?;
    }
    Some(ends)
}

/// Words met before, and their tokens; and what searching for words remembers.
pub(super) struct Memory {
    states: Cache,
    known: HashMap<Box<str>, Range<usize>, RandomState>,
    /// Ids, and bytes relative to the word.
    tokens: Vec<(u32, u8, u8)>,
}

impl Memory {
    fn of(words: &Words) -> Memory {
        Memory { states: words.pattern.create_cache(), known: HashMap::default(), tokens: Vec::new() }
    }
}

impl Tokenizer {
    /// Where this tokenizer cuts words, if it is of a kind that is known.
    pub(super) fn words(&self) -> Option<&Words> {
        self.inner.words.get_or_init(|| Words::of(&self.inner.backend).filter(|_| self.has_sections())).as_ref()
    }

    /// The pieces of a text without special tokens; `None` if it has to be asked for as a whole.
    pub(super) fn encode_words(&self, text: &str) -> Result<Option<Vec<Piece>>> {
        let Some(words) = self.words().filter(|w| w.cover(text)) else { return Ok(None) };
        // Taken out while it is in use: threads do not wait for each other, and an error loses one at most.
        let memories = || self.inner.memories.lock().unwrap_or_else(PoisonError::into_inner);
        let mut memory = memories().pop().unwrap_or_else(|| Memory::of(words));
        let pieces = self.encode_known(words, text, &mut memory)?;
        memories().push(memory);
        Ok(Some(pieces))
    }

    fn encode_known(&self, words: &Words, text: &str, memory: &mut Memory) -> Result<Vec<Piece>> {
        let mut all = Vec::with_capacity(text.len() / 3 + 1);
        let Memory { states, known, tokens } = memory;
        words.cut(text, states, |range| {
            let (start, word) = (range.start, &text[range]);
            if let Some(place) = known.get(word) {
                let moved = |&(id, a, b): &(u32, u8, u8)| Piece { id, bytes: start + a as usize..start + b as usize };
                all.extend(tokens[place.clone()].iter().map(moved));
                return Ok(());
            }
            let encoding = guard("encode", || self.inner.backend.encode(word, false))?;
            let new = pieces(&encoding, |offset| offset, |id| id);
            if word.len() <= LONGEST {
                if known.len() >= KEPT {
                    known.clear();
                    tokens.clear();
                }
                let from = tokens.len();
                // In bounds: bytes of a word that is not longer than `LONGEST`.
                tokens.extend(new.iter().map(|p| (p.id, p.bytes.start as u8, p.bytes.end as u8)));
                known.insert(word.into(), from..tokens.len());
            }
            all.extend(new.into_iter().map(|p| Piece { id: p.id, bytes: start + p.bytes.start..start + p.bytes.end }));
            Ok(())
        })?;
        Ok(all)
    }

    /// [`Tokenizer::encode`] by words; `None` if the library has to do it.
    pub(super) fn encode_by_words(&self, text: &str, add_special_tokens: bool) -> Result<Option<Vec<u32>>> {
        let Some(around) = self.words().map(|w| &w.around) else { return Ok(None) };
        let (before, behind): (&[u32], &[u32]) = match (add_special_tokens, around) {
            (false, _) => (&[], &[]),
            (true, Some([before, behind])) => (before, behind),
            (true, None) => return Ok(None),
        };
        let pieces = self.encode_pieces(text, &[])?;
        let mut ids = Vec::with_capacity(before.len() + pieces.len() + behind.len());
        ids.extend_from_slice(before);
        ids.extend(pieces.iter().map(|p| p.id));
        ids.extend_from_slice(behind);
        Ok(Some(ids))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::tests::{byte_level, load};
    use super::*;

    /// A tokenizer for every pre-tokenizer that is known.
    static ALL: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
        let with = |(pre_tokenizer, nfc): (Value, bool)| {
            let mut json = byte_level();
            json["pre_tokenizer"] = pre_tokenizer;
            if nfc {
                json["normalizer"] = json!({"type": "NFC"});
            }
            load(&json, &json!({})).unwrap()
        };
        pretokenizers::all().map(with).collect()
    });

    fn library(t: &Tokenizer, text: &str) -> Vec<Piece> {
        pieces(&guard("encode", || t.inner.backend.encode(text, false)).unwrap(), |offset| offset, |id| id)
    }

    #[test]
    fn every_known_pre_tokenizer_is_cut_here() {
        assert_eq!(ALL.len(), 7);
        for t in &*ALL {
            assert!(t.words().is_some());
        }
        let mut other = byte_level();
        for (pointer, value) in [
            ("/normalizer", json!({"type": "NFD"})),
            ("/pre_tokenizer", json!({"type": "Whitespace"})),
            ("/pre_tokenizer", Value::Null),
        ] {
            let old = std::mem::replace(other.pointer_mut(pointer).unwrap(), value);
            assert!(load(&other, &json!({})).unwrap().words().is_none(), "{pointer}");
            *other.pointer_mut(pointer).unwrap() = old;
        }
    }

    proptest! {
        /// Ids and bytes are the library's, words met for the first time and again.
        #[test]
        fn words_make_the_text(
            parts in prop::collection::vec(prop_oneof![
                prop::sample::select(vec![
                    " ", "  ", "\n", "\r\n", "\t", "\u{a0}", "\u{3000}", "he", "hello", "Hel", " the", "12", "½", "٣", "'s", "'LL",
                    "'ſ", "!", "...", "/", "é", "e\u{301}", "🎉", "你好", "ß", "ǅ", "ʰ", "<s>", "<think>", "\u{200d}", "\u{0}",
                ]).prop_map(str::to_owned),
                any::<char>().prop_map(String::from),
            ], 0..40),
        ) {
            let text = parts.concat();
            for t in &*ALL {
                let whole = library(t, &text);
                let ids: Vec<u32> = whole.iter().map(|p| p.id).collect();
                for _ in 0..2 {
                    prop_assert_eq!(&t.encode_pieces(&text, &[]).unwrap(), &whole);
                    prop_assert_eq!(&t.encode(&text, true).unwrap(), &ids);
                }
            }
        }
    }

    #[test]
    fn what_stands_around_a_text_is_added() {
        let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let ids = |id: &str, n: u32| json!({"id": id, "ids": [n], "tokens": [id]});
        let template = json!({"type": "TemplateProcessing",
            "single": [special("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, special("<|end|>")],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": ids("<s>", 0), "<|end|>": ids("<|end|>", 1)}});
        let trimmed = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
        let both = json!({"type": "Sequence", "processors": [trimmed, template]});
        for post_processor in [template.clone(), trimmed.clone(), both] {
            let mut json = byte_level();
            json["post_processor"] = post_processor;
            let t = load(&json, &json!({})).unwrap();
            assert!(t.words().is_some());
            for (text, add) in [("hello <s>there", true), ("", true), ("hello", false)] {
                let library = t.inner.backend.encode(text, add).unwrap();
                assert_eq!(t.encode(text, add).unwrap(), library.get_ids(), "{text:?} {add}");
            }
        }
    }

    #[test]
    fn a_full_memory_begins_anew() {
        let t = &ALL[0];
        let mut memory = Memory::of(t.words().unwrap());
        for n in 0..KEPT + 3 {
            let word: String =
                format!("{n:x}").chars().map(|c| char::from(b'a' + c.to_digit(16).unwrap() as u8)).collect();
            let found = t.encode_known(t.words().unwrap(), &word, &mut memory).unwrap();
            assert_eq!(found.iter().map(|p| p.bytes.len()).sum::<usize>(), word.len());
            assert!(memory.known.len() <= KEPT);
        }
        let long = "a".repeat(LONGEST + 1);
        let known = memory.known.len();
        assert_eq!(t.encode_known(t.words().unwrap(), &long, &mut memory).unwrap(), library(t, &long));
        assert_eq!(memory.known.len(), known);
    }
}
