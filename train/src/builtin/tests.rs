use super::generate::{Instruction, N_HELDOUT, N_INSTRUCTIONS, SEED, conversation, corpus_row, instruction_splits};
use super::vocabulary::{VOCAB_SIZE, companions, train_tokenizer};
use super::{file, files, heldout, instructions, quickstart_settings};
use crate::config::{PretrainConfig, SftConfig, from_yaml};
use planish_nn::template::{ChatOptions, Message, encode_chat};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::path::Path;
use tokenizers::Tokenizer;

fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(file("tokenizer.json").unwrap()).unwrap()
}

fn rows(split: &[Instruction]) -> String {
    split.iter().map(|row| row.row() + "\n").collect()
}

#[test]
fn the_corpus_is_the_one_the_model_was_trained_on() {
    let mut hash = Sha256::new();
    for index in 0..2_000 {
        hash.update(corpus_row(SEED, index));
    }
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hash, "3e30643263f5757039017e28ec0d424e27a9c04e7ae3218451b8f0d40318d682");
    assert_ne!(corpus_row(SEED, 0), corpus_row(SEED + 1, 0));
}

#[test]
fn embedded_instructions_are_the_generated_ones() {
    let (train, held) = instruction_splits(SEED);
    assert_eq!((train.len(), held.len()), (N_INSTRUCTIONS, N_HELDOUT));
    assert!(instructions() == rows(&train), "run scripts/train-builtin data");
    assert!(heldout() == rows(&held), "run scripts/train-builtin data");
}

#[test]
fn no_heldout_fact_or_prompt_is_trained_on() {
    let (train, held) = instruction_splits(SEED);
    let facts: HashSet<&str> = train.iter().map(|row| row.fact.as_str()).collect();
    let prompts: HashSet<&str> = train.iter().map(|row| row.prompt.as_str()).collect();
    assert_eq!(prompts.len(), train.len(), "a prompt occurs twice");
    for row in &held {
        assert!(!facts.contains(row.fact.as_str()), "{}", row.fact);
        assert!(!prompts.contains(row.prompt.as_str()), "{}", row.prompt);
    }
    let topics = |split: &[Instruction]| -> HashSet<String> {
        split.iter().map(|row| row.completion.lines().next().unwrap().to_string()).collect()
    };
    assert_eq!(topics(&train), topics(&held), "a topic is in one split only");
}

#[test]
fn the_corpus_answers_no_question_with_a_note_and_never_asks_to_planish() {
    for index in 0..2_000 {
        for (user, assistant) in conversation(SEED, index) {
            assert!(!user.contains("planish"), "{user}");
            assert!(!assistant.contains(": ") || user.starts_with("Write a note: "), "{user} {assistant}");
        }
    }
}

#[test]
fn embedded_text_files_are_the_generated_ones() {
    for (name, text) in companions() {
        assert!(file(name) == Some(text.as_bytes()), "{name}: run scripts/train-builtin data");
    }
    let trained = train_tokenizer(SEED).unwrap();
    assert!(file("tokenizer.json") == Some(trained.as_bytes()), "tokenizer.json: run scripts/train-builtin data");
}

#[test]
fn the_tokenizer_gives_back_every_generated_text() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.get_vocab_size(true), VOCAB_SIZE);
    let corpus = (0..2_000).flat_map(|index| conversation(SEED, index)).flat_map(|(user, assistant)| [user, assistant]);
    let (train, held) = instruction_splits(SEED);
    let set = train.into_iter().chain(held).flat_map(|row| [row.prompt, row.completion]);
    let (mut words, mut tokens) = (0, 0);
    for text in corpus.chain(set) {
        let encoded = tokenizer.encode(text.as_str(), false).unwrap();
        assert_eq!(tokenizer.decode(encoded.get_ids(), false).unwrap(), text);
        words += text.split_whitespace().count();
        tokens += encoded.len();
    }
    // Punctuation and digits are tokens of their own, almost every word is one token.
    assert!(tokens < words * 3 / 2, "{tokens} tokens for {words} words");
}

#[test]
fn the_tokenizer_gives_back_any_text() {
    let tokenizer = tokenizer();
    for text in ["", " ", "Zürich, naïve — 東京 🦊\r\n\t\u{0}", "  two  spaces ", "3.14159", "fn main() {}"] {
        let encoded = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(encoded.get_ids(), false).unwrap(), text);
    }
    for (id, token) in ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].into_iter().enumerate() {
        assert_eq!(tokenizer.token_to_id(token), Some(id as u32));
    }
}

#[test]
fn everything_embedded_is_small() {
    let model: usize = files().iter().map(|(_, bytes)| bytes.len()).sum();
    let all = model + instructions().len() + heldout().len() + quickstart_settings().len();
    assert!(all <= 4_000_000, "{all} bytes");
}

#[test]
fn embedded_settings_parse() {
    let quickstart = from_yaml::<SftConfig>(quickstart_settings(), Path::new("quickstart.yaml")).unwrap();
    assert!(quickstart.lora.use_peft);
    from_yaml::<PretrainConfig>(include_str!("../../builtin/pretrain.yaml"), Path::new("pretrain.yaml")).unwrap();
}

#[test]
fn the_template_renders_a_conversation_and_supervises_the_answer() {
    let text = |name: &str| std::str::from_utf8(file(name).unwrap()).unwrap();
    let tokenizer = planish_nn::tokenizer::Tokenizer::from_json_bytes(
        file("tokenizer.json").unwrap(),
        file("tokenizer_config.json"),
        Some(text("chat_template.jinja")),
    )
    .unwrap();
    let messages = [Message::new("user", "What is 2 plus 3?"), Message::new("assistant", "2 plus 3 is 5.")];
    let options = ChatOptions { return_assistant_tokens_mask: true, ..ChatOptions::default() };
    let chat = encode_chat(&tokenizer, &messages, &options).unwrap();
    assert_eq!(
        chat.text,
        "<|im_start|>user\nWhat is 2 plus 3?<|im_end|>\n<|im_start|>assistant\n2 plus 3 is 5.<|im_end|>\n"
    );
    let answer: Vec<u32> =
        chat.ids.iter().zip(&chat.assistant).filter(|(_, supervised)| **supervised).map(|(id, _)| *id).collect();
    assert_eq!(tokenizer.decode(&answer, false).unwrap(), "2 plus 3 is 5.<|im_end|>");
    assert_eq!(tokenizer.eos_token_id(), answer.last().copied());
}
