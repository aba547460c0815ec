//! Text to token ids and back.
//!
//! A [`Tokenizer`] wraps the `tokenizers` crate and adds what stands around it in a model's files: which
//! ids end a text, the chat template, and two ways of encoding text that nobody vouches for. Ids are those
//! of transformers for the same files.
//!
//! - [`Tokenizer::encode`] is `tokenizer(text)`: a special token written in the text becomes its id.
//! - [`Tokenizer::encode_ordinary`] never makes special ids, whatever the text says.
//! - [`crate::template::encode_chat`] does both at once: the template's special tokens are special, those
//!   that someone typed into a message are not.

mod error;
mod gguf;
mod growth;
mod guarded;
mod load;
mod pretokenizers;
mod save;
mod sections;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod words;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::{Map, Value};
use tokenizers::Tokenizer as Backend;
use tokenizers::{AddedToken, PostProcessorWrapper};

use crate::template::{ChatTemplate, TemplateError};
pub use error::{Result, TokenizerError};
pub(crate) use pretokenizers::name_of as pre_tokenizer_name;

pub use stream::StreamDecoder;

/// Text to token ids and back; see the [module](self). Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    backend: Backend,
    /// The same with special tokens unparsed and one alias for each; built when first needed.
    guarded: OnceLock<guarded::Guarded>,
    special_pattern: OnceLock<regex::Regex>,
    /// Whether text between special tokens may be encoded by itself.
    has_sections: OnceLock<bool>,
    /// Where words are cut, if that is known.
    words: OnceLock<Option<words::Words>>,
    /// Words met before, one memory for each thread that encodes at the same time.
    memories: Mutex<Vec<words::Memory>>,
    /// Tells this tokenizer from the others of the process.
    number: u64,
    /// `bos_token`, `eos_token`, …: what a chat template sees under these names.
    special: BTreeMap<String, String>,
    /// Ids of tokens marked special, ascending, with their text.
    special_ids: BTreeMap<u32, String>,
    unk_id: Option<u32>,
    eos_ids: Vec<u32>,
    vocab_size: usize,
    /// tokenizer_config.json as it was found, for [`Tokenizer::save`].
    config: Map<String, Value>,
    /// Chat templates by name, parsed when first needed: one that is broken harms nobody who does not use it.
    templates: BTreeMap<String, String>,
    parsed: BTreeMap<String, OnceLock<Result<ChatTemplate, TemplateError>>>,
    /// The post-processor as it was found; the backend's leaves offsets untrimmed.
    post_processor: Option<PostProcessorWrapper>,
}

impl Tokenizer {
    /// Reads the tokenizer of a Hugging Face directory.
    ///
    /// tokenizer.json is required; tokenizer_config.json, special_tokens_map.json, chat_template.jinja,
    /// additional_chat_templates/, generation_config.json and config.json are read where present, and count
    /// as they do for transformers: tokenizer.json alone says whether BOS is added, template files beat
    /// templates in the configuration, and special_tokens_map.json is only read where the configuration has
    /// no `added_tokens_decoder`.
    ///
    /// # Errors
    ///
    /// Files missing, too large, not JSON, or contradicting each other.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        load::from_dir(dir.as_ref())
    }

    /// Makes a tokenizer from the bytes of tokenizer.json and, where there are any, tokenizer_config.json and
    /// a chat template, which beats the one in the configuration.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::from_dir`].
    pub fn from_json_bytes(
        tokenizer_json: &[u8],
        tokenizer_config: Option<&[u8]>,
        chat_template: Option<&str>,
    ) -> Result<Self> {
        load::from_json_bytes(tokenizer_json, tokenizer_config, chat_template)
    }

    /// Builds the tokenizer that a GGUF file's metadata describes: byte-level BPE (`gpt2`) or SentencePiece
    /// BPE (`llama`), with the file's special tokens and chat templates.
    ///
    /// # Errors
    ///
    /// Other kinds, pre-tokenizers that are not known, and metadata that is missing or contradicts itself.
    pub fn from_gguf(metadata: &crate::gguf::Metadata) -> Result<Self> {
        gguf::from_gguf(metadata)
    }

    /// Token ids of a text, as `tokenizer(text, add_special_tokens=…)` of transformers: special tokens
    /// written in the text become their ids, and `add_special_tokens` adds BOS and EOS where the tokenizer
    /// does so.
    ///
    /// # Errors
    ///
    /// The tokenizer library's, where its model cannot represent the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        if let Some(ids) = self.encode_by_words(text, add_special_tokens)? {
            return Ok(ids);
        }
        guard("encode", || self.inner.backend.encode_fast(text, add_special_tokens)).map(|e| e.get_ids().to_vec())
    }

    /// Token ids of a text in which special tokens are ordinary characters: `<|im_end|>` typed by a user
    /// stays ten characters. BOS and EOS are not added.
    ///
    /// Added tokens that are not special (`<think>` in many vocabularies) are still single tokens, as in
    /// [`Tokenizer::encode`].
    ///
    /// # Errors
    ///
    /// [`TokenizerError::LookAlike`] where the vocabulary itself merges such characters into the special
    /// token (no BPE tokenizer in use does).
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        let pieces = self.encode_pieces(text, std::slice::from_ref(&(0..text.len())))?;
        Ok(pieces.iter().map(|p| p.id).collect())
    }

    /// The text of token ids. Ids that no token has are left out, as transformers does: the embedding of many
    /// models is padded, so such ids can be sampled.
    ///
    /// # Errors
    ///
    /// The tokenizer library's.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        guard("decode", || self.inner.backend.decode(ids, skip_special_tokens))
    }

    /// A decoder for ids that arrive one by one; it leaves special tokens out.
    pub fn stream_decoder(&self) -> StreamDecoder {
        StreamDecoder::new(self.clone())
    }

    /// The id of a token given as the vocabulary spells it (`Ġthe`, `▁the`, `<|im_end|>`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.backend.token_to_id(token)
    }

    /// How the vocabulary spells a token.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.backend.id_to_token(id)
    }

    /// The largest id + 1: an embedding must have at least this many rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// The token that begins a text.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.named_id("bos_token")
    }

    /// The token that ends a text.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.named_id("eos_token")
    }

    /// The token that other programs pad with. Nothing here pads.
    pub fn pad_token_id(&self) -> Option<u32> {
        self.named_id("pad_token")
    }

    /// All ids at which generation may stop: the tokenizer's EOS first, then those of
    /// generation_config.json (or config.json), or of the GGUF metadata.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.inner.eos_ids
    }

    /// The special tokens that have a name (`bos_token`, `eos_token`, `pad_token`, `unk_token`, …).
    pub fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.inner.special
    }

    /// Whether an id is that of a special token: one that `skip_special_tokens` leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.special_ids.contains_key(&id)
    }

    /// The default chat template, if there is one and it can be parsed.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template_named("default")?.as_ref().ok()
    }

    /// The default chat template as it was found, whether or not it can be parsed.
    pub fn chat_template_source(&self) -> Option<&str> {
        self.inner.templates.get("default").map(String::as_str)
    }

    /// The same tokenizer with another chat template, in place of all it has.
    pub fn with_chat_template(&self, template: impl Into<String>) -> Tokenizer {
        let mut inner = self.copied();
        inner.templates = BTreeMap::from([("default".to_owned(), template.into())]);
        inner.parsed = BTreeMap::from([("default".to_owned(), OnceLock::new())]);
        Tokenizer { inner: Arc::new(inner) }
    }

    /// The same tokenizer with another token that ends a text.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::NoSuchToken`].
    pub fn with_eos_token(&self, token: &str) -> Result<Tokenizer> {
        let id = self.token_to_id(token).ok_or_else(|| TokenizerError::NoSuchToken { token: token.to_owned() })?;
        let mut inner = self.copied();
        guard("make a token special", || {
            inner.backend.add_special_tokens([AddedToken::from(token, true).normalized(false)])
        })?;
        inner.special.insert("eos_token".to_owned(), token.to_owned());
        inner.config.insert("eos_token".to_owned(), token.into());
        inner.special_ids.insert(id, token.to_owned());
        inner.eos_ids.retain(|other| *other != id);
        inner.eos_ids.insert(0, id);
        Ok(Tokenizer { inner: Arc::new(inner) })
    }

    /// All but what is made when it is first needed.
    fn copied(&self) -> Inner {
        let i = &*self.inner;
        Inner {
            backend: i.backend.clone(),
            guarded: OnceLock::new(),
            special_pattern: OnceLock::new(),
            has_sections: OnceLock::new(),
            words: OnceLock::new(),
            memories: Mutex::default(),
            number: sections::number(),
            special: i.special.clone(),
            special_ids: i.special_ids.clone(),
            unk_id: i.unk_id,
            eos_ids: i.eos_ids.clone(),
            vocab_size: i.vocab_size,
            config: i.config.clone(),
            parsed: i.templates.keys().map(|name| (name.clone(), OnceLock::new())).collect(),
            templates: i.templates.clone(),
            post_processor: i.post_processor.clone(),
        }
    }

    /// The chat template to use: the one named `tool_use` if tools are given and there is one, else the
    /// default.
    ///
    /// # Errors
    ///
    /// [`TemplateError::Missing`], or why the template cannot be parsed.
    pub fn template_for(&self, tools: bool) -> Result<&ChatTemplate, TemplateError> {
        let named = tools.then(|| self.template_named("tool_use")).flatten();
        match named.or_else(|| self.template_named("default")) {
            Some(Ok(template)) => Ok(template),
            Some(Err(e)) => Err(e.clone()),
            None => Err(TemplateError::Missing { names: self.inner.templates.keys().cloned().collect() }),
        }
    }

    fn template_named(&self, name: &str) -> Option<&Result<ChatTemplate, TemplateError>> {
        let source = self.inner.templates.get(name)?;
        Some(self.inner.parsed.get(name)?.get_or_init(|| ChatTemplate::parse_named(name, source)))
    }

    /// Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and the chat templates, so that
    /// transformers' `AutoTokenizer` loads them.
    ///
    /// # Errors
    ///
    /// Where a file cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        save::save(self, dir.as_ref())
    }

    /// tokenizer.json, parsed.
    pub(crate) fn json(&self) -> Result<Value> {
        let text = save::text(self)?;
        serde_json::from_str(&text).map_err(|source| TokenizerError::Json { file: "tokenizer.json".to_owned(), source })
    }

    fn named_id(&self, name: &str) -> Option<u32> {
        self.token_to_id(self.inner.special.get(name)?)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.inner.vocab_size)
            .field("special", &self.inner.special)
            .field("eos_ids", &self.inner.eos_ids)
            .finish_non_exhaustive()
    }
}

/// Calls the tokenizer library, which panics on some hostile vocabularies, and turns that into an error.
fn guard<T>(action: &'static str, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let reason = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(e)) => e.to_string(),
        Err(_) => "it panicked on this input".to_owned(),
    };
    Err(TokenizerError::Backend { action, reason })
}
