//! From bytes to metadata and tensor places.
//!
//! Layout, all little endian: `"GGUF"`, version u32, number of tensors u64, number of pairs u64; the
//! pairs (key, type u32, value); the tensor infos (name, number of dimensions u32, dimensions u64
//! innermost first, type u32, offset u64); padding to the alignment; the data, which offsets count
//! from. Strings are a length u64 and UTF-8; arrays a type u32, a length u64 and the elements.

use std::collections::HashSet;

use super::error::FormatProblem as Problem;
use super::{Array, GgmlType, Metadata, Value};

/// Arrays within arrays that are followed.
const MAX_DEPTH: usize = 4;
const DEFAULT_ALIGNMENT: u64 = 32;

/// Where a tensor lies.
#[derive(Debug, Clone)]
pub(crate) struct Info {
    pub(crate) name: String,
    pub(crate) kind: GgmlType,
    /// Outermost first.
    pub(crate) shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
}

/// Parses the head of a file and checks every tensor's place in it.
pub(crate) fn parse(file: &[u8]) -> Result<(Metadata, Vec<Info>), Problem> {
    let mut cursor = Cursor { file, at: 0 };
    if cursor.take(4, "the magic number").map_err(|_| Problem::Magic)? != b"GGUF" {
        return Err(Problem::Magic);
    }
    match cursor.u32("the version")? {
        2 | 3 => {}
        swapped if swapped & 0xffff == 0 && swapped != 0 => return Err(Problem::BigEndian),
        version => return Err(Problem::Version(version)),
    }
    // A pair takes 13 bytes at the least (length, type, a byte), an info 24.
    let n_tensors = cursor.count("the number of tensors", 24)?;
    let n_pairs = cursor.count("the number of metadata", 13)?;
    let mut metadata = Metadata::default();
    for _ in 0..n_pairs {
        let key = cursor.string("a metadata key")?;
        let kind = cursor.u32("a value type")?;
        let value = cursor.value(&key, kind)?;
        if !metadata.insert(key.clone(), value) {
            return Err(Problem::DuplicateKey { key });
        }
    }
    if let Some(count) = metadata.u64("split.count").filter(|&count| count > 1) {
        return Err(Problem::Split(count));
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(_) => metadata.u64("general.alignment").filter(|a| a.is_power_of_two()).ok_or(Problem::Alignment)?,
    };
    let mut declared = Vec::with_capacity(n_tensors);
    for _ in 0..n_tensors {
        declared.push(cursor.tensor()?);
    }
    let infos = place(declared, cursor.at as u64, alignment, file.len() as u64)?;
    Ok((metadata, infos))
}

/// A tensor as the file declares it.
struct Declared {
    name: String,
    kind: GgmlType,
    /// Outermost first.
    shape: Vec<u64>,
    offset: u64,
}

fn place(declared: Vec<Declared>, head: u64, alignment: u64, file: u64) -> Result<Vec<Info>, Problem> {
    // A head without tensors need not be followed by padding.
    let start = head.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    let len = file.saturating_sub(start);
    let mut names = HashSet::with_capacity(declared.len());
    let mut infos = Vec::with_capacity(declared.len());
    for Declared { name, kind, shape, offset } in declared {
        if !names.insert(name.clone()) {
            return Err(Problem::DuplicateTensor { name });
        }
        let row = shape.last().copied().unwrap_or(1);
        if row % kind.block_len() as u64 != 0 {
            return Err(Problem::Row { name, row, block: kind.block_len() });
        }
        // Zeros are left out: a shape that overflows but for a zero is no honest one either. What
        // must fit is the tensor in f32, whichever of it is larger.
        let fits = |unit: usize| {
            let filled = shape.iter().filter(|&&d| d != 0).try_fold(unit as u64, |n, &d| n.checked_mul(d));
            filled.is_some_and(|n| n <= isize::MAX as u64)
        };
        if !fits(kind.block_bytes().max(4)) {
            return Err(Problem::Overflow { name, shape });
        }
        let bytes = shape.iter().product::<u64>() / kind.block_len() as u64 * kind.block_bytes() as u64;
        if offset % alignment != 0 {
            return Err(Problem::Misaligned { name, offset, alignment });
        }
        if offset.checked_add(bytes).is_none_or(|end| end > len) {
            return Err(Problem::PastEnd { name, offset, bytes, len });
        }
        let shape = shape.into_iter().map(|d| d as usize).collect();
        // An empty tensor may stand at the very end of a file that lacks the padding.
        let offset = start.saturating_add(offset).min(file) as usize;
        infos.push(Info { name, kind, shape, offset, bytes: bytes as usize });
    }
    let mut order: Vec<&Info> = infos.iter().collect();
    order.sort_by_key(|info| (info.offset, info.bytes));
    for pair in order.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            return Err(Problem::Overlap { name: pair[1].name.clone(), other: pair[0].name.clone() });
        }
    }
    Ok(infos)
}

struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn truncated(&self, what: &'static str, needed: u64) -> Problem {
        Problem::Truncated { what, at: self.at, needed, left: self.file.len() - self.at }
    }

    fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], Problem> {
        let bytes = self.file[self.at..].get(..n).ok_or_else(|| self.truncated(what, n as u64))?;
        self.at += n;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Problem> {
        let bytes = self.file[self.at..].first_chunk::<N>().ok_or_else(|| self.truncated(what, N as u64))?;
        self.at += N;
        Ok(*bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Problem> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Problem> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things of at least `unit` bytes each, which must fit into what is left.
    fn count(&mut self, what: &'static str, unit: u64) -> Result<usize, Problem> {
        let n = self.u64(what)?;
        match n.checked_mul(unit) {
            Some(needed) if needed <= (self.file.len() - self.at) as u64 => Ok(n as usize),
            needed => Err(self.truncated(what, needed.unwrap_or(u64::MAX))),
        }
    }

    fn string(&mut self, what: &'static str) -> Result<String, Problem> {
        let len = self.count(what, 1)?;
        let at = self.at;
        let bytes = self.take(len, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Problem::Utf8 { what, at })
    }

    fn bool(&mut self, key: &str) -> Result<bool, Problem> {
        match self.array::<1>("a truth value")?[0] {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(Problem::BadBool { key: key.into(), value }),
        }
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value, Problem> {
        const WHAT: &str = "a metadata value";
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.array(WHAT)?)),
            1 => Value::I8(i8::from_le_bytes(self.array(WHAT)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(WHAT)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(WHAT)?)),
            4 => Value::U32(u32::from_le_bytes(self.array(WHAT)?)),
            5 => Value::I32(i32::from_le_bytes(self.array(WHAT)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(WHAT)?)),
            7 => Value::Bool(self.bool(key)?),
            8 => Value::String(self.string("a metadata string")?),
            9 => Value::Array(self.values(key, 1)?),
            10 => Value::U64(u64::from_le_bytes(self.array(WHAT)?)),
            11 => Value::I64(i64::from_le_bytes(self.array(WHAT)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(WHAT)?)),
            kind => return Err(Problem::ValueType { key: key.into(), kind }),
        })
    }

    fn values(&mut self, key: &str, depth: usize) -> Result<Array, Problem> {
        if depth > MAX_DEPTH {
            return Err(Problem::Depth { key: key.into(), limit: MAX_DEPTH });
        }
        Ok(match self.u32("an array's type")? {
            0 => Array::U8(self.numbers(u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(f32::from_le_bytes)?),
            7 => Array::Bool(self.items(1, |c| c.bool(key))?),
            8 => Array::String(self.items(8, |c| c.string("a string in a metadata array"))?),
            9 => Array::Array(self.items(12, |c| c.values(key, depth + 1))?),
            10 => Array::U64(self.numbers(u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(f64::from_le_bytes)?),
            kind => return Err(Problem::ValueType { key: key.into(), kind }),
        })
    }

    fn numbers<T, const N: usize>(&mut self, from: impl Fn([u8; N]) -> T) -> Result<Vec<T>, Problem> {
        let n = self.count("a metadata array", N as u64)?;
        let bytes = self.take(n * N, "a metadata array")?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|b| from(*b)).collect())
    }

    /// Items of at least `unit` bytes each.
    fn items<T>(&mut self, unit: u64, item: impl Fn(&mut Self) -> Result<T, Problem>) -> Result<Vec<T>, Problem> {
        let n = self.count("a metadata array", unit)?;
        (0..n).map(|_| item(self)).collect()
    }

    fn tensor(&mut self) -> Result<Declared, Problem> {
        let name = self.string("a tensor's name")?;
        let dims = self.u32("a tensor's dimensions")?;
        if dims > 4 {
            return Err(Problem::Rank { name, dims });
        }
        let mut shape = Vec::with_capacity(4);
        for _ in 0..dims {
            shape.push(self.u64("a tensor's dimensions")?);
        }
        shape.reverse();
        let id = self.u32("a tensor's type")?;
        let Some(kind) = GgmlType::from_id(id) else { return Err(Problem::TensorType { name, kind: id }) };
        Ok(Declared { name, kind, shape, offset: self.u64("a tensor's offset")? })
    }
}
