//! `planish export`: a model, with its adapter folded in, as a GGUF file for llama.cpp.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use planish_nn::adapters::merge_adapter;
use planish_nn::decoder::LoadOptions;
use planish_nn::gguf::{Quant, export_after};
use serde_json::json;

use super::drifted::{self, Drifted};
use super::json_flag;
use crate::failure::DONE;
use crate::output::note;
use crate::{model_args, output};

pub(crate) fn command() -> Command {
    let names: Vec<&str> = Quant::NAMES.iter().map(|(name, _)| *name).collect();
    model_args::with_flags(Command::new("export").about("Write a model, with its adapter folded in, as a GGUF file"))
        .arg(
            Arg::new("format")
                .long("format")
                .value_name("FORMAT")
                .default_value("gguf")
                .value_parser(["gguf"])
                .help("Format of the file"),
        )
        .arg(
            Arg::new("quant")
                .long("quant")
                .value_name("TYPE")
                .default_value("f16")
                .ignore_case(true)
                .value_parser(names)
                .help("Type of the matrices, under llama.cpp's names; q4_k and q5_k are the mixes q4_k_m and q5_k_m"),
        )
        .arg(
            Arg::new("output")
                .long("output")
                .short('o')
                .required(true)
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("The file to write"),
        )
        .arg(
            Arg::new("overwrite").long("overwrite").action(ArgAction::SetTrue).help("Replace the file if there is one"),
        )
        .arg(
            drifted::text_flag()
                .help("Text on which to compare the file's model with the one before [with an adapter a short one]"),
        )
        .arg(json_flag())
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let path = matches.get_one::<PathBuf>("output").expect("required");
    let quant = matches.get_one::<String>("quant").and_then(|name| Quant::parse(name)).expect("one of the names");
    let (mut model, tokenizer) = model_args::open(matches)?;
    let adapted = matches.contains_id("adapter");
    let compares = adapted || matches.contains_id("text");
    let ids = if compares { drifted::tokens(matches, &model, &tokenizer)? } else { Vec::new() };
    // Merging makes new weights: the clone keeps the old.
    let before = model.clone();
    merge_adapter(&mut model)?;
    let mut drift = None;
    let done = export_after(&model, &tokenizer, quant, path, matches.get_flag("overwrite"), |file| {
        if compares {
            drift = Some(Drifted::measure((&before, adapted), &file.load(LoadOptions::default())?, &ids)?);
        }
        Ok(())
    })?;
    let mut kinds: Vec<_> = done.fallbacks.iter().map(|(_, kind)| format!("{kind:?}")).collect();
    kinds.sort();
    for group in kinds.chunk_by(|a, b| a == b) {
        let count = group.len();
        note(format_args!("{count} tensors are {}: their rows do not fill the blocks that --quant asks for", group[0]));
    }
    if let Some(drift) = &drift {
        drift.warn("Export with more bits");
    }
    done.notes.iter().for_each(|sentence| note(format_args!("{sentence}")));
    if matches.get_flag("json") {
        let kinds: serde_json::Map<_, _> =
            done.kinds.iter().map(|(kind, tensors, _)| (format!("{kind:?}"), json!(tensors))).collect();
        let fallbacks: serde_json::Map<_, _> =
            done.fallbacks.iter().map(|(tensor, kind)| (tensor.clone(), json!(format!("{kind:?}")))).collect();
        output::json(&json!({
            "file": path, "bytes": done.bytes, "tensors": kinds, "fallbacks": fallbacks,
            "worst_relative_error": done.worst_error, "worst_tensor": done.worst_tensor,
            "drift": drift,
        }))?;
    } else {
        if let Some(drift) = &drift {
            output::line(drift.sentence("written"))?;
        }
        output::line(path.display())?;
    }
    Ok(DONE)
}
