//! `planish merge`: fold an adapter into its model.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use planish_nn::adapters::merge_adapter;
use planish_nn::decoder::Model;
use planish_nn::quantize::{format_of, requantize, unpack};
use planish_tensor::DType;
use serde_json::json;

use super::drifted::{self, Drifted};
use super::json_flag;
use super::staged::Place;
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

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let out = matches.get_one::<PathBuf>("output-dir").expect("required");
    let (mut model, tokenizer) = model_args::open(matches)?;
    let requantizes = matches.get_flag("requantize");
    let ids = if requantizes { drifted::tokens(matches, &model, &tokenizer)? } else { Vec::new() };
    let place = Place::claim(out, matches.get_flag("overwrite-output-dir"))?;
    let mut loss = None;
    // Merging makes new weights: the clone keeps the old.
    let tuned = model.clone();
    merge_adapter(&mut model)?;
    if requantizes {
        requantized(&mut model, &tuned)?;
        loss = Some(Drifted::measure((&tuned, true), &model, &ids)?);
    } else if tuned.base_params().iter().any(|p| p.value().quantized().is_some()) {
        let wide = matches.get_one::<String>("dtype").is_some_and(|d| d == "float32");
        unpack(&mut model, if wide { DType::F32 } else { DType::BF16 })?;
    }
    place.fill(|dir| {
        model.save(dir)?;
        Ok(tokenizer.save(dir)?)
    })?;
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
