//! LoRA on a model: attach, load, save, merge.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use planish_autograd::Param;
use planish_tensor::ops::elementwise;
use planish_tensor::ops::linear::matmul;
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Tensor};
use regex::Regex;

use super::{AdapterError, LoraConfig, Targets};
use crate::decoder::Model;
use crate::modules::{LoraLayer, Weight};
use crate::weights::{WeightsReader, save_safetensors};
use crate::{Error, Result};

/// File names of PEFT.
const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What PEFT puts before a module's name.
const PREFIX: &str = "base_model.model.";

/// A compiled [`Targets`].
enum Matcher {
    All,
    Names(Vec<String>),
    Regex(Regex),
}

impl Matcher {
    fn new(key: &'static str, targets: &Targets) -> Result<Matcher, AdapterError> {
        Ok(match targets {
            Targets::AllLinear => Matcher::All,
            Targets::Names(names) => Matcher::Names(names.clone()),
            // PEFT matches the whole name.
            Targets::Regex(pattern) => Matcher::Regex(compile(key, pattern, &format!("^(?:{pattern})$"))?),
        })
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Matcher::All => true,
            Matcher::Names(names) => names.iter().any(|n| is_suffix(name, n)),
            Matcher::Regex(regex) => regex.is_match(name),
        }
    }
}

fn compile(key: &'static str, pattern: &str, whole: &str) -> Result<Regex, AdapterError> {
    Regex::new(whole).map_err(|e| AdapterError::Pattern { key, pattern: pattern.into(), problem: e.to_string() })
}

/// Whether `name` is `suffix` or ends in `.suffix`.
fn is_suffix(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The value of the first pattern that the name matches, as PEFT looks it up.
fn by_pattern<T: Copy>(
    key: &'static str,
    patterns: &BTreeMap<String, T>,
    name: &str,
) -> Result<Option<T>, AdapterError> {
    for (pattern, value) in patterns {
        if compile(key, pattern, &format!(r"^(?:.*\.)?(?:{pattern})$"))?.is_match(name) {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// Attaches a fresh LoRA adapter: A uniform in ±1/√in (PEFT's Kaiming initialisation), B zero, so that
/// the model computes what it did. Trained copies start from the model's own weights.
///
/// # Errors
/// A target that matches no module; a setting that cannot be.
pub fn attach_lora(model: &mut Model, config: &LoraConfig, seed: u64) -> Result<()> {
    attach(model, config, |name, shape, dtype| {
        if name.ends_with("lora_A.weight") {
            let bound = 1.0 / (shape[1] as f64).sqrt();
            let stream = Stream::new(seed, Purpose::Init, 0).substream(hash(name));
            let values: Vec<f64> =
                (0..shape[0] * shape[1]).map(|i| (2.0 * stream.uniform_f64(i as u64) - 1.0) * bound).collect();
            return Ok(Some(Tensor::from_vec(values, shape)?.to_dtype(dtype)?));
        }
        if name.ends_with("lora_B.weight") {
            return Ok(Some(Tensor::zeros(shape, dtype)?));
        }
        Ok(None)
    })
}

/// FNV-1a: a stream of its own for each name, whatever the order of the modules.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3))
}

/// Attaches adapter weights that `make(name in the file, shape, dtype)` gives; `None` for a trained copy
/// means the model's own weights.
fn attach(
    model: &mut Model,
    config: &LoraConfig,
    make: impl Fn(&str, &[usize], DType) -> Result<Option<Tensor>>,
) -> Result<()> {
    config.validate()?;
    // Adapters are kept in f32 on narrower bases, as PEFT does.
    let dtype = model.dtype();
    let targets = Matcher::new("target_modules", &config.target_modules)?;
    let exclude = config.exclude_modules.as_ref().map(|t| Matcher::new("exclude_modules", t)).transpose()?;
    if let Targets::Names(names) = &config.target_modules
        && let Some(name) =
            names.iter().find(|n| ["lm_head", "embed_tokens"].contains(&n.rsplit('.').next().unwrap_or("")))
    {
        let what = format!("LoRA on {name} (modules_to_save trains it whole)");
        return Err(AdapterError::Unsupported { what }.into());
    }
    let mut matched = 0;
    for (id, linear) in model.linears_mut().into_iter().enumerate() {
        let name = linear.name.to_string();
        let layer: Option<usize> = name.split('.').skip_while(|p| *p != "layers").nth(1).and_then(|n| n.parse().ok());
        let chosen = config.layers_to_transform.as_ref().is_none_or(|l| layer.is_some_and(|n| l.contains(&n)));
        if !chosen || !targets.matches(&name) || exclude.as_ref().is_some_and(|e| e.matches(&name)) {
            continue;
        }
        matched += 1;
        let shape = linear.weight.base.value().dims().to_vec();
        let r = by_pattern("rank_pattern", &config.rank_pattern, &name)?.unwrap_or(config.r);
        let alpha = by_pattern("alpha_pattern", &config.alpha_pattern, &name)?.unwrap_or(config.lora_alpha);
        let part = |part: &str, shape: [usize; 2]| -> Result<Param> {
            let name = format!("{PREFIX}{name}.{part}.weight");
            let tensor = make(&name, &shape, dtype)?.ok_or_else(|| AdapterError::Missing { name: name.clone() })?;
            Ok(Param::trainable(name, tensor))
        };
        let scale = alpha / if config.use_rslora { (r as f64).sqrt() } else { r as f64 };
        linear.lora = Some(LoraLayer {
            a: part("lora_A", [r, shape[1]])?,
            b: part("lora_B", [shape[0], r])?,
            scale,
            dropout: config.lora_dropout,
            id: id as u64,
        });
    }
    if matched == 0 {
        return Err(no_match(model, "target_modules", format!("{:?}", config.target_modules)).into());
    }
    attach_copies(model, config, dtype, make)
}

fn no_match(model: &mut Model, key: &'static str, wanted: String) -> AdapterError {
    let mut available: Vec<String> = Vec::new();
    for linear in model.linears_mut() {
        let last = linear.name.rsplit('.').next().unwrap_or_default().to_string();
        if !available.contains(&last) {
            available.push(last);
        }
    }
    AdapterError::NoMatch { key, wanted, available }
}

/// Gives the modules of `modules_to_save` their trained copies.
fn attach_copies(
    model: &mut Model,
    config: &LoraConfig,
    dtype: DType,
    make: impl Fn(&str, &[usize], DType) -> Result<Option<Tensor>>,
) -> Result<()> {
    // PEFT matches the bare end of the name here, without a dot: `norm` is also every layer's norm.
    let wanted = |name: &str| config.modules_to_save.iter().any(|m| name.ends_with(m.as_str()));
    let copy = |name: &str, weight: &mut Weight, part: &str| -> Result<()> {
        let name = format!("{PREFIX}{name}.{part}");
        let own = weight.base.value();
        let tensor = match make(&name, own.dims(), dtype)? {
            Some(tensor) => tensor,
            None => own.to_dtype(dtype)?.copied()?,
        };
        weight.tuned = Some(Param::trainable(name, tensor));
        Ok(())
    };
    let mut matched = HashSet::new();
    let mut note = |name: &str| {
        matched.extend(config.modules_to_save.iter().filter(|m| name.ends_with(m.as_str())).cloned());
    };
    let embedding = "model.embed_tokens";
    if wanted(embedding) {
        note(embedding);
        // The head of a tied model stays what it was, unless the adapter ties it to the copy.
        let untied = model.lm_head.is_none() && !config.ensure_weight_tying;
        if untied && !wanted("lm_head") {
            model.lm_head = Some(model.embed_tokens.clone());
        }
        copy(embedding, &mut model.embed_tokens, "weight")?;
    }
    if wanted("lm_head") {
        note("lm_head");
        let base = model.lm_head.as_ref().unwrap_or(&model.embed_tokens).base.clone();
        let mut head = Weight::new(base);
        copy("lm_head", &mut head, "weight")?;
        model.lm_head = Some(head);
    }
    let mut norm = model.norm.clone();
    for n in std::iter::once(&mut norm).chain(model.layers.iter_mut().flat_map(|l| l.norms_mut())) {
        if wanted(&n.name) {
            note(&n.name);
            copy(&n.name.clone(), &mut n.weight, "weight")?;
        }
    }
    model.norm = norm;
    for linear in model.linears_mut().into_iter().filter(|l| wanted(&l.name)) {
        let name = linear.name.clone();
        note(&name);
        linear.lora = None;
        copy(&name, &mut linear.weight, "weight")?;
        if let Some(bias) = &mut linear.bias {
            copy(&name, bias, "bias")?;
        }
    }
    match config.modules_to_save.iter().find(|m| !matched.contains(*m)) {
        None => Ok(()),
        Some(missing) => {
            let wanted = format!("{missing:?}");
            Err(no_match(model, "modules_to_save", wanted).into())
        }
    }
}

/// The parameters that belong to the adapter, under their names in PEFT's file.
fn adapter_params(model: &Model) -> Vec<Param> {
    model.params().into_iter().filter(|p| p.name().starts_with(PREFIX)).collect()
}

/// Attaches the adapter of a PEFT directory, trainable. Returns its settings.
///
/// # Errors
/// Files that are missing or wrong; an adapter made for another model; options that are not supported.
pub fn load_adapter(model: &mut Model, dir: &Path) -> Result<LoraConfig> {
    let path = dir.join(CONFIG_FILE);
    let text = std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
    let json = serde_json::from_slice(&text).map_err(|source| Error::Json { path: path.clone(), source })?;
    let config = LoraConfig::from_json(&json, &path)?;
    let reader = WeightsReader::open(dir.join(WEIGHTS_FILE))?;
    let tied_head = format!("{PREFIX}lm_head.weight");
    attach(model, &config, |name, shape, dtype| {
        if !reader.contains(name) {
            return Err(AdapterError::Missing { name: name.into() }.into());
        }
        let tensor = reader.get(name)?;
        if tensor.dims() != shape {
            let (found, expected) = (tensor.dims().to_vec(), shape.to_vec());
            return Err(AdapterError::Shape { name: name.into(), found, expected }.into());
        }
        Ok(Some(tensor.to_dtype(dtype)?.copied()?))
    })?;
    let known: HashSet<String> = adapter_params(model).iter().map(|p| p.name().to_string()).collect();
    // With tying ensured PEFT saves the shared copy twice.
    let is_known = |n: &String| known.contains(n) || (config.ensure_weight_tying && *n == tied_head);
    match reader.names().iter().find(|n| !is_known(n)) {
        Some(name) => Err(AdapterError::Unexpected { name: name.clone() }.into()),
        None => Ok(config),
    }
}

/// Writes the adapter as PEFT does: adapter_config.json and adapter_model.safetensors, each atomically.
///
/// # Errors
/// Files that cannot be written.
pub fn save_adapter(model: &Model, config: &LoraConfig, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|source| Error::Io { path: dir.to_path_buf(), source })?;
    let mut tensors: Vec<(String, Tensor)> =
        adapter_params(model).into_iter().map(|p| (p.name().to_string(), p.value())).collect();
    if config.ensure_weight_tying
        && model.lm_head.is_none()
        && let Some(tuned) = &model.embed_tokens.tuned
    {
        tensors.push((format!("{PREFIX}lm_head.weight"), tuned.value()));
    }
    save_safetensors(dir.join(WEIGHTS_FILE), tensors, &BTreeMap::new())?;
    let mut text = serde_json::to_vec_pretty(&config.to_json()).expect("a JSON value");
    text.push(b'\n');
    Ok(crate::weights::atomic_write(dir.join(CONFIG_FILE), |w| w.write_all(&text))?)
}

/// Folds the adapter into the weights: W + s B A, trained copies in place of the originals. The sum is
/// made in the compute dtype and rounded once to the weight's.
///
/// # Errors
/// Those of the kernels.
pub fn merge_adapter(model: &mut Model) -> Result<()> {
    let dtype = model.dtype();
    let settle = |weight: &mut Weight| -> Result<()> {
        if let Some(tuned) = weight.tuned.take() {
            let value = tuned.value().to_dtype(weight.base.value().dtype())?;
            weight.base = Param::frozen(weight.base.name(), value);
        }
        Ok(())
    };
    for linear in model.linears_mut() {
        if let Some(lora) = linear.lora.take() {
            let weight = linear.weight.base.value();
            let b = elementwise::scale(&lora.b.value().to_dtype(dtype)?, lora.scale)?;
            let mut merged = weight.to_dtype(dtype)?.copied()?;
            // B A apart and then added, as PEFT does: the order matters in the last bit only.
            let delta = matmul(&b, &lora.a.value(), dtype)?;
            elementwise::add_assign(&mut merged, &delta)?;
            linear.weight.base = Param::frozen(linear.weight.base.name(), merged.to_dtype(weight.dtype())?);
        }
        settle(&mut linear.weight)?;
        linear.bias.as_mut().map_or(Ok(()), settle)?;
    }
    model.layers.iter_mut().flat_map(|l| l.norms_mut()).try_for_each(|n| settle(&mut n.weight))?;
    settle(&mut model.norm.weight)?;
    settle(&mut model.embed_tokens)?;
    let Some(head) = &mut model.lm_head else { return Ok(()) };
    settle(head)?;
    if model.config.tie_word_embeddings {
        // The adapter trained one of the two: they are two from now on.
        head.base = Param::frozen("lm_head.weight", head.base.value());
        let mut config = (*model.config).clone();
        config.tie_word_embeddings = false;
        config.source["tie_word_embeddings"] = false.into();
        model.config = Arc::new(config);
    }
    Ok(())
}
