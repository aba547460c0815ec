//! `planish merge`: fold an adapter into its model.

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use planish_nn::Ctx;
use planish_nn::adapters::merge_adapter;
use planish_nn::decoder::Model;
use planish_nn::drift::drift;
use planish_nn::quantize::{format_of, requantize, unpack};
use planish_nn::tokenizer::Tokenizer;
use planish_nn::weights::atomic_dir;
use planish_tensor::DType;
use planish_train::run::RunDir;
use serde::Serialize;
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
        .arg(
            Arg::new("requantize")
                .long("requantize")
                .action(ArgAction::SetTrue)
                .help("Quantise the merged weights again as the base's were, and say what that did"),
        )
        .arg(
            Arg::new("text")
                .long("text")
                .value_name("FILE")
                .requires("requantize")
                .value_parser(value_parser!(PathBuf))
                .help("Text to compare the models on [a short one]"),
        )
        .arg(json_flag())
}

/// Has all files written into a directory beside their places and moves them there when all are on the disk, so
/// that what looks like a model is one. Beside and not above: `out` may be where a volume is mounted.
pub(super) fn stage(out: &Path, write: impl FnOnce(&Path) -> planish_nn::Result<()>) -> planish_nn::Result<()> {
    let staged = out.join(".merged.planish.tmp");
    atomic_dir(&staged, write)?;
    move_into(&staged, out).map_err(|source| planish_nn::Error::Io { path: out.to_owned(), source })
}

/// What requantising a merged model has done to it, on a text.
#[derive(Serialize)]
struct Loss {
    /// Of the model with its adapter from the requantised one, nats.
    kl: f64,
    top1_agreement: f64,
    /// Of the model with its adapter from that without, nats.
    kl_of_base: f64,
    tokens: usize,
    /// Whether the requantised model is no nearer to the tuned one than the base is.
    lost: bool,
}

/// A text to compare models on where none is given.
const TEXT: &str = "The quick brown fox jumps over the lazy dog. A dozen eggs cost three dollars, so two dozen cost six. \
    Water boils at one hundred degrees. She asked him where he had been, and he said that he had been at the library \
    all day, reading about ships. In the morning they went to the market to buy bread, apples and a little cheese.";

/// Most tokens of the text that are compared.
const TOKENS: usize = 512;

/// Quantises merged weights again, and measures what that did.
fn requantized(model: &mut Model, tuned: &Model, tokenizer: &Tokenizer, text: &str) -> anyhow::Result<Loss> {
    let Some(how) = format_of(tuned) else {
        let sentence = "--requantize is for a model in bitsandbytes' 4 or 8 bits, and this one is not: use `planish quantize` on the merged model";
        return Err(model_args::wrong(sentence));
    };
    let mut ids = tokenizer.encode(text, true).map_err(planish_nn::Error::from)?;
    ids.truncate(TOKENS.min(model.config.max_positions));
    if ids.is_empty() {
        return Err(model_args::wrong("the text to compare on has no tokens"));
    }
    requantize(model, how)?;
    let with = Ctx::inference();
    let now = drift((tuned, &with), (model, &with), &ids)?;
    let base = drift((tuned, &with), (tuned, &Ctx::inference().without_adapters()), &ids)?;
    let lost = !(now.kl < base.kl);
    Ok(Loss { kl: now.kl, top1_agreement: now.agreement, kl_of_base: base.kl, tokens: now.tokens, lost })
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
    let text = match matches.get_one::<PathBuf>("text") {
        Some(path) => {
            fs::read_to_string(path).map_err(|source| planish_nn::Error::Io { path: path.clone(), source })?
        }
        None => TEXT.to_owned(),
    };
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
            loss = Some(requantized(&mut model, &tuned, &tokenizer, &text)?);
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
    if let Some(loss) = loss.as_ref().filter(|loss| loss.lost) {
        output::note(format_args!(
            "warning: quantising the merged weights lost what the adapter had learned: on {} tokens the result is {:.4} nats from \
             the tuned model and the base without the adapter {:.4}. Merge without --requantize, or serve the adapter",
            loss.tokens, loss.kl, loss.kl_of_base
        ));
    }
    if matches.get_flag("json") {
        output::json(&json!({ "model": out, "parameters": model.num_params(), "requantized": loss }))?;
    } else {
        if let Some(l) = &loss {
            output::line(format_args!(
                "requantised: {:.4} nats from the tuned model on {} tokens ({:.1}% of the next tokens the same); the base is {:.4} from it",
                l.kl,
                l.tokens,
                100.0 * l.top1_agreement,
                l.kl_of_base
            ))?;
        }
        output::line(out.display())?;
    }
    Ok(DONE)
}
