//! `planish generate`: continue prompts.

use std::io::{Read, Write};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use planish_nn::generate::Generator;
use planish_nn::template::{ChatOptions, Message, encode_chat};
use planish_nn::tokenizer::Tokenizer;
use serde_json::json;

use super::{json_flag, sampling};
use crate::failure::DONE;
use crate::{model_args, output};

pub(crate) fn command() -> Command {
    let command = Command::new("generate").about("Answer prompts");
    let command = model_args::with_flags(command)
        .arg(
            Arg::new("prompt")
                .long("prompt")
                .short('p')
                .value_name("TEXT")
                .action(ArgAction::Append)
                .help("A prompt; may be repeated [read from stdin]"),
        )
        .arg(Arg::new("system").long("system").value_name("TEXT").help("The system message of the chat template"))
        .arg(
            Arg::new("raw")
                .long("raw")
                .action(ArgAction::SetTrue)
                .help("Continue the text as it is, without the chat template"),
        )
        .arg(
            Arg::new("n")
                .long("n")
                .short('n')
                .value_name("N")
                .default_value("1")
                .value_parser(value_parser!(u64))
                .help("Answers to each prompt"),
        )
        .arg(json_flag());
    sampling::with_flags(command)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let (model, tokenizer) = model_args::open(matches)?;
    let mut texts: Vec<String> = matches.get_many::<String>("prompt").into_iter().flatten().cloned().collect();
    if texts.is_empty() {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| model_args::wrong(format!("cannot read the prompt from stdin: {e}")))?;
        texts.push(text.trim_end_matches('\n').to_owned());
    }
    let system = matches.get_one::<String>("system").map(String::as_str);
    let raw = matches.get_flag("raw");
    let prompts = texts.iter().map(|t| encode(&tokenizer, t, system, raw)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut params = sampling::read(matches, &tokenizer, model.config.eos_token_ids());
    params.n = *matches.get_one::<u64>("n").expect("has a default") as usize;
    let as_json = matches.get_flag("json");
    // One answer is shown as it comes, several when all are there.
    let live = !as_json && prompts.len() == 1 && params.n == 1;
    let mut stdout = std::io::stdout();
    let mut broken = None;
    let generator = Generator::new(&model).text(|| tokenizer.stream_decoder());
    let answers = generator.generate(&prompts, &params, &mut |event| {
        if live {
            let written = stdout.write_all(event.text.as_bytes()).and_then(|()| stdout.flush());
            broken = written.err();
        }
        broken.is_none()
    })?;
    if let Some(error) = broken {
        return Err(error.into());
    }
    if live {
        output::line("")?;
        return Ok(DONE);
    }
    let mut all = Vec::new();
    for ((text, prompt), answers) in texts.iter().zip(&prompts).zip(&answers) {
        for (sample, a) in answers.iter().enumerate() {
            if as_json {
                all.push(json!({
                    "prompt": text, "sample": sample, "text": a.text, "prompt_ids": prompt, "ids": a.ids,
                    "logprobs": a.logprobs, "finish_reason": a.finish.name(),
                }));
            } else {
                output::line(format_args!("── {text} [{}]\n{}", sample + 1, a.text))?;
            }
        }
    }
    if as_json {
        output::json(&all)?;
    }
    Ok(DONE)
}

/// Ids of a prompt: through the chat template if there is one and `raw` does not forbid it.
fn encode(tokenizer: &Tokenizer, text: &str, system: Option<&str>, raw: bool) -> anyhow::Result<Vec<u32>> {
    if raw || tokenizer.chat_template().is_none() {
        if system.is_some() {
            return Err(model_args::wrong("--system needs a chat template: the model has none, or --raw is given"));
        }
        return Ok(tokenizer.encode(text, true).map_err(planish_nn::Error::from)?);
    }
    let mut messages: Vec<Message> = system.map(|s| Message::new("system", s)).into_iter().collect();
    messages.push(Message::new("user", text));
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    Ok(encode_chat(tokenizer, &messages, &options).map_err(planish_nn::Error::from)?.ids)
}
