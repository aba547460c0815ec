//! Flags of sampling, for `generate` and `chat`.

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use planish_nn::generate::SamplingParams;
use planish_nn::tokenizer::Tokenizer;

/// Adds the flags, under transformers' names.
pub(super) fn with_flags(command: Command) -> Command {
    let number = |name: &'static str, default: &'static str, help: &'static str| {
        let arg = Arg::new(name).long(name).value_name("X").default_value(default).help(help);
        arg.allow_negative_numbers(true).value_parser(value_parser!(f64))
    };
    let whole = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("N").default_value(default).help(help).value_parser(value_parser!(u64))
    };
    command
        .arg(whole("max-new-tokens", "256", "Most tokens of an answer"))
        .arg(whole("min-new-tokens", "0", "Fewest tokens of an answer: until then the end token is not taken"))
        .arg(number("temperature", "0", "0 takes the most probable token; above, tokens are drawn"))
        .arg(whole("top-k", "0", "Draw from the k most probable tokens; 0 is off"))
        .arg(number("top-p", "1", "Draw from the most probable tokens that make up this share; 1 is off"))
        .arg(number("min-p", "0", "Leave out tokens less probable than this share of the best; 0 is off"))
        .arg(number("repetition-penalty", "1", "Above 1 makes tokens that occurred less probable"))
        .arg(whole("seed", "0", "Seed of the draws"))
        .arg(
            Arg::new("stop")
                .long("stop")
                .value_name("TEXT")
                .action(ArgAction::Append)
                .help("End an answer at this text; may be repeated"),
        )
        .arg(Arg::new("no-cuda-graphs").long("no-cuda-graphs").action(ArgAction::SetTrue).help(
            "On a GPU launch every kernel of every step instead of replaying a recorded step; answers are the same",
        ))
}

/// Whether steps may be recorded on a device.
pub(super) fn cuda_graphs(matches: &ArgMatches) -> bool {
    !matches.get_flag("no-cuda-graphs")
}

/// What the flags say; an answer ends at the tokenizer's end tokens and the model's.
pub(super) fn read(matches: &ArgMatches, tokenizer: &Tokenizer, model_eos: Vec<u32>) -> SamplingParams {
    let number = |name: &str| *matches.get_one::<f64>(name).expect("has a default");
    let whole = |name: &str| *matches.get_one::<u64>(name).expect("has a default");
    let mut eos_token_ids = tokenizer.eos_token_ids().to_vec();
    eos_token_ids.extend(model_eos.into_iter().filter(|id| !tokenizer.eos_token_ids().contains(id)));
    SamplingParams {
        max_new_tokens: whole("max-new-tokens") as usize,
        min_new_tokens: whole("min-new-tokens") as usize,
        temperature: number("temperature"),
        top_k: whole("top-k") as usize,
        top_p: number("top-p"),
        min_p: number("min-p"),
        repetition_penalty: number("repetition-penalty"),
        seed: whole("seed"),
        n: 1,
        stop: matches.get_many::<String>("stop").into_iter().flatten().cloned().collect(),
        eos_token_ids,
    }
}
