//! [`GgufFile`]: a mapped file, seen as a Hugging Face model.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use planish_tensor::quant::Ggml;
use planish_tensor::{DType, Element, Mmap, Tensor, parallel};

use super::names::{Arch, Change, is_setting, to_hf};
use super::parse::{Info, parse};
use super::{GgmlType, GgufError, Metadata, Result, dequantize};

/// A GGUF file, mapped.
///
/// As with safetensors, nobody may shorten the file while it is open.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    map: Arc<Mmap>,
    metadata: Metadata,
    infos: Vec<Info>,
    index: HashMap<String, usize>,
    arch: Option<Arch>,
    /// By Hugging Face name; empty if the architecture is not known.
    hf: HashMap<String, (usize, Change)>,
}

/// What a file says about a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufTensor {
    /// Its name in the file.
    pub name: String,
    /// How its elements are stored.
    pub kind: GgmlType,
    /// Sizes, outermost first (the file has them innermost first).
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub bytes: usize,
}

impl GgufFile {
    /// Opens and checks a file.
    ///
    /// An architecture without a mapping is no error here: metadata and raw tensors can be had, and
    /// what needs the mapping refuses.
    ///
    /// # Errors
    /// [`GgufError::Io`], [`GgufError::Format`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |source| GgufError::Io { path: path.into(), source };
        crate::weights::check_regular(path).map_err(io)?;
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is only ever read, as plain bytes of which every pattern is valid; that no
        // other process shortens the file is a documented condition of this type.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Self::from_mmap(Arc::new(map), path)
    }

    /// Checks a map of a whole file; `path` is for messages.
    ///
    /// # Errors
    /// [`GgufError::Format`].
    pub fn from_mmap(map: Arc<Mmap>, path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let (metadata, infos) = match parse(&map) {
            Ok(parsed) => parsed,
            Err(problem) => return Err(GgufError::Format { path, problem }),
        };
        let index = infos.iter().enumerate().map(|(i, info)| (info.name.clone(), i)).collect();
        let arch = metadata.string("general.architecture").and_then(Arch::from_name);
        let mut hf = HashMap::new();
        if let Some(arch) = arch {
            for (i, info) in infos.iter().enumerate() {
                if let Some((name, change)) = to_hf(arch, &info.name) {
                    hf.insert(name, (i, change));
                }
            }
        }
        Ok(GgufFile { path, map, metadata, infos, index, arch, hf })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The key-value pairs at its head.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Its tensors, under llama.cpp's names, in the file's order.
    pub fn tensors(&self) -> impl Iterator<Item = GgufTensor> {
        self.infos.iter().map(|info| GgufTensor {
            name: info.name.clone(),
            kind: info.kind,
            shape: info.shape.clone(),
            bytes: info.bytes,
        })
    }

    /// The names that transformers gives the tensors, in the file's order.
    ///
    /// # Errors
    /// [`GgufError::UnsupportedArchitecture`]; [`GgufError::UnknownTensor`] if one has no such name, as
    /// in a variant (such as a mixture of experts) of a known architecture.
    pub fn tensor_names_hf(&self) -> Result<Vec<String>> {
        let arch = self.arch()?;
        let models = self.infos.iter().filter(|info| !is_setting(&info.name));
        let names = models.map(|info| match to_hf(arch, &info.name) {
            Some((name, _)) => Ok(name),
            None => Err(GgufError::UnknownTensor {
                path: self.path.clone(),
                name: info.name.clone(),
                architecture: arch.name().into(),
            }),
        });
        names.collect()
    }

    /// Whether a tensor stands for a Hugging Face name.
    pub fn contains_hf(&self, name: &str) -> bool {
        self.hf.contains_key(name)
    }

    /// Shape of the tensor of a Hugging Face name.
    pub fn shape_hf(&self, name: &str) -> Option<&[usize]> {
        self.hf.get(name).map(|&(i, _)| self.infos[i].shape.as_slice())
    }

    /// The tensor of a Hugging Face name, dequantised to f32, values and row order as transformers has
    /// them. One stored as f32 lies over the mapped file.
    ///
    /// # Errors
    /// As [`GgufFile::tensor_hf_as`].
    pub fn tensor_hf(&self, name: &str) -> Result<Tensor> {
        self.tensor_hf_as(name, DType::F32)
    }

    /// As [`GgufFile::tensor_hf`], in the dtype that the file has it in; blocks in f32.
    ///
    /// # Errors
    /// As [`GgufFile::tensor_hf_as`].
    pub fn tensor_hf_native(&self, name: &str) -> Result<Tensor> {
        let kind = self.hf.get(name).map(|&(i, _)| self.infos[i].kind);
        self.tensor_hf_as(name, kind.and_then(native).unwrap_or(DType::F32))
    }

    /// As [`GgufFile::tensor_hf`], in f32, bf16 or f16: rounded once, from the f32. One stored in the
    /// dtype asked for lies over the mapped file.
    ///
    /// # Errors
    /// [`GgufError::NoSuchTensor`]; [`GgufError::UnsupportedArchitecture`]; [`GgufError::Shape`] if the rows
    /// are not those of the heads; [`GgufError::Tensor`] for another dtype, or for want of memory.
    pub fn tensor_hf_as(&self, name: &str, dtype: DType) -> Result<Tensor> {
        self.arch()?;
        let missing = || GgufError::NoSuchTensor { path: self.path.clone(), name: name.into() };
        let &(i, change) = self.hf.get(name).ok_or_else(missing)?;
        let info = &self.infos[i];
        let heads = match change {
            Change::QueryRows => Some(self.n_heads()?),
            Change::KeyRows => Some(self.n_kv_heads()?),
            Change::Nothing => None,
            Change::PlusOne => {
                let mut tensor = self.convert(info, DType::F32, None)?;
                tensor.as_slice_mut::<f32>()?.iter_mut().for_each(|x| *x -= 1.0);
                return Ok(tensor.to_dtype(dtype)?);
            }
        };
        self.convert(info, dtype, heads)
    }

    /// The matrix of a Hugging Face name in the blocks that the file holds, over the mapped file or, where rows
    /// change places, copied; `None` if it is not quantised or no matrix.
    ///
    /// # Errors
    /// As [`GgufFile::tensor_hf_as`].
    pub fn packed_hf(&self, name: &str) -> Result<Option<Tensor>> {
        self.arch()?;
        let missing = || GgufError::NoSuchTensor { path: self.path.clone(), name: name.into() };
        let &(i, change) = self.hf.get(name).ok_or_else(missing)?;
        let info = &self.infos[i];
        let (Some(kind), &[rows, cols]) = (info.kind.blocks(), info.shape.as_slice()) else { return Ok(None) };
        let heads = match change {
            Change::QueryRows => Some(self.n_heads()?),
            Change::KeyRows => Some(self.n_kv_heads()?),
            Change::Nothing => None,
            Change::PlusOne => return Ok(None),
        };
        let mut blocks = Tensor::from_mapped(&self.map, info.offset, DType::U8, [info.bytes])?;
        if let Some(head_dim) = self.rows_of_head(info, heads, rows, cols)? {
            let row_bytes = info.bytes / rows.max(1);
            let mut moved = Tensor::zeros([info.bytes], DType::U8)?;
            let file = &self.map[info.offset..info.offset + info.bytes];
            for (row, out) in moved.as_slice_mut::<u8>()?.chunks_exact_mut(row_bytes.max(1)).enumerate() {
                out.copy_from_slice(&file[row_in_file(row, head_dim) * row_bytes..][..row_bytes]);
            }
            blocks = moved;
        }
        Ok(Some(Tensor::packed(Ggml::from_blocks([rows, cols], kind, &blocks)?)))
    }

    /// The tensor of a name in the file, dequantised to f32 and otherwise as it is.
    ///
    /// # Errors
    /// [`GgufError::NoSuchTensor`]; [`GgufError::Tensor`] for want of memory.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let missing = || GgufError::NoSuchTensor { path: self.path.clone(), name: name.into() };
        self.convert(self.info(name).ok_or_else(missing)?, DType::F32, None)
    }

    pub(super) fn info(&self, name: &str) -> Option<&Info> {
        self.index.get(name).map(|&i| &self.infos[i])
    }

    pub(super) fn arch(&self) -> Result<Arch> {
        const KEY: &str = "general.architecture";
        let path = || self.path.clone();
        if let Some(arch) = self.arch {
            return Ok(arch);
        }
        Err(match (self.metadata.string(KEY), self.metadata.get(KEY)) {
            (Some(architecture), _) => GgufError::UnsupportedArchitecture {
                path: path(),
                architecture: architecture.into(),
                supported: Arch::ALL.map(Arch::name).join(", "),
            },
            (None, Some(_)) => GgufError::Key { path: path(), key: KEY.into(), problem: "is not a text" },
            (None, None) => GgufError::Key { path: path(), key: KEY.into(), problem: "is missing" },
        })
    }

    /// Dequantises, undoing the interleaving of the rows of `heads` heads.
    fn convert(&self, info: &Info, dtype: DType, heads: Option<usize>) -> Result<Tensor> {
        if heads.is_none() && native(info.kind) == Some(dtype) {
            return Ok(Tensor::from_mapped(&self.map, info.offset, dtype, info.shape.clone())?);
        }
        match dtype {
            DType::F32 => self.rows::<f32>(info, heads, |x| x),
            DType::BF16 => self.rows::<bf16>(info, heads, bf16::from_f32),
            DType::F16 => self.rows::<f16>(info, heads, f16::from_f32),
            dtype => Err(planish_tensor::Error::UnsupportedDType { op: "gguf", dtype }.into()),
        }
    }

    /// Rows of a head, where the rows of heads are interleaved.
    fn rows_of_head(&self, info: &Info, heads: Option<usize>, rows: usize, width: usize) -> Result<Option<usize>> {
        match heads {
            None => Ok(None),
            Some(heads)
                if heads > 0 && rows.is_multiple_of(2 * heads) && width.is_multiple_of(info.kind.block_len()) =>
            {
                Ok(Some(rows / heads))
            }
            Some(heads) => Err(GgufError::Shape {
                path: self.path.clone(),
                name: info.name.clone(),
                shape: info.shape.clone(),
                expected: format!("{heads} heads need a multiple of {} rows", 2 * heads),
            }),
        }
    }

    fn rows<T: Element>(&self, info: &Info, heads: Option<usize>, round: impl Fn(f32) -> T + Sync) -> Result<Tensor> {
        // A permuted bias is permuted element by element: its rows are single elements.
        let permuted_bias = heads.is_some() && info.shape.len() == 1;
        let width = if permuted_bias { 1 } else { info.shape.last().copied().unwrap_or(1) };
        let n_rows = info.shape.iter().product::<usize>().checked_div(width).unwrap_or(0);
        let head_dim = self.rows_of_head(info, heads, n_rows, width)?;
        let bytes = &self.map[info.offset..info.offset + info.bytes];
        let row_bytes = width / info.kind.block_len() * info.kind.block_bytes();
        let mut out = Tensor::zeros(info.shape.clone(), T::DTYPE)?;
        parallel::chunks(out.as_slice_mut::<T>()?, width, |first, run| {
            let mut scratch = vec![0.0f32; width];
            for (i, row) in run.chunks_exact_mut(width).enumerate() {
                let row_index = first / width + i;
                let from = head_dim.map_or(row_index, |d| row_in_file(row_index, d));
                dequantize(info.kind, &bytes[from * row_bytes..][..row_bytes], &mut scratch);
                row.iter_mut().zip(&scratch).for_each(|(out, &x)| *out = round(x));
            }
        });
        Ok(out)
    }
}

/// Row (head, half, k) of transformers is row (head, k, half) of the file.
fn row_in_file(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    head * head_dim + within % (head_dim / 2) * 2 + within / (head_dim / 2)
}

fn native(kind: GgmlType) -> Option<DType> {
    match kind {
        GgmlType::F32 => Some(DType::F32),
        GgmlType::F16 => Some(DType::F16),
        GgmlType::BF16 => Some(DType::BF16),
        _ => None,
    }
}
