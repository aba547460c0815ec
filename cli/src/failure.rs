//! From errors to a sentence and an exit code.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;

use planish_nn::weights::WeightsError;
use planish_train::config::ConfigError;
use planish_train::run::RunError;

use crate::output::note;

/// Done.
pub(crate) const DONE: u8 = 0;
/// Anything that is not the user's to mend.
pub(crate) const FAILED: u8 = 1;
/// Wrong use or bad input.
pub(crate) const WRONG_USE: u8 = 2;

/// A mistake in how the program was called that no library knows about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UsageError {
    /// A flag that the command does not have.
    #[error("there is no flag `{flag}`{}{}; `planish {command}--help` lists all", did_you_mean(.nearest), colon(.instead))]
    UnknownFlag {
        /// As written.
        flag: String,
        /// The command, with a space after it.
        command: String,
        /// The flag most like it.
        nearest: Option<String>,
        /// What there is in place of a flag that other programs have.
        instead: Option<&'static str>,
    },
    /// A command that does not exist.
    #[error("there is no command `{name}`{}; `planish {command}--help` lists all", did_you_mean(.nearest))]
    UnknownCommand {
        /// As written.
        name: String,
        /// The command it should have been one of, with a space after it; or nothing.
        command: String,
        /// The command most like it.
        nearest: Option<String>,
    },
    /// What the argument parser says of the rest.
    #[error("{sentence}")]
    Arguments {
        /// In one line.
        sentence: String,
    },
}

fn did_you_mean(found: &Option<String>) -> String {
    found.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

fn colon(found: &Option<&'static str>) -> String {
    found.map(|words| format!(": {words}")).unwrap_or_default()
}

/// Prints `error: …` as one sentence and returns the exit code.
pub(crate) fn report(error: &anyhow::Error) -> u8 {
    if is_closed_pipe(error) {
        return DONE;
    }
    note(format_args!("error: {}", sentence(error)));
    if is_bad_input(error) { WRONG_USE } else { FAILED }
}

/// The messages of the chain in one line, without those that an outer one already quotes.
fn sentence(error: &anyhow::Error) -> String {
    let mut sentence = String::new();
    for cause in error.chain() {
        let words = cause.to_string();
        if sentence.contains(&words) {
            continue;
        }
        if !sentence.is_empty() {
            sentence.push_str(": ");
        }
        sentence.push_str(&words);
    }
    sentence.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What the user wrote, or pointed at, is wrong. Transparent errors hide the one inside from the
/// chain, so the training layer's says for itself what it is.
fn is_bad_input(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<UsageError>()
            || cause.is::<ConfigError>()
            || cause.is::<RunError>()
            || cause.is::<WeightsError>()
            || cause.downcast_ref::<planish_nn::Error>().is_some_and(|e| !e.is_of_device())
            || cause.is::<planish_train::data::DataError>()
            || cause.downcast_ref::<planish_train::Error>().is_some_and(planish_train::Error::is_usage)
    })
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

/// Runs the program such that a panic, which is a bug of ours, ends in a request to report it.
pub(crate) fn guard(program: impl FnOnce() -> u8) -> u8 {
    static WHERE: Mutex<Option<String>> = Mutex::new(None);
    // Quiet: a panic that somebody catches (probing for an old driver) is nothing to print.
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line()));
        if let Ok(mut place_of_last) = WHERE.lock() {
            *place_of_last = place;
        }
    }));
    panic::catch_unwind(AssertUnwindSafe(program)).unwrap_or_else(|payload| {
        let words = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        let place = WHERE.lock().ok().and_then(|place| place.clone()).unwrap_or_default();
        note(format_args!(
            "error: this is a bug in planish {}{place}: {words}; please report it with the command you ran",
            env!("CARGO_PKG_VERSION"),
        ));
        FAILED
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_chain_is_one_sentence_without_repeats() {
        let error = anyhow::anyhow!("the\ndisk is full").context("cannot save: the\ndisk is full");
        assert_eq!(sentence(&error), "cannot save: the disk is full");
        let error = anyhow::anyhow!("inner").context("outer");
        assert_eq!(sentence(&error), "outer: inner");
    }

    #[test]
    fn exit_codes_follow_the_kind_of_error() {
        let usage = Err::<(), _>(ConfigError::Missing { key: "model" }).context("while reading").unwrap_err();
        assert_eq!(report(&usage), WRONG_USE);
        let pipe = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(report(&pipe), DONE);
        assert_eq!(report(&anyhow::anyhow!("else")), FAILED);
        assert_eq!(guard(|| panic!("a test of the panic message")), FAILED);
    }
}
