//! `planish quickstart`: fine-tune the model inside the program, and see what it did.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, value_parser};
use planish_nn::adapters::load_adapter;
use planish_nn::decoder::Model;
use planish_nn::generate::{Generator, SamplingParams};
use planish_nn::template::{ChatOptions, Message, encode_chat};
use planish_nn::tokenizer::Tokenizer;
use planish_train::builtin;
use planish_train::config::{Recipe, SftConfig, WeightDtype, from_yaml};
use planish_train::models::{self, BUILTIN};
use planish_train::recipes::sft;
use planish_train::run::report::{self, Sample};
use planish_train::run::{Outcome, RunDir};
use serde_json::{Value, json};

use super::json_flag;
use crate::failure::DONE;
use crate::model_args;
use crate::output::{self, note};
use crate::terminal::{INTERRUPTED, Terminal, catch_interrupts};

/// Answers shown before and after.
const SHOWN: usize = 3;

pub(crate) fn command() -> Command {
    Command::new("quickstart")
        .about("Fine-tune the model inside the program with LoRA, in about a minute, with nothing to download")
        .arg(
            Arg::new("output-dir")
                .long("output-dir")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("New directory for the run [planish-quickstart, or the next free number]"),
        )
        .arg(model_args::threads())
        .arg(json_flag())
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    model_args::set_threads(matches.get_one::<u64>("threads").map(|&n| n as usize))?;
    let out = matches.get_one::<PathBuf>("output-dir").cloned().unwrap_or_else(free_name);
    let mut config: SftConfig = from_yaml(&settings(&out), Path::new("quickstart.yaml"))?;
    config.run.output_dir = out.to_string_lossy().into_owned();
    config.check_together()?;
    catch_interrupts()?;
    // Before any question is asked: what is in the way would be said a minute later.
    RunDir::create(&out, false)?;

    let opened = models::open(BUILTIN, "main", &mut |_| {})?;
    let held_out = questions(builtin::heldout())?;
    note(format_args!(
        "the model inside the program has {} parameters; asking it {} held-out questions before training",
        opened.load(WeightDtype::Auto, false)?.num_params(),
        held_out.len()
    ));
    let tokenizer = &opened.tokenizer;
    let before = ask(&opened.load(config.model.dtype, false)?, tokenizer, &held_out)?;
    let mut seen = Terminal::new(config.run.logging_steps).without_preflight();
    let result = match sft::run(&config, &mut seen)? {
        Outcome::Finished { result } => result,
        Outcome::Interrupted { checkpoint } => {
            note(format_args!("interrupted; the state is in {}", checkpoint.display()));
            return Ok(INTERRUPTED);
        }
        _ => anyhow::bail!("the run ended in a way this program does not know"),
    };
    let mut tuned = opened.load(config.model.dtype, false)?;
    load_adapter(&mut tuned, &result)?;
    let after = ask(&tuned, tokenizer, &held_out)?;

    let samples: Vec<Sample> = held_out
        .iter()
        .zip(before.iter().zip(&after))
        .take(SHOWN)
        .map(|(q, (before, after))| Sample {
            prompt: q.text.clone(),
            reference: Some(q.answer.clone()),
            before: before.clone(),
            after: after.clone(),
        })
        .collect();
    keep_samples(&out, &samples)?;
    let loss = |i: Option<&(u64, Vec<(String, f64)>)>| {
        i.and_then(|(_, m)| m.iter().find(|(name, _)| name == "eval_loss")).map_or(f64::NAN, |(_, x)| *x)
    };
    let facts = Facts {
        loss: [loss(seen.evaluations.first()), loss(seen.evaluations.last())],
        exact: [share(&held_out, &before), share(&held_out, &after)],
        questions: held_out.len(),
    };
    if matches.get_flag("json") {
        output::json(&json!({
            "run_dir": out, "adapter": result, "questions": facts.questions,
            "eval_loss": { "before": facts.loss[0], "after": facts.loss[1] },
            "exact_match": { "before": facts.exact[0], "after": facts.exact[1] },
            "samples": samples,
        }))?;
    } else {
        print(&facts, &samples, &out, &result)?;
    }
    Ok(DONE)
}

struct Facts {
    loss: [f64; 2],
    exact: [f64; 2],
    questions: usize,
}

fn print(facts: &Facts, samples: &[Sample], out: &Path, adapter: &Path) -> anyhow::Result<()> {
    let percent = |x: f64| format!("{:.1}%", 100.0 * x);
    output::line(format_args!(
        "{:<34}{:>10}{:>10}",
        format!("on {} held-out questions", facts.questions),
        "before",
        "after"
    ))?;
    output::line(format_args!("{:<34}{:>10.3}{:>10.3}", "loss (nats per token)", facts.loss[0], facts.loss[1]))?;
    output::line(format_args!(
        "{:<34}{:>10}{:>10}",
        "answers exactly right",
        percent(facts.exact[0]),
        percent(facts.exact[1])
    ))?;
    let one_line = |text: &str| text.trim().replace('\n', " / ");
    for s in samples {
        output::line(format_args!("\nquestion  {}", one_line(&s.prompt)))?;
        output::line(format_args!("  wanted  {}", one_line(s.reference.as_deref().unwrap_or_default())))?;
        output::line(format_args!("  before  {}", one_line(&s.before)))?;
        output::line(format_args!("  after   {}", one_line(&s.after)))?;
    }
    output::line(format_args!(
        "\nthe run is in {}; its curves are in {}",
        out.display(),
        out.join("report.html").display()
    ))?;
    output::line("try next:")?;
    output::line(format_args!("  planish chat --model builtin --adapter {}", adapter.display()))?;
    output::line(format_args!("  planish merge --model builtin --adapter {} --output-dir merged", adapter.display()))?;
    output::line("  planish sft --model builtin --dataset your.jsonl --output-dir run --use-peft")?;
    Ok(())
}

/// A question of the held-out set.
struct Question {
    text: String,
    prompt: Vec<Message>,
    answer: String,
}

fn questions(rows: &str) -> anyhow::Result<Vec<Question>> {
    rows.lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line)?;
            let messages = |key: &str| -> Vec<Message> {
                let all = row[key].as_array().map(Vec::as_slice).unwrap_or_default();
                all.iter()
                    .map(|m| {
                        Message::new(m["role"].as_str().unwrap_or_default(), m["content"].as_str().unwrap_or_default())
                    })
                    .collect()
            };
            let (prompt, answer) = (messages("prompt"), messages("completion"));
            let text = |m: &[Message]| m.last().map(|m| m.content.clone()).unwrap_or_default();
            Ok(Question { text: text(&prompt), answer: text(&answer), prompt })
        })
        .collect()
}

/// The model's most probable answers.
fn ask(model: &Model, tokenizer: &Tokenizer, questions: &[Question]) -> anyhow::Result<Vec<String>> {
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    let prompts = questions
        .iter()
        .map(|q| Ok(encode_chat(tokenizer, &q.prompt, &options).map_err(planish_nn::Error::from)?.ids))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let params = SamplingParams {
        max_new_tokens: 48,
        temperature: 0.0,
        eos_token_ids: tokenizer.eos_token_ids().to_vec(),
        ..SamplingParams::default()
    };
    let answers =
        Generator::new(model).text(|| tokenizer.stream_decoder()).generate(&prompts, &params, &mut |_| true)?;
    Ok(answers.into_iter().map(|mut samples| samples.swap_remove(0).text).collect())
}

/// Share of the answers that are the reference to the letter.
fn share(questions: &[Question], answers: &[String]) -> f64 {
    let right = questions.iter().zip(answers).filter(|(q, a)| q.answer.trim() == a.trim()).count();
    right as f64 / questions.len().max(1) as f64
}

/// Puts the answers into the run's report.
fn keep_samples(run: &Path, samples: &[Sample]) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(samples)?;
    planish_nn::weights::atomic_write(run.join("samples.json"), |to| to.write_all(&text))?;
    report::write(run)?;
    Ok(())
}

/// The settings inside the program, completed.
fn settings(out: &Path) -> String {
    let out = serde_json::Value::from(out.to_string_lossy().as_ref());
    format!(
        "{}\nmodel: builtin\ndataset: builtin\neval_dataset: builtin\neval_strategy: epoch\neval_on_start: true\n\
         save_strategy: \"no\"\noutput_dir: {out}\n",
        builtin::quickstart_settings()
    )
}

/// `planish-quickstart`, or with the first number that is free.
fn free_name() -> PathBuf {
    let names =
        std::iter::once("planish-quickstart".to_owned()).chain((2..).map(|n| format!("planish-quickstart-{n}")));
    names.map(PathBuf::from).find(|path| !path.exists()).expect("some number is free")
}
