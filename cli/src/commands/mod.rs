//! The commands, one a file. A command is listed here when it works, not before.

mod answers;
mod chat;
mod combine;
mod config;
mod cpo;
mod data;
mod distill;
mod doctor;
mod dpo;
mod drifted;
mod export;
mod generate;
mod kernels;
mod kto;
mod merge;
mod mix;
mod orpo;
mod plan;
mod pretrain;
mod quantize;
mod quickstart;
mod report;
mod requests;
mod reward;
mod sampling;
mod score;
mod score_rewards;
mod sft;
mod simpo;
mod staged;
mod training;

use clap::{Arg, ArgAction, ArgMatches, Command};

/// What a command is: how clap sees it, and what it does. The number is the exit code.
struct Entry {
    command: fn() -> Command,
    run: fn(&ArgMatches) -> anyhow::Result<u8>,
}

const COMMANDS: &[Entry] = &[
    Entry { command: quickstart::command, run: quickstart::run },
    Entry { command: sft::command, run: sft::run },
    Entry { command: pretrain::command, run: pretrain::run },
    Entry { command: dpo::command, run: dpo::run },
    Entry { command: kto::command, run: kto::run },
    Entry { command: orpo::command, run: orpo::run },
    Entry { command: cpo::command, run: cpo::run },
    Entry { command: simpo::command, run: simpo::run },
    Entry { command: mix::command, run: mix::run },
    Entry { command: reward::command, run: reward::run },
    Entry { command: distill::command, run: distill::run },
    Entry { command: generate::command, run: generate::run },
    Entry { command: chat::command, run: chat::run },
    Entry { command: score::command, run: score::run },
    Entry { command: merge::command, run: merge::run },
    Entry { command: combine::command, run: combine::run },
    Entry { command: export::command, run: export::run },
    Entry { command: quantize::command, run: quantize::run },
    Entry { command: plan::command, run: plan::run },
    Entry { command: data::command, run: data::run },
    Entry { command: config::command, run: config::run },
    Entry { command: report::command, run: report::run },
    Entry { command: doctor::command, run: doctor::run },
    Entry { command: kernels::command, run: kernels::run },
];

/// The whole command line.
pub(crate) fn program() -> Command {
    Command::new("planish")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Post-training for language models")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands(COMMANDS.iter().map(|entry| (entry.command)()))
}

/// Runs the command that was parsed.
///
/// # Errors
/// Whatever ends it.
pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let (name, matches) = matches.subcommand().expect("clap demands a subcommand");
    let entry = COMMANDS.iter().find(|entry| (entry.command)().get_name() == name);
    (entry.expect("clap knows only the subcommands of the table").run)(matches)
}

/// `--json`, which everything has that prints for people.
fn json_flag() -> Arg {
    Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print the result as JSON")
}
