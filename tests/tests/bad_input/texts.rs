//! Tokenizers, templates and data.

use std::fs;

use serde_json::{Value, json};

use crate::place::Place;

#[test]
fn tokenizers_and_templates() {
    let place = Place::new();
    fs::remove_file(place.path("model/tokenizer.json")).unwrap();
    place.refuses("tokenizer.json");
    let place = Place::new();
    fs::write(place.path("model/tokenizer.json"), "[]").unwrap();
    place.refuses("tokenizer.json");
    // A token more than the embedding has rows.
    let place = Place::new();
    let path = place.path("model/tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["extra_special_tokens"] = (0..64).map(|n| format!("<|more {n}|>")).collect();
    fs::write(&path, config.to_string()).unwrap();
    place.refuses("the tokenizer has");
    fs::write(&path, "{\"added_tokens_decoder\": {\"one\": {\"content\": \"x\"}}}").unwrap();
    place.refuses("tokenizer_config.json: `added_tokens_decoder.one`");
    Place::new().refuses_with(&["--chat-template-path", "nowhere.jinja"], "nowhere.jinja");
    Place::new().refuses_with(&["--eos-token", "<|nope|>"], "the vocabulary has no token \"<|nope|>\"");
    let chat =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n";
    for (template, words) in [
        ("\n{% if %}", "chat template \"default\", line 2: "),
        ("{% for i in range(100000000) %}x{% endfor %}", "template"),
        ("a\n{{ raise_exception('no assistants') }}", "no assistants"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "template"),
        ("a\n{{ messages[0].content.nope() }}", "line 2"),
        ("{{ 'x' * 100000000000 }}", "template"),
        ("{{ '{:>100000000000000}'.format(1) }}", "the width is too large"),
        ("{{ '%999999999999999s' % 'a' }}", "the width is too large"),
        ("{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}", "is too large"),
        (
            "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}\n{{ n.x }}",
            "line 2: a value is too large to be spelled out",
        ),
    ] {
        let place = Place::new();
        fs::write(place.path("model/chat_template.jinja"), template).unwrap();
        place.data(chat).refuses(words);
        let file = place.path("model/chat_template.jinja");
        let other = Place::new();
        other.data(chat).refuses_with(&["--chat-template-path", file.to_str().unwrap()], words);
    }
}

/// A tokenizer.json that makes a million of a letter, or adds thousands of tokens to a text, is refused unread.
#[test]
fn tokenizers_that_blow_up_or_contradict_themselves() {
    let refuses = |change: &dyn Fn(&mut Value), words: &str| {
        let place = Place::new();
        let path = place.path("model/tokenizer.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        fs::write(&path, json.to_string()).unwrap();
        assert!(place.refuses(words).contains("model/tokenizer.json"));
    };
    let tenfold = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"});
    let sequence = json!({"type": "Sequence", "normalizers": vec![tenfold; 12]});
    refuses(&|json| json["normalizer"] = sequence.clone(), "its `normalizer` makes up to 1000000000000 bytes of one");
    let template = |name: &str, ids: usize| {
        json!({
            "type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": vec![0; ids], "tokens": vec!["<s>"; ids]}},
        })
    };
    refuses(&|json| json["post_processor"] = template("<s>", 100_000), "adds 100002 tokens to a text");
    refuses(
        &|json| json["post_processor"] = template("<t>", 1),
        "adds \"<t>\", which its `special_tokens` do not have",
    );
}

#[test]
fn data_that_cannot_be_read_or_understood() {
    let good = "{\"prompt\": \"a\", \"completion\": \"b\"}\n";
    Place::new().data(format!("{good}{{\"prompt\": \"a\"\n")).refuses("data.jsonl:2");
    Place::new()
        .data([good.as_bytes(), b"{\"prompt\": \"\xff\", \"completion\": \"b\"}\n"].concat())
        .refuses("data.jsonl:2");
    Place::new().data("").refuses("data.jsonl: the file holds no rows");
    Place::new().data("\n\n  \n").refuses("data.jsonl: the file holds no rows");
    let unknown = Place::new().data("{\"alpha\": 1, \"beta\": 2}\n").refuses("the columns `alpha`, `beta`");
    assert!(unknown.contains("accepted: ") && unknown.contains("messages") && unknown.contains("prompt+completion"));
    Place::new().data("[1, 2]\n").refuses("data.jsonl:1: expected an object with columns, found");
    Place::new().data(format!("{good}{}", "[".repeat(100_000))).refuses("data.jsonl:2: malformed JSON");
    Place::new().data("{\"prompt\": 1, \"completion\": \"b\"}\n").refuses("data.jsonl:1: `prompt` must be");
    Place::new().data("{\"messages\": [{\"role\": \"user\"}]}\n").refuses("data.jsonl:1");
    Place::new().data("{\"input_ids\": [1, 99999999]}\n").refuses("but the model has");
    Place::new().data("{\"input_ids\": [1, -1]}\n").refuses("data.jsonl:1: input_ids[1]");
    Place::new().data("{\"prompt\": \"a\", \"completion\": \"\"}\n{\"text\": \"b\"}\n").refuses("data.jsonl");
    Place::new().refuses_with(&["--eval-dataset", "nowhere.jsonl", "--eval-strategy", "steps"], "nowhere.jsonl");
}
