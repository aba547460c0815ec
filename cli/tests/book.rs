//! The commands that the README and the book show: each exists, with those flags and settings.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn planish(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_planish")).args(arguments).output().expect("planish starts")
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// The pages of the book and the documents at the root.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let pages = fs::read_dir(root.join("docs/src")).unwrap().map(|entry| entry.unwrap().path());
    let at_root = ["README.md", "CONTRIBUTING.md"].map(|name| root.join(name));
    pages.filter(|path| path.extension().is_some_and(|e| e == "md")).chain(at_root).collect()
}

/// The commands of `planish` in the documents' console blocks, as words.
fn commands() -> Vec<(PathBuf, Vec<String>)> {
    let mut found = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let blocks = text.split("```console\n").skip(1).filter_map(|rest| rest.split_once("```"));
        // A backslash at the end of a line goes on with the next.
        let blocks: Vec<String> = blocks.map(|(block, _)| block.replace("\\\n", "")).collect();
        for line in blocks.iter().flat_map(|block| block.lines()) {
            let arguments = line.strip_prefix("planish ").or_else(|| line.strip_prefix("cargo run --release -- "));
            if let Some(arguments) = arguments {
                found.push((document.clone(), words(arguments)));
            }
        }
    }
    found
}

/// Words as a shell splits them: at blanks outside of double quotes.
fn words(line: &str) -> Vec<String> {
    let parts = line.split('"').enumerate();
    let marked: String =
        parts.map(|(i, part)| if i % 2 == 0 { part.replace(' ', "\0") } else { part.into() }).collect();
    marked.split('\0').filter(|word| !word.is_empty()).map(str::to_string).collect()
}

#[test]
fn every_command_has_the_flags_that_are_shown() {
    let commands = commands();
    assert!(commands.len() > 10, "only {} commands were found", commands.len());
    for (document, words) in commands {
        let is_name = |word: &&String| word.chars().all(|c| c.is_ascii_lowercase());
        let mut help: Vec<&str> = words.iter().take_while(is_name).map(String::as_str).collect();
        help.push("--help");
        let done = planish(&help);
        assert!(done.status.success(), "{}: {words:?}: {}", document.display(), text(&done.stderr));
        for flag in words.iter().filter(|word| word.starts_with("--") && *word != "--help") {
            let shown = flag.strip_prefix("--no-").map_or(flag.clone(), |positive| format!("--{positive}"));
            let known =
                text(&done.stdout).split(|c: char| !c.is_ascii_alphanumeric() && c != '-').any(|word| word == shown);
            assert!(known, "{}: {words:?}: no flag {flag}", document.display());
        }
    }
}

#[test]
fn every_training_command_has_settings_that_agree() {
    let mut checked = 0;
    for (document, words) in commands() {
        let words: Vec<&str> = words.iter().map(String::as_str).skip_while(|word| *word == "plan").collect();
        let is_training = matches!(words.first(), Some(&"sft" | &"pretrain"));
        if !is_training || words.iter().any(|word| word.ends_with(".yaml") || *word == "--help") {
            continue;
        }
        let done = planish(&[&["config"], words.as_slice()].concat());
        assert!(done.status.success(), "{}: {words:?}: {}", document.display(), text(&done.stderr));
        checked += 1;
    }
    assert!(checked > 3, "only {checked} training commands were found");
}
