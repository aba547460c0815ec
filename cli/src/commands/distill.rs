//! `planish distill`: learning a teacher's predictions.

use clap::{ArgMatches, Command};
use planish_train::config::DistillConfig;
use planish_train::recipes::distill;

use super::training;

pub(crate) fn command() -> Command {
    training::command::<DistillConfig>("Train a student on a teacher's predictions")
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    training::run::<DistillConfig>(matches, |c| (&c.run, &c.model, &c.lora), distill::run)
}
