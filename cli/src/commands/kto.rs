//! `planish kto`: learning from labelled completions.

use clap::{ArgMatches, Command};
use planish_train::config::KtoConfig;
use planish_train::recipes::kto;

use super::training;

pub(crate) fn command() -> Command {
    training::command::<KtoConfig>("Train on completions that are each labelled good or bad: KTO")
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    training::run::<KtoConfig>(matches, |c| (&c.run, &c.model, &c.lora), kto::run)
}
