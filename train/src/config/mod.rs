//! Settings of the recipes: one table for fields, flags, YAML keys, help, defaults and checks.
//!
//! A row of the table in `groups` declares a setting once. [`resolve`] reads a YAML
//! file and flags into a recipe's configuration ([`SftConfig`], [`PretrainConfig`]) and
//! [`to_yaml`] writes the resolved one. Names and defaults are TRL's.
//!
//! ```
//! use planish_train::config::{SftConfig, resolve};
//! let flag = |name: &str, value: &str| (name.to_owned(), vec![value.to_owned()]);
//! let flags = [
//!     flag("model", "builtin"),
//!     flag("dataset", "train.jsonl"),
//!     flag("output-dir", "run"),
//!     flag("learning-rate", "1e-4"),
//! ];
//! let config = resolve::<SftConfig>(None, &flags)?.config;
//! assert_eq!(config.optim.learning_rate, 1e-4);
//!
//! let error = resolve::<SftConfig>(None, &[flag("learnin-rate", "1e-4")]).unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "--learnin-rate: there is no setting `learnin-rate`; did you mean `learning_rate`?"
//! );
//! # Ok::<(), planish_train::config::ConfigError>(())
//! ```

mod adapters;
mod device;
mod distill;
mod error;
mod groups;
mod load;
mod mix;
mod preference;
mod preference_recipes;
mod raw;
mod recipes;
mod replay;
mod router;
mod schedule;
mod setting;
mod table;

#[cfg(test)]
mod tests;

pub use device::DeviceChoice;
pub use distill::{DistillConfig, DistillSettings};
pub use error::{ConfigError, Origin};
pub use groups::{
    ArchitectureSettings, BiasChoice, DataSettings, DocumentChoice, EncoderChoice, EvalSettings, FinetuningType,
    FourBitType, Granularity, Interval, LoraSettings, ModelSettings, OptimSettings, OptimizerChoice, PackingStrategy,
    PeftType, PromptInitChoice, RowType, RunSettings, SharingSettings, TruncationMode, WeightDtype,
};
pub use load::{Flag, Loaded, aliases, canonical, from_yaml, nearest, not_ours, resolve, to_yaml};
pub use mix::{Ingredient, IngredientLoss, MixConfig, MixSettings, Objectives};
pub use preference::{
    CpoLossType, CpoSettings, DpoLossType, DpoSettings, FDivergence, KtoLossType, KtoSettings, OrpoSettings,
    PreferenceDataSettings, ReferenceSettings, RewardSettings, SimpoSettings, StepSettings,
};
pub use preference_recipes::{
    CpoConfig, DpoConfig, DropoutSettings, KtoConfig, OrpoConfig, PairSettings, PreferenceBlocks, PreferenceRecipe,
    RewardConfig, SimpoConfig,
};
pub use raw::{Node, Raw, parse_yaml};
pub(crate) use recipes::BF16_ON_CPU;
pub use recipes::{PretrainConfig, Recipe, SftConfig};
pub use replay::ReplaySettings;
pub use router::RouterSettings;
pub use schedule::{Ramp, Schedule, ScheduleArgs};
pub use setting::{Arity, Rule, Setting};
pub use table::{Key, Settings};
