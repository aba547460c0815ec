//! `optim_args`: arguments of single optimizers, as transformers writes them.

use super::codes::Rounding;
use super::galore::{GaLoreSettings, ProjType};
use crate::config::{ConfigError, OptimSettings, OptimizerChoice};

/// The arguments of the optimizer that the settings name.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct OptimArgs {
    /// Of `galore_adamw`.
    pub galore: GaLoreSettings,
    /// Of those with states in 8 bits: `rounding`.
    pub rounding: Rounding,
}

const PROBLEM: &str = "must be NAME=VALUE, separated by commas: rank, update_proj_gap, scale and proj_type (std, \
     reverse_std, right, left) of galore_adamw; rounding (nearest, table) of optimizers in 8 bits";

impl OptimArgs {
    /// Reads `optim_args`: `rank=64, update_proj_gap=100, scale=0.10`.
    ///
    /// # Errors
    /// [`ConfigError::Conflict`]: an argument that the optimizer has not got, or a value that it cannot be.
    pub fn of(o: &OptimSettings) -> Result<OptimArgs, ConfigError> {
        let mut args = OptimArgs::default();
        let text = o.optim_args.as_deref().unwrap_or_default();
        for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let pair = one.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
            pair.and_then(|(name, value)| args.set(o.optim, name, value))
                .ok_or(ConfigError::Conflict { key: "optim_args", problem: PROBLEM })?;
        }
        let galore = o.optim == OptimizerChoice::GaLoreAdamW;
        if galore && o.optim_target_modules.is_empty() {
            let problem = "names the modules that galore_adamw projects, so set it, e.g. to all-linear";
            return Err(ConfigError::Conflict { key: "optim_target_modules", problem });
        }
        if !galore && !o.optim_target_modules.is_empty() {
            let problem = "is for galore_adamw; leave it out";
            return Err(ConfigError::Conflict { key: "optim_target_modules", problem });
        }
        if o.optim_memory_budget.is_some() && !o.optim.is_paged() {
            let problem = "is for paged optimizers, such as paged_adamw_32bit";
            return Err(ConfigError::Conflict { key: "optim_memory_budget", problem });
        }
        Targets::of(o).map(|_| args)
    }

    fn set(&mut self, optim: OptimizerChoice, name: &str, value: &str) -> Option<()> {
        let galore = optim == OptimizerChoice::GaLoreAdamW;
        match name {
            "rank" if galore => self.galore.rank = value.parse().ok().filter(|&r| r > 0)?,
            "update_proj_gap" if galore => self.galore.update_proj_gap = value.parse().ok().filter(|&g| g > 0)?,
            "scale" if galore => {
                self.galore.scale = value.parse().ok().filter(|s: &f64| s.is_finite() && *s > 0.0)?;
            }
            "proj_type" if galore => {
                self.galore.proj_type = match value {
                    "std" => ProjType::Std,
                    "reverse_std" => ProjType::ReverseStd,
                    "right" => ProjType::Right,
                    "left" => ProjType::Left,
                    _ => return None,
                }
            }
            "rounding" if optim.eight_bits() => {
                self.rounding = match value {
                    "nearest" => Rounding::Nearest,
                    "table" => Rounding::Table,
                    _ => return None,
                }
            }
            _ => return None,
        }
        Some(())
    }
}

impl OptimizerChoice {
    /// Whether states beyond a budget are in a file.
    pub fn is_paged(self) -> bool {
        use OptimizerChoice as O;
        matches!(self, O::PagedAdamW | O::PagedAdamW8bit | O::PagedLion | O::PagedLion8bit)
    }

    /// Whether states are kept in 8 bits.
    pub fn eight_bits(self) -> bool {
        use OptimizerChoice as O;
        matches!(self, O::AdamW8bit | O::Lion8bit | O::Sgd8bit | O::PagedAdamW8bit | O::PagedLion8bit)
    }
}

/// The matrices that `optim_target_modules` names: of linear layers, by a part of the module's name, by one regular
/// expression for the whole name, or all.
pub(super) struct Targets {
    all: bool,
    parts: Vec<String>,
    patterns: Vec<regex::Regex>,
}

impl Targets {
    pub(super) fn of(o: &OptimSettings) -> Result<Targets, ConfigError> {
        let list = &o.optim_target_modules;
        let all = list.iter().any(|one| one.replace('_', "-") == "all-linear");
        let whole = |one: &String| regex::Regex::new(&format!("^(?:{one})$")).ok();
        // An entry that is no expression is a part of a name only.
        let patterns: Vec<_> = list.iter().filter_map(whole).collect();
        Ok(Targets { all, parts: list.clone(), patterns })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        let Some(module) = name.strip_suffix(".weight") else { return false };
        if module.ends_with("embed_tokens") {
            return false;
        }
        self.all
            || self.parts.iter().any(|part| module.contains(part.as_str()))
            || self.patterns.iter().any(|p| p.is_match(module))
    }
}
