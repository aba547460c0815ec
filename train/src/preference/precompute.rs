//! A reference's log-probabilities, computed once and kept by the content of what they depend on.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use planish_autograd::Param;
use planish_nn::decoder::Model;
use planish_nn::weights::{WeightsReader, save_safetensors};
use planish_tensor::{DType, Device, Tensor, bf16};
use sha2::{Digest, Sha256};

use super::pairs::token_weights;
use super::reference::Reference;
use crate::data::{Batch, Sampler};
use crate::losses::Want;
use crate::{Error, Result};

/// Σ weight · log p of both sides of each pair, nats, by the number of the example.
#[derive(Debug, Clone, Default)]
pub struct Known {
    train: HashMap<usize, [f64; 2]>,
    held: HashMap<usize, [f64; 2]>,
}

impl Known {
    /// For each segment of a batch of pairs.
    pub(super) fn sums(&self, batch: &Batch, held: bool) -> Result<Vec<f64>> {
        let table = if held { &self.held } else { &self.train };
        let of = |s: usize| table.get(&batch.example_indices[s]).map(|sides| sides[s % 2]);
        // Whatever the sampler draws was there when the table was made, unless the file has changed since.
        (0..batch.segments())
            .map(|s| of(s).ok_or(Error::NotPrecomputed { example: batch.example_indices[s] }))
            .collect()
    }
}

/// Pairs of one pass, as tokens.
const CHUNK: u64 = 256;

/// How the reference scores pairs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scoring {
    /// What a token beyond the length of the shorter side counts (LD-DPO).
    pub verbose_weight: f64,
    /// Tokens of a pass; 0 for no limit.
    pub tokens_per_pass: u64,
    /// Whether pairs share their prompts, which changes no bit.
    pub share: bool,
}

/// Takes the log-probabilities of all pairs from `dir`, or computes them and leaves them there. `Reference::Base`
/// is that of `policy`. `note` hears what is done.
///
/// The file's name is the SHA-256 of the weights (with their names and dtypes), of the kind of device and the dtype of
/// activations if that is not the processor, of LD-DPO's weight, and of every pair's token ids and prompt length, so that whatever they depend on, other data or another template among it,
/// makes another file.
///
/// # Errors
/// Those of the data, of the kernels, and of the file.
pub fn precompute(
    reference: &Reference,
    policy: &Model,
    samplers: (&Sampler, Option<&Sampler>),
    how: Scoring,
    dir: &Path,
    note: &mut dyn FnMut(&str),
) -> Result<Known> {
    let (model, params) = match reference {
        Reference::Model { model, .. } => (&**model, model.params()),
        _ => (policy, policy.base_params()),
    };
    let mut weights = Sha256::new();
    for param in &params {
        hash_param(&mut weights, param)?;
    }
    // Elsewhere, and in other activations, sums are rounded differently.
    if let Some(kind) = match model.device() {
        Device::Cpu => None,
        Device::Cuda(_) => Some("cuda"),
        Device::Emulator(_) => Some("emulator"),
    } {
        weights.update(kind);
        weights.update(model.activations().name());
    }
    let weights = weights.finalize();
    let mut known = Known::default();
    for (sampler, held) in [(Some(samplers.0), false), (samplers.1, true)] {
        let Some(sampler) = sampler else { continue };
        let mut hash = Sha256::new();
        hash.update(b"planish reference 1");
        hash.update(weights);
        hash.update(how.verbose_weight.to_le_bytes());
        each_batch(sampler, u64::MAX, |batch| {
            for s in 0..batch.segments() {
                let range = batch.segment(s);
                hash.update((batch.example_indices[s] as u64).to_le_bytes());
                hash.update((range.len() as u64).to_le_bytes());
                batch.ids[range.clone()].iter().for_each(|id| hash.update(id.to_le_bytes()));
                hash.update((batch.mask[range].iter().filter(|m| !**m).count() as u64).to_le_bytes());
            }
            Ok(())
        })?;
        let name: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let path = dir.join(format!("{name}.safetensors"));
        let table = match path.is_file() {
            true => {
                note(&format!("the reference's log-probabilities are taken from {}", path.display()));
                read(&path)?
            }
            false => {
                let table = compute(reference, policy, sampler, how)?;
                write(&path, &table)?;
                note(&format!("the reference's log-probabilities are in {}", path.display()));
                table
            }
        };
        *(if held { &mut known.held } else { &mut known.train }) = table;
    }
    Ok(known)
}

fn compute(reference: &Reference, policy: &Model, sampler: &Sampler, how: Scoring) -> Result<HashMap<usize, [f64; 2]>> {
    let mut table = HashMap::new();
    each_batch(sampler, how.tokens_per_pass, |batch| {
        let weights = token_weights(&batch, how.verbose_weight);
        let want = Want { share: how.share, ..Want::default() };
        let sums = reference.compare(policy, &batch, &weights, false, want)?.sums;
        for (pair, sides) in sums.chunks_exact(2).enumerate() {
            table.insert(batch.example_indices[2 * pair], [sides[0], sides[1]]);
        }
        Ok(())
    })?;
    Ok(table)
}

/// Every pair of a sampler's rows once, in the order of the files.
fn each_batch(sampler: &Sampler, tokens: u64, mut visit: impl FnMut(Batch) -> Result<()>) -> Result<()> {
    let rows = sampler.view().rows();
    for start in (0..rows).step_by(CHUNK as usize) {
        let limit = usize::try_from(tokens).unwrap_or(usize::MAX);
        for part in sampler.rows(start..rows.min(start + CHUNK))?.split(limit) {
            if part.segments() > 0 {
                visit(part)?;
            }
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<HashMap<usize, [f64; 2]>> {
    let reader = WeightsReader::open(path)?;
    let get = |name: &str| -> Result<Tensor> { Ok(reader.get(name)?) };
    let examples = get("example")?.to_vec::<i64>()?;
    let (chosen, rejected) = (get("chosen")?.to_vec::<f64>()?, get("rejected")?.to_vec::<f64>()?);
    if examples.len() != chosen.len() || chosen.len() != rejected.len() {
        let problem = "its columns are not of one length; remove it, and it is made again".to_owned();
        return Err(Error::Checkpoint { path: PathBuf::from(path), problem });
    }
    let sides = chosen.into_iter().zip(rejected).map(|(c, r)| [c, r]);
    Ok(examples.into_iter().map(|e| e as usize).zip(sides).collect())
}

fn write(path: &Path, table: &HashMap<usize, [f64; 2]>) -> Result<()> {
    if let Some(dir) = path.parent() {
        let made = std::fs::create_dir_all(dir);
        made.map_err(|source| planish_nn::Error::Io { path: dir.to_path_buf(), source })?;
    }
    let rows: BTreeMap<usize, [f64; 2]> = table.iter().map(|(k, v)| (*k, *v)).collect();
    let n = rows.len();
    let side = |i: usize| Tensor::from_vec(rows.values().map(|s| s[i]).collect::<Vec<f64>>(), [n]);
    let examples = Tensor::from_vec(rows.keys().map(|k| *k as i64).collect::<Vec<i64>>(), [n])?;
    let tensors =
        vec![("example".to_owned(), examples), ("chosen".to_owned(), side(0)?), ("rejected".to_owned(), side(1)?)];
    Ok(save_safetensors(path, tensors, &BTreeMap::new())?)
}

fn hash_param(hash: &mut Sha256, param: &Param) -> Result<()> {
    let value = param.value().to_device(Device::Cpu)?;
    hash.update(param.name().as_bytes());
    hash.update(value.dtype().name().as_bytes());
    value.dims().iter().for_each(|d| hash.update((*d as u64).to_le_bytes()));
    let mut bytes = Vec::new();
    let mut take = |bytes: &mut Vec<u8>, done: bool| {
        if done || bytes.len() >= 1 << 16 {
            hash.update(&bytes[..]);
            bytes.clear();
        }
    };
    match value.dtype() {
        DType::BF16 => {
            for x in value.contiguous()?.as_slice::<bf16>()? {
                bytes.extend_from_slice(&x.to_bits().to_le_bytes());
                take(&mut bytes, false);
            }
        }
        DType::F64 => {
            for x in value.contiguous()?.as_slice::<f64>()? {
                bytes.extend_from_slice(&x.to_bits().to_le_bytes());
                take(&mut bytes, false);
            }
        }
        _ => {
            for x in value.to_dtype(DType::F32)?.contiguous()?.as_slice::<f32>()? {
                bytes.extend_from_slice(&x.to_bits().to_le_bytes());
                take(&mut bytes, false);
            }
        }
    }
    take(&mut bytes, true);
    Ok(())
}
