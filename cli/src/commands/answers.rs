//! The file that `planish generate --output` writes: rows to train on.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, value_parser};
use planish_nn::generate::{Completion, FinishReason};
use planish_nn::weights::atomic_write;
use serde_json::{Value, json};

use super::requests::Request;
use crate::model_args::wrong;
use crate::output;

/// `--output`.
pub(super) fn flag() -> Arg {
    Arg::new("output")
        .long("output")
        .short('o')
        .value_name("FILE.jsonl")
        .value_parser(value_parser!(PathBuf))
        .help("Write a row an answer here, with `prompt` and `completion`, which `planish sft` trains on as it is")
}

/// The file that was asked for.
///
/// # Errors
/// A name that would be read as another format, or no place for a file: said before anything is generated.
pub(super) fn file(matches: &ArgMatches) -> anyhow::Result<Option<&Path>> {
    let Some(path) = matches.get_one::<PathBuf>("output") else { return Ok(None) };
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    if !matches!(extension.as_str(), "jsonl" | "ndjson") {
        let name = path.display();
        return Err(wrong(format!("--output {name}: its rows are JSON lines, so name it with .jsonl at the end")));
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !dir.is_dir() {
        return Err(wrong(format!("--output {}: there is no directory {}", path.display(), dir.display())));
    }
    Ok(Some(path))
}

/// A row of training data: what the model was asked, in the form that it saw, and what it said. A prompt that went
/// through the chat template is a conversation, so that training puts it through the template again.
pub(super) fn row(request: &Request, adapter: Option<&str>, answer: &Completion) -> Value {
    let (prompt, completion) = match &request.messages {
        Some(messages) => (messages.clone(), json!([{ "role": "assistant", "content": answer.text }])),
        None => (request.prompt.clone(), json!(answer.text)),
    };
    let mut row = json!({ "prompt": prompt, "completion": completion, "finish_reason": answer.finish.name() });
    if let Some(name) = adapter {
        row["adapter"] = json!(name);
    }
    row
}

/// Writes the rows, whole or not at all, and says how many there are.
///
/// # Errors
/// A file that cannot be written.
pub(super) fn write(path: &Path, rows: impl Iterator<Item = Value>) -> anyhow::Result<()> {
    let (mut lines, mut cut) = (0, 0);
    atomic_write(path, |to| {
        for row in rows {
            writeln!(to, "{row}")?;
            lines += 1;
            cut += usize::from(row["finish_reason"] == FinishReason::Length.name());
        }
        Ok(())
    })?;
    output::note(format_args!("{lines} answers are in {}", path.display()));
    if cut > 0 {
        output::note(format_args!(
            "note: {cut} of them have no end (`finish_reason` is length), and who trains on them learns to stop there; raise --max-new-tokens, or leave those rows out"
        ));
    }
    Ok(())
}
