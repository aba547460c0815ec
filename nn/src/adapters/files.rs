//! Putting adapters on a model, fresh or from a directory, and writing them.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use planish_autograd::Param;

use super::attach::Source;
use super::{AdapterConfig, Attach, Method, read_config};
use crate::decoder::Model;
use crate::modules::Weight;
use crate::pretrained::read_json;
use crate::weights::{WeightsReader, save_safetensors};
use crate::{Error, Result};

/// File names of PEFT.
pub(super) const CONFIG_FILE: &str = "adapter_config.json";
pub(crate) const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What going on with the training needs besides; no file of PEFT's.
const TRAINING_FILE: &str = "adapter_training.safetensors";

/// Attaches a new adapter, as number 0. `prompt` are the tokens of the text that prompt tuning begins with.
///
/// # Errors
/// A target that matches no module; a setting that cannot be.
pub fn attach(model: &mut Model, config: &dyn Method, seed: u64, prompt: Option<&[u32]>) -> Result<()> {
    config.attach(&mut Attach::new(model, 0, true, Source::Fresh { seed, prompt }))
}

/// Attaches the adapter of a PEFT directory, trainable, as number 0. Returns its settings.
///
/// # Errors
/// Files that are missing or wrong; an adapter made for another model; options that are not supported.
pub fn load_adapter(model: &mut Model, dir: &Path) -> Result<AdapterConfig> {
    load(model, dir, 0, true, false)
}

/// Attaches the adapter of a PEFT directory beside those that are there, as number `slot`:
/// [`Ctx::with_adapter`](crate::Ctx::with_adapter) turns to it. One that is not trainable costs no gradient.
///
/// # Errors
/// As [`load_adapter`].
pub fn load_adapter_as(model: &mut Model, dir: &Path, slot: usize, trainable: bool) -> Result<AdapterConfig> {
    load(model, dir, slot, trainable, false)
}

/// Attaches the adapter of a checkpoint, as it was while it was trained: with what [`save_training`] wrote.
///
/// # Errors
/// As [`load_adapter`].
pub fn resume_adapter(model: &mut Model, dir: &Path) -> Result<AdapterConfig> {
    load(model, dir, 0, true, true)
}

fn load(model: &mut Model, dir: &Path, slot: usize, trainable: bool, resume: bool) -> Result<AdapterConfig> {
    let config = open_config(dir)?;
    let weights = WeightsReader::open(dir.join(WEIGHTS_FILE))?;
    let file = dir.join(TRAINING_FILE);
    let training = (resume && file.exists()).then(|| WeightsReader::open(file)).transpose()?;
    let source = Source::Files { weights: &weights, training: training.as_ref() };
    config.attach(&mut Attach::new(model, slot, trainable, source)).map_err(|e| e.of_adapter(dir))?;
    Ok(config)
}

/// Reads the settings of a PEFT directory.
///
/// # Errors
/// A file that is missing or wrong.
pub(super) fn open_config(dir: &Path) -> Result<AdapterConfig> {
    let path = dir.join(CONFIG_FILE);
    let json = read_json(&path)?;
    read_config(&json, &path).map_err(|e| Error::from(e).of_adapter(dir))
}

/// Whether a directory holds an adapter in PEFT's format.
pub fn is_adapter(dir: &Path) -> bool {
    dir.join(CONFIG_FILE).is_file()
}

/// The parameters that belong to adapter `slot`, trained or not, each once, in the order of the model.
pub fn adapter_params(model: &Model, slot: usize) -> Vec<Param> {
    let mut all: Vec<Param> = Vec::new();
    fn tuned(all: &mut Vec<Param>, slot: usize, weight: &Weight) {
        all.extend(weight.tuned.get(slot).cloned());
    }
    tuned(&mut all, slot, &model.embed_tokens);
    all.extend(model.embed_lora.get(slot).iter().flat_map(|l| l.params()).cloned());
    all.extend(model.virtual_tokens.get(slot).iter().flat_map(|v| v.params()).cloned());
    for layer in &model.layers {
        for linear in layer.linears() {
            tuned(&mut all, slot, &linear.weight);
            linear.bias.iter().for_each(|b| tuned(&mut all, slot, b));
            all.extend(linear.adapters.get(slot).iter().flat_map(|a| a.params()).cloned());
        }
        layer.norms().into_iter().for_each(|n| tuned(&mut all, slot, &n.weight));
    }
    tuned(&mut all, slot, &model.norm.weight);
    model.lm_head.iter().for_each(|w| tuned(&mut all, slot, w));
    model.score.iter().chain(&model.score_bias).for_each(|w| tuned(&mut all, slot, w));
    all.extend(model.head_lora.get(slot).iter().flat_map(|l| l.params()).cloned());
    let mut seen = HashSet::new();
    all.retain(|p| !p.name().starts_with(super::init::RESIDUAL) && seen.insert(p.name().to_string()));
    all
}

/// Writes adapter 0 as PEFT does: adapter_config.json and adapter_model.safetensors, each atomically.
///
/// # Errors
/// Files that cannot be written.
pub fn save_adapter(model: &Model, config: &dyn Method, dir: &Path) -> Result<()> {
    let tensors = config.saved(&adapter_params(model, 0))?;
    write(config, tensors, dir)
}

/// Writes the files of an adapter.
pub(super) fn write(config: &dyn Method, tensors: Vec<(String, planish_tensor::Tensor)>, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|source| Error::Io { path: dir.to_path_buf(), source })?;
    save_safetensors(dir.join(WEIGHTS_FILE), tensors, &BTreeMap::new())?;
    let mut text = serde_json::to_vec_pretty(&config.to_json()).expect("a JSON value");
    text.push(b'\n');
    Ok(crate::weights::atomic_write(dir.join(CONFIG_FILE), |w| w.write_all(&text))?)
}

/// Writes what going on with the training of adapter 0 needs besides [`save_adapter`]'s files: nothing for most
/// methods.
///
/// # Errors
/// A file that cannot be written.
pub fn save_training(model: &Model, config: &dyn Method, dir: &Path) -> Result<()> {
    let state = config.training_state(&adapter_params(model, 0));
    if state.is_empty() {
        return Ok(());
    }
    Ok(save_safetensors(dir.join(TRAINING_FILE), state, &BTreeMap::new())?)
}

/// Whether a file of that name in a checkpoint is of an adapter's training only.
pub fn is_training_file(name: &std::ffi::OsStr) -> bool {
    name == TRAINING_FILE
}
