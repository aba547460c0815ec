//! The bytes of an entry: magic, SHA-256 of the rest, then the parts, each behind its length.

use sha2::{Digest, Sha256};

use crate::nvrtc::{Compiled, Usage};

const MAGIC: &[u8; 16] = b"planish kernel 2";

pub(super) fn write(compiled: &Compiled) -> Vec<u8> {
    let mut body = Vec::new();
    let mut part = |bytes: &[u8]| {
        body.extend((bytes.len() as u64).to_le_bytes());
        body.extend(bytes);
    };
    part(compiled.ptx.as_bytes());
    part(&compiled.cubin);
    for u in &compiled.usage {
        part(u.kernel.as_bytes());
        let numbers = [u.registers, u.spill_stores, u.spill_loads, u.stack, u.shared, u32::from(u.serialised)];
        part(&numbers.map(u32::to_le_bytes).concat());
    }
    let mut bytes = MAGIC.to_vec();
    bytes.extend(Sha256::digest(&body));
    bytes.extend(body);
    bytes
}

/// `None` for anything that [`write`] did not write.
pub(super) fn read(bytes: &[u8]) -> Option<Compiled> {
    let (hash, mut body) = bytes.strip_prefix(MAGIC)?.split_at_checked(32)?;
    if Sha256::digest(body).as_slice() != hash {
        return None;
    }
    let mut part = || -> Option<Vec<u8>> {
        let (length, rest) = body.split_first_chunk::<8>()?;
        let (bytes, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        body = rest;
        Some(bytes.to_vec())
    };
    let (ptx, cubin) = (String::from_utf8(part()?).ok()?, part()?);
    let mut usage = Vec::new();
    while let Some(name) = part() {
        let numbers = part()?;
        let number = |i: usize| Some(u32::from_le_bytes(*numbers.get(4 * i..)?.first_chunk()?));
        usage.push(Usage {
            kernel: String::from_utf8(name).ok()?,
            registers: number(0)?,
            spill_stores: number(1)?,
            spill_loads: number(2)?,
            stack: number(3)?,
            shared: number(4)?,
            serialised: number(5)? != 0,
        });
    }
    Some(Compiled { ptx, cubin, usage })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_damage_is_seen() {
        let usage = Usage {
            kernel: "k".into(),
            registers: 1,
            spill_stores: 2,
            spill_loads: 3,
            stack: 4,
            serialised: true,
            shared: 5,
        };
        let compiled = Compiled { ptx: ".version 9.0".into(), cubin: vec![1, 2, 3], usage: vec![usage.clone(), usage] };
        let bytes = write(&compiled);
        assert_eq!(read(&bytes), Some(compiled));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(read(&damaged), None, "byte {at}");
            assert_eq!(read(&bytes[..at]), None, "cut at {at}");
        }
    }
}
