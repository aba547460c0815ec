//! `planish pretrain`: a new model, or more training of one, on plain text.

use clap::{ArgMatches, Command};
use planish_train::config::{PretrainConfig, Recipe};
use planish_train::recipes::pretrain;

use super::json_flag;
use crate::terminal::{Terminal, catch_interrupts, conclude};
use crate::{model_args, settings};

pub(crate) fn command() -> Command {
    let command = Command::new(PretrainConfig::NAME).about("Train a new model, or go on with one, on plain text");
    settings::with_flags::<PretrainConfig>(command).arg(json_flag()).next_line_help(true)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let config = settings::load::<PretrainConfig>(matches)?.config;
    model_args::set_threads(config.run.threads)?;
    catch_interrupts()?;
    let mut seen = Terminal::new(config.run.logging_steps);
    let outcome = pretrain::run(&config, &mut seen)?;
    conclude(&outcome, &seen, matches.get_flag("json"))
}
