//! What writing a tuned model in fewer bits has done to it: `merge --requantize` and `export`.

use std::fs;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, value_parser};
use planish_nn::Ctx;
use planish_nn::decoder::Model;
use planish_nn::drift::drift;
use planish_nn::tokenizer::Tokenizer;
use serde::Serialize;

use crate::{model_args, output};

/// A text to compare models on where none is given.
const TEXT: &str = "The quick brown fox jumps over the lazy dog. A dozen eggs cost three dollars, so two dozen cost six. \
    Water boils at one hundred degrees. She asked him where he had been, and he said that he had been at the library \
    all day, reading about ships. In the morning they went to the market to buy bread, apples and a little cheese.";

/// Most tokens of the text that are compared.
const TOKENS: usize = 512;

/// `--text`.
pub(super) fn text_flag() -> Arg {
    Arg::new("text")
        .long("text")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("Text to compare the models on [a short one]")
}

/// The tokens to compare on: of a text of which it is known now, and not after all the work, that it has any.
///
/// # Errors
/// A file that cannot be read; a text without tokens.
pub(super) fn tokens(matches: &ArgMatches, model: &Model, tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
    let text = match matches.get_one::<PathBuf>("text") {
        Some(path) => {
            fs::read_to_string(path).map_err(|source| planish_nn::Error::Io { path: path.clone(), source })?
        }
        None => TEXT.to_owned(),
    };
    let mut ids = tokenizer.encode(&text, true).map_err(planish_nn::Error::from)?;
    ids.truncate(TOKENS.min(model.config.max_positions));
    match ids.is_empty() {
        true => Err(model_args::wrong("the text to compare on has no tokens")),
        false => Ok(ids),
    }
}

/// How far the result is from the tuned model, and the base, without its adapter, for comparison.
#[derive(Serialize)]
pub(super) struct Drifted {
    /// Of the model with its adapter from the result, nats.
    kl: f64,
    top1_agreement: f64,
    /// Of the model with its adapter from that without, nats; 0 where there is no adapter.
    kl_of_base: f64,
    tokens: usize,
    /// Whether there is an adapter, and the result is no nearer to the tuned model than the base is.
    lost: bool,
}

impl Drifted {
    /// Compares on these tokens. `adapted` is whether `tuned` has an adapter.
    ///
    /// # Errors
    /// Those of the kernels.
    pub(super) fn measure(
        (tuned, adapted): (&Model, bool),
        result: &Model,
        ids: &[u32],
    ) -> planish_nn::Result<Drifted> {
        let with = Ctx::inference();
        let now = drift((tuned, &with), (result, &with), ids)?;
        let kl_of_base = match adapted {
            true => drift((tuned, &with), (tuned, &Ctx::inference().without_adapters()), ids)?.kl,
            false => 0.0,
        };
        let lost = adapted && !(now.kl < kl_of_base);
        Ok(Drifted { kl: now.kl, top1_agreement: now.agreement, kl_of_base, tokens: now.tokens, lost })
    }

    /// Says so if the fine-tune was lost; `instead` is what to do.
    pub(super) fn warn(&self, instead: &str) {
        if self.lost {
            output::note(format_args!(
                "warning: quantising the merged weights lost what the adapter had learned: on {} tokens the result is {:.4} nats from \
                 the tuned model and the base without the adapter {:.4}. {instead}, or serve the adapter",
                self.tokens, self.kl, self.kl_of_base
            ));
        }
    }

    /// A line of it.
    pub(super) fn sentence(&self, of: &str) -> String {
        let Drifted { kl, tokens, kl_of_base, lost: _, top1_agreement } = self;
        let base = match *kl_of_base > 0.0 {
            true => format!("; the base is {kl_of_base:.4} from it"),
            false => String::new(),
        };
        format!(
            "{of}: {kl:.4} nats from the model before on {tokens} tokens ({:.1}% of the next tokens the same){base}",
            100.0 * top1_agreement
        )
    }
}
