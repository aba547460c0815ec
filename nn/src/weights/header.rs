//! The header of a safetensors file: parsed, and checked against the length of the file.
//!
//! Layout: `u64` length of the header (little endian), the header as JSON, the data. The header maps
//! each name to `{"dtype", "shape", "data_offsets": [begin, end]}`, offsets counted from the end of
//! the header, and `__metadata__` to a map of strings. The data must be covered by the tensors
//! without gap or overlap.
//!
//! Parsed here rather than by the `safetensors` crate because that keeps the last of two entries of
//! the same name; tests compare the two on everything both accept.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use planish_tensor::DType;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{Result, TensorProblem, WeightsError};

/// Largest header that is read. The reference implementation has the same limit.
pub(crate) const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Most dimensions a tensor may have: bounds what a hostile header makes us allocate per byte.
const MAX_RANK: usize = 16;
pub(crate) const METADATA_KEY: &str = "__metadata__";

/// A tensor's place in the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub(crate) offset: usize,
}

/// A header that agrees with its file.
#[derive(Debug, Default)]
pub(crate) struct Header {
    /// In the order of the data.
    pub(crate) entries: Vec<(String, Entry)>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// Reads the header of `file`, the whole content of the file at `path`.
pub(crate) fn parse(file: &[u8], path: &Path) -> Result<Header> {
    let len = file.len() as u64;
    let truncated = |what, needed| WeightsError::Truncated { path: path.into(), what, needed, len };
    let size = file.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)).ok_or_else(|| truncated("the format", 8))?;
    if size > MAX_HEADER_BYTES {
        return Err(WeightsError::HeaderTooLarge { path: path.into(), size, limit: MAX_HEADER_BYTES });
    }
    let data_start = 8 + size as usize;
    let json = file.get(8..data_start).ok_or_else(|| truncated("the header", data_start as u64))?;
    let raw: Raw = parse_json(json, RawSeed, path, "header")?;

    let data_len = (file.len() - data_start) as u64;
    let mut placed = Vec::with_capacity(raw.entries.len());
    for (name, entry) in raw.entries {
        match check(&entry, data_len) {
            Ok((dtype, shape)) => placed.push((entry.offsets, name, dtype, shape)),
            Err(Refusal::DType) => {
                return Err(WeightsError::UnsupportedDType { path: path.into(), name, dtype: entry.dtype });
            }
            Err(Refusal::Problem(problem)) => return Err(WeightsError::BadTensor { path: path.into(), name, problem }),
        }
    }
    // Before the places: two entries of one name often have one place too.
    let mut seen = HashSet::with_capacity(placed.len());
    if let Some((_, name, ..)) = placed.iter().find(|(_, name, ..)| !seen.insert(name.as_str())) {
        let (name, problem) = (name.clone(), TensorProblem::Duplicate);
        return Err(WeightsError::BadTensor { path: path.into(), name, problem });
    }
    // Stable and by both ends, so that empty tensors come before the one that starts where they lie.
    placed.sort_by_key(|(offsets, ..)| *offsets);
    let mut at = 0;
    let mut entries: Vec<(String, Entry)> = Vec::with_capacity(placed.len());
    for ([begin, end], name, dtype, shape) in placed {
        if begin < at {
            let previous = entries.last().map(|(name, _)| name.clone()).unwrap_or_default();
            return Err(WeightsError::BadTensor {
                path: path.into(),
                name,
                problem: TensorProblem::Overlaps(previous),
            });
        }
        if begin > at {
            return Err(WeightsError::Gap { path: path.into(), start: at, end: begin });
        }
        at = end;
        entries.push((name, Entry { dtype, shape, offset: data_start + begin as usize }));
    }
    if at != data_len {
        return Err(WeightsError::Gap { path: path.into(), start: at, end: data_len });
    }
    Ok(Header { entries, metadata: raw.metadata })
}

/// Parses JSON with a position in the error, whose length is bounded: it may quote the file.
pub(crate) fn parse_json<'de, S: DeserializeSeed<'de>>(
    json: &'de [u8],
    seed: S,
    path: &Path,
    part: &'static str,
) -> Result<S::Value> {
    let mut parser = serde_json::Deserializer::from_slice(json);
    seed.deserialize(&mut parser).and_then(|value| parser.end().map(|()| value)).map_err(|error| {
        let mut message = error.to_string();
        if message.len() > 300 {
            let cut = message.char_indices().map(|(i, _)| i).take_while(|&i| i <= 300).last().unwrap_or(0);
            message.truncate(cut);
            message.push('…');
        }
        WeightsError::Json { path: path.into(), part, message }
    })
}

enum Refusal {
    DType,
    Problem(TensorProblem),
}

fn check(entry: &RawEntry, data_len: u64) -> Result<(DType, Vec<usize>), Refusal> {
    use TensorProblem::*;
    let problem = |p| Err(Refusal::Problem(p));
    let dtype = dtype_of(&entry.dtype).ok_or(Refusal::DType)?;
    let [begin, end] = entry.offsets;
    if entry.rank > MAX_RANK {
        return problem(Rank(entry.rank, MAX_RANK));
    }
    // Zeros are left out of the first product: `[2^40, 2^40, 0]` is no honest shape either, and
    // would overflow whoever multiplies from the left.
    let bytes = entry
        .shape
        .iter()
        .filter(|&&d| d != 0)
        .try_fold(dtype.size() as u64, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= isize::MAX as u64);
    let Some(mut needed) = bytes else { return problem(Overflow(entry.shape.clone())) };
    if entry.shape.contains(&0) {
        needed = 0;
    }
    if end < begin {
        return problem(Backwards(begin, end));
    }
    if end - begin != needed {
        return problem(Size { shape: entry.shape.clone(), dtype, needed, given: end - begin });
    }
    if end > data_len {
        return problem(PastEnd { end, len: data_len });
    }
    Ok((dtype, entry.shape.iter().map(|&d| d as usize).collect()))
}

fn dtype_of(name: &str) -> Option<DType> {
    DType::ALL.into_iter().find(|&dtype| dtype_name(dtype) == name)
}

/// Name of a dtype in a safetensors header.
pub(crate) fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "F64",
        DType::F32 => "F32",
        DType::BF16 => "BF16",
        DType::F16 => "F16",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::U32 => "U32",
        DType::U8 => "U8",
        DType::I8 => "I8",
        // Never written: `save_safetensors` takes its parts.
        DType::Packed => "PACKED",
        DType::Bool => "BOOL",
    }
}

/// The header as written, duplicates and all.
#[derive(Default)]
struct Raw {
    entries: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
}

struct RawSeed;

impl<'de> DeserializeSeed<'de> for RawSeed {
    type Value = Raw;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RawSeed {
    type Value = Raw;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from tensor names to their places")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut raw = Raw::default();
        let mut metadata = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA_KEY {
                if metadata.replace(map.next_value_seed(UniqueStrings)?).is_some() {
                    return Err(A::Error::custom("__metadata__ is given twice"));
                }
            } else {
                raw.entries.push((name, map.next_value()?));
            }
        }
        raw.metadata = metadata.unwrap_or_default();
        Ok(raw)
    }
}

#[derive(serde::Deserialize)]
#[serde(from = "WireEntry")]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    /// Dimensions in the file; `shape` holds no more than `MAX_RANK` of them.
    rank: usize,
    offsets: [u64; 2],
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct WireEntry {
    dtype: String,
    shape: Dims,
    data_offsets: [u64; 2],
}

impl From<WireEntry> for RawEntry {
    fn from(wire: WireEntry) -> Self {
        RawEntry { dtype: wire.dtype, shape: wire.shape.0, rank: wire.shape.1, offsets: wire.data_offsets }
    }
}

struct Dims(Vec<u64>, usize);

impl<'de> serde::Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Dims;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of sizes")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dims, A::Error> {
                let (mut dims, mut rank) = (Vec::new(), 0);
                while let Some(d) = seq.next_element::<u64>()? {
                    rank += 1;
                    if rank <= MAX_RANK {
                        dims.push(d);
                    }
                }
                Ok(Dims(dims, rank))
            }
        }
        deserializer.deserialize_seq(Visit)
    }
}

/// A map of strings in which a key may not come twice.
pub(crate) struct UniqueStrings;

impl<'de> DeserializeSeed<'de> for UniqueStrings {
    type Value = BTreeMap<String, String>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for UniqueStrings {
    type Value = BTreeMap<String, String>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of strings")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut out = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            if out.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} is given twice")));
            }
            out.insert(key, value);
        }
        Ok(out)
    }
}
