//! The report for people: a line for each benchmark.

use super::{Facts, Outcome, Row, Spent, Unit};

/// What comes before the lines: the card and the columns.
pub(crate) fn head() -> String {
    format!("{:<30}{:>10}{:>19}{:>7}  {}", "benchmark", "time", "rate", "share", "sizes")
}

/// A benchmark's line, without its name, which is there before.
pub(crate) fn row(row: &Row) -> String {
    let shape = &row.shape;
    match &row.outcome {
        Outcome::Measured(figures) => {
            let unit = match figures.unit {
                Unit::Tflops => "TFLOP/s",
                Unit::Gigabytes => "GB/s",
                Unit::Launches => "1/s",
                Unit::Tokens => "tokens/s",
            };
            let rate = format!("{} {unit:<8}", digits(figures.rate));
            let share = figures.share.map(|share| format!("{:.0}%", 100.0 * share)).unwrap_or_default();
            let peak = figures.peak_memory_bytes.map(|b| format!("; {:.2} GB", b as f64 / 1e9)).unwrap_or_default();
            let kernels = figures.kernels.as_deref().map(kernels).unwrap_or_default();
            format!("{:>10}{rate:>19}{share:>7}  {shape}{peak}{kernels}", seconds(figures.timing.seconds))
        }
        Outcome::TooLarge { needs_bytes, free_bytes } => {
            let [needs, free] = [needs_bytes, free_bytes].map(|bytes| *bytes as f64 / 1e9);
            format!("  left out: needs about {needs:.1} GB, {free:.1} GB are free  ({shape})")
        }
        Outcome::Failed { error } => format!("  FAILED: {error}"),
        Outcome::NotRun => "  not run: the device is lost".to_owned(),
    }
}

/// The kernels that took most, a line each, and what the rest took.
fn kernels(all: &[Spent]) -> String {
    const MOST: usize = 20;
    let total: f64 = all.iter().map(|k| k.seconds).sum();
    let one = |name: String, launches: usize, s: f64| {
        format!("\n{:>40}{:>6.1}%{launches:>8} x  {name}", seconds(s), 100.0 * s / total.max(f64::MIN_POSITIVE))
    };
    let line = |k: &Spent| one(format!("{} {:?}", k.kernel, k.grid), k.launches, k.seconds);
    let mut text: String = all.iter().take(MOST).map(line).collect();
    if let Some(rest) = all.get(MOST..).filter(|rest| !rest.is_empty()) {
        let (launches, s) = rest.iter().fold((0, 0.0), |(n, s), k| (n + k.launches, s + k.seconds));
        text += &one("others".to_owned(), launches, s);
    }
    text + &one("all".to_owned(), all.iter().map(|k| k.launches).sum(), total)
}

impl Facts {
    /// The card in a line.
    pub(crate) fn sentence(&self) -> String {
        let memory = self.memory_bytes as f64 / 1e9;
        format!(
            "{}: sm_{}, {} multiprocessors, {memory:.1} GB; %: of the product or of the copy measured here",
            self.name,
            self.compute_capability.replace('.', ""),
            self.multiprocessors
        )
    }
}

/// Four digits.
fn digits(x: f64) -> String {
    let places = match x.abs() {
        x if x >= 1000.0 => 0,
        x if x >= 100.0 => 1,
        x if x >= 10.0 => 2,
        x if x >= 0.1 => 3,
        _ => return format!("{x:.2e}"),
    };
    format!("{x:.places$}")
}

fn seconds(s: f64) -> String {
    match s {
        s if s >= 1.0 => format!("{} s", digits(s)),
        s if s >= 1e-3 => format!("{} ms", digits(1e3 * s)),
        s => format!("{} µs", digits(1e6 * s)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_digits_and_a_fitting_unit() {
        assert_eq!([2.0, 0.01234, 0.000_5].map(seconds), ["2.000 s", "12.34 ms", "500.0 µs"]);
        assert_eq!([12345.6, 123.45, 0.5, 0.001].map(digits), ["12346", "123.5", "0.500", "1.00e-3"]);
    }
}
