//! `planish data preview`: what training would see of a data set.

use clap::{ArgMatches, Command};
use planish_train::config::SftConfig;
use planish_train::data::render;
use planish_train::recipes::sft;

use super::json_flag;
use crate::failure::DONE;
use crate::{model_args, output, settings};

pub(crate) fn command() -> Command {
    let preview = Command::new("preview").about("Lengths, masks, what is cut or dropped, and the first example");
    Command::new("data")
        .about("Look at data sets")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(settings::with_flags::<SftConfig>(preview).arg(json_flag()).next_line_help(true))
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    use std::io::IsTerminal;
    let (_, matches) = matches.subcommand().expect("clap demands a subcommand");
    let config = settings::load_without_run::<SftConfig>(matches)?;
    model_args::set_threads(config.run.threads)?;
    let report = sft::preview(&config)?;
    if matches.get_flag("json") {
        output::json(&report)?;
    } else {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        output::line(render(&report, colour).trim_end())?;
    }
    Ok(DONE)
}
