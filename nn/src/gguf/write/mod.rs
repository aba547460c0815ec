//! Writing a model as GGUF, as llama.cpp's converter and quantiser do.
//!
//! The file is written beside its place, one tensor after the other, a few rows of one in memory at a time; read back
//! with [`GgufFile`]: every tensor, the settings, and what the tokenizer makes of a few texts; and renamed when all of it
//! is what it should be.

mod config;
mod encode;
mod encode_k;
mod error;
mod file;
mod kinds;
mod vocab;

pub use encode::quantize;
pub use error::ExportError;
pub use kinds::Quant;

use std::cell::RefCell;
use std::io::{self, Write};
use std::path::Path;

use half::{bf16, f16};
use planish_tensor::{DType, Tensor, parallel};

use super::metadata::Value;
use super::names::{Arch, Change, to_hf};
use super::{GgmlType, GgufFile, Metadata};
use crate::decoder::Model;
use crate::pretrained::Pretrained;
use crate::tokenizer::Tokenizer;
use crate::weights::atomic::atomic_replace;
use file::Entry;

/// What an export came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    /// Size of the file.
    pub bytes: u64,
    /// Tensors of each type, with their numbers.
    pub kinds: Vec<(GgmlType, usize, u64)>,
    /// Tensors whose rows are no whole number of the blocks that they should have, and the type they have instead.
    pub fallbacks: Vec<(String, GgmlType)>,
    /// The largest relative error of a tensor: the root of Σ (w - ŵ)² / Σ w².
    pub worst_error: f64,
    /// Whose it is.
    pub worst_tensor: String,
    /// What a user of the file should know.
    pub notes: Vec<String>,
}

/// A tensor of the model with its place in the file.
struct Part {
    entry: Entry,
    source: Source,
}

enum Source {
    /// A weight, and what is done to it.
    Weight(Tensor, Change),
    /// A setting.
    Setting(Vec<f32>),
}

/// Numbers that are in memory at a time.
const RUN: usize = 1 << 20;

/// Writes a model without adapters (merge them first) and its tokenizer to `path`.
///
/// # Errors
/// [`ExportError`]; a file that cannot be written.
pub fn export(
    model: &Model,
    tokenizer: &Tokenizer,
    quant: Quant,
    path: &Path,
    overwrite: bool,
) -> crate::Result<Exported> {
    export_after(model, tokenizer, quant, path, overwrite, |_| Ok(()))
}

/// As [`export`], with a look at the model that the file holds before it gets its name: where `look` fails nothing is
/// written or replaced.
///
/// # Errors
/// As [`export`]; those of `look`.
pub fn export_after(
    model: &Model,
    tokenizer: &Tokenizer,
    quant: Quant,
    path: &Path,
    overwrite: bool,
    look: impl FnOnce(&Pretrained) -> crate::Result<()>,
) -> crate::Result<Exported> {
    if !overwrite && path.exists() {
        return Err(ExportError::Exists { path: path.to_owned() }.into());
    }
    let file = Contents::of(model, tokenizer, quant, path)?;
    // Errors that are not the disk's, out of a function that has only those.
    let other = RefCell::new(None);
    let mut exported = None;
    let written = atomic_replace(
        path,
        |out| {
            file::head(out, &file.metadata, &file.entries())?;
            file.parts.iter().try_for_each(|part| part.write(file.heads, out)).map_err(|error| keep(error, &other))
        },
        |written| {
            let check = || -> crate::Result<()> {
                exported = Some(file.read_back(written, model, tokenizer)?);
                look(&Pretrained::from_gguf(path, GgufFile::open(written)?)?)
            };
            check().map_err(|error| keep(error, &other))
        },
    );
    if let Some(error) = other.into_inner() {
        return Err(error);
    }
    written?;
    let (bytes, worst_tensor, worst_error) = exported.unwrap_or_default();
    let mut kinds: Vec<(GgmlType, usize, u64)> = Vec::new();
    for entry in &file.entries() {
        let n = entry.shape.iter().product::<usize>() as u64;
        match kinds.iter_mut().find(|(kind, _, _)| *kind == entry.kind) {
            Some((_, tensors, numbers)) => (*tensors, *numbers) = (*tensors + 1, *numbers + n),
            None => kinds.push((entry.kind, 1, n)),
        }
    }
    let mut notes = Vec::new();
    let windows = model.config.layers.iter().filter_map(|l| l.window).min();
    if let (Some(window), Arch::Llama | Arch::Qwen2 | Arch::Qwen3) = (windows, file.arch) {
        notes.push(format!(
            "llama.cpp's {} attends to all tokens: beyond {window} tokens its results are other than this model's",
            file.arch.name()
        ));
    }
    Ok(Exported { bytes, kinds, fallbacks: file.fallbacks, worst_error, worst_tensor, notes })
}

/// What belongs into a file.
struct Contents {
    arch: Arch,
    metadata: Metadata,
    parts: Vec<Part>,
    /// As in [`Exported`].
    fallbacks: Vec<(String, GgmlType)>,
    heads: Heads,
}

impl Contents {
    fn of(model: &Model, tokenizer: &Tokenizer, quant: Quant, path: &Path) -> crate::Result<Contents> {
        let config = &model.config;
        let arch = config::architecture(config)?;
        let mut metadata = Metadata::default();
        let mut set = |key: &str, value: Value| {
            metadata.insert(key.to_owned(), value);
        };
        set("general.architecture", Value::String(arch.name().to_owned()));
        set("general.type", Value::String("model".to_owned()));
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        set("general.name", Value::String(name));
        set("general.file_type", Value::U32(quant.file_type()));
        set("general.quantization_version", Value::U32(2));
        let settings = config::describe(config, arch, &mut metadata)?;
        vocab::describe(tokenizer, arch, config.vocab_size, &mut metadata)?;
        vocab::compare(tokenizer, &metadata)?;

        let mut fallbacks = Vec::new();
        let mut parts = Vec::new();
        for (name, values) in settings {
            let entry = Entry { name: name.to_owned(), kind: GgmlType::F32, shape: vec![values.len()] };
            parts.push(Part { entry, source: Source::Setting(values) });
        }
        for param in model.base_params() {
            let (name, change) = to_gguf(arch, param.name()).ok_or_else(|| ExportError::Inexpressible {
                architecture: arch.name(),
                what: format!("tensor `{}`", param.name()),
            })?;
            let value = param.value();
            let wanted = quant.kind(&name, value.dims(), config);
            let width = value.dims().last().copied().unwrap_or(1);
            let kind = kinds::fitting(wanted, width);
            if kind != wanted {
                fallbacks.push((name.clone(), kind));
            }
            let entry = Entry { name, kind, shape: value.dims().to_vec() };
            parts.push(Part { entry, source: Source::Weight(value, change) });
        }
        let heads = Heads { query: config.num_heads, key: config.num_kv_heads };
        Ok(Contents { arch, metadata, parts, fallbacks, heads })
    }

    fn entries(&self) -> Vec<Entry> {
        self.parts.iter().map(|p| p.entry.clone()).collect()
    }

    /// Reads the file and compares all of it: metadata, settings, and every tensor with what it was made of. Gives the
    /// file's size, and the tensor that lost most.
    fn read_back(&self, path: &Path, model: &Model, tokenizer: &Tokenizer) -> crate::Result<(u64, String, f64)> {
        let otherwise = |what: &str| -> crate::Error {
            ExportError::ReadBack { path: path.to_owned(), what: what.to_owned() }.into()
        };
        let file = GgufFile::open(path)?;
        for (key, value) in self.metadata.iter() {
            if file.metadata().get(key) != Some(value) {
                return Err(otherwise(key));
            }
        }
        config::compare(&model.config, &file, self.arch)?;
        vocab::compare(tokenizer, file.metadata())?;
        let (mut worst, mut worst_error) = (String::new(), 0.0);
        for part in &self.parts {
            let name = &part.entry.name;
            let read = file.tensor(name)?;
            let read = read.as_slice::<f32>()?;
            let (mut at, mut lost, mut all) = (0, 0.0f64, 0.0f64);
            part.runs(self.heads, |values| {
                let found = &read[at..at + values.len()];
                at += values.len();
                let same = |(&x, &y): (&f32, &f32)| match part.entry.kind {
                    GgmlType::F32 => x.to_bits() == y.to_bits(),
                    GgmlType::F16 => f16::from_f32(x).to_f32().to_bits() == y.to_bits(),
                    GgmlType::BF16 => bf16::from_f32(x).to_f32().to_bits() == y.to_bits(),
                    _ => true,
                };
                if !values.iter().zip(found).all(same) {
                    return Err(otherwise(name));
                }
                for (&x, &y) in values.iter().zip(found) {
                    lost += f64::from(x - y) * f64::from(x - y);
                    all += f64::from(x) * f64::from(x);
                }
                Ok(())
            })?;
            let error = if all > 0.0 { (lost / all).sqrt() } else { lost.sqrt() };
            // Four bits with a scale for 32 numbers lose about 0.09 of a normal distribution; far more is no rounding.
            if !(error <= 0.5) {
                return Err(otherwise(name));
            }
            if error > worst_error {
                (worst, worst_error) = (name.clone(), error);
            }
        }
        let bytes = std::fs::metadata(path).map_err(|source| crate::Error::Io { path: path.to_owned(), source })?.len();
        Ok((bytes, worst, worst_error))
    }
}

/// An error as one of the disk's, the error itself put aside.
fn keep(error: crate::Error, aside: &RefCell<Option<crate::Error>>) -> io::Error {
    match error {
        crate::Error::Io { source, .. } => source,
        error => {
            *aside.borrow_mut() = Some(error);
            io::ErrorKind::Other.into()
        }
    }
}

#[derive(Clone, Copy)]
struct Heads {
    query: usize,
    key: usize,
}

/// llama.cpp's name of a tensor, and what is done to its values.
fn to_gguf(arch: Arch, hf: &str) -> Option<(String, Change)> {
    const LAYER: [&str; 14] = [
        "attn_norm",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_qkv",
        "attn_output",
        "attn_q_norm",
        "attn_k_norm",
        "ffn_norm",
        "post_attention_norm",
        "post_ffw_norm",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    ];
    let suffix = hf.rsplit_once('.')?.1;
    let layer = hf.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')).map(|(n, _)| n);
    let stems = match layer {
        Some(n) => LAYER.iter().map(|part| format!("blk.{n}.{part}")).collect::<Vec<_>>(),
        None => ["token_embd", "output_norm", "output"].map(str::to_owned).into(),
    };
    stems.into_iter().find_map(|stem| {
        let name = format!("{stem}.{suffix}");
        to_hf(arch, &name).filter(|(found, _)| found == hf).map(|(_, change)| (name, change))
    })
}

impl Part {
    /// Numbers of a row, and rows.
    fn sides(&self) -> (usize, usize) {
        let n = self.entry.shape.iter().product::<usize>();
        // A permuted bias is permuted number by number.
        let width = match &self.source {
            Source::Weight(w, Change::QueryRows | Change::KeyRows) if w.rank() == 1 => 1,
            _ => self.entry.shape.last().copied().unwrap_or(1).max(1),
        };
        (width, n / width)
    }

    /// Calls `f` with the numbers that belong into the file, whole rows of them at a time.
    fn runs(&self, heads: Heads, mut f: impl FnMut(&[f32]) -> crate::Result<()>) -> crate::Result<()> {
        let (tensor, change) = match &self.source {
            Source::Setting(values) => return f(values),
            Source::Weight(tensor, change) => (tensor, *change),
        };
        let (width, rows) = self.sides();
        let per_head = match change {
            Change::QueryRows => Some(rows / heads.query.max(1)),
            Change::KeyRows => Some(rows / heads.key.max(1)),
            _ => None,
        };
        let flat = tensor.contiguous()?.reshape([rows, width])?;
        // Whole heads at a time where rows change places in one.
        let unit = per_head.unwrap_or(1).max(1);
        let step = (RUN / width.max(1) / unit).max(1) * unit;
        for first in (0..rows).step_by(step) {
            let n = step.min(rows - first);
            let mut values = flat.narrow(0, first, n)?.to_dtype(DType::F32)?.to_vec::<f32>()?;
            if change == Change::PlusOne {
                values.iter_mut().for_each(|x| *x += 1.0);
            }
            if let Some(d) = per_head {
                let original = values.clone();
                for (i, row) in values.chunks_exact_mut(width).enumerate() {
                    // Row (head, k, half) of the file is row (head, half, k) of transformers.
                    let (head, within) = (i / d, i % d);
                    let from = head * d + within % 2 * (d / 2) + within / 2;
                    row.copy_from_slice(&original[from * width..][..width]);
                }
            }
            f(&values)?;
        }
        Ok(())
    }

    fn write(&self, heads: Heads, out: &mut dyn Write) -> crate::Result<()> {
        let kind = self.entry.kind;
        let io = |source| crate::Error::Io { path: self.entry.name.clone().into(), source };
        let mut bytes = Vec::new();
        self.runs(heads, |values| {
            if let Some(&value) = values.iter().find(|x| !x.is_finite()) {
                return Err(ExportError::NotFinite { tensor: self.entry.name.clone(), value }.into());
            }
            let blocks = values.len() / kind.block_len();
            bytes.resize(blocks * kind.block_bytes(), 0);
            parallel::chunks(&mut bytes, kind.block_bytes(), |first, run| {
                let (from, n) = (first / kind.block_bytes(), run.len() / kind.block_bytes());
                quantize(kind, &values[from * kind.block_len()..][..n * kind.block_len()], run);
            });
            if kind == GgmlType::F16
                && let Some(&value) = values.iter().find(|x| !f16::from_f32(**x).is_finite())
            {
                return Err(ExportError::Overflow { tensor: self.entry.name.clone(), value }.into());
            }
            out.write_all(&bytes).map_err(io)
        })?;
        file::pad(out, self.entry.bytes()).map_err(io)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::LoadOptions;

    /// What a disk might make of a file: a bit of a tensor, of any type, or of the metadata.
    #[test]
    fn a_file_that_reads_back_otherwise_is_no_export() {
        let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../train/builtin");
        let model = Pretrained::open(&builtin).unwrap().load(LoadOptions::default()).unwrap();
        let tokenizer = Tokenizer::from_dir(&builtin).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for (quant, name) in [
            (Quant::F32, "output_norm.weight"),
            (Quant::F16, "blk.0.attn_q.weight"),
            (Quant::BF16, "token_embd.weight"),
            (Quant::Q8_0, "blk.1.ffn_up.weight"),
        ] {
            let path = dir.path().join(format!("{quant:?}.gguf"));
            let contents = Contents::of(&model, &tokenizer, quant, &path).unwrap();
            let mut bytes = Vec::new();
            file::head(&mut bytes, &contents.metadata, &contents.entries()).unwrap();
            let mut place = 0..0;
            for part in &contents.parts {
                let start = bytes.len();
                part.write(contents.heads, &mut bytes).unwrap();
                if part.entry.name == name {
                    place = start..bytes.len();
                }
            }
            let read = |bytes: &[u8]| {
                std::fs::write(&path, bytes).unwrap();
                contents.read_back(&path, &model, &tokenizer)
            };
            read(&bytes).unwrap();
            let mut damaged = bytes.clone();
            if quant == Quant::Q8_0 {
                // The scales of blocks of 34 bytes: a rounding is forgiven, and these are none.
                damaged[place.clone()].chunks_mut(34).for_each(|block| block[1] ^= 0x44);
            } else {
                damaged[place.start + 6] ^= 1;
            }
            let error = read(&damaged).unwrap_err();
            let found = match &error {
                crate::Error::Export(ExportError::ReadBack { what, .. }) => what.clone(),
                other => panic!("{quant:?}: {other}"),
            };
            assert_eq!(found, name, "{quant:?}");
            assert!(error.to_string().contains("reads back otherwise"), "{error}");
            let mut damaged = bytes.clone();
            let key = b"general.name";
            // The key, its type and length, then the text.
            let at = bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 12;
            damaged[at] ^= 1;
            let error = read(&damaged).unwrap_err();
            assert!(
                matches!(&error, crate::Error::Export(ExportError::ReadBack { what, .. }) if what == "general.name"),
                "{error}"
            );
        }
    }
}
