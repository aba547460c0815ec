//! [`StreamDecoder`]: text out of ids that arrive one by one.

use super::Tokenizer;

/// Ids after which text is given out even if it still ends in the middle of a character. No character has
/// more than four bytes, so only a model that emits broken UTF-8 gets here; without a limit each push would
/// decode everything since.
const MAX_PENDING: usize = 64;

/// Decodes ids one by one into text that never ends inside a character.
///
/// The pieces put together are the text of all ids, except that SentencePiece's leading space is only
/// dropped at the very start, as it should be.
///
/// The text of a token depends on its neighbours (SentencePiece drops a space at the start, byte tokens are
/// halves of characters), so each push decodes a window that begins with tokens whose text is already out,
/// and gives what the window has beyond it.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// The window of ids; those before `read` are out.
    ids: Vec<u32>,
    read: usize,
}

impl StreamDecoder {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        StreamDecoder { tokenizer, skip_special_tokens: true, ids: Vec::new(), read: 0 }
    }

    /// Whether special tokens are left out (they are unless this says otherwise).
    pub fn skip_special_tokens(mut self, skip: bool) -> Self {
        self.skip_special_tokens = skip;
        self
    }

    /// Takes the next id; gives the text that is now complete, if there is any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.ids.push(id);
        self.take(self.ids.len() - self.read >= MAX_PENDING)
    }

    /// Gives what is left at the end: the replacement character for half a character.
    pub fn finish(&mut self) -> Option<String> {
        let text = self.take(true);
        self.ids.clear();
        self.read = 0;
        text
    }

    fn take(&mut self, force: bool) -> Option<String> {
        let before = self.text(&self.ids[..self.read]);
        let now = self.text(&self.ids);
        if !force && now.ends_with('\u{FFFD}') {
            return None;
        }
        // A decoder may change text it has given out already (only broken UTF-8 does): then the common part
        // stands, and what differs follows.
        let new = now.strip_prefix(before.as_str()).unwrap_or_else(|| {
            let same: usize =
                before.chars().zip(now.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
            &now[same..]
        });
        if new.is_empty() {
            return None;
        }
        let new = new.to_owned();
        // Keep the tokens just given out as context for the next ones.
        self.ids.drain(..self.read);
        self.read = self.ids.len();
        Some(new)
    }

    fn text(&self, ids: &[u32]) -> String {
        // Decoding fails on no vocabulary that loaded; leaving out such a token is better than ending a
        // generation.
        self.tokenizer.decode(ids, self.skip_special_tokens).unwrap_or_default()
    }
}
