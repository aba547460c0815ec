//! `report.html`: a run, or several beside each other, as one self-contained page.
//!
//! The curves are SVG in the page itself, drawn here; a few lines of script, also in the page, add
//! the readings under the pointer. Nothing is loaded from anywhere.

mod chart;
mod page;

use std::fs;
use std::path::Path;

use serde_json::{Map, Value as Json};

use super::dir::{ADVICE, UNIT};
use super::error::RunError;
use super::metrics::read_metrics;
use chart::{Chart, Look, Series};

/// An answer before and after training.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Sample {
    /// What the model was asked.
    pub prompt: String,
    /// What it should say, where there is a reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Its answer before training.
    pub before: String,
    /// Its answer after training.
    pub after: String,
}

/// How a curve of the loss is to be read.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LossUnit {
    /// What it is divided by, after its own unit if it has one: `nats per token`, `per pair`.
    pub unit: String,
    /// A mean loss below this is one of what is known by heart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_heart: Option<f64>,
}

impl LossUnit {
    /// With both.
    pub fn new(unit: &str, by_heart: Option<f64>) -> LossUnit {
        LossUnit { unit: unit.to_owned(), by_heart }
    }
}

/// What a report is made of.
#[derive(Clone, Debug, Default)]
pub struct RunData {
    /// What the run is called: the name of its directory.
    pub name: String,
    /// The lines of `metrics.jsonl`.
    pub metrics: Vec<Map<String, Json>>,
    /// `config.yaml`.
    pub config: String,
    /// `facts.json`.
    pub facts: Vec<(String, String)>,
    /// `advice.jsonl`: what the run said, with the step.
    pub advice: Vec<(u64, String)>,
    /// `loss.json`; runs of earlier versions have none.
    pub unit: Option<LossUnit>,
    /// `samples.json`.
    pub samples: Vec<Sample>,
}

impl RunData {
    /// Reads a run directory. Only `metrics.jsonl` must be there.
    ///
    /// # Errors
    /// [`RunError::NotARun`], [`RunError::Line`], [`RunError::Io`].
    pub fn read(dir: &Path) -> Result<RunData, RunError> {
        let metrics = dir.join("metrics.jsonl");
        if !metrics.is_file() {
            return Err(RunError::NotARun { path: dir.to_owned() });
        }
        let facts: Map<String, Json> = read_json(&dir.join("facts.json"))?.unwrap_or_default();
        let resolved = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
        Ok(RunData {
            name: resolved.file_name().unwrap_or(resolved.as_os_str()).to_string_lossy().into_owned(),
            metrics: read_metrics(&metrics)?,
            config: fs::read_to_string(dir.join("config.yaml")).unwrap_or_default(),
            facts: facts
                .into_iter()
                .map(|(key, value)| {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    (key, text)
                })
                .collect(),
            advice: advice(&dir.join(ADVICE))?,
            unit: read_json(&dir.join(UNIT))?,
            samples: read_json(&dir.join("samples.json"))?.unwrap_or_default(),
        })
    }

    /// The points of one metric: (step, value).
    pub fn curve(&self, key: &str) -> Vec<(f64, f64)> {
        let point = |line: &Map<String, Json>| Some((line.get("step")?.as_f64()?, line.get(key)?.as_f64()?));
        self.metrics.iter().filter_map(point).collect()
    }
}

/// What a run said; nothing if the file is missing.
fn advice(path: &Path) -> Result<Vec<(u64, String)>, RunError> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let said = |line: Map<String, Json>| Some((line.get("step")?.as_u64()?, line.get("advice")?.as_str()?.to_owned()));
    Ok(read_metrics(path)?.into_iter().filter_map(said).collect())
}

/// A file that may be missing, but not be wrong.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, RunError> {
    let Ok(bytes) = fs::read(path) else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| RunError::Line {
        path: path.to_owned(),
        line: error.line(),
        problem: error.to_string(),
    })
}

/// The page for some runs; the curves of several share their axes.
pub fn html(runs: &[RunData]) -> String {
    let charts: Vec<Chart> = charts(runs).into_iter().filter(|chart| !chart.is_empty()).collect();
    page::render(runs, &charts)
}

/// Reads `dir`, writes its `report.html` and returns the run.
///
/// # Errors
/// As [`RunData::read`], and for a directory that takes no file.
pub fn write(dir: &Path) -> Result<RunData, RunError> {
    let run = RunData::read(dir)?;
    let page = html(std::slice::from_ref(&run));
    planish_nn::weights::atomic_write(dir.join("report.html"), |to| to.write_all(page.as_bytes()))?;
    Ok(run)
}

/// Metrics with a chart of their own, under these titles; the recipe's own follow by name.
const TITLES: &[(&str, &str)] = &[
    ("loss", "Loss"),
    ("learning_rate", "Learning rate"),
    ("grad_norm", "Gradient norm before clipping"),
    ("tokens_per_second", "Tokens per second"),
    ("peak_memory_bytes", "Peak memory (GB)"),
    ("aux_loss", "Balance of the experts"),
    ("router/entropy", "Entropy of the mean routing distribution (nats)"),
    ("router/load_max_over_mean", "Tokens of the most chosen expert over the mean"),
    ("router/dead_experts", "Experts that no token of the step chose"),
];
const NOT_DRAWN: &[&str] = &["step", "epoch", "tokens", "num_tokens", "step_seconds", "eval_loss"];

fn charts(runs: &[RunData]) -> Vec<Chart> {
    let mut charts: Vec<Chart> = TITLES.iter().map(|(key, title)| chart(runs, key, title)).collect();
    let mut own: Vec<&str> = Vec::new();
    for key in runs.iter().flat_map(|run| &run.metrics).flat_map(Map::keys) {
        let known = TITLES.iter().any(|(title, _)| title == key) || NOT_DRAWN.contains(&key.as_str());
        // A recipe has a dozen metrics of its own; a file with thousands is not one of ours.
        if !known && !own.contains(&key.as_str()) && own.len() < 40 {
            own.push(key);
        }
    }
    charts.extend(own.into_iter().map(|key| chart(runs, key, key)));
    charts
}

fn chart(runs: &[RunData], key: &str, title: &str) -> Chart {
    let mut series = Vec::new();
    for (color, run) in runs.iter().enumerate() {
        let label = |what: &str| match (runs.len(), what) {
            (1, what) => what.to_owned(),
            (_, "train") => run.name.clone(),
            (_, what) => format!("{} {what}", run.name),
        };
        let scale = if key == "peak_memory_bytes" { 1e-9 } else { 1.0 };
        let points: Vec<(f64, f64)> = run.curve(key).into_iter().map(|(x, y)| (x, y * scale)).collect();
        if key == "loss" {
            let smooth = smoothed(&points);
            let look = if smooth.is_empty() { Look::Line } else { Look::Faint };
            series.push(Series { label: label("train"), color, look, points });
            if !smooth.is_empty() {
                series.push(Series { label: label("smoothed"), color, look: Look::Line, points: smooth });
            }
            let held_out = run.curve("eval_loss");
            series.push(Series { label: label("held out"), color: color + 1, look: Look::Dots, points: held_out });
        } else {
            series.push(Series { label: label("train"), color, look: Look::Line, points });
        }
    }
    series.retain(|series| !series.points.is_empty());
    let mut title = title.to_owned();
    if key == "loss" {
        let unit = |run: &RunData| run.unit.as_ref().map(|of| of.unit.clone());
        if let Some(Some(common)) = runs.first().map(unit)
            && runs.iter().all(|run| unit(run).as_ref() == Some(&common))
        {
            title = format!("{title} ({common})");
        }
        series.extend(by_heart(runs, &series));
    }
    Chart { title, series }
}

/// The line below which a loss is one of what is known by heart, over all steps.
fn by_heart(runs: &[RunData], series: &[Series]) -> Option<Series> {
    let level = runs.iter().find_map(|run| run.unit.as_ref()?.by_heart)?;
    let steps = || series.iter().flat_map(|one| &one.points).map(|point| point.0);
    let (first, last) = (steps().min_by(f64::total_cmp)?, steps().max_by(f64::total_cmp)?);
    let points = vec![(first, level), (last, level)];
    Some(Series { label: "learnt by heart".to_owned(), color: 5, look: Look::Level, points })
}

/// Exponential mean over about a twentieth of the run, without the bias to its start. Nothing for
/// runs too short to need it.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() < 30 {
        return Vec::new();
    }
    let decay = 1.0 - 20.0 / points.len() as f64;
    let decay = decay.clamp(0.6, 0.98);
    let (mut sum, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|(x, y)| {
            sum = decay * sum + (1.0 - decay) * y;
            weight = decay * weight + (1.0 - decay);
            (*x, sum / weight)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, steps: u64) -> RunData {
        let metrics = (1..=steps).map(|step| {
            let loss = 2.0 / (step as f64).sqrt();
            let mut line = serde_json::json!({"step": step, "loss": loss, "learning_rate": 1e-4,
                "grad_norm": null, "tokens_per_second": 100, "peak_memory_bytes": 1_u64 << 30});
            if step % 10 == 0 {
                line["eval_loss"] = (loss + 0.1).into();
                line["rewards/chosen"] = 1.0.into();
            }
            line.as_object().unwrap().clone()
        });
        let unit = Some(LossUnit::new("nats per token", None));
        RunData { name: name.into(), metrics: metrics.collect(), unit, ..RunData::default() }
    }

    #[test]
    fn a_page_has_every_curve_and_loads_nothing() {
        let page = html(&[run("one", 100)]);
        for title in ["Loss (nats per token)", "Learning rate", "Tokens per second", "rewards/chosen"] {
            assert!(page.contains(title), "{title}");
        }
        assert!(!page.contains("Gradient norm"), "a metric without a number has no chart");
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!page.replace("http://www.w3.org/2000/svg", "").contains(outside), "{outside}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf,"));
    }

    #[test]
    fn what_users_and_models_wrote_is_text_and_not_markup() {
        let evil = "</script><script>alert(1)</script>\u{2028}";
        let mut data = run(evil, 5);
        data.config = evil.into();
        data.advice = vec![(3, evil.into())];
        data.unit = Some(LossUnit::new(evil, Some(0.1)));
        data.facts = vec![(evil.into(), evil.into())];
        data.samples =
            vec![Sample { prompt: evil.into(), reference: Some(evil.into()), before: evil.into(), after: evil.into() }];
        let mut other = run("other", 5);
        other.metrics[0].insert(evil.into(), 1.0.into());
        let page = html(&[data, other]);
        assert!(!page.contains("<script>alert"), "an angle bracket came through");
    }

    #[test]
    fn advice_and_the_unit_of_the_loss_are_shown() {
        let mut pairs = run("pairs", 40);
        assert!(!html(&[pairs.clone()]).contains("learnt by heart"));
        pairs.unit = Some(LossUnit::new("per pair", Some(0.1)));
        pairs.advice = vec![(10, "one thing".into()), (30, "and another".into())];
        let page = html(&[pairs.clone()]);
        assert!(page.contains("Loss (per pair)") && !page.contains("nats per token"), "{page}");
        assert!(page.contains("step 10") && page.contains("one thing") && page.contains("and another"));
        // A level line, whose reading is not one of the run's.
        assert!(page.contains("class=\"line c5 level\"") && page.contains("learnt by heart"));
        assert!(!page.contains("\"label\":\"learnt by heart\""));
        // Of two runs, what they have in common.
        let both = html(&[pairs, run("tokens", 40)]);
        assert!(!both.contains("Loss (") && both.contains("<figcaption>Loss<"));
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("metrics.jsonl"), "{\"step\":1,\"loss\":2.5}\n").unwrap();
        let bare = RunData::read(dir.path()).unwrap();
        assert!(bare.advice.is_empty() && bare.unit.is_none());
        fs::write(dir.path().join("advice.jsonl"), "{\"step\":1,\"advice\":\"so\"}\n").unwrap();
        fs::write(dir.path().join("loss.json"), "{\"unit\":\"per row\"}").unwrap();
        let read = RunData::read(dir.path()).unwrap();
        assert_eq!((read.advice, read.unit), (vec![(1, "so".into())], Some(LossUnit::new("per row", None))));
    }

    #[test]
    fn empty_and_single_point_runs_have_a_page() {
        assert!(html(&[run("none", 0)]).contains("no metrics yet"));
        let page = html(&[run("one", 1)]);
        assert!(page.contains("<svg") && !page.contains("NaN"));
    }

    #[test]
    fn smoothing_keeps_a_constant_and_follows_a_step() {
        let flat: Vec<(f64, f64)> = (0..100).map(|x| (f64::from(x), 3.0)).collect();
        assert!(smoothed(&flat).iter().all(|(_, y)| (y - 3.0).abs() < 1e-12));
        let step: Vec<(f64, f64)> = (0..200).map(|x| (f64::from(x), f64::from(x / 100))).collect();
        let smooth = smoothed(&step);
        assert!(smooth[99].1 < 1e-12 && smooth[199].1 > 0.99);
    }

    #[test]
    fn a_directory_without_metrics_is_no_run() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(RunData::read(dir.path()), Err(RunError::NotARun { .. })));
        fs::write(dir.path().join("metrics.jsonl"), "{\"step\":1,\"loss\":2.5}\n").unwrap();
        let run = write(dir.path()).unwrap();
        assert_eq!(run.curve("loss"), [(1.0, 2.5)]);
        assert!(fs::read_to_string(dir.path().join("report.html")).unwrap().starts_with("<!doctype html>"));
    }
}
