//! `planish merge`: fold an adapter into its model.

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use planish_nn::adapters::merge_adapter;
use planish_nn::decoder::Model;
use planish_nn::tokenizer::Tokenizer;
use planish_nn::weights::atomic_dir;
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

/// Writes all files into a directory beside their places and moves them there when all are on the disk, so
/// that what looks like a model is one. Beside and not above: `out` may be where a volume is mounted.
fn save(model: &Model, tokenizer: &Tokenizer, out: &Path) -> planish_nn::Result<()> {
    let staged = out.join(".merged.planish.tmp");
    atomic_dir(&staged, |dir| {
        model.save(dir)?;
        Ok::<_, planish_nn::Error>(tokenizer.save(dir)?)
    })?;
    move_into(&staged, out).map_err(|source| planish_nn::Error::Io { path: out.to_owned(), source })
}

fn move_into(from: &Path, to: &Path) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(from)?.collect::<io::Result<_>>()?;
    // A directory without it is no model yet.
    entries.sort_by_key(|entry| entry.file_name() == "config.json");
    for entry in entries {
        let place = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(&place)?;
            move_into(&entry.path(), &place)?;
        } else {
            fs::rename(entry.path(), place)?;
        }
    }
    fs::remove_dir(from)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let out = matches.get_one::<PathBuf>("output-dir").expect("required");
    let (mut model, tokenizer) = model_args::open(matches)?;
    let was_there = out.exists();
    // Refuses a directory with something in it, and one that cannot be written.
    RunDir::create(out, matches.get_flag("overwrite-output-dir"))?;
    let written = merge_adapter(&mut model).and_then(|()| save(&model, &tokenizer, out));
    if written.is_err() && !was_there {
        fs::remove_dir(out).ok();
    }
    written?;
    if matches.get_flag("json") {
        output::json(&json!({ "model": out, "parameters": model.num_params() }))?;
    } else {
        output::line(out.display())?;
    }
    Ok(DONE)
}
