//! `planish report RUN_DIR…`: make the page of a run again, or one page for several.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};
use planish_nn::weights::atomic_write;
use planish_train::run::RunError;
use planish_train::run::report::{RunData, html};
use serde_json::json;

use super::json_flag;
use crate::failure::{DONE, UsageError};
use crate::output;

pub(crate) fn command() -> Command {
    let path = || value_parser!(PathBuf);
    Command::new("report")
        .about("Write report.html for a run, or one page that compares several")
        .arg(Arg::new("runs").value_name("RUN_DIR").required(true).num_args(1..).value_parser(path()))
        .arg(
            Arg::new("output")
                .long("output")
                .short('o')
                .value_name("FILE")
                .value_parser(path())
                .help("Where to write [default: report.html in the run directory; must be given for several]"),
        )
        .arg(json_flag())
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let dirs: Vec<&PathBuf> = matches.get_many("runs").into_iter().flatten().collect();
    let output = match (matches.get_one::<PathBuf>("output"), dirs.as_slice()) {
        (Some(output), _) => output.clone(),
        (None, [dir]) => dir.join("report.html"),
        (None, _) => {
            let sentence = "a page for several runs needs a place: give --output FILE".to_owned();
            return Err(UsageError::Arguments { sentence }.into());
        }
    };
    let runs: Vec<RunData> = dirs.iter().map(|dir| RunData::read(dir)).collect::<Result<_, RunError>>()?;
    let page = html(&runs);
    atomic_write(&output, |to| to.write_all(page.as_bytes())).context("the report was not written")?;
    if matches.get_flag("json") {
        output::json(&summary(&runs, &output))?;
    } else {
        output::line(output.display())?;
    }
    Ok(DONE)
}

fn summary(runs: &[RunData], output: &Path) -> serde_json::Value {
    let last = |run: &RunData, key: &str| run.curve(key).last().map(|point| point.1);
    let runs: Vec<serde_json::Value> = runs
        .iter()
        .map(|run| {
            json!({
                "name": run.name,
                "steps": last(run, "step"),
                "loss": last(run, "loss"),
                "eval_loss": last(run, "eval_loss"),
            })
        })
        .collect();
    json!({ "report": output, "runs": runs })
}
