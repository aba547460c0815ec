//! LayerNorm tuning: norms are trained whole, everything else is frozen.
//!
//! # Source
//! Zhao et al., "Tuning LayerNorm in Attention", arXiv:2312.11420.

use serde_json::{Map, Value, json};

use super::json::{self, Fields};
use super::select::{Matcher, TARGETING, last_parts};
use super::{AdapterError, Attach, Method, PREFIX, Targeting, copies};
use crate::Result;

/// Settings of LayerNorm tuning, under PEFT's names; the targets are norms.
#[derive(Debug, Clone, PartialEq)]
pub struct LnTuningConfig {
    /// Which norms.
    pub target: Targeting,
    /// What adapter_config.json says besides.
    pub others: Map<String, Value>,
}

impl LnTuningConfig {
    /// These norms.
    pub fn new(target: Targeting) -> LnTuningConfig {
        LnTuningConfig { target, others: Map::new() }
    }

    pub(super) fn read(f: &Fields<'_>) -> Result<LnTuningConfig, AdapterError> {
        Ok(LnTuningConfig { target: Targeting::read(f)?, others: f.others(&TARGETING) })
    }
}

impl Method for LnTuningConfig {
    fn peft_type(&self) -> &'static str {
        "LN_TUNING"
    }

    fn to_json(&self) -> Value {
        let mut all = json!({});
        self.target.write(&mut all, "LN_TUNING");
        json::with_others(all, &self.others)
    }

    fn attach(&self, to: &mut Attach<'_>) -> Result<()> {
        let targets = Matcher::new("target_modules", &self.target.target_modules)?;
        let excluded = self.target.exclude_modules.as_ref();
        let excluded = excluded.map(|t| Matcher::new("exclude_modules", t)).transpose()?;
        let wanted = |name: &str| targets.matches(name) && !excluded.as_ref().is_some_and(|e| e.matches(name));
        let mut layers = std::mem::take(&mut to.model.layers);
        let mut last = to.model.norm.clone();
        let mut names = Vec::new();
        let mut matched = false;
        let mut each = || -> Result<()> {
            for norm in layers.iter_mut().flat_map(|l| l.norms_mut()).chain([&mut last]) {
                names.push(norm.name.to_string());
                if wanted(&norm.name) {
                    matched = true;
                    copies::copy(to, format!("{PREFIX}{}.ln_tuning_layers.weight", norm.name), &mut norm.weight)?;
                }
            }
            Ok(())
        };
        let done = each();
        (to.model.layers, to.model.norm) = (layers, last);
        done?;
        if !matched {
            let wanted = self.target.target_modules.to_string();
            let available = last_parts(names);
            return Err(AdapterError::NoMatch { key: "target_modules", wanted, kind: "norm", available }.into());
        }
        copies::modules_to_save(to, &self.target.modules_to_save, false)?;
        to.finish(&[])
    }
}
