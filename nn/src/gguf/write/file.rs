//! The file: head, metadata, what is where, and the data, written from the first byte to the last.

use std::io::{self, Write};

use crate::gguf::metadata::{Array, Value};
use crate::gguf::{GgmlType, Metadata};

/// Where a tensor's data may begin.
const ALIGNMENT: usize = 32;

/// A tensor that is to be written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) kind: GgmlType,
    /// Outermost first.
    pub(super) shape: Vec<usize>,
}

impl Entry {
    pub(super) fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() / self.kind.block_len() * self.kind.block_bytes()
    }
}

/// Writes everything before the data.
pub(super) fn head(out: &mut dyn Write, metadata: &Metadata, entries: &[Entry]) -> io::Result<()> {
    let mut to = Counted { out, written: 0 };
    to.write_all(b"GGUF")?;
    to.write_all(&3u32.to_le_bytes())?;
    to.write_all(&(entries.len() as u64).to_le_bytes())?;
    to.write_all(&(metadata.iter().count() as u64).to_le_bytes())?;
    for (key, value) in metadata.iter() {
        string(&mut to, key)?;
        write_value(&mut to, value)?;
    }
    let mut offset = 0u64;
    for entry in entries {
        string(&mut to, &entry.name)?;
        to.write_all(&(entry.shape.len() as u32).to_le_bytes())?;
        for n in entry.shape.iter().rev() {
            to.write_all(&(*n as u64).to_le_bytes())?;
        }
        to.write_all(&entry.kind.id().to_le_bytes())?;
        to.write_all(&offset.to_le_bytes())?;
        offset += entry.bytes().next_multiple_of(ALIGNMENT) as u64;
    }
    let written = to.written;
    pad(out, written)
}

/// Zeros up to where the next data may begin.
pub(super) fn pad(out: &mut dyn Write, written: usize) -> io::Result<()> {
    out.write_all(&[0; ALIGNMENT][..written.next_multiple_of(ALIGNMENT) - written])
}

struct Counted<'a> {
    out: &'a mut dyn Write,
    written: usize,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.written += n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn string(out: &mut dyn Write, text: &str) -> io::Result<()> {
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(text.as_bytes())
}

fn write_value(out: &mut dyn Write, value: &Value) -> io::Result<()> {
    macro_rules! scalar {
        ($id:literal, $x:expr) => {{
            out.write_all(&u32::to_le_bytes($id))?;
            out.write_all(&$x.to_le_bytes())
        }};
    }
    match value {
        Value::U8(x) => scalar!(0, x),
        Value::I8(x) => scalar!(1, x),
        Value::U16(x) => scalar!(2, x),
        Value::I16(x) => scalar!(3, x),
        Value::U32(x) => scalar!(4, x),
        Value::I32(x) => scalar!(5, x),
        Value::F32(x) => scalar!(6, x),
        Value::Bool(x) => scalar!(7, u8::from(*x)),
        Value::String(x) => {
            out.write_all(&8u32.to_le_bytes())?;
            string(out, x)
        }
        Value::Array(xs) => {
            out.write_all(&9u32.to_le_bytes())?;
            write_array(out, xs)
        }
        Value::U64(x) => scalar!(10, x),
        Value::I64(x) => scalar!(11, x),
        Value::F64(x) => scalar!(12, x),
    }
}

fn write_array(out: &mut dyn Write, array: &Array) -> io::Result<()> {
    macro_rules! numbers {
        ($id:literal, $xs:expr) => {{
            out.write_all(&u32::to_le_bytes($id))?;
            out.write_all(&($xs.len() as u64).to_le_bytes())?;
            $xs.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))
        }};
    }
    match array {
        Array::U8(xs) => numbers!(0, xs),
        Array::I8(xs) => numbers!(1, xs),
        Array::U16(xs) => numbers!(2, xs),
        Array::I16(xs) => numbers!(3, xs),
        Array::U32(xs) => numbers!(4, xs),
        Array::I32(xs) => numbers!(5, xs),
        Array::F32(xs) => numbers!(6, xs),
        Array::Bool(xs) => {
            out.write_all(&7u32.to_le_bytes())?;
            out.write_all(&(xs.len() as u64).to_le_bytes())?;
            xs.iter().try_for_each(|&x| out.write_all(&[u8::from(x)]))
        }
        Array::String(xs) => {
            out.write_all(&8u32.to_le_bytes())?;
            out.write_all(&(xs.len() as u64).to_le_bytes())?;
            xs.iter().try_for_each(|x| string(out, x))
        }
        Array::Array(xs) => {
            out.write_all(&9u32.to_le_bytes())?;
            out.write_all(&(xs.len() as u64).to_le_bytes())?;
            xs.iter().try_for_each(|x| write_array(out, x))
        }
        Array::U64(xs) => numbers!(10, xs),
        Array::I64(xs) => numbers!(11, xs),
        Array::F64(xs) => numbers!(12, xs),
    }
}
