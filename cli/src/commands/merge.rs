//! `planish merge`: fold an adapter into its model.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use planish_nn::adapters::merge_adapter;
use planish_train::run::RunDir;
use serde_json::json;

use super::json_flag;
use crate::failure::DONE;
use crate::{model_args, output};

pub(crate) fn command() -> Command {
    let out = Arg::new("output-dir").long("output-dir").short('o').required(true).value_name("DIR");
    model_args::with_flags(Command::new("merge").about("Fold an adapter into its model and write the result"))
        .mut_arg("adapter", |a| a.required(true))
        .arg(out.value_parser(value_parser!(PathBuf)).help("New directory for the merged model"))
        .arg(
            Arg::new("overwrite-output-dir")
                .long("overwrite-output-dir")
                .action(ArgAction::SetTrue)
                .help("Use the directory although something is in it"),
        )
        .arg(json_flag())
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let out = matches.get_one::<PathBuf>("output-dir").expect("required");
    let (mut model, tokenizer) = model_args::open(matches)?;
    // Refuses a directory with something in it, and one that cannot be written.
    RunDir::create(out, matches.get_flag("overwrite-output-dir"))?;
    merge_adapter(&mut model)?;
    model.save(out)?;
    tokenizer.save(out).map_err(planish_nn::Error::from)?;
    if matches.get_flag("json") {
        output::json(&json!({ "model": out, "parameters": model.num_params() }))?;
    } else {
        output::line(out.display())?;
    }
    Ok(DONE)
}
