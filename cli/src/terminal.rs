//! A run as seen from the terminal: progress, Ctrl-C, and what it came to.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use planish_nn::hub::Progress;
use planish_train::config::ModelSettings;
use planish_train::data::{Preflight, render};
use planish_train::run::{Observer, Outcome, RunPlan, StepMetrics};
use serde_json::json;

use crate::model_args;
use crate::output::{self, note};

/// Interrupted, after a saved checkpoint.
pub(crate) const INTERRUPTED: u8 = 130;

/// How often Ctrl-C was pressed.
static PRESSED: AtomicUsize = AtomicUsize::new(0);

/// Makes the first Ctrl-C a wish to stop after the step, and the second one a command.
///
/// # Errors
/// A system without signals.
pub(crate) fn catch_interrupts() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if PRESSED.fetch_add(1, Ordering::SeqCst) > 0 {
            std::process::exit(INTERRUPTED.into());
        }
        note("finishing the step, then saving; press Ctrl-C again to stop at once");
    })
    .context("cannot listen to Ctrl-C")
}

/// Draws a run on stderr: a bar where that is a terminal, else a line every few steps.
pub(crate) struct Terminal {
    bar: Option<ProgressBar>,
    download: Option<ProgressBar>,
    logging_steps: u64,
    losses: Vec<f64>,
    total: u64,
    /// Evaluations: step and metrics.
    pub(crate) evaluations: Vec<(u64, Vec<(String, f64)>)>,
    last: Option<StepMetrics>,
    quiet_preflight: bool,
    /// What is to be said of the model when the run begins.
    of_model: Option<String>,
}

impl Terminal {
    /// Lines every `logging_steps` steps where there is no terminal.
    pub(crate) fn new(logging_steps: u64) -> Terminal {
        Terminal {
            bar: None,
            download: None,
            logging_steps: logging_steps.max(1),
            losses: Vec::new(),
            total: 0,
            evaluations: Vec::new(),
            last: None,
            quiet_preflight: false,
            of_model: None,
        }
    }

    /// The same with a note on the adapter, if it was made for another model.
    pub(crate) fn with_model(mut self, model: &ModelSettings) -> Terminal {
        let adapter = model.adapter.as_ref();
        self.of_model = adapter.and_then(|adapter| model_args::other_base(Path::new(adapter), &model.model));
        self
    }

    /// The same without the report on the data.
    pub(crate) fn without_preflight(mut self) -> Terminal {
        self.quiet_preflight = true;
        self
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) if !bar.is_hidden() => bar.println(text),
            _ => note(text),
        }
    }
}

impl Observer for Terminal {
    fn downloading(&mut self, progress: &Progress<'_>) {
        let bar = self.download.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}");
            ProgressBar::new(progress.total).with_style(style.expect("a valid template"))
        });
        bar.set_message(progress.file.to_owned());
        bar.set_position(progress.done);
        if progress.done == progress.total {
            bar.finish_and_clear();
        }
    }

    fn preflight(&mut self, report: &Preflight) {
        if !self.quiet_preflight {
            note(render(report, colour()));
        }
        for warning in &report.warnings {
            note(format_args!("note: {warning}"));
        }
    }

    fn started(&mut self, plan: &RunPlan) {
        self.total = plan.total_steps;
        if let Some(sentence) = self.of_model.take() {
            self.say(&sentence);
        }
        let share = 100.0 * plan.trainable_parameters as f64 / plan.parameters.max(1) as f64;
        self.say(&format!(
            "training {} of {} parameters ({share:.2}%) for {} steps{} into {}",
            plan.trainable_parameters,
            plan.parameters,
            plan.total_steps,
            if plan.first_step > 0 { format!(", from step {}", plan.first_step) } else { String::new() },
            plan.run_dir.display()
        ));
        let style = ProgressStyle::with_template("{pos}/{len} {wide_bar:.cyan/blue} {msg} ETA {eta}");
        let bar = ProgressBar::with_draw_target(Some(plan.total_steps), ProgressDrawTarget::stderr());
        bar.set_style(style.expect("a valid template"));
        bar.set_position(plan.first_step);
        // What was done before the interruption is no measure of speed.
        bar.reset_eta();
        bar.enable_steady_tick(Duration::from_millis(250));
        self.bar = Some(bar);
    }

    fn stepped(&mut self, m: &StepMetrics) {
        self.losses.push(m.loss);
        let memory = m.peak_memory_bytes as f64 / (1u64 << 30) as f64;
        let text = format!("loss {:.4}  {:.0} tokens/s  {memory:.2} GiB", m.loss, m.tokens_per_second);
        if let Some(bar) = &self.bar {
            bar.set_position(m.step);
            bar.set_message(text.clone());
            if bar.is_hidden() && (m.step.is_multiple_of(self.logging_steps) || m.step == self.total) {
                note(format_args!(
                    "step {}/{}  {text}  lr {:.3e}  grad norm {:.3}",
                    m.step, self.total, m.learning_rate, m.grad_norm
                ));
            }
        }
        self.last = Some(m.clone());
    }

    fn evaluated(&mut self, step: u64, metrics: &[(String, f64)]) {
        let text: Vec<String> = metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        self.say(&format!("step {step}: {}", text.join("  ")));
        self.evaluations.push((step, metrics.to_vec()));
    }

    fn saved(&mut self, checkpoint: &Path) {
        self.say(&format!("saved {}", checkpoint.display()));
    }

    fn note(&mut self, sentence: &str) {
        self.say(sentence);
    }

    fn interrupted(&mut self) -> bool {
        PRESSED.load(Ordering::SeqCst) > 0
    }

    fn finished(&mut self, _outcome: &Outcome) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if let (Some(first), Some(last)) = (self.losses.first(), self.losses.last()) {
            note(format_args!("loss {first:.4} {} {last:.4}", sparkline(&self.losses, 48)));
        }
    }
}

/// Whether stderr shows colours.
fn colour() -> bool {
    use std::io::IsTerminal;
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Prints what a run came to, and returns the exit code.
///
/// # Errors
/// A closed stdout.
pub(crate) fn conclude(outcome: &Outcome, seen: &Terminal, as_json: bool) -> anyhow::Result<u8> {
    let (state, path, code) = match outcome {
        Outcome::Finished { result } => ("finished", result, 0),
        Outcome::Interrupted { checkpoint } => ("interrupted", checkpoint, INTERRUPTED),
        _ => anyhow::bail!("the run ended in a way this program does not know"),
    };
    if as_json {
        let last = seen.last.as_ref().map(StepMetrics::to_json);
        output::json(&json!({ "state": state, "path": path, "last": last }))?;
    } else {
        output::line(path.display())?;
        if code == INTERRUPTED {
            note("go on with the same command and --resume-from-checkpoint latest");
        }
    }
    Ok(code)
}

/// The values as a line of bars, the mean of a stretch each; `-` where there is no finite value.
pub(crate) fn sparkline(values: &[f64], width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let n = values.len();
    let width = width.min(n);
    let means: Vec<f64> = (0..width)
        .map(|i| &values[i * n / width..((i + 1) * n / width).max(i * n / width + 1)])
        .map(|part| part.iter().sum::<f64>() / part.len() as f64)
        .collect();
    let finite = || means.iter().copied().filter(|x| x.is_finite());
    let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
    let bar = |x: f64| match x.is_finite() {
        false => '-',
        true if high <= low => BARS[0],
        true => BARS[((x - low) / (high - low) * 7.0).round() as usize],
    };
    means.into_iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::sparkline;

    #[test]
    fn sparklines() {
        assert_eq!(sparkline(&[3.0, 2.0, 1.0], 48), "█▅▁");
        assert_eq!(sparkline(&[1.0; 4], 2), "▁▁");
        assert_eq!(sparkline(&[], 8), "");
        assert_eq!(sparkline(&[1.0, f64::NAN, 8.0], 8), "▁-█");
        assert_eq!(sparkline(&(0..100).map(f64::from).collect::<Vec<_>>(), 8).chars().count(), 8);
    }
}
