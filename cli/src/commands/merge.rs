//! `planish merge`: fold an adapter into its model.

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use planish_nn::adapters::merge_adapter;
use planish_nn::decoder::Model;
use planish_nn::quantize::{format_of, requantize, unpack};
use planish_nn::weights::atomic_dir;
use planish_tensor::DType;
use planish_train::run::RunDir;
use serde_json::json;

use super::drifted::{self, Drifted};
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
        .arg(
            Arg::new("requantize")
                .long("requantize")
                .action(ArgAction::SetTrue)
                .help("Quantise the merged weights again as the base's were, and say what that did"),
        )
        .arg(drifted::text_flag().requires("requantize"))
        .arg(json_flag())
}

/// Has all files written into a directory beside their places and moves them there when all are on the disk, so
/// that what looks like a model is one. Beside and not above: `out` may be where a volume is mounted.
pub(super) fn stage(out: &Path, write: impl FnOnce(&Path) -> planish_nn::Result<()>) -> planish_nn::Result<()> {
    let staged = out.join(".merged.planish.tmp");
    atomic_dir(&staged, write)?;
    move_into(&staged, out).map_err(|source| planish_nn::Error::Io { path: out.to_owned(), source })
}

/// Quantises merged weights as those of the model before were.
fn requantized(model: &mut Model, before: &Model) -> anyhow::Result<()> {
    match format_of(before) {
        Some(how) => Ok(requantize(model, how)?),
        None => Err(model_args::wrong(
            "--requantize is for a model in bitsandbytes' 4 or 8 bits, and this one is not: `planish export` folds an adapter \
             into a GGUF file of any of its types, `planish quantize` quantises a merged model",
        )),
    }
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
    let text = drifted::text(matches)?;
    let (mut model, tokenizer) = model_args::open(matches)?;
    let was_there = out.exists();
    // Refuses a directory with something in it, and one that cannot be written.
    RunDir::create(out, matches.get_flag("overwrite-output-dir"))?;
    let mut loss = None;
    let mut write = || -> anyhow::Result<()> {
        // Merging makes new weights: the clone keeps the old.
        let tuned = model.clone();
        merge_adapter(&mut model)?;
        if matches.get_flag("requantize") {
            requantized(&mut model, &tuned)?;
            loss = Some(Drifted::measure((&tuned, true), &model, &tokenizer, &text)?);
        } else if tuned.base_params().iter().any(|p| p.value().quantized().is_some()) {
            let wide = matches.get_one::<String>("dtype").is_some_and(|d| d == "float32");
            unpack(&mut model, if wide { DType::F32 } else { DType::BF16 })?;
        }
        Ok(stage(out, |dir| {
            model.save(dir)?;
            Ok(tokenizer.save(dir)?)
        })?)
    };
    let written = write();
    if written.is_err() && !was_there {
        fs::remove_dir(out).ok();
    }
    written?;
    if let Some(loss) = &loss {
        loss.warn("Merge without --requantize");
    }
    if matches.get_flag("json") {
        output::json(&json!({ "model": out, "parameters": model.num_params(), "requantized": loss }))?;
    } else {
        if let Some(loss) = &loss {
            output::line(loss.sentence("requantised"))?;
        }
        output::line(out.display())?;
    }
    Ok(DONE)
}
