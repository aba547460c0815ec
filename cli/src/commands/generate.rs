//! `planish generate`: continue prompts.

use std::collections::HashSet;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use planish_nn::generate::{Generator, TokenEvent};
use serde_json::json;

use super::requests::Request;
use super::{answers, json_flag, requests, sampling};
use crate::failure::DONE;
use crate::{model_args, output};

pub(crate) fn command() -> Command {
    let command = Command::new("generate").about("Answer prompts");
    let command = requests::with_flags(model_args::with_quantisation(model_args::with_flags(command)))
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
        .arg(answers::flag())
        .arg(model_args::device())
        .arg(model_args::bf16())
        .arg(json_flag());
    sampling::with_flags(command)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let to = answers::file(matches)?;
    let adapters = requests::adapters(matches)?;
    let (names, dirs): (Vec<String>, Vec<PathBuf>) = adapters.into_iter().unzip();
    let (model, tokenizer) = model_args::open_with(matches, &dirs)?;
    let requests = requests::read(matches, &tokenizer, &names)?;
    let model = model_args::for_decoding(model)?;
    let prompts: Vec<&[u32]> = requests.iter().map(|r| &r.ids[..]).collect();
    let mut params = sampling::read(matches, &tokenizer, model.config.eos_token_ids());
    params.n = *matches.get_one::<u64>("n").expect("has a default") as usize;
    let as_json = matches.get_flag("json");
    // One answer is shown as it comes, several when all are there.
    let live = !as_json && to.is_none() && prompts.len() == 1 && params.n == 1;
    let mut stdout = std::io::stdout();
    let mut broken = None;
    let mut timing = Timing::new(&prompts, params.n);
    let generator = Generator::new(&model)
        .cuda_graphs(sampling::cuda_graphs(matches))
        .adapter_of(|prompt| requests[prompt].adapter)
        .text(|| tokenizer.stream_decoder());
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
    let of = |request: &Request| {
        if names.is_empty() { None } else { Some(request.adapter.map_or("base", |i| names[i].as_str())) }
    };
    if let Some(to) = to {
        let rows = requests.iter().zip(&answers);
        answers::write(to, rows.flat_map(|(r, all)| all.iter().map(move |a| answers::row(r, of(r), a))))?;
        if !as_json {
            return Ok(DONE);
        }
    }
    let mut all = Vec::new();
    for (request, answers) in requests.iter().zip(&answers) {
        let adapter = of(request);
        for (sample, a) in answers.iter().enumerate() {
            if as_json {
                all.push(json!({
                    "prompt": request.prompt, "adapter": adapter, "sample": sample, "text": a.text,
                    "prompt_ids": request.ids, "ids": a.ids, "logprobs": a.logprobs, "finish_reason": a.finish.name(),
                }));
            } else {
                let by = adapter.filter(|_| names.len() > 1).map(|name| format!(" {name}")).unwrap_or_default();
                output::line(format_args!("──{by} {} [{}]\n{}", request.shown(), sample + 1, a.text))?;
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
    fn new(prompts: &[&[u32]], n: usize) -> Timing {
        let (prompt_tokens, waiting) = (prompts.iter().map(|ids| ids.len()).sum(), prompts.len() * n);
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
