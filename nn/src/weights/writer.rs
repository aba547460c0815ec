//! Writing safetensors, in one file or in shards with an index.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use planish_tensor::{Bool, DType, Device, Tensor};
use serde_json::{Map, Value, json};

use super::atomic::temporary_beside;
use super::header::{METADATA_KEY, dtype_name};
use super::{INDEX_FILE, Result, SINGLE_FILE, WeightsError, atomic_write};

/// Size at which Hugging Face splits a model into shards.
pub const DEFAULT_MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Writes `tensors` as one safetensors file, atomically.
///
/// Tensors of wider dtypes come first, then by name, so that each is aligned to its element in the
/// file; the header is padded to 8 bytes for the same reason. The bytes depend on the tensors and
/// `metadata` alone, not on the order they are given in. `format: pt`, which transformers asks for,
/// is added to `metadata` unless it says otherwise.
///
/// # Errors
/// [`WeightsError::BadName`] for a name given twice; [`WeightsError::DiskFull`], [`WeightsError::Io`].
pub fn save_safetensors(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (String, Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    write_file(path.as_ref(), tensors.into_iter().collect(), metadata)
}

/// Writes `tensors` into `dir` as transformers does: `model.safetensors` if they fit into
/// `max_shard_bytes`, else `model-00001-of-0000N.safetensors` … and an index.
///
/// Tensors are taken one after the other and a shard is written as soon as it is full, so an iterator
/// that makes them as it goes needs memory for one shard only. A tensor larger than the limit gets a
/// shard of its own. The parts of a quantised weight, given one after the other, lie in one file: some
/// loaders look for them file by file. The files get their names when all are written; weights that `dir` held before
/// are then removed, so that a model saved over another leaves no stray shard.
///
/// # Errors
/// As [`save_safetensors`].
pub fn save_sharded(
    dir: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (String, Tensor)>,
    max_shard_bytes: u64,
) -> Result<()> {
    let dir = dir.as_ref();
    let mut shards = Shards { dir, temporary: Vec::new(), weight_map: BTreeMap::new(), total: 0 };
    let (mut pending, mut pending_bytes) = (Vec::new(), 0u64);
    // The weight whose parts come, and where in `pending` they begin.
    let (mut weight, mut start) = (String::new(), 0);
    for (name, tensor) in tensors {
        if !is_part(&weight, &name) {
            (weight, start) = (name.clone(), pending.len());
        }
        let bytes = byte_len(&tensor);
        if start > 0 && pending_bytes.saturating_add(bytes) > max_shard_bytes {
            let parts = pending.split_off(start);
            shards.write(std::mem::replace(&mut pending, parts))?;
            (pending_bytes, start) = (pending.iter().map(|(_, tensor)| byte_len(tensor)).sum(), 0);
        }
        pending_bytes += bytes;
        pending.push((name, tensor));
    }
    shards.write(pending)?;
    shards.finish()
}

/// Whether `name` is a part of the quantised weight `weight`: `W.absmax` of `W`, `M.SCB` of `M.weight`.
fn is_part(weight: &str, name: &str) -> bool {
    let of_int8 = |stem: &str| matches!(name.strip_prefix(stem), Some("SCB" | "weight_format"));
    name.strip_prefix(weight).is_some_and(|rest| rest.starts_with('.'))
        || weight.strip_suffix("weight").is_some_and(of_int8)
}

struct Shards<'a> {
    dir: &'a Path,
    temporary: Vec<PathBuf>,
    weight_map: BTreeMap<String, usize>,
    total: u64,
}

impl Shards<'_> {
    fn write(&mut self, tensors: Vec<(String, Tensor)>) -> Result<()> {
        for (name, tensor) in &tensors {
            self.total += byte_len(tensor);
            if self.weight_map.insert(name.clone(), self.temporary.len()).is_some() {
                return Err(WeightsError::BadName { path: self.dir.into(), name: name.clone() });
            }
        }
        let path = temporary_beside(&self.dir.join(SINGLE_FILE))?;
        write_file(&path, tensors, &BTreeMap::new())?;
        self.temporary.push(path);
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        let shards = std::mem::take(&mut self.temporary);
        let count = shards.len();
        let name = |i: usize| match count {
            1 => SINGLE_FILE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        let old = weight_files(self.dir)?;
        let mut kept = HashSet::new();
        for (i, temporary) in shards.iter().enumerate() {
            let path = self.dir.join(name(i));
            if let Err(e) = fs::rename(temporary, &path) {
                self.temporary = shards[i..].to_vec();
                return Err(WeightsError::io("write", path, e));
            }
            kept.insert(path);
        }
        if count > 1 {
            let map: Map<String, Value> = self.weight_map.iter().map(|(k, &i)| (k.clone(), name(i).into())).collect();
            let index = json!({ "metadata": { "total_size": self.total }, "weight_map": map });
            let path = self.dir.join(INDEX_FILE);
            atomic_write(&path, |w| {
                serde_json::to_writer_pretty(&mut *w, &index)?;
                w.write_all(b"\n")
            })?;
            kept.insert(path);
        }
        for stale in old.into_iter().filter(|path| !kept.contains(path)) {
            fs::remove_file(&stale).map_err(|e| WeightsError::io("remove", stale, e))?;
        }
        Ok(())
    }
}

impl Drop for Shards<'_> {
    fn drop(&mut self) {
        for path in &self.temporary {
            fs::remove_file(path).ok();
        }
    }
}

/// Files in `dir` that are a model's weights by their names.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(|e| WeightsError::io("list", dir, e))?;
    let entries = entries.flatten().filter(|e| e.file_name().to_str().is_some_and(is_weights_file));
    Ok(entries.map(|e| e.path()).collect())
}

/// Whether a file of that name holds a model's weights, or some of them, or says where they are.
pub fn is_weights_file(name: &str) -> bool {
    name == SINGLE_FILE
        || name == INDEX_FILE
        || (name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors"))
}

fn byte_len(tensor: &Tensor) -> u64 {
    tensor.numel() as u64 * tensor.dtype().size() as u64
}

fn write_file(path: &Path, mut tensors: Vec<(String, Tensor)>, metadata: &BTreeMap<String, String>) -> Result<()> {
    if let Some((_, packed)) = tensors.iter().find(|(_, t)| t.dtype() == DType::Packed) {
        return Err(planish_tensor::Error::UnsupportedDType { op: "safetensors", dtype: packed.dtype() }.into());
    }
    tensors.sort_by(|(a, x), (b, y)| y.dtype().size().cmp(&x.dtype().size()).then_with(|| a.cmp(b)));
    let header = header_bytes(path, &tensors, metadata)?;
    let mut refused = None;
    let written = atomic_write(path, |w| {
        w.write_all(&(header.len() as u64).to_le_bytes())?;
        w.write_all(&header)?;
        for (_, tensor) in &tensors {
            // One at a time: what is on a device is never here as a whole.
            match tensor.to_device(Device::Cpu).and_then(|t| t.contiguous()) {
                Ok(tensor) => write_elements(w, &tensor)?,
                Err(error) => {
                    refused = Some(error);
                    return Err(io::ErrorKind::OutOfMemory.into());
                }
            }
        }
        Ok(())
    });
    match refused {
        Some(error) => Err(error.into()),
        None => written,
    }
}

fn header_bytes(path: &Path, tensors: &[(String, Tensor)], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut header = Map::new();
    let mut meta: Map<String, Value> = metadata.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
    meta.entry("format").or_insert_with(|| "pt".into());
    header.insert(METADATA_KEY.into(), meta.into());
    let mut at = 0u64;
    for (name, tensor) in tensors {
        let end = at + byte_len(tensor);
        let entry = json!({ "dtype": dtype_name(tensor.dtype()), "shape": tensor.dims(), "data_offsets": [at, end] });
        if header.insert(name.clone(), entry).is_some() {
            return Err(WeightsError::BadName { path: path.into(), name: name.clone() });
        }
        at = end;
    }
    let mut bytes = Value::Object(header).to_string().into_bytes();
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    Ok(bytes)
}

/// The elements of a contiguous tensor, as the little-endian bytes that the format asks for.
fn write_elements(w: &mut dyn Write, tensor: &Tensor) -> io::Result<()> {
    const { assert!(cfg!(target_endian = "little"), "safetensors are little endian") };
    fn bytes<T: planish_tensor::Element>(tensor: &Tensor) -> io::Result<&[u8]> {
        Ok(bytemuck::cast_slice(tensor.as_slice::<T>().map_err(io::Error::other)?))
    }
    w.write_all(match tensor.dtype() {
        DType::F64 => bytes::<f64>(tensor),
        DType::F32 => bytes::<f32>(tensor),
        DType::BF16 => bytes::<bf16>(tensor),
        DType::F16 => bytes::<f16>(tensor),
        DType::I64 => bytes::<i64>(tensor),
        DType::I32 => bytes::<i32>(tensor),
        DType::U32 => bytes::<u32>(tensor),
        DType::U8 | DType::Packed => bytes::<u8>(tensor),
        DType::I8 => bytes::<i8>(tensor),
        DType::Bool => bytes::<Bool>(tensor),
    }?)
}
