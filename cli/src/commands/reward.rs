//! `planish reward`: reward models.

use clap::{ArgMatches, Command};
use planish_train::config::RewardConfig;
use planish_train::recipes::reward;

use super::training;

pub(crate) fn command() -> Command {
    training::command::<RewardConfig>(
        "Train a reward model on preference pairs, or on answers whose steps are labelled",
    )
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    training::run::<RewardConfig>(matches, |c| (&c.run, &c.model, &c.lora), reward::run)
}
