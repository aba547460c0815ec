//! `planish chat`: a conversation with the model.

use std::io::{BufRead, IsTerminal, Write};

use clap::{Arg, ArgMatches, Command};
use planish_nn::generate::Generator;
use planish_nn::template::{ChatOptions, Message, encode_chat};

use super::sampling;
use crate::failure::DONE;
use crate::{model_args, output};

pub(crate) fn command() -> Command {
    let command = Command::new("chat").about("Talk with a model; /clear forgets, /exit ends");
    let command = model_args::with_quantisation(model_args::with_flags(command))
        .arg(Arg::new("system").long("system").value_name("TEXT").help("The system message"))
        .arg(model_args::device())
        .arg(model_args::bf16());
    sampling::with_flags(command)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let (model, tokenizer) = model_args::open(matches)?;
    if tokenizer.chat_template().is_none() {
        return Err(model_args::wrong(
            "this model has no chat template, so it cannot chat; use `planish generate --raw`",
        ));
    }
    let params = sampling::read(matches, &tokenizer, model.config.eos_token_ids());
    params.validate()?;
    let model = model_args::for_decoding(model)?;
    let opening = || -> Vec<Message> {
        matches.get_one::<String>("system").map(|s| Message::new("system", s)).into_iter().collect()
    };
    let (mut messages, mut stdout, stdin) = (opening(), std::io::stdout(), std::io::stdin());
    let prompting = stdin.is_terminal();
    let mut turn = 0;
    loop {
        if prompting {
            write!(stdout, "> ")?;
            stdout.flush()?;
        }
        let mut line = String::new();
        if stdin
            .lock()
            .read_line(&mut line)
            .map_err(|e| model_args::wrong(format!("cannot read what was said: {e}")))?
            == 0
        {
            return Ok(DONE);
        }
        match line.trim() {
            "" => continue,
            "/exit" | "/quit" => return Ok(DONE),
            "/clear" => {
                messages = opening();
                output::note("(forgotten)");
                continue;
            }
            said => messages.push(Message::new("user", said)),
        }
        let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
        let prompt = encode_chat(&tokenizer, &messages, &options).map_err(planish_nn::Error::from)?.ids;
        let mut broken = None;
        // Each turn draws its own numbers.
        let generator = Generator::new(&model)
            .cuda_graphs(sampling::cuda_graphs(matches))
            .first_prompt(turn)
            .text(|| tokenizer.stream_decoder());
        let mut answers = generator.generate(&[prompt], &params, &mut |event| {
            broken = stdout.write_all(event.text.as_bytes()).and_then(|()| stdout.flush()).err();
            broken.is_none()
        })?;
        if let Some(error) = broken {
            return Err(error.into());
        }
        output::line("")?;
        messages.push(Message::new("assistant", answers.swap_remove(0).swap_remove(0).text));
        turn += 1;
    }
}
