//! `planish score`: log-probabilities of the supervised tokens of a data set.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use planish_nn::weights::atomic_write;
use planish_train::data::{Columns, Dataset, DatasetSpec, DatasetType, EncodeOptions, Encoder, OnUnsupervised};
use planish_train::score::{ScoreRow, Scorer};
use serde_json::json;

use super::json_flag;
use crate::failure::DONE;
use crate::{model_args, output};

pub(crate) fn command() -> Command {
    let dataset = Arg::new("dataset").long("dataset").required(true).action(ArgAction::Append).value_name("FILE");
    let written = Arg::new("output").long("output").short('o').required(true).value_name("FILE");
    let members = "; with --reward several, the members of an ensemble";
    let member = |arg: Arg| {
        let help = format!("{}{members}", arg.get_help().map(ToString::to_string).unwrap_or_default());
        arg.action(ArgAction::Append).help(help)
    };
    let command = Command::new("score").about("Write the log-probability of every supervised token");
    model_args::with_quantisation(model_args::with_flags(command))
        .mut_arg("model", member)
        .mut_arg("adapter", member)
        .arg(dataset.help("Examples, as for sft; may be repeated"))
        .arg(written.value_parser(value_parser!(PathBuf)).help("A JSON line an example is written here"))
        .arg(
            Arg::new("assistant-only-loss")
                .long("assistant-only-loss")
                .action(ArgAction::SetTrue)
                .help("Score the assistant's turns only"),
        )
        .arg(
            Arg::new("reward")
                .long("reward")
                .action(ArgAction::SetTrue)
                .conflicts_with_all(["assistant-only-loss", "top-k"])
                .help(
                    "Write the rewards of a reward model, of pairs and steps too, and say how well it tells them apart",
                ),
        )
        .arg(
            Arg::new("step-separator")
                .long("step-separator")
                .value_name("TEXT")
                .requires("reward")
                .help("What follows each step of an answer, as in training [a line break]"),
        )
        .arg(
            Arg::new("top-k")
                .long("top-k")
                .value_name("K")
                .value_parser(value_parser!(u32).range(1..))
                .help("Also write the K most probable tokens in each place, for `planish distill`"),
        )
        .arg(
            Arg::new("temperature")
                .long("temperature")
                .value_name("T")
                .value_parser(positive)
                .requires("top-k")
                .help("Divide the logits by this for --top-k [1]"),
        )
        .arg(model_args::device())
        .arg(model_args::bf16())
        .arg(json_flag())
}

/// The files to score, none of which may be the one that is written.
///
/// # Errors
/// A name that cannot be read; an output that is one of them.
pub(super) fn datasets(matches: &ArgMatches) -> anyhow::Result<Vec<DatasetSpec>> {
    let names: Vec<String> = matches.get_many("dataset").into_iter().flatten().cloned().collect();
    let files = planish_train::recipes::datasets(&names)?;
    let output = matches.get_one::<PathBuf>("output").expect("required");
    if let Ok(place) = output.canonicalize()
        && files.iter().any(|file| file.path.canonicalize().is_ok_and(|path| path == place))
    {
        let sentence = format!("--output {} is one of the data sets: it would be overwritten", output.display());
        return Err(model_args::wrong(sentence));
    }
    Ok(files)
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|t| *t > 0.0 && t.is_finite());
    number.ok_or_else(|| "must be a number above 0".to_owned())
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    if matches.get_flag("reward") {
        return super::score_rewards::run(matches);
    }
    if model_args::members(matches)?.len() > 1 {
        return Err(model_args::wrong("several models or adapters are an ensemble of rewards: give one, or --reward"));
    }
    let files = datasets(matches)?;
    let (model, tokenizer) = model_args::open(matches)?;
    let data = Dataset::open(&files, &Columns::default(), &DatasetType::SFT)?;
    let options = EncodeOptions {
        max_length: None,
        assistant_only_loss: matches.get_flag("assistant-only-loss"),
        on_unsupervised: OnUnsupervised::Error,
        vocab_size: Some(model.config.vocab_size),
        ..EncodeOptions::default()
    };
    let encoder = Encoder::new(Arc::new(tokenizer), options)?;
    let rows = (0..data.len()).map(|i| -> anyhow::Result<ScoreRow> {
        let (row, source) = data.read(i)?;
        let encoded = encoder.encode(&row, source)?;
        encoded.example.map(ScoreRow::from).map_err(|why| anyhow::anyhow!("row {i} was dropped: {why:?}"))
    });
    let mut scorer = Scorer::new(&model);
    if let Some(&k) = matches.get_one::<u32>("top-k") {
        scorer = scorer.top(k as usize, matches.get_one::<f64>("temperature").copied().unwrap_or(1.0));
    }
    let path = matches.get_one::<PathBuf>("output").expect("required");
    let (mut sum, mut tokens, mut lines, mut failed) = (0.0, 0, 0, None);
    let written = atomic_write(path, |to| {
        for line in scorer.score(rows) {
            match line {
                Ok(line) => {
                    sum += line.sum;
                    tokens += line.logprobs.len();
                    lines += 1;
                    serde_json::to_writer(&mut *to, &line)?;
                    to.write_all(b"\n")?;
                }
                Err(error) => {
                    failed = Some(error);
                    return Err(std::io::ErrorKind::InvalidInput.into());
                }
            }
        }
        Ok(())
    });
    if let Some(error) = failed {
        return Err(error);
    }
    written?;
    let mean = sum / tokens as f64;
    if matches.get_flag("json") {
        output::json(&json!({ "examples": lines, "tokens": tokens, "sum": sum, "mean": mean, "output": path }))?;
    } else {
        output::line(format_args!("{lines} examples, {tokens} tokens, mean log-probability {mean:.6} nats"))?;
    }
    Ok(DONE)
}
