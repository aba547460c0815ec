//! The command line: spellings made one, then clap, then one sentence for what clap refuses.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::IsTerminal;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgMatches, Command};
use planish_train::config::{canonical, nearest, not_ours};

use crate::commands;
use crate::failure::{DONE, UsageError, WRONG_USE, report};
use crate::output;
use crate::settings;

/// Why the program ends before it began.
pub(crate) enum Stop {
    /// Help or the version was asked for.
    Print(String),
    /// Help, because nothing was asked for.
    Help(String),
    /// A mistake.
    Wrong(UsageError),
}

impl Stop {
    /// Prints, and returns the exit code.
    pub(crate) fn finish(self) -> u8 {
        match self {
            Stop::Print(text) => output::line(text.trim_end()).map_or_else(|e| report(&e.into()), |()| DONE),
            Stop::Help(text) => {
                output::note(text.trim_end());
                WRONG_USE
            }
            Stop::Wrong(error) => report(&error.into()),
        }
    }
}

/// Parses the arguments of the process.
///
/// # Errors
/// [`Stop`] for help, version, and mistakes.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<ArgMatches, Stop> {
    let command = commands::program();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let (at, path) = innermost(&command, &arguments);
    let bare = at.get_arguments().filter(|flag| !flag.get_action().takes_values()).filter_map(Arg::get_long);
    let arguments = one_spelling(arguments, &bare.collect());
    command.clone().try_get_matches_from(arguments).map_err(|error| stop(&error, at, &path))
}

/// The command that the arguments name, through all its levels, and what to call it.
fn innermost<'a>(program: &'a Command, arguments: &[OsString]) -> (&'a Command, String) {
    let (mut at, mut path) = (program, String::new());
    for word in arguments.iter().skip(1).filter_map(|word| word.to_str()).take_while(|word| !word.starts_with('-')) {
        let Some(inner) = at.find_subcommand(word) else { break };
        at = inner;
        path.push_str(word);
        path.push(' ');
    }
    (at, path)
}

/// `--learning_rate` is `--learning-rate`; `--no-packing` and `--packing no` are
/// `--packing=false`, and a bare `--packing` is `--packing=true`, so that a file name after it is
/// not taken for its value. Flags in `bare` are called like a setting, but take no value here.
fn one_spelling(arguments: Vec<OsString>, bare: &HashSet<&str>) -> Vec<OsString> {
    let switches = settings::switches();
    let mut out = Vec::with_capacity(arguments.len());
    let mut arguments = arguments.into_iter().peekable();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.to_str().and_then(|text| text.strip_prefix("--")) else {
            out.push(argument);
            continue;
        };
        if flag.is_empty() {
            out.push(argument);
            out.extend(arguments);
            break;
        }
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        let name = name.replace('_', "-");
        let is_switch = |name: &str| switches.contains(canonical(name).as_str()) && !bare.contains(name);
        let spelled = match (value, name.strip_prefix("no-")) {
            (None, Some(positive)) if is_switch(positive) => format!("--{positive}=false"),
            (None, _) if is_switch(&name) => {
                let next = arguments.next_if(|next| next.to_str().is_some_and(|w| is_truth(w) || is_value(w)));
                let value = next.and_then(|next| next.into_string().ok()).unwrap_or_else(|| "true".into());
                format!("--{name}={value}")
            }
            (Some(value), _) => format!("--{name}={value}"),
            // clap does not take `-1e-5` for a number.
            (None, _) => match arguments.next_if(|next| next.to_str().is_some_and(is_negative)) {
                Some(value) => format!("--{name}={}", value.to_string_lossy()),
                None => format!("--{name}"),
            },
        };
        out.push(spelled.into());
    }
    out
}

fn is_negative(word: &str) -> bool {
    word.starts_with('-') && word.parse::<f64>().is_ok()
}

fn is_truth(word: &str) -> bool {
    let words = ["true", "false", "yes", "no", "on", "off", "1", "0", "none", "null"];
    words.contains(&word.to_ascii_lowercase().as_str())
}

/// Whether a word behind a switch is meant as its value, though it is none: no file of settings looks like it.
fn is_value(word: &str) -> bool {
    let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    plain && !std::path::Path::new(word).exists()
}

fn stop(error: &clap::Error, command: &Command, path: &str) -> Stop {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    let wrong = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => return Stop::Print(help(error)),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => return Stop::Help(error.render().to_string()),
        ErrorKind::UnknownArgument => match text(ContextKind::InvalidArg) {
            Some(flag) if flag.starts_with('-') => unknown_flag(flag, command, path),
            other => {
                UsageError::Arguments { sentence: format!("`{}` is one argument too many", other.unwrap_or_default()) }
            }
        },
        ErrorKind::InvalidSubcommand => {
            let written = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            let names = command.get_subcommands().map(Command::get_name);
            UsageError::UnknownCommand { nearest: nearest(&written, names), command: path.to_owned(), name: written }
        }
        _ => {
            let rendered = error.render().to_string();
            let first = rendered.split("\n\n").next().unwrap_or_default();
            UsageError::Arguments { sentence: first.trim_start_matches("error:").trim().to_owned() }
        }
    };
    Stop::Wrong(wrong)
}

/// Bold where somebody looks at it, plain in a file or a pipe.
fn help(error: &clap::Error) -> String {
    let text = error.render();
    if std::io::stdout().is_terminal() { text.ansi().to_string() } else { text.to_string() }
}

fn unknown_flag(flag: String, command: &Command, path: &str) -> UsageError {
    let bare = flag.trim_start_matches('-').split('=').next().unwrap_or_default().to_owned();
    let flags: Vec<String> =
        command.get_arguments().filter_map(|argument| Some(format!("--{}", argument.get_long()?))).collect();
    let instead = not_ours(&bare);
    UsageError::UnknownFlag {
        nearest: if instead.is_some() { None } else { nearest(&flag, flags.iter().map(String::as_str)) },
        instead,
        command: path.to_owned(),
        flag: flag.split('=').next().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(words: &[&str]) -> Vec<String> {
        let words = words.iter().map(OsString::from).collect();
        one_spelling(words, &HashSet::new()).into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn switches_have_one_spelling() {
        assert_eq!(spelled(&["--packing", "run.yaml"]), ["--packing=true", "run.yaml"]);
        assert_eq!(spelled(&["--packing", "No"]), ["--packing=No"]);
        assert_eq!(spelled(&["--packing", "maybe"]), ["--packing=maybe"]);
        assert_eq!(spelled(&["--packing", "./maybe"]), ["--packing=true", "./maybe"]);
        assert_eq!(spelled(&["--no_packing"]), ["--packing=false"]);
        assert_eq!(spelled(&["--use_peft=yes"]), ["--use-peft=yes"]);
        assert_eq!(spelled(&["--shuffle-dataset"]), ["--shuffle-dataset=true"]);
        assert_eq!(spelled(&["--max_steps", "-1"]), ["--max-steps=-1"]);
        assert_eq!(spelled(&["--learning-rate", "-1e-5", "-o"]), ["--learning-rate=-1e-5", "-o"]);
        assert_eq!(spelled(&["--text_column=a_b"]), ["--text-column=a_b"]);
        assert_eq!(spelled(&["--", "--a_b"]), ["--", "--a_b"]);
        assert_eq!(spelled(&["--no-such"]), ["--no-such"]);
    }

    #[test]
    fn a_bare_flag_named_like_a_setting_stays_bare() {
        for words in [
            ["planish", "merge", "--model=m", "--adapter=a", "-oout", "--overwrite_output_dir"],
            ["planish", "score", "--model=m", "--dataset=d", "-oout", "--assistant-only-loss"],
        ] {
            let matches = parse(words.map(OsString::from)).unwrap_or_else(|_| panic!("{words:?}"));
            let (_, inner) = matches.subcommand().unwrap();
            assert!(inner.get_flag(words[5].trim_start_matches('-').replace('_', "-").as_str()), "{words:?}");
        }
    }

    #[test]
    fn clap_finds_no_fault_with_the_commands() {
        commands::program().debug_assert();
    }
}
