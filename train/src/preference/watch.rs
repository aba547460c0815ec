//! What is worth a word while a preference run goes on. Each is said once.

use super::lengths::LENGTH_MARGIN;
use crate::trainer::Sums;

/// Steps that are looked at together: a step's batch alone says little.
const WINDOW: u32 = 10;

/// Nats a token from which on a model has left what it could do; half of the square of a log-ratio of ±0.7, a
/// factor of two for every token.
const FAR: f64 = 0.25;

/// Margin from which on pairs are known by heart, if every one is right: log(1 + e^-margin), the loss of Bradley and
/// Terry, is below 0.1 there, and that of a pair not seen before seldom is.
const BY_HEART: f64 = 2.25;

/// Reward that a longer answer must have over a shorter one before anything is said of it.
const LENGTH: f64 = 0.1;

/// What learns, which advice depends on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Pairs beside a reference.
    #[default]
    Compared,
    /// Pairs without one: their rewards are log-probabilities, which are always negative.
    Alone,
    /// Labelled completions beside a reference; their KL divergence is of completions, not of tokens.
    Labelled,
    /// A reward model.
    Reward,
}

impl Kind {
    /// What keeps chosen completions as likely as they are.
    fn holds_up(self) -> &'static str {
        match self {
            Kind::Labelled => "a higher desirable_weight or the loss apo_zero_unpaired",
            _ => "cross-entropy on the chosen ones (--rpo-alpha 1) or the loss apo_zero",
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

/// Means over windows of steps.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Names of the metrics begin with this.
    prefix: String,
    kind: Kind,
    steps: u32,
    chosen: f64,
    rejected: f64,
    margin: f64,
    /// Steps of which every pair was right; where nothing says so, all.
    right: u32,
    length: f64,
    kl: f64,
    said_fall: bool,
    said_far: bool,
    said_by_heart: bool,
    said_length: bool,
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
        self.chosen += get("rewards/chosen").unwrap_or(0.0);
        self.rejected += get("rewards/rejected").unwrap_or(0.0);
        self.margin += either("rewards/margins", "margin").unwrap_or(0.0);
        self.right += u32::from(either("rewards/accuracies", "accuracy").unwrap_or(1.0) >= 1.0);
        self.length += either(LENGTH_MARGIN, "length_margin").unwrap_or(0.0);
        self.kl += get("kl").unwrap_or(0.0);
        self.steps += 1;
        if self.steps < WINDOW { Vec::new() } else { self.judge() }
    }

    /// What is to be said of a window, after which another begins.
    fn judge(&mut self) -> Vec<String> {
        let mean = |sum: &mut f64| std::mem::take(sum) / f64::from(WINDOW);
        let (chosen, rejected, kl) = (mean(&mut self.chosen), mean(&mut self.rejected), mean(&mut self.kl));
        let (margin, length) = (mean(&mut self.margin), mean(&mut self.length));
        let all_right = std::mem::take(&mut self.right) == WINDOW;
        self.steps = 0;
        let mut said = Vec::new();
        let of = match self.prefix.trim_end_matches('/') {
            "" => String::new(),
            name => format!("{name}: "),
        };
        let compared = matches!(self.kind, Kind::Compared | Kind::Labelled);
        if compared && !self.said_fall && chosen < 0.0 && rejected < chosen {
            self.said_fall = true;
            said.push(format!(
                "{of}the chosen completions have become less likely than under the reference, along with the rejected ones (rewards {chosen:.3} and {rejected:.3} over {WINDOW} steps): the margin grows by unlearning both; {} holds them up",
                self.kind.holds_up()
            ));
        }
        if self.kind != Kind::Labelled && !self.said_far && kl > FAR {
            self.said_far = true;
            said.push(format!(
                "{of}the model has moved about {kl:.2} nats a token from the reference: a higher beta or a lower learning rate keeps it nearer"
            ));
        }
        if !self.said_by_heart && all_right && margin > BY_HEART {
            self.said_by_heart = true;
            let loss = (-margin).exp().ln_1p();
            said.push(format!(
                "{of}every pair of {WINDOW} steps was right, by a margin of {margin:.2} on average (a loss of {loss:.3}): the pairs are learnt by heart; fewer epochs or a lower learning rate leave more for others"
            ));
        }
        if !self.said_length && length.abs() > LENGTH.max(2.0 * margin.abs()) {
            self.said_length = true;
            let (more, less) = if length > 0.0 { ("longer", "shorter") } else { ("shorter", "longer") };
            said.push(format!(
                "{of}rewards follow length more than preference: {more} completions have {:.3} more than {less} ones, chosen ones {margin:.3} more than rejected ones ({WINDOW} steps); {} length out",
                length.abs(),
                self.kind.without_length()
            ));
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::super::lengths::measure_length;
    use super::*;

    fn step(chosen: f64, rejected: f64, kl: f64) -> Sums {
        let mut sums = Sums::new(1.0, 1.0);
        sums.measure("rewards/chosen", chosen, 1.0);
        sums.measure("rewards/rejected", rejected, 1.0);
        sums.measure("kl", kl, 1.0);
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
        // Without a reference rewards are log-probabilities, which are always negative.
        assert!(said(false, step(-0.1, -0.2, 0.0)).is_empty());
        // Of completions a nat is little.
        let labelled = super::tests::said(Watch::new(Kind::Labelled), &step(-0.1, -0.2, 0.4));
        assert!(labelled.len() == 1 && labelled[0].contains("apo_zero_unpaired"), "{labelled:?}");
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
