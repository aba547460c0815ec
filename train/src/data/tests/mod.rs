//! Tests of the data layer, with a tokenizer of bytes.

mod encoding;
mod reading;
mod report;
mod sampling;

use std::path::PathBuf;
use std::sync::Arc;

use super::*;

pub(super) const BOS: u32 = 256;
pub(super) const EOS: u32 = 257;
pub(super) const START: u32 = 258;
pub(super) const END: u32 = 259;

/// Bytes are tokens; `<s>` and `</s>` are special; a turn is START role \n content END \n.
#[derive(Clone, Default)]
pub(super) struct Toy {
    pub(super) add_bos: bool,
    pub(super) no_template: bool,
    /// The prompt alone is rendered with another generation prompt than the conversation.
    pub(super) odd_prompt: bool,
}

impl TextEncoder for Toy {
    fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut ids = if self.add_bos { vec![BOS] } else { Vec::new() };
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if let Some(after) = rest.strip_prefix("</s>") {
                ids.push(EOS);
                rest = after;
            } else if let Some(after) = rest.strip_prefix("<s>") {
                ids.push(BOS);
                rest = after;
            } else {
                ids.extend(rest[..c.len_utf8()].bytes().map(u32::from));
                rest = &rest[c.len_utf8()..];
            }
        }
        Ok(ids)
    }

    fn encode_piece(&self, text: &str) -> Result<Vec<u32>, TextError> {
        Toy { add_bos: false, ..self.clone() }.encode(text)
    }

    fn encode_chat(&self, messages: &[ChatMessage], _: &ChatExtras, how: Rendering) -> Result<RenderedChat, TextError> {
        let mut out = RenderedChat::default();
        let mut add = |ids: &mut dyn Iterator<Item = u32>, message: Option<u32>, assistant: bool| {
            for id in ids {
                out.ids.push(id);
                out.message.push(message);
                out.assistant.push(assistant);
            }
        };
        for (i, m) in messages.iter().enumerate() {
            if m.content == "fail" {
                return Err("the template says no".into());
            }
            let assistant = m.role == "assistant";
            add(&mut std::iter::once(START), None, false);
            add(&mut m.role.bytes().map(u32::from), Some(i as u32), false);
            add(&mut std::iter::once(10), None, false);
            add(&mut m.content.bytes().map(u32::from), Some(i as u32), assistant);
            add(&mut std::iter::once(END), None, assistant);
            add(&mut std::iter::once(10), None, false);
        }
        if how.add_generation_prompt {
            add(&mut std::iter::once(START), None, false);
            let role: &[u8] = if self.odd_prompt { b"assistant\n<think>" } else { b"assistant\n" };
            add(&mut role.iter().map(|&b| b as u32), None, false);
        }
        Ok(out)
    }

    fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        let mut bytes = Vec::new();
        for &id in ids {
            match id {
                BOS => bytes.extend(b"<s>"),
                EOS => bytes.extend(b"</s>"),
                START => bytes.extend(b"<start>"),
                END => bytes.extend(b"<end>"),
                byte => bytes.push(byte as u8),
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn template(&self) -> Option<&str> {
        (!self.no_template).then_some("toy")
    }

    fn bos(&self) -> Option<u32> {
        Some(BOS)
    }

    fn eos(&self) -> Option<u32> {
        Some(EOS)
    }

    fn eos_ids(&self) -> &[u32] {
        &[EOS, END]
    }

    fn vocab_size(&self) -> usize {
        260
    }
}

/// A directory of test files.
pub(super) struct Files(tempfile::TempDir);

impl Files {
    pub(super) fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    pub(super) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(super) fn open(&self, name: &str, content: impl AsRef<[u8]>) -> Result<Dataset> {
        let spec = DatasetSpec::new(self.write(name, content));
        Dataset::open(&[spec], &Columns::default(), &DatasetType::ALL)
    }

    /// A message without the directory, which changes from run to run.
    pub(super) fn error(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let error = match self.open(name, content) {
            Err(e) => e,
            Ok(data) => (0..data.len()).find_map(|i| data.read(i).err()).expect("an error"),
        };
        error.to_string().replace(&format!("{}{}", self.0.path().display(), std::path::MAIN_SEPARATOR), "")
    }
}

/// Texts of the given lengths in tokens, the appended EOS included.
pub(super) fn texts(lengths: &[usize]) -> String {
    let mut out = String::new();
    for (i, &n) in lengths.iter().enumerate() {
        let letter = (b'a' + (i % 26) as u8) as char;
        out += &format!("{{\"text\": \"{}\"}}\n", letter.to_string().repeat(n - 1));
    }
    out
}

pub(super) fn encoder(toy: Toy, options: EncodeOptions) -> Encoder {
    Encoder::new(Arc::new(toy), options).unwrap()
}

pub(super) fn sampler(data: Dataset, encode: EncodeOptions, options: SamplerOptions) -> Arc<Sampler> {
    let (train, _) = Arc::new(data).split(None, 0).unwrap();
    Arc::new(Sampler::new(train, encoder(Toy::default(), encode), options).unwrap())
}
