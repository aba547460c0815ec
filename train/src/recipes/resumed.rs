//! The settings of a resumed run beside those that it was begun with.

use serde_json::{Map, Value};

use crate::config::{Recipe, from_yaml};
use crate::run::{Checkpoint, Observer};
use crate::{Error, Result};

/// Settings of adapters that are not part of what a checkpoint holds.
const RATES: [&str; 2] = ["loraplus_lr_ratio", "loraplus_lr_embedding"];

/// Other settings that a checkpoint was made by: with another value it is of another run.
const FIXED: [&str; 6] =
    ["optim", "dtype", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant"];

/// Settings that say where and how fast, not what: nobody has to hear that they are others.
const FREE: [&str; 19] = [
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "threads",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "eval_on_start",
    "per_device_eval_batch_size",
    "template_time",
    "memory_budget",
    "gradient_checkpointing",
    "recompute_granularity",
    "optim_memory_budget",
    "ref_cache_dir",
    "precompute_ref_log_probs",
];

/// Compares the settings with those in the run directory that the checkpoint is of, if it is in one. Those that made what
/// the checkpoint holds must be the same; of others that differ the observer is told.
///
/// # Errors
/// [`Error::Resumed`] for the first that must be the same.
pub(super) fn compare<C: Recipe>(config: &C, from: &Checkpoint, observer: &mut dyn Observer) -> Result<()> {
    let path = from.path.with_file_name("config.yaml");
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(()) };
    let before = match from_yaml::<C>(&text, &path) {
        Ok(before) => before,
        Err(error) => {
            observer.note(&format!("the settings that the run began with are not compared with those given: {error}"));
            return Ok(());
        }
    };
    let adapters: Vec<&str> = config.keys().iter().filter(|k| k.group == "Adapters").map(|k| k.name).collect();
    let fixed = |key: &str| FIXED.contains(&key) || adapters.contains(&key) && !RATES.contains(&key);
    let found = differences(&before.to_json(), &config.to_json());
    if let Some((key, was, is)) = found.iter().find(|(key, ..)| fixed(key)) {
        let (key, was, is) = (key.clone(), was.clone(), is.clone());
        return Err(Error::Resumed { checkpoint: from.path.clone(), key, was, is });
    }
    let others: Vec<String> = found.into_iter().map(|(key, was, is)| format!("{key} {is} (was {was})")).collect();
    if !others.is_empty() {
        observer.note(&format!("going on with other settings than the run began with: {}", others.join(", ")));
    }
    Ok(())
}

/// Name and both values of each setting that differs and is not [`FREE`].
fn differences(before: &Map<String, Value>, now: &Map<String, Value>) -> Vec<(String, String, String)> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let differ = now.iter().filter(|(key, value)| !FREE.contains(&key.as_str()) && before.get(*key) != Some(*value));
    differ.map(|(key, value)| (key.clone(), text(before.get(key).unwrap_or(&Value::Null)), text(value))).collect()
}
