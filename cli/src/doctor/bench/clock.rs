//! How long work of a device takes: by events of its stream, round a batch of launches.
//!
//! A batch is as many launches as fill [`Pace::round`], so that neither an event's own time nor its resolution counts. What
//! is short is recorded as a graph first: launched one by one, a kernel of some microseconds would be timed by how fast the
//! host can launch.

use std::time::Instant;

use planish_cuda::{Queue, Result};

/// Work that can be launched again and again.
pub(super) type Launch = Box<dyn FnMut(Queue<'_>) -> Result<()>>;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Seconds that a batch should take; 0 for one launch.
    round: f64,
    /// Batches, of which the median counts.
    batches: usize,
    /// Seconds after which three of them are enough.
    patience: f64,
    /// Launches of a batch at most.
    most: usize,
    /// Seconds below which a launch is recorded.
    short: f64,
}

impl Pace {
    /// For a card: a fifth of a second.
    pub(super) const CARD: Pace = Pace { round: 0.02, batches: 10, patience: 1.5, most: 200, short: 50e-6 };
    /// For the emulator, whose times mean nothing.
    pub(super) const EMULATED: Pace = Pace { round: 0.0, batches: 2, patience: 0.0, most: 1, short: 0.0 };
}

/// What was measured of a launch.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(super) struct Timing {
    /// Seconds, the median of the batches.
    pub(super) seconds: f64,
    /// Of the fastest batch.
    pub(super) fastest: f64,
    /// Of the slowest.
    pub(super) slowest: f64,
    /// Number of batches.
    pub(super) batches: usize,
    /// Launches of each.
    pub(super) launches: usize,
    /// Whether they were recorded and launched at once.
    pub(super) recorded: bool,
    /// Why that was not possible, where it was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) not_recorded: Option<String>,
}

impl Timing {
    /// Of samples, each the seconds of one launch in a batch of `launches`.
    pub(super) fn of(mut samples: Vec<f64>, launches: usize) -> Timing {
        samples.sort_by(f64::total_cmp);
        let n = samples.len();
        let middle = |samples: &[f64]| match n {
            0 => f64::NAN,
            _ => (samples[(n - 1) / 2] + samples[n / 2]) / 2.0,
        };
        Timing {
            seconds: middle(&samples),
            fastest: samples.first().copied().unwrap_or(f64::NAN),
            slowest: samples.last().copied().unwrap_or(f64::NAN),
            batches: n,
            launches,
            recorded: false,
            not_recorded: None,
        }
    }
}

/// Times `work`, after it has run once and for a batch more.
pub(super) fn time(queue: Queue<'_>, work: &mut Launch, pace: &Pace) -> Result<Timing> {
    // Compiles the kernels and takes the memory.
    work(queue)?;
    queue.synchronize()?;
    let first = if pace.round > 0.0 { batch(queue, 1, work)? } else { f64::INFINITY };
    let launches = ((pace.round / first).ceil() as usize).clamp(1, pace.most);
    let mut not_recorded = None;
    if first < pace.short {
        let recorded = queue.record(&mut *work, |queue, work| (0..launches).try_for_each(|_| (**work)(queue)));
        match recorded {
            Ok(mut graph) => {
                let samples =
                    batches(pace, || Ok(batch(queue, 1, &mut |queue| graph.replay(queue))? / launches as f64))?;
                return Ok(Timing { recorded: true, ..Timing::of(samples, launches) });
            }
            Err(error) => not_recorded = Some(error.to_string()),
        }
    }
    let samples = batches(pace, || batch(queue, launches, work))?;
    Ok(Timing { not_recorded, ..Timing::of(samples, launches) })
}

/// Samples of batches, after one that does not count: clocks rise under load.
fn batches(pace: &Pace, mut one: impl FnMut() -> Result<f64>) -> Result<Vec<f64>> {
    if pace.round > 0.0 {
        one()?;
    }
    let (began, mut samples) = (Instant::now(), Vec::new());
    while samples.len() < pace.batches && (samples.len() < 3 || began.elapsed().as_secs_f64() < pace.patience) {
        samples.push(one()?);
    }
    Ok(samples)
}

/// Seconds of one launch, in a batch of so many.
fn batch(queue: Queue<'_>, launches: usize, work: &mut dyn FnMut(Queue<'_>) -> Result<()>) -> Result<f64> {
    let driver = queue.device.driver();
    let from = driver.record(queue.stream)?;
    let mut timed = || -> Result<f64> {
        (0..launches).try_for_each(|_| work(queue))?;
        let to = driver.record(queue.stream)?;
        let elapsed = queue.synchronize().and_then(|()| driver.elapsed(from, to));
        driver.destroy_event(to).and(elapsed)
    };
    let elapsed = timed();
    driver.destroy_event(from).and(elapsed).map(|seconds| seconds / launches as f64)
}

/// Seconds of the host for one of `launches`, until all of them are done.
pub(super) fn host_time(
    queue: Queue<'_>,
    launches: usize,
    mut work: impl FnMut(Queue<'_>) -> Result<()>,
) -> Result<f64> {
    let began = Instant::now();
    work(queue)?;
    queue.synchronize()?;
    Ok(began.elapsed().as_secs_f64() / launches as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_counts() {
        let of = |samples: &[f64]| Timing::of(samples.to_vec(), 7);
        let odd = of(&[3.0, 1.0, 2.0]);
        assert_eq!((odd.seconds, odd.fastest, odd.slowest, odd.batches, odd.launches), (2.0, 1.0, 3.0, 3, 7));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]).seconds, 2.5);
        assert!(of(&[]).seconds.is_nan());
    }

    #[test]
    fn batches_end_by_number_or_by_time() {
        let pace = Pace { patience: 0.0, ..Pace::CARD };
        let mut calls = 0;
        let mut count = || {
            calls += 1;
            Ok(f64::from(calls))
        };
        assert_eq!(batches(&pace, &mut count).unwrap(), [2.0, 3.0, 4.0]);
        assert_eq!(batches(&Pace { patience: 1e9, ..pace }, &mut count).unwrap().len(), 10);
        assert_eq!(batches(&Pace::EMULATED, &mut count).unwrap().len(), 2);
    }
}
