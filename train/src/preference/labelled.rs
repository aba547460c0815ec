//! What is measured of labelled completions, by themselves and in a mixture.

use crate::trainer::Sums;

/// Measures a completion's reward, and whether it `is_right`: on the side of its label. Names begin with `prefix`.
pub(super) fn measure_label(to: &mut Sums, prefix: &str, label: bool, reward: f64, is_right: bool) {
    to.measure(&format!("{prefix}rewards/{}", if label { "chosen" } else { "rejected" }), reward, 1.0);
    to.measure(&format!("{prefix}rewards/accuracies"), f64::from(u8::from(is_right)), 1.0);
}

/// Measures the difference of both labels' mean rewards, where there are both.
pub(super) fn measure_margins(to: &mut Sums, prefix: &str) {
    let of = |name: &str| to.get(&format!("{prefix}rewards/{name}"));
    if let (Some(chosen), Some(rejected)) = (of("chosen"), of("rejected")) {
        to.measure(&format!("{prefix}rewards/margins"), chosen - rejected, 1.0);
    }
}
