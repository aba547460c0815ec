//! TensorBoard's event files: a record framing and four protobuf messages, by hand.
//!
//! A record is `length: u64 | masked_crc(length): u32 | data | masked_crc(data): u32`, little
//! endian, with `masked_crc(x) = rotate_right(crc32c(x), 15) + 0xa282ead8`.
//! The data is an `Event` of `tensorflow/core/util/event.proto`, of which we write
//! `wall_time = 1 (double)`, `step = 2 (int64)`, `file_version = 3 (string)`,
//! `summary = 5 { value = 1 { tag = 1 (string), simple_value = 2 (float) } }` and
//! `session_log = 7 { status = 1 (enum, START = 1) }`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::RunError;
use super::metrics::StepMetrics;

/// Writes one event file.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// Creates a new event file in `dir`. With `resumed` readers are told to forget what earlier
    /// files say about later steps.
    ///
    /// # Errors
    /// [`RunError::Io`], [`RunError::DiskFull`].
    pub fn create(dir: &Path, resumed: Option<u64>) -> Result<EventWriter, RunError> {
        let seconds = now() as u64;
        let process = std::process::id();
        let (file, path) = (0..)
            .map(|n| dir.join(format!("events.out.tfevents.{seconds:010}.planish.{process}.{n}")))
            .find_map(|path| match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => Some(Ok((file, path))),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => None,
                Err(error) => Some(Err(RunError::io("write", &path, error))),
            })
            .expect("an endless iterator ends only by finding something")?;
        let mut writer = EventWriter { file, path };
        let mut version = event(0);
        put_bytes(&mut version, 3, b"brain.Event:2");
        writer.record(&version)?;
        if let Some(step) = resumed {
            // TensorBoard drops everything from the step of a START on.
            let mut start = event(step + 1);
            put_bytes(&mut start, 7, &[1 << 3, 1]);
            writer.record(&start)?;
        }
        Ok(writer)
    }

    /// Writes the numbers of a step under the tags that transformers gives them:
    /// `train/loss`, and `eval/loss` for `eval_loss`.
    ///
    /// # Errors
    /// [`RunError::Io`], [`RunError::DiskFull`].
    pub fn write(&mut self, metrics: &StepMetrics) -> Result<(), RunError> {
        let json = metrics.to_json();
        let scalars = json
            .iter()
            .filter(|(key, _)| *key != "step")
            .filter_map(|(key, value)| Some((key.as_str(), value.as_f64()?)));
        self.scalars(metrics.step, scalars)
    }

    /// Writes numbers under their tags.
    ///
    /// # Errors
    /// [`RunError::Io`], [`RunError::DiskFull`].
    pub fn scalars<'a>(
        &mut self,
        step: u64,
        scalars: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<(), RunError> {
        let mut summary = Vec::new();
        for (key, number) in scalars {
            let tag = match key.strip_prefix("eval_") {
                Some(rest) => format!("eval/{rest}"),
                None => format!("train/{key}"),
            };
            let mut value = Vec::new();
            put_bytes(&mut value, 1, tag.as_bytes());
            value.push(2 << 3 | 5);
            value.extend((number as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &value);
        }
        let mut message = event(step);
        put_bytes(&mut message, 5, &summary);
        self.record(&message)
    }

    fn record(&mut self, data: &[u8]) -> Result<(), RunError> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend(length);
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(data);
        record.extend(masked_crc(data).to_le_bytes());
        self.file.write_all(&record).map_err(|source| RunError::io("write", &self.path, source))
    }
}

/// The start of an event: time and step.
fn event(step: u64) -> Vec<u8> {
    let mut message = vec![1 << 3 | 1];
    message.extend(now().to_le_bytes());
    message.push(2 << 3);
    put_varint(&mut message, step);
    message
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A length-delimited field. All field numbers here are below 16: the tag is one byte.
fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

pub(super) fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}
