//! What is worth a word while a preference run goes on. Each is said once.

use std::f64::consts::LN_2;

use serde::{Deserialize, Serialize};

use super::lengths::LENGTH_MARGIN;
use super::moved::MOVED;
use crate::trainer::Sums;

/// Steps that are looked at together: a step's batch alone says little.
const WINDOW: u32 = 10;

/// [`MOVED`] from which on a model has left what it could do: that of a factor of two for every token, 0.19.
const FAR: f64 = LN_2 - 0.5;

/// Margin from which on pairs are known by heart, if every one is right: log(1 + e^-margin), the loss of Bradley and
/// Terry, is below 0.1 there, and that of a pair not seen before seldom is.
const BY_HEART: f64 = 2.25;

/// The loss of Bradley and Terry at that margin, nats.
pub(super) fn by_heart_loss() -> f64 {
    (-BY_HEART).exp().ln_1p()
}

/// Reward that a longer answer must have over a shorter one before anything is said of it.
const LENGTH: f64 = 0.1;

/// Standard errors of a difference of two windows' means that a fall must have: other rows are in them.
const SURE: f64 = 3.0;

/// What learns, which advice depends on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Pairs beside a reference.
    #[default]
    Compared,
    /// Pairs without one: their rewards are log-probabilities, which are always negative.
    Alone,
    /// Labelled completions beside a reference.
    Labelled,
    /// A reward model.
    Reward,
}

impl Kind {
    /// What keeps chosen completions as likely as they are.
    fn holds_up(self) -> &'static str {
        match self {
            Kind::Labelled => "a higher desirable_weight or the loss apo_zero_unpaired holds",
            Kind::Alone => {
                "more cross-entropy on the chosen ones (--cpo-alpha, --rpo-alpha; a lower --beta of orpo) holds"
            }
            _ => "cross-entropy on the chosen ones (--rpo-alpha 1) or the loss apo_zero holds",
        }
    }

    /// What takes length out of rewards.
    fn without_length(self) -> &'static str {
        match self {
            Kind::Compared => "the loss sigmoid_norm, --ld-alpha below 1 or pairs of like lengths take",
            Kind::Alone => "a loss by the token (simpo) or pairs of like lengths take",
            Kind::Labelled => "completions of like lengths take",
            Kind::Reward => "pairs of like lengths take",
        }
    }
}

/// A mean over steps that measured something.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mean {
    steps: f64,
    sum: f64,
    squares: f64,
}

impl Mean {
    fn push(&mut self, value: Option<f64>) {
        let Some(value) = value else { return };
        self.steps += 1.0;
        self.sum += value;
        self.squares += value * value;
    }

    fn mean(&self) -> Option<f64> {
        (self.steps > 0.0).then(|| self.sum / self.steps)
    }

    /// Square of the standard error; of one step nobody knows.
    fn variance(&self) -> f64 {
        let mean = self.sum / self.steps;
        match self.steps > 1.0 {
            true => (self.squares / self.steps - mean * mean).max(0.0) / (self.steps - 1.0),
            false => f64::INFINITY,
        }
    }
}

/// What is looked at in a window of steps.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Window {
    steps: u32,
    chosen: Mean,
    rejected: Mean,
    margin: Mean,
    length: Mean,
    moved: Mean,
    logps: [Mean; 2],
    /// Steps that measured that all was right.
    right: u32,
}

/// Where a watch stands: part of checkpoints, so that a run which is gone on with says what it would have said.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seen {
    window: Window,
    /// Log-probabilities of chosen and rejected completions in the first window.
    first: Option<[Mean; 2]>,
    said_fall: bool,
    said_far: bool,
    said_by_heart: bool,
    said_length: bool,
}

/// Means over windows of steps.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Names of the metrics begin with this.
    prefix: String,
    kind: Kind,
    pub(super) seen: Seen,
}

impl Watch {
    pub(super) fn new(kind: Kind) -> Watch {
        Watch { kind, ..Watch::default() }
    }

    /// Of pairs, with a reference or without.
    pub(super) fn pairs(has_reference: bool) -> Watch {
        Watch::new(if has_reference { Kind::Compared } else { Kind::Alone })
    }

    /// Over metrics whose names begin with this and a slash.
    pub(super) fn named(self, name: &str) -> Watch {
        Watch { prefix: format!("{name}/"), ..self }
    }

    /// Looks at a step; what is to be said.
    pub(super) fn look(&mut self, sums: &Sums) -> Vec<String> {
        let get = |name: &str| sums.get(&format!("{}{name}", self.prefix));
        // A reward model's metrics have names of their own.
        let either = |name: &str, own: &str| get(name).or_else(|| get(own));
        let window = &mut self.seen.window;
        window.chosen.push(get("rewards/chosen"));
        window.rejected.push(get("rewards/rejected"));
        window.margin.push(either("rewards/margins", "margin"));
        window.right += u32::from(either("rewards/accuracies", "accuracy").is_some_and(|share| share >= 1.0));
        window.length.push(either(LENGTH_MARGIN, "length_margin"));
        window.moved.push(get(MOVED));
        window.logps[0].push(get("logps/chosen"));
        window.logps[1].push(get("logps/rejected"));
        window.steps += 1;
        if window.steps < WINDOW { Vec::new() } else { self.judge() }
    }

    /// What is to be said of a window, after which another begins.
    fn judge(&mut self) -> Vec<String> {
        let window = std::mem::take(&mut self.seen.window);
        let of = match self.prefix.trim_end_matches('/') {
            "" => String::new(),
            name => format!("{name}: "),
        };
        let (kind, seen) = (self.kind, &mut self.seen);
        let found = [
            (&mut seen.said_fall, fall(kind, &window, &mut seen.first)),
            (&mut seen.said_far, far(&window)),
            (&mut seen.said_by_heart, by_heart(kind, &window)),
            (&mut seen.said_length, length(kind, &window)),
        ];
        let new = |(said, found): (&mut bool, Option<String>)| {
            found.filter(|_| !std::mem::replace(said, true)).map(|sentence| format!("{of}{sentence}"))
        };
        found.into_iter().filter_map(new).collect()
    }
}

/// Chosen completions become less likely, together with rejected ones.
fn fall(kind: Kind, window: &Window, first: &mut Option<[Mean; 2]>) -> Option<String> {
    let holds_up = kind.holds_up();
    if matches!(kind, Kind::Compared | Kind::Labelled) {
        let (chosen, rejected) = (window.chosen.mean()?, window.rejected.mean()?);
        return (chosen < 0.0 && rejected < chosen).then(|| {
            format!(
                "the chosen completions have become less likely than under the reference, along with the rejected ones (rewards {chosen:.3} and {rejected:.3} over {WINDOW} steps): the margin grows by unlearning both; {holds_up} them up"
            )
        });
    }
    let Some(first) = first else {
        *first = Some(window.logps);
        return None;
    };
    let change = |side: usize| Some((first[side].mean()?, window.logps[side].mean()?));
    let ((c0, c), (r0, r)) = (change(0)?, change(1)?);
    let error = (first[0].variance() + window.logps[0].variance()).sqrt();
    (c - c0 < -SURE * error && r - r0 < c - c0).then(|| {
        format!(
            "the chosen completions have become less likely than in the first {WINDOW} steps, along with the rejected ones (logps/chosen {c0:.3}, now {c:.3}; logps/rejected {r0:.3}, now {r:.3}): the margin grows by unlearning both; {holds_up} them up"
        )
    })
}

/// The model has left the reference.
fn far(window: &Window) -> Option<String> {
    let moved = window.moved.mean().filter(|moved| *moved > FAR)?;
    Some(format!(
        "on the tokens of the data the model has moved about {moved:.2} nats a token from the reference (twice or half as likely would be {FAR:.2}): a higher beta or a lower learning rate keeps it nearer"
    ))
}

/// Nothing is left to be learnt.
fn by_heart(kind: Kind, window: &Window) -> Option<String> {
    let margin = window.margin.mean().filter(|_| window.right == WINDOW)?;
    match kind {
        // Each side by itself is as sure as a pair is.
        Kind::Labelled => (margin > 2.0 * BY_HEART).then(|| {
            format!(
                "every completion of {WINDOW} steps was on the side of its label, good ones {margin:.2} above bad ones on average: the labels are learnt by heart; fewer epochs or a lower learning rate leave more for others"
            )
        }),
        _ => (margin > BY_HEART).then(|| {
            let loss = (-margin).exp().ln_1p();
            format!(
                "every pair of {WINDOW} steps was right, by a margin of {margin:.2} on average (a loss of {loss:.3}): the pairs are learnt by heart; fewer epochs or a lower learning rate leave more for others"
            )
        }),
    }
}

/// Length is rewarded more than preference.
fn length(kind: Kind, window: &Window) -> Option<String> {
    let (length, margin) = (window.length.mean()?, window.margin.mean().unwrap_or(0.0));
    if length.abs() <= LENGTH.max(2.0 * margin.abs()) {
        return None;
    }
    let (more, less) = if length > 0.0 { ("longer", "shorter") } else { ("shorter", "longer") };
    Some(format!(
        "rewards follow length more than preference: {more} completions have {:.3} more than {less} ones, chosen ones {margin:.3} more than rejected ones ({WINDOW} steps); {} length out",
        length.abs(),
        kind.without_length()
    ))
}

#[cfg(test)]
mod tests {
    use super::super::lengths::measure_length;
    use super::*;

    fn step(chosen: f64, rejected: f64, moved: f64) -> Sums {
        let mut sums = Sums::new(1.0, 1.0);
        sums.measure("rewards/chosen", chosen, 1.0);
        sums.measure("rewards/rejected", rejected, 1.0);
        sums.measure(MOVED, moved, 1.0);
        sums
    }

    fn said(mut watch: Watch, sums: &Sums) -> Vec<String> {
        (0..35).flat_map(|_| watch.look(sums)).collect()
    }

    #[test]
    fn what_deserves_a_word_gets_one() {
        let said = |has_reference, sums: Sums| said(Watch::pairs(has_reference), &sums);
        assert!(said(true, step(0.1, -0.2, 0.01)).is_empty());
        let fall = said(true, step(-0.1, -0.2, 0.01));
        assert!(fall.len() == 1 && fall[0].contains("less likely than under the reference"), "{fall:?}");
        let far = said(true, step(0.1, -0.2, 0.4));
        assert!(far.len() == 1 && far[0].contains("0.40 nats a token"), "{far:?}");
        assert!(said(true, step(0.1, -0.2, 0.19)).is_empty());
        // Without a reference rewards are log-probabilities, which are always negative.
        assert!(said(false, step(-0.1, -0.2, 0.0)).is_empty());
        let labelled = super::tests::said(Watch::new(Kind::Labelled), &step(-0.1, -0.2, 0.4));
        assert!(labelled.len() == 2 && labelled[0].contains("apo_zero_unpaired"), "{labelled:?}");
        assert!(labelled[1].contains("0.40 nats a token"), "{labelled:?}");
    }

    /// Log-probabilities of both sides, over 40 steps of which the last 20 are others.
    fn alone(before: [f64; 2], after: [f64; 2], noise: f64) -> Vec<String> {
        let mut watch = Watch::pairs(false);
        let sums = |i: i32| {
            let mut sums = Sums::new(1.0, 1.0);
            let (at, by) = (if i < 20 { before } else { after }, noise * f64::from(i % 2 * 2 - 1));
            sums.measure("logps/chosen", at[0] + by, 1.0);
            sums.measure("logps/rejected", at[1] + by, 1.0);
            sums
        };
        (0..40).flat_map(|i| watch.look(&sums(i))).collect()
    }

    #[test]
    fn without_a_reference_a_fall_is_one_from_the_first_steps() {
        let found = alone([-20.0, -21.0], [-22.0, -25.0], 1.0);
        assert!(found.len() == 1 && found[0].contains("logps/chosen -20.000, now -22.000"), "{found:?}");
        assert!(found[0].contains("--cpo-alpha"), "{found:?}");
        // Within what other rows make of it: the error of a difference is √2 · 4 / √9, three of which are 5.7.
        assert!(alone([-20.0, -21.0], [-22.0, -25.0], 4.0).is_empty());
        // Only the rejected ones; both alike up; the chosen ones more than the rejected ones.
        assert!(alone([-20.0, -21.0], [-20.0, -25.0], 1.0).is_empty());
        assert!(alone([-20.0, -21.0], [-12.0, -15.0], 1.0).is_empty());
        assert!(alone([-20.0, -21.0], [-24.0, -23.0], 1.0).is_empty());
    }

    #[test]
    fn a_watch_goes_on_where_it_was() {
        let sums = step(-0.1, -0.2, 0.4);
        let (mut whole, mut first) = (Watch::pairs(true), Watch::pairs(true));
        for _ in 0..7 {
            assert!(whole.look(&sums).is_empty() && first.look(&sums).is_empty());
        }
        let text = serde_json::to_string(&first.seen).unwrap();
        let mut then = Watch { seen: serde_json::from_str(&text).unwrap(), ..Watch::pairs(true) };
        for i in 7..30 {
            let found = then.look(&sums);
            assert_eq!(found, whole.look(&sums));
            assert_eq!(found.len(), if i == 9 { 2 } else { 0 });
        }
    }

    #[test]
    fn labels_are_known_by_heart_only_where_it_was_measured() {
        let of = |margin: Option<f64>, accuracy: Option<f64>| {
            let mut sums = Sums::new(1.0, 1.0);
            margin.into_iter().for_each(|m| sums.measure("rewards/margins", m, 1.0));
            accuracy.into_iter().for_each(|a| sums.measure("rewards/accuracies", a, 1.0));
            said(Watch::new(Kind::Labelled), &sums)
        };
        let found = of(Some(5.0), Some(1.0));
        assert!(found.len() == 1 && found[0].starts_with("every completion of 10 steps"), "{found:?}");
        for (margin, accuracy) in [(Some(5.0), None), (Some(5.0), Some(0.9)), (Some(4.0), Some(1.0)), (None, Some(1.0))]
        {
            assert!(of(margin, accuracy).is_empty(), "{margin:?} {accuracy:?}");
        }
    }

    #[test]
    fn pairs_known_by_heart_are_remarked_on() {
        let of = |names: [&str; 2], margin: f64, accuracy: f64| {
            let mut sums = Sums::new(1.0, 1.0);
            sums.measure(names[0], margin, 1.0);
            sums.measure(names[1], accuracy, 1.0);
            sums
        };
        for names in [["rewards/margins", "rewards/accuracies"], ["margin", "accuracy"]] {
            let found = said(Watch::new(Kind::Reward), &of(names, 2.5, 1.0));
            assert!(
                found.len() == 1 && found[0].contains("learnt by heart") && found[0].contains("0.079"),
                "{found:?}"
            );
            assert!(said(Watch::new(Kind::Reward), &of(names, 2.0, 1.0)).is_empty());
            assert!(said(Watch::new(Kind::Reward), &of(names, 2.5, 0.9)).is_empty());
        }
        let mixed =
            said(Watch::pairs(true).named("dpo"), &of(["dpo/rewards/margins", "dpo/rewards/accuracies"], 2.5, 1.0));
        assert!(mixed.len() == 1 && mixed[0].starts_with("dpo: every pair"), "{mixed:?}");
    }

    #[test]
    fn rewards_that_follow_length_are_remarked_on() {
        let of = |pairs: [([f64; 2], [f64; 2]); 2]| {
            let mut sums = Sums::new(1.0, 1.0);
            for (rewards, tokens) in pairs {
                sums.measure("rewards/margins", rewards[0] - rewards[1], 1.0);
                measure_length(&mut sums, LENGTH_MARGIN, rewards, tokens);
            }
            sums
        };
        // The longer side wins, chosen or not.
        let found = of([([0.5, 0.0], [9.0, 4.0]), ([0.0, 0.4], [4.0, 9.0])]);
        assert!((found.get(LENGTH_MARGIN).unwrap() - 0.45).abs() <= 1e-12);
        let words = said(Watch::pairs(true), &found);
        assert!(words.len() == 1 && words[0].contains("longer completions have 0.450 more"), "{words:?}");
        let words = said(Watch::pairs(true), &of([([0.0, 0.5], [9.0, 4.0]), ([0.4, 0.0], [4.0, 9.0])]));
        assert!(words.len() == 1 && words[0].contains("shorter completions have 0.450 more"), "{words:?}");
        // The chosen side wins, longer or not; equal lengths say nothing.
        assert!(said(Watch::pairs(true), &of([([0.5, 0.0], [9.0, 4.0]), ([0.4, 0.0], [4.0, 9.0])])).is_empty());
        assert_eq!(of([([0.5, 0.0], [4.0, 4.0]), ([0.4, 0.0], [4.0, 4.0])]).get(LENGTH_MARGIN), None);
    }
}
