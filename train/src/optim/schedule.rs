//! Learning-rate schedules, as transformers computes them.

use crate::config::{Ramp, Schedule, ScheduleArgs};

/// Learning rate of update `step` (from 0) of `total`, after `warmup` steps of warm-up.
///
/// # Source
/// transformers' `optimization.py`; WSD: arXiv:2404.06395, section 4; inverse square root:
/// arXiv:2106.04560, appendix.
pub fn learning_rate(schedule: Schedule, args: &ScheduleArgs, peak: f64, step: u64, warmup: u64, total: u64) -> f64 {
    peak * factor(schedule, args, peak, step, warmup, total)
}

fn factor(schedule: Schedule, args: &ScheduleArgs, peak: f64, step: u64, warmup: u64, total: u64) -> f64 {
    let (s, w, n) = (step as f64, warmup as f64, total as f64);
    let rising = s / w.max(1.0);
    let progress = (s - w) / (n - w).max(1.0);
    let cycles = args.num_cycles.unwrap_or(0.5);
    let cosine = |progress: f64| 0.5 * (1.0 + (std::f64::consts::PI * cycles * 2.0 * progress).cos());
    match schedule {
        Schedule::Constant => 1.0,
        Schedule::WarmupStableDecay => stable(args, step, warmup, total, cosine),
        _ if step < warmup => rising,
        Schedule::ConstantWithWarmup => 1.0,
        Schedule::Linear => ((n - s) / (n - w).max(1.0)).max(0.0),
        Schedule::Cosine => cosine(progress).max(0.0),
        Schedule::CosineWithMinLr => {
            let least = args.min_lr_rate.unwrap_or_else(|| args.min_lr.unwrap_or(0.0) / peak);
            (cosine(progress) * (1.0 - least) + least).max(0.0)
        }
        Schedule::InverseSqrt => {
            let scale = args.timescale.unwrap_or(if warmup > 0 { warmup } else { 10_000 }) as f64;
            1.0 / ((s + scale - w) / scale).sqrt()
        }
    }
}

/// Warm-up, a plateau, a decay.
fn stable(args: &ScheduleArgs, step: u64, warmup: u64, total: u64, cosine: impl Fn(f64) -> f64) -> f64 {
    let decay = args.num_decay_steps.unwrap_or(0);
    let plateau = args.num_stable_steps.unwrap_or(total.saturating_sub(warmup + decay));
    let least = args.min_lr_ratio.unwrap_or(0.0);
    let lifted = |x: f64| (x * (1.0 - least) + least).max(0.0);
    if step < warmup {
        let x = step as f64 / warmup.max(1) as f64;
        return lifted(match args.warmup_type.unwrap_or(Ramp::Linear) {
            Ramp::Linear => x,
            Ramp::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * x).cos()),
            Ramp::OneMinusSqrt => 1.0 - (1.0 - x).sqrt(),
        });
    }
    if step < warmup + plateau {
        return 1.0;
    }
    if step >= warmup + plateau + decay {
        return least;
    }
    let x = (step - warmup - plateau) as f64 / decay.max(1) as f64;
    lifted(match args.decay_type.unwrap_or(Ramp::Cosine) {
        Ramp::Linear => 1.0 - x,
        Ramp::Cosine => cosine(x),
        Ramp::OneMinusSqrt => 1.0 - x.sqrt(),
    })
}
