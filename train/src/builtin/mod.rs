//! `--model builtin`: a small chat model in the program itself.
//!
//! It exists so that everything can be tried in a minute with nothing downloaded: a Llama of a
//! million parameters, trained from nothing by `planish pretrain` on the conversations of
//! [`generate`], and an instruction set with a held-out split that `planish quickstart` teaches it.
//! `scripts/train-builtin` makes all of it again; the book's page on it has the figures.

pub mod generate;
pub mod vocabulary;

mod dice;
mod questions;
#[cfg(test)]
mod tests;
mod world;

/// The files of the model directory by name, as transformers would find them.
pub fn files() -> &'static [(&'static str, &'static [u8])] {
    &[
        ("model.safetensors", include_bytes!("../../builtin/model.safetensors")),
        ("config.json", include_bytes!("../../builtin/config.json")),
        ("generation_config.json", include_bytes!("../../builtin/generation_config.json")),
        ("tokenizer.json", include_bytes!("../../builtin/tokenizer.json")),
        ("tokenizer_config.json", include_bytes!("../../builtin/tokenizer_config.json")),
        ("chat_template.jinja", include_bytes!("../../builtin/chat_template.jinja")),
    ]
}

/// The file of the model directory called `name`.
pub fn file(name: &str) -> Option<&'static [u8]> {
    files().iter().find(|(other, _)| *other == name).map(|(_, bytes)| *bytes)
}

/// The instruction set to train on, as conversational prompt and completion (jsonl).
pub fn instructions() -> &'static str {
    include_str!("../../builtin/instructions.jsonl")
}

/// The held-out split of the instruction set (jsonl). None of its facts is in [`instructions`].
pub fn heldout() -> &'static str {
    include_str!("../../builtin/heldout.jsonl")
}

/// The settings of `planish quickstart` (YAML): what to train and for how long.
pub fn quickstart_settings() -> &'static str {
    include_str!("../../builtin/quickstart.yaml")
}
