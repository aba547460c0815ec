//! A chat template and, behind a zero byte, a conversation as JSON: refused, or rendered and encoded with a
//! provenance that fits the tokens, within the limits of time and output.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use planish_nn::template::{ChatOptions, ChatTemplate, Message};
use planish_nn::tokenizer::Tokenizer;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    planish_fuzz::tolerate_panics_in(&["minijinja", "tokenizers"]);
    let tokenizer = TOKENIZER.get_or_init(|| planish_fuzz::tokenizer(None));
    let (source, chat) = match data.iter().position(|b| *b == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &b""[..]),
    };
    let source = String::from_utf8_lossy(source);
    let template = match ChatTemplate::parse(&source) {
        Ok(template) => template,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let chat: Value = serde_json::from_slice(chat).unwrap_or_default();
    let given: Option<Vec<Message>> = chat["messages"]
        .as_array()
        .and_then(|all| all.iter().enumerate().map(|(i, message)| Message::from_json(message, i).ok()).collect());
    let messages = given.unwrap_or_else(|| {
        let turns = [("system", "S"), ("user", "<|end|> hi\n"), ("assistant", "ho"), ("user", ""), ("assistant", " é")];
        turns.map(|(role, content)| Message::new(role, content)).to_vec()
    });
    let options = ChatOptions {
        add_generation_prompt: chat["add_generation_prompt"] == true,
        continue_final_message: chat["continue_final_message"] == true,
        tools: chat.get("tools").filter(|tools| tools.is_array()).cloned(),
        extra: chat["extra"].as_object().cloned().unwrap_or_default(),
        now: Some(1_700_000_000),
        return_assistant_tokens_mask: chat["return_assistant_tokens_mask"] == true,
    };
    let rendered = template.render(&messages, tokenizer.special_tokens(), &options);
    match template.encode(tokenizer, &messages, &options) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(chat) => {
            assert_eq!(chat.text, rendered.expect("what can be encoded can be rendered"));
            assert_eq!(chat.ids.len(), chat.message.len());
            assert_eq!(chat.assistant.len(), if options.return_assistant_tokens_mask { chat.ids.len() } else { 0 });
            assert!(chat.ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
            assert!(chat.message.iter().flatten().all(|m| (*m as usize) < messages.len()));
        }
    }
});
