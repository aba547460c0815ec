//! `planish generate`: continue prompts.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::time::Instant;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use planish_nn::generate::{Generator, TokenEvent};
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
        .arg(
            Arg::new("timing")
                .long("timing")
                .action(ArgAction::SetTrue)
                .help("Say on stderr how long reading the prompts and decoding took; as a JSON line with --json"),
        )
        .arg(model_args::device())
        .arg(model_args::bf16())
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
    let mut timing = Timing::new(&prompts, params.n);
    let generator = Generator::new(&model).text(|| tokenizer.stream_decoder());
    let answers = generator.generate(&prompts, &params, &mut |event| {
        timing.token(event);
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
    }
    if matches.get_flag("timing") {
        timing.print(as_json);
    }
    if live {
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

/// When tokens came. Reading the prompts has ended when each sequence has its first token; what comes
/// after is decoding.
struct Timing {
    start: Instant,
    prompt_tokens: usize,
    /// Sequences without a token.
    waiting: usize,
    /// Seconds until each sequence had its first token.
    prefill_seconds: f64,
    new_tokens: usize,
    /// Tokens that came after.
    decoded: usize,
    /// Sequences that have a token.
    seen: HashSet<(usize, usize)>,
    /// Seconds until the last token.
    seconds: f64,
}

impl Timing {
    fn new(prompts: &[Vec<u32>], n: usize) -> Timing {
        let (prompt_tokens, waiting) = (prompts.iter().map(Vec::len).sum(), prompts.len() * n);
        let start = Instant::now();
        Timing {
            start,
            prompt_tokens,
            waiting,
            prefill_seconds: 0.0,
            new_tokens: 0,
            decoded: 0,
            seen: HashSet::new(),
            seconds: 0.0,
        }
    }

    fn token(&mut self, event: &TokenEvent<'_>) {
        self.seconds = self.start.elapsed().as_secs_f64();
        self.new_tokens += 1;
        if self.waiting == 0 {
            self.decoded += 1;
        } else if self.seen.insert((event.prompt, event.sample)) {
            self.waiting -= 1;
            self.prefill_seconds = self.seconds;
        }
    }

    fn print(&self, as_json: bool) {
        let decode_seconds = self.seconds - self.prefill_seconds;
        let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
        let (read, decoded) = (rate(self.prompt_tokens, self.prefill_seconds), rate(self.decoded, decode_seconds));
        if as_json {
            let line = json!({
                "prompt_tokens": self.prompt_tokens,
                "prefill_seconds": self.prefill_seconds,
                "new_tokens": self.new_tokens,
                "decoded_tokens": self.decoded,
                "decode_seconds": decode_seconds,
                "tokens_per_second": decoded,
            });
            output::note(line);
        } else {
            output::note(format_args!(
                "{} prompt tokens in {:.2} s ({read:.0} tokens/s), then {} tokens in {decode_seconds:.2} s ({decoded:.1} tokens/s)",
                self.prompt_tokens, self.prefill_seconds, self.decoded
            ));
        }
    }
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
