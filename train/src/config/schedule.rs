//! The learning-rate schedules by name and their arguments, as transformers has them.

// The doc comments of settings are also the program's help, where brackets hold a default.
#![allow(rustdoc::broken_intra_doc_links)]

use serde_json::Value as Json;
use std::path::PathBuf;
use std::sync::Arc;

use super::error::{ConfigError, Origin};
use super::raw::{Node, Raw, parse_node};
use super::setting::rules::{NOT_NEGATIVE, POSITIVE, SHARE, WHOLE};
use super::setting::{Rule, Setting, wrong};
use super::table::{Settings, choices, settings};

choices! {
    /// The course of the learning rate (`SchedulerType` of transformers).
    pub enum Schedule {
        /// No warm-up, no decay.
        Constant = "constant",
        /// Warm-up, then constant.
        ConstantWithWarmup = "constant_with_warmup",
        /// Warm-up, then linearly to zero.
        Linear = "linear",
        /// Warm-up, then along a cosine to zero.
        Cosine = "cosine",
        /// Warm-up, then along a cosine to a minimum.
        CosineWithMinLr = "cosine_with_min_lr",
        /// Warm-up, a plateau, then a decay.
        WarmupStableDecay = "warmup_stable_decay" | "wsd",
        /// Warm-up, then by the inverse square root of the step.
        InverseSqrt = "inverse_sqrt",
    }
}

choices! {
    /// The shape of a warm-up or a decay of `warmup_stable_decay`.
    pub enum Ramp {
        /// A straight line.
        Linear = "linear",
        /// Half a cosine.
        Cosine = "cosine",
        /// One minus the square root (decay only in practice).
        OneMinusSqrt = "1-sqrt",
    }
}

settings! {
    /// Arguments of a schedule (`lr_scheduler_kwargs`).
    pub struct ScheduleArgs ("Schedule") {
        /// cosine_with_min_lr: the minimum.
        min_lr: Option<f64> = None, NOT_NEGATIVE;
        /// cosine_with_min_lr: the minimum as a share of the peak.
        min_lr_rate: Option<f64> = None, SHARE;
        /// cosine, cosine_with_min_lr, warmup_stable_decay: waves [0.5].
        num_cycles: Option<f64> = None, POSITIVE;
        /// warmup_stable_decay: steps of the decay.
        num_decay_steps: Option<u64> = None, WHOLE;
        /// warmup_stable_decay: steps of the plateau [what warm-up and decay leave].
        num_stable_steps: Option<u64> = None, WHOLE;
        /// warmup_stable_decay: the minimum as a share of the peak [0].
        min_lr_ratio: Option<f64> = None, SHARE;
        /// warmup_stable_decay: shape of the warm-up [linear].
        warmup_type: Option<Ramp> = None, Ramp::RULE;
        /// warmup_stable_decay: shape of the decay [cosine].
        decay_type: Option<Ramp> = None, Ramp::RULE;
        /// inverse_sqrt: steps after which the rate has fallen by sqrt(2) [the warm-up, or 10000].
        timescale: Option<u64> = None, super::setting::rules::AT_LEAST_ONE;
    }
}

impl ScheduleArgs {
    pub(super) const RULE: Rule<ScheduleArgs> =
        Rule { accepts: "a map of schedule arguments such as {min_lr_rate: 0.1}", test: |_| true };

    /// The first argument that is given but that `schedule` does not take, and the missing one.
    ///
    /// # Errors
    /// [`ConfigError::Conflict`], saying which schedule takes what.
    pub fn check(&self, schedule: Schedule) -> Result<(), ConfigError> {
        let conflict = |problem| Err(ConfigError::Conflict { key: "lr_scheduler_kwargs", problem });
        let takes: &[&str] = match schedule {
            Schedule::Cosine => &["num_cycles"],
            Schedule::CosineWithMinLr => &["min_lr", "min_lr_rate", "num_cycles"],
            Schedule::WarmupStableDecay => {
                &["num_decay_steps", "num_stable_steps", "min_lr_ratio", "num_cycles", "warmup_type", "decay_type"]
            }
            Schedule::InverseSqrt => &["timescale"],
            Schedule::Constant | Schedule::ConstantWithWarmup | Schedule::Linear => &[],
        };
        let given = Settings::to_json(self);
        if given.iter().any(|(key, value)| !value.is_null() && !takes.contains(&key.as_str())) {
            return conflict(match schedule {
                Schedule::Cosine => "of `cosine` takes only num_cycles",
                Schedule::CosineWithMinLr => "of `cosine_with_min_lr` takes only min_lr or min_lr_rate, and num_cycles",
                Schedule::WarmupStableDecay => {
                    "of `warmup_stable_decay` takes only num_decay_steps, num_stable_steps, \
                     min_lr_ratio, num_cycles, warmup_type and decay_type"
                }
                Schedule::InverseSqrt => "of `inverse_sqrt` takes only timescale",
                _ => "is given, but this lr_scheduler_type takes no arguments",
            });
        }
        match schedule {
            Schedule::CosineWithMinLr if self.min_lr.is_some() == self.min_lr_rate.is_some() => {
                conflict("of `cosine_with_min_lr` needs min_lr or min_lr_rate, and not both")
            }
            Schedule::WarmupStableDecay if self.num_decay_steps.is_none() => {
                conflict("of `warmup_stable_decay` needs num_decay_steps")
            }
            _ => Ok(()),
        }
    }
}

impl Setting for ScheduleArgs {
    type Scalar = ScheduleArgs;

    /// A map; as text also `{min_lr: 1e-6}` or `min_lr=1e-6,num_cycles=0.5`.
    fn parse(key: &str, raw: &Raw, rule: &Rule<ScheduleArgs>) -> Result<Self, ConfigError> {
        let refused = || wrong(key, raw, rule.accepts);
        let parsed;
        let entries = match &raw.node {
            Node::Null => return Ok(ScheduleArgs::default()),
            Node::Map(entries) => entries,
            Node::Text(text) => {
                parsed = entries_of_text(text, &raw.at).ok_or_else(refused)?;
                &parsed
            }
            Node::List(_) => return Err(refused()),
        };
        let mut args = ScheduleArgs::default();
        for (name, at, value) in entries {
            if !args.set(name, value)? {
                let names = args.keys().into_iter().map(|key| key.name);
                return Err(ConfigError::UnknownKey {
                    key: format!("{key}.{name}"),
                    at: at.clone(),
                    nearest: super::load::nearest(name, names).map(|n| format!("{key}.{n}")),
                });
            }
        }
        Ok(args)
    }

    fn allowed(&self, _: &Rule<ScheduleArgs>) -> bool {
        self.check_ranges().is_ok()
    }

    fn to_json(&self) -> Json {
        let given: serde_json::Map<String, Json> =
            Settings::to_json(self).into_iter().filter(|(_, value)| !value.is_null()).collect();
        Json::Object(given)
    }
}

fn entries_of_text(text: &str, at: &Origin) -> Option<Vec<(String, Origin, Raw)>> {
    let text = text.trim();
    if matches!(text, "" | "null" | "none" | "None") {
        return Some(Vec::new());
    }
    if text.starts_with('{') {
        let Node::Map(entries) = parse_node(text, &Arc::new(PathBuf::new())).ok()?.node else {
            return None;
        };
        // Lines inside a flag's value mean nothing to the user; the flag does.
        return Some(
            entries
                .into_iter()
                .map(|(key, _, value)| (key, at.clone(), Raw { node: value.node, at: at.clone() }))
                .collect(),
        );
    }
    text.split(',')
        .map(|pair| {
            let (key, value) = pair.split_once('=')?;
            let value = Raw { node: Node::Text(value.trim().to_owned()), at: at.clone() };
            Some((key.trim().to_owned(), at.clone(), value))
        })
        .collect()
}
