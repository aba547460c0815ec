//! [`Attach`]: where an adapter's parameters come from, fresh or from a file, and what of the file was used.

use std::collections::HashSet;

use planish_autograd::Param;
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Tensor};

use super::AdapterError;
use crate::Result;
use crate::decoder::Model;
use crate::weights::WeightsReader;

/// Where an adapter's numbers come from.
pub(super) enum Source<'a> {
    /// Drawn.
    Fresh {
        /// Of the random numbers.
        seed: u64,
        /// Tokens of the text that prompt tuning begins with.
        prompt: Option<&'a [u32]>,
        /// Bytes that there are for it, where that is known.
        memory: Option<u64>,
    },
    /// Read.
    Files {
        /// What PEFT saves.
        weights: &'a WeightsReader,
        /// What training needs besides, if it is to go on.
        training: Option<&'a WeightsReader>,
    },
}

/// A model to which an adapter is being attached.
pub struct Attach<'a> {
    /// The model.
    pub(super) model: &'a mut Model,
    /// The adapter's number.
    pub(super) slot: usize,
    /// Adapters are kept in f32 on narrower bases, as PEFT does.
    pub(super) dtype: DType,
    trainable: bool,
    source: Source<'a>,
    used: HashSet<String>,
    /// Bytes that a new adapter takes so far.
    taken: f64,
}

/// Random numbers for one parameter: a stream of its own by its name, whatever the order of the modules.
pub(super) struct Draw<'s> {
    name: &'s str,
    stream: Stream,
    shape: &'s [usize],
    dtype: DType,
}

impl Draw<'_> {
    fn make(&self, f: impl Fn(u64) -> f64) -> Result<Tensor> {
        let n = self.shape.iter().product::<usize>();
        let mut all: Vec<f64> = Vec::new();
        if all.try_reserve_exact(n).is_err() {
            let (name, shape, needed) = (self.name.to_owned(), self.shape.to_vec(), n as f64 * DRAWN);
            return Err(AdapterError::TooLarge { name, shape, needed, available: None }.into());
        }
        all.extend((0..n as u64).map(f));
        Ok(Tensor::from_vec(all, self.shape)?.to_dtype(self.dtype)?)
    }

    /// Uniform in ±bound.
    pub(super) fn uniform(&self, bound: f64) -> Result<Tensor> {
        self.make(|i| (2.0 * self.stream.uniform_f64(i) - 1.0) * bound)
    }

    /// Normal with this standard deviation.
    pub(super) fn normal(&self, deviation: f64) -> Result<Tensor> {
        self.make(|i| deviation * self.stream.normal(i))
    }

    /// One number everywhere.
    pub(super) fn full(&self, value: f64) -> Result<Tensor> {
        self.make(|_| value)
    }
}

/// Bytes of a number that is drawn (f64, then f32), held (f32), and trained (with its gradient and AdamW's two means).
const DRAWN: f64 = 12.0;
const HELD: f64 = 4.0;
const TRAINED: f64 = 16.0;
/// More than any machine has, and fewer than overflow.
const ADDRESSABLE: f64 = (1u64 << 47) as f64;

/// FNV-1a.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3))
}

impl<'a> Attach<'a> {
    pub(super) fn new(model: &'a mut Model, slot: usize, trainable: bool, source: Source<'a>) -> Attach<'a> {
        let dtype = model.dtype();
        Attach { model, slot, dtype, trainable, source, used: HashSet::new(), taken: 0.0 }
    }

    /// Whether the adapter is a new one.
    pub(super) fn is_fresh(&self) -> bool {
        matches!(self.source, Source::Fresh { .. })
    }

    /// Whether its training goes on where it was left, or begins.
    pub(super) fn trains(&self) -> bool {
        matches!(self.source, Source::Fresh { .. } | Source::Files { training: Some(_), .. })
    }

    /// The tokens of a text that prompt tuning begins with.
    pub(super) fn prompt(&self) -> Option<&'a [u32]> {
        match &self.source {
            Source::Fresh { prompt, .. } => *prompt,
            Source::Files { .. } => None,
        }
    }

    /// A stream of random numbers for what is no parameter of its own.
    pub(super) fn stream(&self, name: &str) -> Stream {
        let seed = match self.source {
            Source::Fresh { seed, .. } => seed,
            Source::Files { .. } => 0,
        };
        Stream::new(seed, Purpose::Init, 0).substream(hash(name))
    }

    /// Counts what a new parameter takes, `each` bytes a number and what drawing takes beside it, and refuses what there
    /// is no memory for: the settings may ask for any size.
    fn reserve(&mut self, name: &str, shape: &[usize], each: f64) -> Result<()> {
        let Source::Fresh { memory, .. } = self.source else { return Ok(()) };
        let numbers = shape.iter().map(|&n| n as f64).product::<f64>();
        let needed = self.taken + numbers * each.max(DRAWN);
        if needed > memory.map_or(ADDRESSABLE, |memory| memory as f64) {
            let (name, shape) = (name.to_owned(), shape.to_vec());
            return Err(AdapterError::TooLarge { name, shape, needed, available: memory }.into());
        }
        self.taken += numbers * each;
        Ok(())
    }

    fn read(&mut self, name: &str) -> Result<Option<Tensor>> {
        let Source::Files { weights, training } = &self.source else { return Ok(None) };
        for reader in training.iter().chain([weights]) {
            if reader.contains(name) {
                let tensor = reader.get(name)?;
                self.used.insert(name.to_string());
                return Ok(Some(tensor.to_dtype(self.dtype)?.copied()?));
            }
        }
        Ok(None)
    }

    fn value(&mut self, name: &str, shape: &[usize], init: impl FnOnce(&Draw<'_>) -> Result<Tensor>) -> Result<Tensor> {
        if self.is_fresh() {
            return init(&Draw { name, stream: self.stream(name), shape, dtype: self.dtype });
        }
        match self.read(name)? {
            None => Err(AdapterError::Missing { name: name.into() }.into()),
            Some(tensor) if tensor.dims() != shape => {
                let (found, expected) = (tensor.dims().to_vec(), shape.to_vec());
                Err(AdapterError::Shape { name: name.into(), found, expected }.into())
            }
            Some(tensor) => Ok(tensor),
        }
    }

    /// The parameter of that name in PEFT's file; a new adapter's is made by `init`.
    pub(super) fn param(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        init: impl FnOnce(&Draw<'_>) -> Result<Tensor>,
    ) -> Result<Param> {
        let name = name.into();
        self.reserve(&name, shape, if self.trainable { TRAINED } else { HELD })?;
        let value = self.value(&name, shape, init)?;
        Ok(if self.trainable { Param::trainable(name, value) } else { Param::frozen(name, value) })
    }

    /// As [`Attach::param`] for what is saved but not trained.
    pub(super) fn frozen(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        init: impl FnOnce(&Draw<'_>) -> Result<Tensor>,
    ) -> Result<Param> {
        let name = name.into();
        self.reserve(&name, shape, HELD)?;
        let value = self.value(&name, shape, init)?;
        Ok(Param::frozen(name, value))
    }

    /// Whether the file holds that.
    pub(super) fn holds(&self, name: &str) -> bool {
        matches!(&self.source, Source::Files { weights, .. } if weights.contains(name))
    }

    /// A tensor that the file may hold.
    pub(super) fn optional(&mut self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        let Source::Files { weights, .. } = &self.source else { return Ok(None) };
        if !weights.contains(name) {
            return Ok(None);
        }
        self.value(name, shape, |draw| draw.full(0.0)).map(Some)
    }

    /// What training had kept under that name.
    pub(super) fn kept(&self, name: &str) -> Result<Option<Tensor>> {
        match &self.source {
            Source::Files { training: Some(reader), .. } if reader.contains(name) => {
                Ok(Some(reader.get(name)?.copied()?))
            }
            _ => Ok(None),
        }
    }

    /// Refuses a file that holds what nothing has taken. `also` are names that may be there all the same.
    pub(super) fn finish(&self, also: &[String]) -> Result<()> {
        let Source::Files { weights, .. } = &self.source else { return Ok(()) };
        match weights.names().iter().find(|n| !self.used.contains(*n) && !also.contains(n)) {
            Some(name) => Err(AdapterError::Unexpected { name: name.clone() }.into()),
            None => Ok(()),
        }
    }
}
