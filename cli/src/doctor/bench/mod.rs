//! What a device can do and what is made of it: `planish doctor --device … --bench`.
//!
//! A list of [`Entry`]: the card's own limits first ([`card`]), then kernels at shapes that fill a card, then whole steps of
//! training and of decoding on models with random weights. An entry makes what it needs and gives it back, and one that
//! fails leaves the others alone, unless the device is lost with it. On the emulator the same code runs at tiny shapes.

mod attention;
mod card;
mod clock;
mod decode;
mod head;
mod item;
mod models;
mod print;
mod products;
mod rows;
mod steps;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};

use planish_tensor::Device;
use serde::Serialize;

pub(crate) use card::Facts;
use clock::Timing;
pub(crate) use print::{head, row};

/// What a rate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Unit {
    /// 10¹² floating-point operations a second.
    #[serde(rename = "TFLOP/s")]
    Tflops,
    /// 10⁹ bytes read and written a second.
    #[serde(rename = "GB/s")]
    Gigabytes,
    /// Launches a second.
    #[serde(rename = "launches/s")]
    Launches,
    /// Tokens a second.
    #[serde(rename = "tokens/s")]
    Tokens,
}

/// What an entry measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    #[serde(flatten)]
    timing: Timing,
    unit: Unit,
    /// In that unit.
    rate: f64,
    /// Of what the card can do: of the measured product (for training steps this is the MFU), or of copying.
    share: Option<f64>,
    /// Bytes of tensors alive at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_memory_bytes: Option<u64>,
    /// Mean loss of the last step, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<f64>,
    /// Where the time of a whole step goes, if that was asked for: kernels by name and grid, those that take most first.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernels: Option<Vec<Spent>>,
}

/// What the launches of a kernel took.
#[derive(Clone, Debug, Serialize)]
struct Spent {
    kernel: &'static str,
    grid: [u32; 3],
    launches: usize,
    seconds: f64,
}

impl Figures {
    fn new(timing: Timing, unit: Unit, rate: f64) -> Figures {
        Figures { timing, unit, rate, share: None, peak_memory_bytes: None, loss: None, kernels: None }
    }
}

/// What came of an entry.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// Figures.
    Measured(Figures),
    /// It needs more memory than is free.
    TooLarge {
        /// Bytes needed.
        needs_bytes: u64,
        /// Bytes free.
        free_bytes: u64,
    },
    /// It failed.
    Failed {
        /// How.
        error: String,
    },
    /// The device was lost before.
    NotRun,
}

/// A row of the report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// Its name, under which peers report the same work.
    pub(crate) name: String,
    /// Sizes, for people.
    pub(crate) shape: String,
    /// What came of it.
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// The card.
    pub(crate) card: Facts,
    /// All that was asked for.
    pub(crate) rows: Vec<Row>,
}

impl Report {
    /// Whether nothing failed: what a device has no room for is no failure.
    pub(crate) fn passed(&self) -> bool {
        !self.rows.iter().any(|row| matches!(row.outcome, Outcome::Failed { .. } | Outcome::NotRun))
    }
}

/// Why there are no figures.
#[derive(Debug)]
enum Trouble {
    TooLarge { needs: u64, free: u64 },
    Failed(String),
}

impl<E: std::error::Error> From<E> for Trouble {
    fn from(error: E) -> Trouble {
        // A sentence with its causes, each once.
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let words = inner.to_string();
            if !text.contains(&words) {
                text = format!("{text}: {words}");
            }
            cause = inner.source();
        }
        Trouble::Failed(text)
    }
}

/// What entries run on.
struct Ground<'a> {
    device: Device,
    gpu: &'a planish_cuda::Device,
    emulated: bool,
    /// Numbers that are made on the host for a buffer.
    block: usize,
    copy_gb_per_second: Option<f64>,
    product_tflops: Option<f64>,
    /// Whether to say where the time of whole steps goes.
    kernels: bool,
}

impl Ground<'_> {
    /// Kernels of a piece of work that has been timed, if that was asked for.
    fn spent(&self, work: impl FnOnce() -> Result<(), Trouble>) -> Result<Option<Vec<Spent>>, Trouble> {
        if !self.kernels {
            return Ok(None);
        }
        let (result, times) = self.gpu.profile(work)?;
        result?;
        let spent = |t: planish_cuda::KernelTime| Spent {
            kernel: t.name,
            grid: t.grid,
            launches: t.launches,
            seconds: t.seconds,
        };
        Ok(Some(times.into_iter().map(spent).collect()))
    }

    /// Refuses what has no room.
    fn room(&self, needs: u64) -> Result<(), Trouble> {
        let kept = self.gpu.pool().usage();
        let free = self.gpu.driver().free_memory()? + (kept.reserved - kept.in_use);
        match needs <= free {
            true => Ok(()),
            false => Err(Trouble::TooLarge { needs, free }),
        }
    }
}

type Run = Box<dyn Fn(&Ground<'_>) -> Result<Figures, Trouble>>;

/// A benchmark.
struct Entry {
    name: String,
    shape: String,
    run: Run,
}

/// A refusal to begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// Nothing has a name that begins so.
    #[error("--bench-only {prefix}: no benchmark has a name that begins so; there are {groups}")]
    NoSuch {
        /// As written.
        prefix: String,
        /// The beginnings of names.
        groups: String,
    },
}

/// All benchmarks but the card's own limits, which are measured whatever is asked for.
fn entries(emulated: bool) -> Vec<Entry> {
    let files = [products::entries, attention::entries, head::entries, rows::entries, steps::entries, decode::entries];
    files.iter().flat_map(|entries| entries(emulated)).collect()
}

/// What can be asked for by these beginnings of names; everything, if there are none.
///
/// # Errors
/// [`Refusal::NoSuch`].
pub(crate) fn check(device: Device, only: &[String]) -> Result<(), Refusal> {
    chosen(emulated(device), only).map(drop)
}

fn emulated(device: Device) -> bool {
    matches!(device, Device::Emulator(_))
}

fn chosen(emulated: bool, only: &[String]) -> Result<Vec<Entry>, Refusal> {
    let mut all = entries(emulated);
    for prefix in only {
        let limits = card::NAMES.iter().any(|name| name.starts_with(prefix));
        if !limits && !all.iter().any(|entry| entry.name.starts_with(prefix)) {
            let mut groups: Vec<&str> = all.iter().map(|e| e.name.split('/').next().unwrap_or(&e.name)).collect();
            groups.dedup();
            return Err(Refusal::NoSuch { prefix: prefix.clone(), groups: groups.join(", ") });
        }
    }
    all.retain(|entry| only.is_empty() || only.iter().any(|prefix| entry.name.starts_with(prefix)));
    Ok(all)
}

/// Runs what is asked for, and with `kernels` says where the time of whole steps goes; `begun` hears of each benchmark before
/// it runs, `done` after it.
///
/// # Errors
/// [`Refusal::NoSuch`]; a device that cannot be opened.
pub(crate) fn run(
    device: Device,
    only: &[String],
    kernels: bool,
    begun: &mut dyn FnMut(&str),
    done: &mut dyn FnMut(&Row),
) -> anyhow::Result<Report> {
    let emulated = emulated(device);
    let entries = chosen(emulated, only)?;
    Ok(device.with_gpu(|gpu| {
        let block = if emulated { 1 << 16 } else { (1 << 20) - 3 };
        let mut ground =
            Ground { device, gpu, emulated, block, copy_gb_per_second: None, product_tflops: None, kernels };
        // Asked while the device answers.
        let facts = card::facts(&ground)?;
        let mut rows = Vec::new();
        for entry in card::entries(emulated) {
            let row = one(&ground, entry, begun, done);
            card::note(&mut ground, &row);
            rows.push(row);
        }
        rows.extend(entries.into_iter().map(|entry| one(&ground, entry, begun, done)));
        let Ground { copy_gb_per_second, product_tflops, .. } = ground;
        Ok::<_, planish_cuda::Error>(Report { card: Facts { copy_gb_per_second, product_tflops, ..facts }, rows })
    })??)
}

/// Runs one, whatever becomes of it.
fn one(ground: &Ground<'_>, entry: Entry, begun: &mut dyn FnMut(&str), done: &mut dyn FnMut(&Row)) -> Row {
    let Entry { name, shape, run } = entry;
    begun(&name);
    let outcome = match ground.gpu.queue().synchronize() {
        Err(_) => Outcome::NotRun,
        // The first run on a new card shall tell of everything: a bug in one is not to hide the others.
        Ok(()) => match catch_unwind(AssertUnwindSafe(|| run(ground))) {
            Ok(Ok(figures)) => Outcome::Measured(figures),
            Ok(Err(Trouble::TooLarge { needs, free })) => Outcome::TooLarge { needs_bytes: needs, free_bytes: free },
            Ok(Err(Trouble::Failed(error))) => Outcome::Failed { error },
            Err(_) => Outcome::Failed { error: "it panicked: a bug in planish, and stderr says where".into() },
        },
    };
    // What it held is free now; what it kept for reuse shall not be in the way of the next.
    let _ = ground.gpu.pool().release();
    let row = Row { name, shape, outcome };
    done(&row);
    row
}
