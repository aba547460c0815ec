//! What an adapter puts before every sequence: virtual tokens as embeddings, or as keys and values.
//!
//! A stream gets them in front of each of its segments: the segments grow, their own tokens' positions move up
//! by the number of virtual ones, and what leaves the decoder is the rows of the real tokens again. So packing,
//! losses and decoding need not know of them.

use std::fmt::Debug;
use std::sync::Arc;

use planish_autograd::ops::{concat, index_select, view};
use planish_autograd::{Param, Result, Var};

use crate::Ctx;
use crate::config::ModelConfig;

/// Where virtual tokens come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before the first layer, as embeddings: (tokens, hidden).
    Embeddings,
    /// In every layer, as keys (not rotated) and values: (tokens, 2 · layers · kv_heads · head_dim), the keys of
    /// layer l in block 2l and its values in block 2l + 1.
    KeysAndValues,
}

/// Tokens that an adapter puts before every sequence. One implementation a method, in [`crate::adapters`].
pub trait VirtualTokens: Debug + Send + Sync {
    /// How many.
    fn count(&self) -> usize;
    /// As what.
    fn place(&self) -> Place;
    /// Their values, as [`Place`] has them.
    ///
    /// # Errors
    /// Those of the kernels.
    fn values(&self, ctx: &Ctx) -> Result<Var>;
    /// The adapter's parameters.
    fn params(&self) -> Vec<&Param>;
}

/// A segment table with `count` rows before each segment of another.
pub(super) struct Lengthened {
    /// The new table.
    pub(super) cu: Arc<[u32]>,
    /// Row of the new stream from (virtual rows, then the old stream).
    pub(super) index: Arc<[u32]>,
    /// Where the old rows are in the new stream.
    pub(super) kept: Vec<u32>,
}

impl Lengthened {
    /// `leads[s]` says whether segment s gets the `count` rows.
    pub(super) fn new(cu: &[u32], count: usize, leads: impl Fn(usize) -> bool) -> Lengthened {
        let count = count as u32;
        let (mut new, mut index, mut kept) = (vec![0u32], vec![], vec![]);
        for (s, segment) in cu.windows(2).enumerate() {
            if leads(s) {
                index.extend(0..count);
            }
            kept.extend(index.len() as u32..index.len() as u32 + segment[1] - segment[0]);
            index.extend((segment[0]..segment[1]).map(|t| count + t));
            new.push(index.len() as u32);
        }
        Lengthened { cu: new.into(), index: index.into(), kept }
    }

    /// The new stream of `lead` (count, …) and `stream`, the old one.
    pub(super) fn stream(&self, lead: &Var, stream: &Var) -> Result<Var> {
        index_select::index_select(&concat::concat(&[lead, stream], 0)?, &self.index)
    }
}

/// A prefix of one layer.
#[derive(Clone)]
pub(super) struct Prefix {
    /// Keys: (count, kv_heads, head_dim).
    pub(super) k: Var,
    /// Values, likewise.
    pub(super) v: Var,
    /// The keys' segments, prefix included.
    pub(super) cu: Arc<[u32]>,
    /// As [`Lengthened::index`].
    pub(super) index: Arc<[u32]>,
}

impl Prefix {
    /// Keys or values of a packed stream with the prefix before each segment.
    pub(super) fn before(&self, lead: &Var, own: &Var) -> Result<Var> {
        index_select::index_select(&concat::concat(&[lead, own], 0)?, &self.index)
    }

    /// Of each layer.
    pub(super) fn all(c: &ModelConfig, values: &Var, count: usize, table: &Lengthened) -> Result<Vec<Prefix>> {
        let width = c.num_kv_heads * c.head_dim;
        let part = |i: usize| -> Result<Var> {
            view::reshape(&view::narrow(values, 1, i * width, width)?, &[count, c.num_kv_heads, c.head_dim])
        };
        let layer = |l: usize| -> Result<Prefix> {
            let (k, v) = (part(2 * l)?, part(2 * l + 1)?);
            Ok(Prefix { k, v, cu: table.cu.clone(), index: table.index.clone() })
        };
        (0..c.num_layers()).map(layer).collect()
    }
}
