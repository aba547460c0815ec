//! [`WeightsReader`]: tensors by name, over mapped safetensors files.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use planish_tensor::{DType, Mmap, Tensor};
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::header::{self, MAX_HEADER_BYTES, UniqueStrings};
use super::{INDEX_FILE, Result, SINGLE_FILE, WeightsError};

/// What a file says about a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorMeta {
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// The file that holds it.
    pub file: PathBuf,
    /// First byte in the file.
    pub offset: usize,
}

/// A model's tensors, in one safetensors file or in several.
///
/// The files are mapped, not read: a tensor costs no memory until it is used, and then only what the
/// operating system's page cache holds anyway. Nobody may shorten a file while it is mapped: reading
/// past the new end kills the process (as with any mapped file). planish itself never does, as it
/// replaces files by renaming.
#[derive(Debug)]
pub struct WeightsReader {
    /// What was opened.
    path: PathBuf,
    files: Vec<(PathBuf, Arc<Mmap>)>,
    names: Vec<String>,
    tensors: HashMap<String, (usize, header::Entry)>,
    metadata: BTreeMap<String, String>,
}

impl WeightsReader {
    /// Opens a safetensors file, an index of several, or a directory that holds either under its
    /// usual name (`model.safetensors`, else `model.safetensors.index.json`).
    ///
    /// Every header is checked here, so that [`WeightsReader::get`] of a known name can fail only for
    /// want of memory.
    ///
    /// # Errors
    /// Any variant of [`WeightsError`] about reading.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let kind = fs::metadata(path).map_err(|e| WeightsError::io("open", path, e))?;
        if !kind.is_dir() {
            let index = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
            return if index { Self::open_index(path) } else { Self::open_files(path, vec![path.into()]) };
        }
        let (single, index) = (path.join(SINGLE_FILE), path.join(INDEX_FILE));
        if single.exists() {
            Self::open_files(path, vec![single])
        } else if index.exists() {
            Self::open_index(&index)
        } else {
            Err(WeightsError::NotFound { path: path.into(), found: other_weights(path) })
        }
    }

    /// Reads tensors from a map of a whole safetensors file; `path` is for messages.
    ///
    /// # Errors
    /// Any variant of [`WeightsError`] about the content of a file.
    pub fn from_mmap(map: Arc<Mmap>, path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let mut reader = Self::empty(&path);
        reader.add(path, map)?;
        Ok(reader)
    }

    fn empty(path: &Path) -> Self {
        let (files, names, tensors) = (Vec::new(), Vec::new(), HashMap::new());
        WeightsReader { path: path.into(), files, names, tensors, metadata: BTreeMap::new() }
    }

    fn open_files(path: &Path, files: Vec<PathBuf>) -> Result<Self> {
        let mut reader = Self::empty(path);
        for file in files {
            let map = map_file(&file)?;
            reader.add(file, map)?;
        }
        Ok(reader)
    }

    fn open_index(index: &Path) -> Result<Self> {
        let dir = index.parent().unwrap_or(Path::new(""));
        check_regular(index).map_err(|e| WeightsError::io("open", index, e))?;
        let len = fs::metadata(index).map_err(|e| WeightsError::io("open", index, e))?.len();
        if len > MAX_HEADER_BYTES {
            return Err(WeightsError::HeaderTooLarge { path: index.into(), size: len, limit: MAX_HEADER_BYTES });
        }
        let json = fs::read(index).map_err(|e| WeightsError::io("read", index, e))?;
        let weight_map = header::parse_json(&json, IndexSeed, index, "index")?;
        let mut files: Vec<&String> = Vec::new();
        for (name, file) in &weight_map {
            // Exactly one component, and that a name: neither `..`, nor `/etc`, nor `a/b`, nor `C:x`.
            let mut components = Path::new(file).components();
            let plain = matches!((components.next(), components.next()), (Some(Component::Normal(c)), None) if c == file.as_str());
            if !plain || file.contains(['\\', ':', '\0']) {
                return Err(WeightsError::ShardPath { path: index.into(), name: name.clone(), file: file.clone() });
            }
            files.push(file);
        }
        files.sort();
        files.dedup();
        if let Some(file) = files.iter().find(|f| !dir.join(f).exists()) {
            return Err(WeightsError::MissingShard { path: dir.into(), file: (*file).clone() });
        }
        let reader = Self::open_files(index, files.iter().map(|f| dir.join(f)).collect())?;
        for (name, file) in &weight_map {
            let found = reader.tensors.get(name).map(|(file, _)| &reader.files[*file].0);
            let expected = dir.join(file);
            if found != Some(&expected) {
                return Err(WeightsError::NotInShard { path: expected, name: name.clone() });
            }
        }
        Ok(reader)
    }

    fn add(&mut self, path: PathBuf, map: Arc<Mmap>) -> Result<()> {
        let header = header::parse(&map, &path)?;
        let file = self.files.len();
        for (name, entry) in header.entries {
            if let Some((first, _)) = self.tensors.get(&name) {
                let first = self.files[*first].0.clone();
                return Err(WeightsError::InTwoShards { name, first, second: path });
            }
            self.names.push(name.clone());
            self.tensors.insert(name, (file, entry));
        }
        self.metadata.extend(header.metadata);
        self.files.push((path, map));
        Ok(())
    }

    /// What was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, in the order of the files' data.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether a tensor has this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of this name, over the mapped file (a copy if the file does not align it).
    ///
    /// # Errors
    /// [`WeightsError::NoSuchTensor`]; [`WeightsError::Tensor`] for want of memory.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let Some((file, entry)) = self.tensors.get(name) else {
            let nearest = self.nearest(name);
            return Err(WeightsError::NoSuchTensor { path: self.path.clone(), name: name.into(), nearest });
        };
        Ok(Tensor::from_mapped(&self.files[*file].1, entry.offset, entry.dtype, entry.shape.clone())?)
    }

    /// What the file says about a tensor.
    pub fn meta(&self, name: &str) -> Option<TensorMeta> {
        let (file, entry) = self.tensors.get(name)?;
        let file = self.files[*file].0.clone();
        Some(TensorMeta { dtype: entry.dtype, shape: entry.shape.clone(), file, offset: entry.offset })
    }

    /// The free-form strings of the header (`__metadata__`), of all files together.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The files that are mapped.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// The name that shares the longest prefix and suffix with `name`, if they share much.
    fn nearest(&self, name: &str) -> Option<String> {
        let shared = |other: &str| {
            let prefix = name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
            let suffix = name.bytes().rev().zip(other.bytes().rev()).take_while(|(a, b)| a == b).count();
            (prefix + suffix).min(name.len().min(other.len()))
        };
        let best = self.names.iter().max_by_key(|other| shared(other))?;
        (2 * shared(best) >= name.len()).then(|| best.clone())
    }
}

/// Refuses what is no file of bytes: a pipe would be waited for without end, and a directory cannot be mapped.
pub(crate) fn check_regular(path: &Path) -> std::io::Result<()> {
    let kind = fs::metadata(path)?.file_type();
    match (kind.is_file(), kind.is_dir()) {
        (true, _) => Ok(()),
        (_, true) => Err(std::io::Error::other("it is a directory, where a file is needed")),
        _ => Err(std::io::Error::other("it is a pipe or a device, where a regular file is needed")),
    }
}

pub(crate) fn map_file(path: &Path) -> Result<Arc<Mmap>> {
    check_regular(path).map_err(|e| WeightsError::io("open", path, e))?;
    let file = File::open(path).map_err(|e| WeightsError::io("open", path, e))?;
    // SAFETY: the map is only ever read, as plain bytes of which every pattern is valid. Another
    // process may change them meanwhile, which the documentation of WeightsReader forbids: no
    // safe way to map a file exists, and every reader of safetensors shares this condition.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| WeightsError::io("map", path, e))?;
    Ok(Arc::new(map))
}

/// Weights in forms that are not read, to tell the user what was found instead.
fn other_weights(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<String> = entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| [".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx"].iter().any(|e| n.ends_with(e)))
        .collect();
    found.sort();
    found.truncate(4);
    found
}

/// The `weight_map` of an index; other keys are passed over.
struct IndexSeed;

impl<'de> serde::de::DeserializeSeed<'de> for IndexSeed {
    type Value = BTreeMap<String, String>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for IndexSeed {
    type Value = BTreeMap<String, String>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an index with a weight_map")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut weight_map = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != "weight_map" {
                map.next_value::<IgnoredAny>()?;
            } else if weight_map.replace(map.next_value_seed(UniqueStrings)?).is_some() {
                return Err(A::Error::custom("weight_map is given twice"));
            }
        }
        weight_map.ok_or_else(|| A::Error::custom("there is no weight_map"))
    }
}
