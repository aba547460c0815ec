//! Model files: Hugging Face directories and GGUF, read and written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::MmapMut;
use planish_tensor::{DType, Tensor};
use serde_json::Value;

use crate::config::{ConfigError, ModelConfig};
use crate::decoder::{LoadOptions, Model, TensorSource};
use crate::fused::Unfused;
use crate::gguf::GgufFile;
use crate::quantize::{QuantizeAs, Quantizing, describe};
use crate::weights::{DEFAULT_MAX_SHARD_BYTES, WeightsReader, check_regular, save_sharded, stored};
use crate::{Error, Result};

impl TensorSource for WeightsReader {
    fn tensor(&self, name: &str, _shape: &[usize]) -> Result<Option<Tensor>> {
        if !self.contains(name) {
            return Ok(None);
        }
        Ok(Some(match self.quantized(name)? {
            Some(packed) => packed,
            None => self.get(name)?,
        }))
    }

    fn names(&self) -> Vec<String> {
        WeightsReader::names(self).iter().filter(|n| !self.is_quantized_part(n)).cloned().collect()
    }
}

impl TensorSource for GgufFile {
    fn tensor(&self, name: &str, _shape: &[usize]) -> Result<Option<Tensor>> {
        if !self.tensor_names_hf()?.iter().any(|n| n == name) {
            return Ok(None);
        }
        Ok(Some(match self.packed_hf(name)? {
            Some(packed) => packed,
            None => self.tensor_hf_native(name)?,
        }))
    }

    fn names(&self) -> Vec<String> {
        self.tensor_names_hf().unwrap_or_default()
    }
}

/// A model's files, opened but not yet built: what it is can be asked before its weights are touched.
pub struct Pretrained {
    /// Where they are.
    pub path: PathBuf,
    /// What the model is made of.
    pub config: ModelConfig,
    source: Source,
    quantize: Option<QuantizeAs>,
}

enum Source {
    Directory(WeightsReader),
    Gguf(Box<GgufFile>),
}

impl Pretrained {
    /// Opens a Hugging Face directory or a `.gguf` file.
    ///
    /// # Errors
    /// [`Error::NotAModel`]; a config or weights that are missing or wrong.
    pub fn open(path: &Path) -> Result<Pretrained> {
        let not = |problem| Error::NotAModel { path: path.to_path_buf(), problem };
        if path.is_dir() {
            let config = read_json(&path.join("config.json"))?;
            check_method(path, &config)?;
            let source = Source::Directory(WeightsReader::open(path)?);
            let config = config_of(path, &config)?;
            return Ok(Pretrained { path: path.to_path_buf(), config, source, quantize: None });
        }
        if !path.exists() {
            return Err(not("there is no such file or directory"));
        }
        if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            return Err(not("it is neither a model directory nor a .gguf file"));
        }
        Pretrained::from_gguf(path, GgufFile::open(path)?)
    }

    /// The model of a GGUF file, under whatever name it was opened.
    ///
    /// # Errors
    /// Metadata that says of no model what it is.
    pub fn from_gguf(path: &Path, file: GgufFile) -> Result<Pretrained> {
        let config = ModelConfig::from_json(&file.hf_config()?).map_err(|e| file.in_its_words(&e))?;
        Ok(Pretrained { path: path.to_path_buf(), config, source: Source::Gguf(Box::new(file)), quantize: None })
    }

    /// A model whose config.json and safetensors are in memory. `name` stands for its path in messages.
    ///
    /// # Errors
    /// A config or weights that are wrong; no memory to map.
    pub fn from_bytes(name: &str, config: &[u8], weights: &[u8]) -> Result<Pretrained> {
        let path = PathBuf::from(name);
        let config = serde_json::from_slice(config).map_err(|source| Error::Json { path: path.clone(), source })?;
        let io = |source| Error::Io { path: path.clone(), source };
        let mut map = MmapMut::map_anon(weights.len().max(1)).map_err(io)?;
        map[..weights.len()].copy_from_slice(weights);
        let map = Arc::new(map.make_read_only().map_err(io)?);
        let source = Source::Directory(WeightsReader::from_mmap(map, &path)?);
        Ok(Pretrained { config: config_of(&path, &config)?, path, source, quantize: None })
    }

    /// The GGUF file, if it is one: its metadata holds the tokenizer.
    pub fn gguf(&self) -> Option<&GgufFile> {
        match &self.source {
            Source::Gguf(file) => Some(file),
            Source::Directory(_) => None,
        }
    }

    /// The same, with the linear modules of its layers quantised as they are loaded.
    pub fn quantized(mut self, how: Option<QuantizeAs>) -> Pretrained {
        self.quantize = how;
        self
    }

    /// How they are quantised then.
    pub fn quantizes(&self) -> Option<QuantizeAs> {
        self.quantize
    }

    /// Builds the model.
    ///
    /// # Errors
    /// Weights that do not fit the config; quantised ones that were to be trained, or to be quantised in another way.
    pub fn load(&self, options: LoadOptions) -> Result<Model> {
        self.build(options.dtype, |source| Model::load(self.config.clone(), source, options))
    }

    /// Calls `f` with the tensors as they are to be loaded.
    pub(crate) fn build<T>(&self, dtype: Option<DType>, f: impl FnOnce(&dyn TensorSource) -> Result<T>) -> Result<T> {
        self.unquantized(|source| match self.quantize {
            None => f(source),
            Some(how) => f(&Quantizing::new(source, how, dtype)),
        })
    }

    /// Calls `f` with the tensors as the files have them, under the names that the model has.
    pub(crate) fn unquantized<T>(&self, f: impl FnOnce(&dyn TensorSource) -> Result<T>) -> Result<T> {
        let unfused = Unfused::new(&self.config, self.source()).map_err(|e| e.of_model(&self.path))?;
        let source = match &unfused {
            Some(unfused) => unfused as &dyn TensorSource,
            None => self.source(),
        };
        f(source).map_err(|e| e.of_model(&self.path))
    }

    /// Its tensors, as the files have them.
    pub fn source(&self) -> &dyn TensorSource {
        match &self.source {
            Source::Directory(reader) => reader,
            Source::Gguf(file) => &**file,
        }
    }
}

/// Refuses weights that another method has quantised.
fn check_method(path: &Path, config: &Value) -> Result<()> {
    let config = &config["quantization_config"];
    match config["quant_method"].as_str() {
        _ if config.is_null() => Ok(()),
        Some("bitsandbytes") => Ok(()),
        other => {
            let what = format!("`quantization_config` with the method {:?}", other.unwrap_or("(none)"));
            Err(Error::from(ConfigError::Unsupported { what }).of_model(path))
        }
    }
}

fn config_of(path: &Path, config: &Value) -> Result<ModelConfig> {
    ModelConfig::from_json(config).map_err(|e| Error::from(e).of_model(path))
}

/// Reads a JSON file.
///
/// # Errors
/// [`Error::Io`], [`Error::Json`], both with the path.
pub fn read_json(path: &Path) -> Result<Value> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    check_regular(path).map_err(io)?;
    let text = std::fs::read(path).map_err(io)?;
    serde_json::from_slice(&text).map_err(|source| Error::Json { path: path.to_path_buf(), source })
}

impl Model {
    /// Writes config.json and the weights (without adapters) as transformers reads them, each file
    /// atomically. The tokenizer is written by itself.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|source| Error::Io { path: dir.to_path_buf(), source })?;
        let params = self.base_params();
        let mut config = self.config.source.clone();
        describe(self, &mut config);
        let mut text = serde_json::to_vec_pretty(&config).expect("a JSON value");
        text.push(b'\n');
        // Cloning shares; values of GGUF blocks are made one weight after the other.
        let mut failed = None;
        let tensors = params.iter().map_while(|p| match stored(p.name(), &p.value()) {
            Ok(parts) => Some(parts),
            Err(error) => {
                failed = Some(error);
                None
            }
        });
        let tensors = tensors.flatten().collect::<Vec<_>>();
        if let Some(error) = failed {
            return Err(error.into());
        }
        save_sharded(dir, tensors, DEFAULT_MAX_SHARD_BYTES)?;
        Ok(crate::weights::atomic_write(dir.join("config.json"), |w| w.write_all(&text))?)
    }
}
