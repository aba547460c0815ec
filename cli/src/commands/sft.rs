//! `planish sft`: supervised fine-tuning.

use clap::{ArgMatches, Command};
use planish_train::config::{Recipe, SftConfig};
use planish_train::recipes::sft;

use super::json_flag;
use super::training::note_without_adapter;
use crate::terminal::{Terminal, catch_interrupts, conclude};
use crate::{model_args, settings};

pub(crate) fn command() -> Command {
    let command = Command::new(SftConfig::NAME).about("Fine-tune a model, or train a LoRA adapter, on examples");
    settings::with_flags::<SftConfig>(command).arg(json_flag()).next_line_help(true)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let loaded = settings::load::<SftConfig>(matches)?;
    note_without_adapter(&loaded, &loaded.config.model, &loaded.config.lora);
    let config = loaded.config;
    model_args::set_threads(config.run.threads)?;
    catch_interrupts()?;
    let mut seen = Terminal::new(config.run.logging_steps).with_model(&config.model);
    let outcome = sft::run(&config, &mut seen)?;
    conclude(&outcome, &seen, matches.get_flag("json"))
}
