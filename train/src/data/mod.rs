//! Data: files of rows, what the rows mean, tokens and masks, order, packing and batches.
//!
//! ```text
//! DatasetSpec ─► Dataset (format, columns) ─► View (split, weights) ─► Order (seed, epoch)
//!                    row i ─► TypedRow ─► Encoder ─► Example ─► Sampler ─► Step of Batches
//! ```
//!
//! Nothing here holds a data set in memory: rows are read by number, in any order, and a run is
//! resumed from a [`Cursor`] without replaying anything.

mod batch;
mod columns;
mod dataset;
mod encode;
mod encode_pair;
mod encode_steps;
mod error;
mod fault;
mod format;
mod loader;
mod pack;
mod pairs;
mod permute;
mod preflight;
mod ranked;
mod remarks;
mod render;
mod row;
mod sampler;
mod spec;
mod split;
mod steps;
#[cfg(test)]
mod tests;
mod text;
mod tokenizer;

pub use batch::Batch;
pub use columns::{Columns, DatasetType};
pub use dataset::{Dataset, FileInfo, Order, View};
pub use encode::{Dropped, EncodeOptions, Encoded, Encoder, Example, OnUnsupervised, Rejected, Truncation};
pub use encode_steps::StepOptions;
pub use error::{At, DataError, Result, TextError};
pub use fault::InvalidRows;
pub use format::{Format, SampleBy};
pub use loader::Loader;
pub use pack::{Packing, best_fit_decreasing};
pub use pairs::{extract_prompt_chat, extract_prompt_text};
pub use permute::Permutation;
pub use preflight::{Bar, FirstExample, LengthStats, Lengths, Preflight, Span, preflight};
pub use render::render;
pub use row::{ChatExtras, ChatMessage, Content, Source, Task, Trajectory, TypedRow};
pub use sampler::{Cursor, Sampler, SamplerOptions, Step, Steps};
pub use spec::DatasetSpec;
pub use split::ValidationSplit;
pub use text::{RenderedChat, Rendering, TextEncoder};
