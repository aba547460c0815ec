//! `planish orpo`: cross-entropy and the odds ratio of pairs.

use clap::{ArgMatches, Command};
use planish_train::config::OrpoConfig;
use planish_train::recipes::orpo;

use super::training;

pub(crate) fn command() -> Command {
    training::command::<OrpoConfig>("Train on preference pairs without a reference: ORPO")
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    training::run::<OrpoConfig>(matches, |c| (&c.run, &c.model, &c.lora), orpo::run)
}
