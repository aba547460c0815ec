//! What `planish generate` is asked: prompts from flags, a file or the standard input, each with its adapter.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use planish_nn::template::{ChatOptions, Message, encode_chat};
use planish_nn::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::model_args::wrong;

/// What a request says for the model without an adapter.
const BASE: &str = "base";

/// A prompt, and what continues it.
pub(super) struct Request {
    /// As it was given: a text, or a list of messages.
    pub(super) prompt: Value,
    pub(super) ids: Vec<u32>,
    /// The messages that the chat template was given; none of a plain text.
    pub(super) messages: Option<Value>,
    /// Number of the adapter; none for the base.
    pub(super) adapter: Option<usize>,
}

impl Request {
    /// The prompt in a line or more.
    pub(super) fn shown(&self) -> String {
        self.prompt.as_str().map_or_else(|| self.prompt.to_string(), str::to_owned)
    }
}

/// Adds `--prompt`, `--requests`, `--system` and `--raw`, and lets `--adapter` be given several times.
pub(super) fn with_flags(command: Command) -> Command {
    command
        .mut_arg("adapter", |arg| {
            arg.action(ArgAction::Append)
                .value_name("[NAME=]DIR")
                .value_parser(value_parser!(String))
                .help("Adapter in PEFT's format; of several each answers every --prompt, and --requests choose by name")
        })
        .arg(
            Arg::new("prompt")
                .long("prompt")
                .short('p')
                .value_name("TEXT")
                .action(ArgAction::Append)
                .help("A prompt; may be repeated [read from stdin]"),
        )
        .arg(
            Arg::new("requests")
                .long("requests")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .conflicts_with_all(["prompt", "system"])
                .help("JSON lines of `prompt` (a text, or a list of messages) and, with several adapters, `adapter`: a NAME, or `base` for none"),
        )
        .arg(Arg::new("system").long("system").value_name("TEXT").help("The system message of the chat template"))
        .arg(
            Arg::new("raw")
                .long("raw")
                .action(ArgAction::SetTrue)
                .help("Continue the text as it is, without the chat template"),
        )
}

/// The adapters that the flags name: `NAME=DIR`, or a directory by its own name.
///
/// # Errors
/// Two of one name; the name that is kept for the base.
pub(super) fn adapters(matches: &ArgMatches) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut all: Vec<(String, PathBuf)> = Vec::new();
    let given: Vec<&String> = matches.get_many::<String>("adapter").into_iter().flatten().collect();
    for text in &given {
        // A path may have a `=` in it, but a name has no separator.
        let named =
            text.split_once('=').filter(|(name, _)| !name.is_empty() && !name.contains(std::path::is_separator));
        let (name, dir) = named.map_or_else(|| (own_name(text), text.as_str()), |(name, dir)| (name.to_owned(), dir));
        if given.len() > 1 && all.iter().any(|(other, _)| *other == name) {
            return Err(wrong(format!(
                "two adapters have the name `{name}`; give each its own, as in --adapter one={dir}"
            )));
        }
        if name == BASE && given.len() > 1 {
            return Err(wrong(format!(
                "`{BASE}` is the model without an adapter; name this one otherwise, as in --adapter one={dir}"
            )));
        }
        all.push((name, dir.into()));
    }
    Ok(all)
}

/// The last part of a path.
fn own_name(dir: &str) -> String {
    Path::new(dir).file_name().map_or_else(|| dir.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Reads the requests and encodes them.
///
/// # Errors
/// What cannot be read or encoded, by its line in a file.
pub(super) fn read(matches: &ArgMatches, tokenizer: &Tokenizer, names: &[String]) -> anyhow::Result<Vec<Request>> {
    let raw = matches.get_flag("raw");
    if let Some(path) = matches.get_one::<PathBuf>("requests") {
        return of_file(path, tokenizer, names, raw);
    }
    let mut texts: Vec<String> = matches.get_many::<String>("prompt").into_iter().flatten().cloned().collect();
    if texts.is_empty() {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| wrong(format!("cannot read the prompt from stdin: {e}")))?;
        texts.push(text.trim_end_matches('\n').to_owned());
    }
    let system = matches.get_one::<String>("system").map(String::as_str);
    // Without an adapter the base answers.
    let by: Vec<Option<usize>> = if names.is_empty() { vec![None] } else { (0..names.len()).map(Some).collect() };
    let mut all = Vec::new();
    for text in texts {
        let (ids, messages) = encode(tokenizer, &json!(text), system, raw)?;
        let request = |&adapter| Request { prompt: json!(text), ids: ids.clone(), messages: messages.clone(), adapter };
        all.extend(by.iter().map(request));
    }
    Ok(all)
}

/// The requests of a file.
fn of_file(path: &Path, tokenizer: &Tokenizer, names: &[String], raw: bool) -> anyhow::Result<Vec<Request>> {
    let text = std::fs::read_to_string(path).map_err(|e| wrong(format!("cannot read {}: {e}", path.display())))?;
    let mut all = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = || format!("{}, line {}", path.display(), i + 1);
        let (prompt, adapter) = parse(line, names).map_err(|problem| wrong(format!("{}: {problem}", place())))?;
        let (ids, messages) = encode(tokenizer, &prompt, None, raw).with_context(place)?;
        all.push(Request { prompt, ids, messages, adapter });
    }
    if all.is_empty() {
        return Err(wrong(format!("{} has no request", path.display())));
    }
    Ok(all)
}

/// A line's prompt and adapter, or what is wrong with it.
fn parse(line: &str, names: &[String]) -> Result<(Value, Option<usize>), String> {
    let row: serde_json::Map<String, Value> =
        serde_json::from_str(line).map_err(|e| format!("not a JSON object: {e}"))?;
    if let Some(key) = row.keys().find(|key| !["prompt", "adapter"].contains(&key.as_str())) {
        return Err(format!("there is no `{key}` in a request; it has `prompt` and `adapter`"));
    }
    let prompt = match row.get("prompt") {
        Some(prompt @ (Value::String(_) | Value::Array(_))) => prompt.clone(),
        Some(other) => return Err(format!("`prompt` must be a text or a list of messages, found {other}")),
        None => return Err("a request needs a `prompt`".into()),
    };
    let adapter = match row.get("adapter") {
        None => (!names.is_empty()).then_some(0),
        Some(Value::String(name)) if name == BASE => None,
        Some(Value::String(name)) => match names.iter().position(|own| own == name) {
            Some(place) => Some(place),
            None if names.is_empty() => return Err(format!("there is no adapter `{name}`: no --adapter is given")),
            None => return Err(format!("there is no adapter `{name}`, but {}, and `{BASE}`", names.join(", "))),
        },
        Some(other) => return Err(format!("`adapter` must be a name, found {other}")),
    };
    Ok((prompt, adapter))
}

/// Ids of a prompt: through the chat template if there is one and `raw` does not forbid it, with the messages that it
/// is given then.
fn encode(
    tokenizer: &Tokenizer,
    prompt: &Value,
    system: Option<&str>,
    raw: bool,
) -> anyhow::Result<(Vec<u32>, Option<Value>)> {
    let plain = raw || tokenizer.chat_template().is_none();
    let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
    let mut messages: Vec<Value> = system.map(|s| turn("system", s)).into_iter().collect();
    match prompt {
        Value::Array(given) if plain => {
            let why = if raw { "--raw is given" } else { "the model has none" };
            return Err(wrong(format!("{} messages need a chat template: {why}", given.len())));
        }
        Value::Array(given) => {
            messages.extend(given.iter().cloned());
        }
        _ if plain && system.is_some() => {
            return Err(wrong("--system needs a chat template: the model has none, or --raw is given"));
        }
        text => {
            let text = text.as_str().unwrap_or_default();
            if plain {
                return Ok((tokenizer.encode(text, true).map_err(planish_nn::Error::from)?, None));
            }
            messages.push(turn("user", text));
        }
    }
    let parsed = messages.iter().enumerate().map(|(i, message)| Message::from_json(message, i));
    let parsed = parsed.collect::<Result<Vec<_>, _>>().map_err(planish_nn::Error::from)?;
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    let ids = encode_chat(tokenizer, &parsed, &options).map_err(planish_nn::Error::from)?.ids;
    Ok((ids, Some(Value::Array(messages))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["maths", "chat"].map(str::to_owned).to_vec()
    }

    #[test]
    fn a_request_names_its_adapter() {
        for (line, want) in [
            (r#"{"prompt": "a"}"#, Some(0)),
            (r#"{"prompt": "a", "adapter": "chat"}"#, Some(1)),
            (r#"{"prompt": [{"role": "user", "content": "a"}], "adapter": "base"}"#, None),
        ] {
            assert_eq!(parse(line, &names()).unwrap().1, want, "{line}");
        }
        assert_eq!(parse(r#"{"prompt": "a"}"#, &[]).unwrap().1, None);
    }

    #[test]
    fn what_is_wrong_with_a_request_is_said() {
        for (line, words) in [
            ("[1]", "not a JSON object"),
            ("{}", "needs a `prompt`"),
            (r#"{"prompt": 3}"#, "must be a text or a list of messages, found 3"),
            (r#"{"prompt": "a", "adaptor": "chat"}"#, "there is no `adaptor` in a request"),
            (r#"{"prompt": "a", "adapter": "x"}"#, "there is no adapter `x`, but maths, chat, and `base`"),
            (r#"{"prompt": "a", "adapter": 1}"#, "`adapter` must be a name"),
        ] {
            let said = parse(line, &names()).unwrap_err();
            assert!(said.contains(words), "{line}: {said}");
        }
        assert!(parse(r#"{"prompt": "a", "adapter": "x"}"#, &[]).unwrap_err().contains("no --adapter is given"));
    }
}
