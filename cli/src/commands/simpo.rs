//! `planish simpo`: SimPO.

use clap::{ArgMatches, Command};
use planish_train::config::SimpoConfig;
use planish_train::recipes::simpo;

use super::training;

pub(crate) fn command() -> Command {
    training::command::<SimpoConfig>("Train on preference pairs without a reference: SimPO")
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    training::run::<SimpoConfig>(matches, |c| (&c.run, &c.model, &c.lora), simpo::run)
}
