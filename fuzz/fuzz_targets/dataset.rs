//! Any bytes as a data file. The first byte picks the format and the settings, the rest is the file: refused,
//! or read whole, encoded, and dealt out in steps that a resumed run deals out alike.
#![no_main]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use planish_train::data::{
    ChatExtras, ChatMessage, Columns, Cursor, Dataset, DatasetSpec, DatasetType, EncodeOptions, Encoder, Packing,
    RenderedChat, Rendering, Sampler, SamplerOptions, TextEncoder, TextError, Truncation, ValidationSplit, preflight,
};

/// A token a byte, so that the time goes into the readers.
struct Bytes;

impl TextEncoder for Bytes {
    fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn encode_piece(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode(text)
    }

    fn encode_chat(&self, messages: &[ChatMessage], _: &ChatExtras, how: Rendering) -> Result<RenderedChat, TextError> {
        let mut chat = RenderedChat::default();
        for (i, message) in messages.iter().enumerate() {
            let content = message.content.bytes().map(|b| (u32::from(b), Some(i as u32)));
            for (id, from) in [(256, None)].into_iter().chain(content).chain([(257, None)]) {
                chat.ids.push(id);
                chat.message.push(from);
                chat.assistant.push(message.role == "assistant" && id != 256);
            }
        }
        if how.add_generation_prompt {
            chat.ids.push(256);
            chat.message.push(None);
            chat.assistant.push(false);
        }
        Ok(chat)
    }

    fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        Ok(format!("{ids:?}"))
    }

    fn template(&self) -> Option<&str> {
        Some("bytes")
    }

    fn bos(&self) -> Option<u32> {
        None
    }

    fn eos(&self) -> Option<u32> {
        Some(257)
    }

    fn eos_ids(&self) -> &[u32] {
        &[257]
    }

    fn vocab_size(&self) -> usize {
        258
    }
}

/// A file of this process with the bytes in it.
fn file(extension: &str, content: &[u8]) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("planish-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the directory for temporary files takes some");
        dir
    });
    let path = dir.join(format!("data.{extension}"));
    std::fs::write(&path, content).expect("the disk has room");
    path
}

fn read(choice: u8, content: &[u8]) -> planish_train::data::Result<()> {
    let extension = ["jsonl", "json", "csv", "tsv"][usize::from(choice & 3)];
    let bit = |n: u8| choice >> n & 1 == 1;
    let data = Dataset::open(
        &[DatasetSpec::new(file(extension, content))],
        &Columns::default(),
        if bit(2) { &DatasetType::SFT } else { &DatasetType::ALL },
    )?;
    for i in 0..data.len().min(1000) {
        data.read(i)?;
    }
    let options = EncodeOptions {
        max_length: Some(if bit(3) { 8 } else { 100 }),
        truncation_mode: if bit(4) { Truncation::KeepEnd } else { Truncation::KeepStart },
        assistant_only_loss: bit(5),
        ..EncodeOptions::default()
    };
    let encoder = Encoder::new(Arc::new(Bytes), options)?;
    let split = bit(6).then_some(ValidationSplit::Fraction(0.5));
    let (view, _) = Arc::new(data).split(split, 1)?;
    let packing = if bit(7) { Packing::Bfd } else { Packing::None };
    let options = SamplerOptions { micro_batch: 2, packing, pack_window: 3, ..SamplerOptions::default() };
    let sampler = Arc::new(Sampler::new(view, encoder, options)?);
    preflight(&sampler, 100)?;
    let mut steps = sampler.steps(Cursor::default())?;
    for _ in 0..4 {
        let Some(step) = steps.next().transpose()? else { break };
        assert!(step.supervised > 0 && !step.micro_batches.is_empty());
        assert!(step.micro_batches.iter().all(|batch| batch.ids.len() == batch.mask.len()));
        let resumed = sampler.steps(step.cursor)?.next().transpose()?;
        let goes_on = sampler.steps(step.cursor)?.next().transpose()?;
        assert_eq!(resumed, goes_on);
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, content)) = data.split_first() else { return };
    if let Err(error) = read(*choice, content) {
        assert!(!error.to_string().is_empty());
    }
});
