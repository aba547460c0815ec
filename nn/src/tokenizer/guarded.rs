//! Encoding in which some parts of a text are not searched for special tokens.
//!
//! The text is still tokenised as a whole, because BPE merges and SentencePiece's spaces reach across the
//! border of a guarded part. To have the library pass over a special token in one place and see it in
//! another, a copy of the tokenizer leaves all special tokens unparsed and has one more added token for
//! each, an *alias* spelled with a private-use character; outside of guarded parts the special tokens are
//! replaced by their aliases, and in the result the aliases' ids by theirs.

use std::collections::BTreeMap;
use std::ops::Range;

use regex::{Regex, RegexBuilder};
use tokenizers::{AddedToken, Tokenizer as Backend};

use super::{Result, Tokenizer, TokenizerError, guard};

/// Delimiters that an alias may be spelled with. Text that holds one of them takes the next.
const DELIMITERS: [char; 4] = ['\u{10FFFD}', '\u{10FFFC}', '\u{10FFFB}', '\u{10FFFA}'];

/// A token and the bytes of the text that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) id: u32,
    pub(crate) bytes: Range<usize>,
}

/// The number of special tokens in guarded ranges, and the others: bytes and id.
type Occurrences = (usize, Vec<(Range<usize>, u32)>);

/// A tokenizer that parses aliases instead of special tokens.
pub(super) struct Guarded {
    backend: Backend,
    delimiter: char,
    /// Id of an alias to id of its special token.
    original: BTreeMap<u32, u32>,
}

impl Guarded {
    fn new(tokenizer: &Tokenizer, delimiter: char) -> Result<Self> {
        let mut backend = tokenizer.inner.backend.clone();
        backend.set_encode_special_tokens(true);
        let tokens = backend.get_added_tokens_decoder();
        let specials = &tokenizer.inner.special_ids;
        let aliases = specials.keys().filter_map(|id| tokens.get(id).map(|t| (*id, t))).map(|(id, token)| AddedToken {
            content: alias(id, delimiter),
            special: false,
            ..token.clone()
        });
        let aliases: Vec<AddedToken> = aliases.collect();
        guard("build its guarded form", || backend.add_tokens(aliases))?;
        let original =
            specials.keys().filter_map(|&id| Some((backend.token_to_id(&alias(id, delimiter))?, id))).collect();
        Ok(Guarded { backend, delimiter, original })
    }
}

fn alias(id: u32, delimiter: char) -> String {
    format!("{delimiter}{id}{delimiter}")
}

impl Tokenizer {
    /// Tokens of `text` with the bytes they stand for. Special tokens are parsed where they lie wholly
    /// outside of the `guarded` ranges (ascending, disjoint), and nowhere else; no BOS or EOS is added.
    ///
    /// Bytes are those the library assigns: with some tokenizers a token leaves out the space it begins with,
    /// and all tokens of one character share its bytes.
    pub(crate) fn encode_pieces(&self, text: &str, guarded: &[Range<usize>]) -> Result<Vec<Piece>> {
        let (trapped, free) = self.special_occurrences(text, guarded)?;
        if trapped == 0 && (self.words().is_some() || (!free.is_empty() && self.has_sections())) {
            return self.encode_sections(text, &free);
        }
        if trapped == 0 {
            let encoding = guard("encode", || self.inner.backend.encode(text, false))?;
            return Ok(pieces(&encoding, |offset| offset, |id| id));
        }
        if let Some(&default) = DELIMITERS.first()
            && !text.contains(default)
        {
            let guarded = match self.inner.guarded.get() {
                Some(g) => g,
                None => {
                    let new = Guarded::new(self, default)?;
                    self.inner.guarded.get_or_init(|| new)
                }
            };
            return self.encode_aliased(guarded, text, &free);
        }
        let unused = DELIMITERS.into_iter().find(|&d| !text.contains(d));
        let delimiter = unused.ok_or(TokenizerError::Backend {
            action: "encode",
            reason: "the text holds every character reserved for marking special tokens (U+10FFFA to U+10FFFD)".into(),
        })?;
        self.encode_aliased(&Guarded::new(self, delimiter)?, text, &free)
    }

    /// How many special tokens touch guarded ranges, and where the others are.
    fn special_occurrences(&self, text: &str, guarded: &[Range<usize>]) -> Result<Occurrences> {
        let (mut trapped, mut free, mut at) = (0, Vec::new(), 0);
        let Some(pattern) = self.special_pattern()? else { return Ok((0, free)) };
        while let Some(found) = pattern.find_at(text, at) {
            at = found.end();
            let i = guarded.partition_point(|g| g.end <= found.start());
            if guarded.get(i).is_some_and(|g| g.start < found.end()) {
                trapped += 1;
                // A special token of the template may begin inside of a look-alike of the message.
                at = found.start() + found.as_str().chars().next().map_or(1, char::len_utf8);
            } else if let Some(id) = self.token_to_id(found.as_str()) {
                free.push((found.range(), id));
            }
        }
        Ok((trapped, free))
    }

    /// Where special tokens stand outside of the `guarded` ranges: what the template itself wrote.
    pub(crate) fn free_specials(&self, text: &str, guarded: &[Range<usize>]) -> Result<Vec<(Range<usize>, u32)>> {
        Ok(self.special_occurrences(text, guarded)?.1)
    }

    /// Whether a text spells a special token.
    pub(crate) fn spells_special(&self, text: &str) -> Result<bool> {
        Ok(self.special_pattern()?.is_some_and(|p| p.is_match(text)))
    }

    /// Any special token, the longest first; none if the vocabulary has no special tokens.
    fn special_pattern(&self) -> Result<Option<&Regex>> {
        if self.inner.special_ids.is_empty() {
            return Ok(None);
        }
        if let Some(pattern) = self.inner.special_pattern.get() {
            return Ok(Some(pattern));
        }
        let mut tokens: Vec<&String> = self.inner.special_ids.values().collect();
        tokens.sort_by_key(|t| std::cmp::Reverse(t.len()));
        let pattern = tokens.into_iter().map(|t| regex::escape(t)).collect::<Vec<_>>().join("|");
        let pattern = RegexBuilder::new(&pattern)
            .size_limit(1 << 28)
            .build()
            .map_err(|e| TokenizerError::Backend { action: "search for its special tokens", reason: e.to_string() })?;
        Ok(Some(self.inner.special_pattern.get_or_init(|| pattern)))
    }

    fn encode_aliased(&self, guarded: &Guarded, text: &str, free: &[(Range<usize>, u32)]) -> Result<Vec<Piece>> {
        let mut aliased = String::with_capacity(text.len() + 8 * free.len());
        // (byte in `aliased`, byte in `text`) where copied text begins again, i.e. behind each alias.
        let mut joints = vec![(0, 0)];
        let mut at = 0;
        for (range, id) in free {
            aliased.push_str(&text[at..range.start]);
            joints.push((aliased.len(), range.start));
            aliased.push_str(&alias(*id, guarded.delimiter));
            joints.push((aliased.len(), range.end));
            at = range.end;
        }
        aliased.push_str(&text[at..]);
        let encoding = guard("encode", || guarded.backend.encode(aliased.as_str(), false))?;
        let locate = |offset: usize| {
            let i = joints.partition_point(|&(a, _)| a <= offset) - 1;
            let (from, to) = joints[i];
            let limit = joints.get(i + 1).map_or(text.len(), |&(_, t)| t);
            (to + (offset - from)).min(limit)
        };
        let result = pieces(&encoding, locate, |id| guarded.original.get(&id).copied().unwrap_or(id));
        // Ordinary text may still come out as a special id, if the model itself makes it.
        for (piece, &raw) in result.iter().zip(encoding.get_ids()) {
            if piece.id == raw
                && Some(raw) != self.inner.unk_id
                && let Some(token) = self.inner.special_ids.get(&raw)
            {
                return Err(TokenizerError::LookAlike { token: token.clone() });
            }
        }
        Ok(result)
    }
}

pub(super) fn pieces(
    encoding: &tokenizers::Encoding,
    locate: impl Fn(usize) -> usize,
    id: impl Fn(u32) -> u32,
) -> Vec<Piece> {
    let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
    tokens.map(|(&t, &(start, end))| Piece { id: id(t), bytes: locate(start)..locate(end) }).collect()
}
