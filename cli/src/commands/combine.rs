//! `planish combine`: one LoRA adapter out of several.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command, value_parser};
use planish_nn::adapters::{Combination, Density, Signs, base_name, combine_adapters, is_same_base};
use serde_json::json;

use super::json_flag;
use super::staged::Place;
use crate::failure::DONE;
use crate::{model_args, output};

/// PEFT's names.
const TYPES: [&str; 11] = [
    "linear",
    "cat",
    "svd",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_ties",
    "dare_linear_svd",
    "dare_ties_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
];

pub(crate) fn command() -> Command {
    let text = |name: &'static str| Arg::new(name).long(name);
    Command::new("combine")
        .about("Combine LoRA adapters of one model into one, each with its weight")
        .arg(
            text("adapters")
                .required(true)
                .value_name("DIR,DIR")
                .value_delimiter(',')
                .action(clap::ArgAction::Append)
                .value_parser(value_parser!(PathBuf))
                .help("Adapters in PEFT's format"),
        )
        .arg(
            text("weights")
                .required(true)
                .value_name("N,N")
                .value_delimiter(',')
                .action(clap::ArgAction::Append)
                .allow_negative_numbers(true)
                .value_parser(value_parser!(f64))
                .help("A weight for each"),
        )
        .arg(
            text("combination-type")
                .value_name("TYPE")
                .default_value("linear")
                .value_parser(PossibleValuesParser::new(TYPES))
                .help("How, under PEFT's names"),
        )
        .arg(
            text("density")
                .value_name("SHARE")
                .value_parser(value_parser!(f64))
                .help("Share of the entries that ties, dare and magnitude_prune keep"),
        )
        .arg(
            text("majority-sign-method")
                .value_name("METHOD")
                .default_value("total")
                .value_parser(["total", "frequency"])
                .help("Whose sign counts with ties: that of the sum, or of most"),
        )
        .arg(
            text("svd-rank")
                .value_name("RANK")
                .value_parser(value_parser!(u64).range(1..=65536))
                .help("Rank of the result with svd [the largest of the adapters']"),
        )
        .arg(
            text("seed")
                .value_name("N")
                .default_value("42")
                .value_parser(value_parser!(u64))
                .help("Seed of dare's choice"),
        )
        .arg(
            text("output-dir")
                .short('o')
                .required(true)
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("New directory for the adapter"),
        )
        .arg(model_args::threads())
        .arg(json_flag())
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    model_args::set_threads(matches.get_one::<u64>("threads").map(|&n| n as usize))?;
    let adapters: Vec<PathBuf> = matches.get_many("adapters").expect("required").cloned().collect();
    let weights: Vec<f64> = matches.get_many("weights").expect("required").copied().collect();
    if adapters.len() != weights.len() {
        let sentence =
            format!("--adapters names {} and --weights {}; give a weight for each", adapters.len(), weights.len());
        return Err(model_args::wrong(sentence));
    }
    if let Some(weight) = weights.iter().find(|w| !w.is_finite()) {
        return Err(model_args::wrong(format!("--weights holds {weight}, which is no number to multiply by")));
    }
    let name = matches.get_one::<String>("combination-type").expect("has a default").as_str();
    let (combination, density, signs) = how(name, matches)?;
    let out = matches.get_one::<PathBuf>("output-dir").expect("required");
    if out.exists() && std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(model_args::wrong(format!("--output-dir {} is not empty; choose another one", out.display())));
    }
    let place = Place::claim(out, false)?;
    note_bases(&adapters);
    let pairs: Vec<_> = adapters.into_iter().zip(weights).collect();
    place.fill(|dir| combine_adapters(&pairs, combination, density, signs, dir))?;
    if matches.get_flag("json") {
        output::json(&json!({ "adapter": out, "combination_type": name }))?;
    } else {
        output::line(out.display())?;
    }
    Ok(DONE)
}

/// Says so if adapters were made for other models than the first one, whose name the result has.
fn note_bases(adapters: &[PathBuf]) {
    // What is wrong with a file is told by whoever reads all of it.
    let base = |dir: &PathBuf| base_name(dir).ok().flatten();
    let Some((first, name)) = adapters.first().and_then(|dir| Some((dir, base(dir)?))) else { return };
    for dir in &adapters[1..] {
        if let Some(other) = base(dir)
            && !is_same_base(&name, &other)
        {
            output::note(format_args!(
                "note: {} says that its base is {name}, and {} that it is {other}: if their weights are not the same, the sum is of \
                 no use to either",
                first.display(),
                dir.display()
            ));
        }
    }
}

fn how(name: &str, matches: &ArgMatches) -> anyhow::Result<(Combination, Density, Signs)> {
    let share = matches.get_one::<f64>("density").copied();
    let rank = matches.get_one::<u64>("svd-rank").map(|&r| r as usize);
    let (base, svd) = match name.strip_suffix("_svd") {
        Some(base) => (base, true),
        None => (name, name == "svd"),
    };
    let thins = base.contains("ties") || base.contains("dare") || base.contains("prune");
    match (thins, share) {
        (true, None) => {
            return Err(model_args::wrong(format!("--combination-type {name} needs --density, such as 0.5")));
        }
        (false, Some(_)) => return Err(model_args::wrong(format!("--combination-type {name} takes no --density"))),
        _ => {}
    }
    if rank.is_some() && !svd {
        return Err(model_args::wrong(format!("--svd-rank is for the types that end in svd, not {name}")));
    }
    let combination = match base {
        _ if svd => Combination::Svd(rank),
        "cat" => Combination::Cat,
        _ => Combination::Linear,
    };
    let seed = matches.get_one::<u64>("seed").copied().unwrap_or_default();
    let density = match share {
        None => Density::All,
        Some(share) if base.contains("dare") => Density::Random { share, seed },
        Some(share) => Density::Largest(share),
    };
    let total = matches.get_one::<String>("majority-sign-method").is_some_and(|m| m == "total");
    let signs = match base.contains("ties") {
        false => Signs::Ignore,
        true if total => Signs::Total,
        true => Signs::Frequency,
    };
    Ok((combination, density, signs))
}
