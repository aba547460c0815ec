//! `planish dpo`: direct preference optimization.

use clap::{ArgMatches, Command};
use planish_train::config::DpoConfig;
use planish_train::recipes::dpo;

use super::training;

pub(crate) fn command() -> Command {
    training::command::<DpoConfig>("Train on preference pairs: DPO and its family of losses")
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    training::run::<DpoConfig>(matches, |c| (&c.run, &c.model, &c.lora), dpo::run)
}
