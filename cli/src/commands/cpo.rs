//! `planish cpo`: contrastive preference optimization.

use clap::{ArgMatches, Command};
use planish_train::config::CpoConfig;
use planish_train::recipes::cpo;

use super::training;

pub(crate) fn command() -> Command {
    training::command::<CpoConfig>("Train on preference pairs without a reference: CPO")
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    training::run::<CpoConfig>(matches, |c| (&c.run, &c.model, &c.lora), cpo::run)
}
