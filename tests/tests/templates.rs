//! Chat templates and tokenizers against transformers: text, ids and assistant masks, exactly.
//!
//! The fixtures are described in `fixtures/generate/templates.py`.

use std::fs;
use std::path::{Path, PathBuf};

use planish_nn::template::{ChatOptions, Message};
use planish_nn::tokenizer::Tokenizer;
use serde_json::Value;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/templates")
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// All fixtures with their tokenizers, loaded from directories as a user's are.
fn fixtures() -> Vec<(String, Value, Tokenizer)> {
    let mut fixtures = Vec::new();
    for entry in fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_none_or(|e| e != "json") || name == "metadata" {
            continue;
        }
        let fixture = read(&path);
        let model = tempfile::tempdir().unwrap();
        let tokenizer = directory().join("tokenizers").join(format!("{}.json", fixture["tokenizer"].as_str().unwrap()));
        fs::copy(tokenizer, model.path().join("tokenizer.json")).unwrap();
        fs::write(model.path().join("tokenizer_config.json"), fixture["config"].to_string()).unwrap();
        match &fixture["template"] {
            Value::String(template) => fs::write(model.path().join("chat_template.jinja"), template).unwrap(),
            named => {
                let list: Vec<Value> = named
                    .as_object()
                    .unwrap()
                    .iter()
                    .map(|(name, template)| serde_json::json!({"name": name, "template": template}))
                    .collect();
                let mut config = fixture["config"].clone();
                config["chat_template"] = list.into();
                fs::write(model.path().join("tokenizer_config.json"), config.to_string()).unwrap();
            }
        }
        let tokenizer = Tokenizer::from_dir(model.path()).unwrap();
        fixtures.push((name, fixture, tokenizer));
    }
    fixtures.sort_by(|a, b| a.0.cmp(&b.0));
    fixtures
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

fn options(case: &Value, now: &Value) -> ChatOptions {
    let given = &case["options"];
    let flag = |key: &str| given[key].as_bool().unwrap_or(false);
    ChatOptions {
        add_generation_prompt: flag("add_generation_prompt"),
        continue_final_message: flag("continue_final_message"),
        tools: given.get("tools").cloned(),
        extra: given.get("extra").and_then(Value::as_object).cloned().unwrap_or_default(),
        now: now.as_i64(),
        return_assistant_tokens_mask: true,
    }
}

fn messages(case: &Value) -> Vec<Message> {
    let messages = case["messages"].as_array().unwrap().iter().enumerate();
    messages.map(|(i, m)| Message::from_json(m, i).unwrap()).collect()
}

#[test]
fn text_ids_and_masks_are_those_of_transformers() {
    let mut wrong = Vec::new();
    let (mut templates, mut cases, mut masks) = (0, 0, 0);
    for (name, fixture, tokenizer) in fixtures() {
        templates += 1;
        for case in fixture["cases"].as_array().unwrap() {
            let label = format!("{name}/{}", case["name"].as_str().unwrap());
            let (options, messages) = (options(case, &fixture["now"]), messages(case));
            let template = tokenizer.template_for(options.tools.is_some()).unwrap();
            let text = template.render(&messages, tokenizer.special_tokens(), &options);
            cases += 1;
            match (case.get("text").and_then(Value::as_str), &text) {
                (Some(expected), Ok(text)) if text == expected => {}
                (None, Err(_)) => continue,
                (expected, got) => {
                    wrong.push(format!("{label} text:\n{expected:?}\n{got:?}"));
                    continue;
                }
            }
            // This template turns messages round and capitalises them: no one could say which part is whose.
            if name == "python" {
                continue;
            }
            let chat = match template.encode(&tokenizer, &messages, &options) {
                Ok(chat) => chat,
                Err(e) => {
                    wrong.push(format!("{label}: {e}"));
                    continue;
                }
            };
            if chat.ids != ids(&case["ids"]) {
                wrong.push(format!("{label} ids of {:?}:\n{:?}\n{:?}", chat.text, ids(&case["ids"]), chat.ids));
            }
            if let Some(mask) = case.get("assistant") {
                masks += 1;
                let mask: Vec<bool> = ids(mask).into_iter().map(|m| m == 1).collect();
                if chat.assistant != mask {
                    wrong.push(format!("{label} assistant of {:?}:\n{mask:?}\n{:?}", chat.text, chat.assistant));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {cases} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(templates >= 18 && cases >= 250 && masks >= 20, "{templates} templates, {cases} cases, {masks} masks");
}

#[test]
fn tokenizers_encode_and_decode_as_transformers() {
    let mut texts = 0;
    for (name, fixture, tokenizer) in fixtures() {
        let saved = tempfile::tempdir().unwrap();
        tokenizer.save(saved.path()).unwrap();
        let again = Tokenizer::from_dir(saved.path()).unwrap();
        for case in fixture.get("encoded").and_then(Value::as_array).unwrap_or(&Vec::new()) {
            texts += 1;
            let (text, expected) = (case["text"].as_str().unwrap(), ids(&case["ids"]));
            assert_eq!(tokenizer.encode(text, true).unwrap(), expected, "{name}: {text:?}");
            assert_eq!(again.encode(text, true).unwrap(), expected, "{name}, saved: {text:?}");
            assert_eq!(
                tokenizer.decode(&expected, false).unwrap(),
                case["decoded"].as_str().unwrap(),
                "{name}: {text:?}"
            );
            let mut stream = tokenizer.stream_decoder().skip_special_tokens(false);
            let mut out: String = expected.iter().filter_map(|&id| stream.push(id)).collect();
            out.extend(stream.finish());
            assert_eq!(out, case["decoded"].as_str().unwrap(), "{name}, streamed: {text:?}");
        }
    }
    assert!(texts >= 24, "{texts}");
}

/// Each assistant turn is the answer, whole, and the token that ends it.
#[test]
fn turns_are_answers_with_their_ends() {
    let ends = [
        ("chatml", "<|im_end|>"),
        ("llama3", "<|eot_id|>"),
        ("gemma", "<end_of_turn>"),
        ("phi3", "<|end|>"),
        ("zephyr", "</s>"),
        ("olmo", "<|endoftext|>"),
        ("granite", "<|end_of_text|>"),
        ("deepseek", "<｜end▁of▁sentence｜>"),
        ("llama2", "</s>"),
        ("vicuna", "</s>"),
        ("mistral", "</s>"),
    ];
    let chat = ["one", "two", "three", "four"];
    for (name, fixture, tokenizer) in fixtures() {
        let Some((_, end)) = ends.iter().find(|(n, _)| *n == name) else { continue };
        let roles = ["user", "assistant"].into_iter().cycle();
        let messages: Vec<Message> = roles.zip(chat).map(|(role, text)| Message::new(role, text)).collect();
        let options =
            ChatOptions { now: fixture["now"].as_i64(), return_assistant_tokens_mask: true, ..ChatOptions::default() };
        let encoded = planish_nn::template::encode_chat(&tokenizer, &messages, &options).unwrap();
        let marked = |wanted: &dyn Fn(usize) -> bool| -> Vec<u32> {
            (0..encoded.ids.len()).filter(|&i| wanted(i)).map(|i| encoded.ids[i]).collect()
        };
        let said = tokenizer.decode(&marked(&|i| encoded.assistant[i]), false).unwrap();
        assert_eq!(said.replace(' ', ""), format!("two{end}four{end}"), "{name}");
        for (m, text) in chat.iter().enumerate() {
            let own = tokenizer.decode(&marked(&|i| encoded.message[i] == Some(m as u32)), false).unwrap();
            assert_eq!(own.trim(), *text, "{name}");
        }
    }
}
