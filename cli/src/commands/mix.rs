//! `planish mix`: several objectives in one run.

use clap::{ArgMatches, Command};
use planish_train::config::MixConfig;
use planish_train::recipes::mix;

use super::training;

pub(crate) fn command() -> Command {
    training::command::<MixConfig>("Train with several objectives at once, one for each data set")
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    training::run::<MixConfig>(matches, |c| (&c.run, &c.model, &c.lora), mix::run)
}
