//! Run directories: where a run leaves its settings, metrics, checkpoints, result and report.
//!
//! [`RunDir`] makes or reopens the directory, [`MetricsWriter`] and [`EventWriter`] append to it,
//! [`report`] turns it into a page. [`Observer`] is how a recipe reports while it runs.
//!
//! ```
//! use planish_train::run::{Checkpoint, RunDir, RunError, StepMetrics};
//! # let place = tempfile::tempdir()?;
//! # let output_dir = place.path().join("run");
//! let run = RunDir::create(&output_dir, false)?;
//! let mut metrics = run.metrics()?;
//! for step in 1..=3 {
//!     metrics.write(&StepMetrics { step, loss: 1.0 / step as f64, ..StepMetrics::default() })?;
//!     if step == 2 {
//!         run.save_checkpoint::<RunError>(step, |dir| {
//!             std::fs::write(dir.join("state"), "…").expect("a new directory takes files");
//!             Ok(())
//!         })?;
//!     }
//! }
//! let from = Checkpoint::find("latest", &output_dir)?;
//! assert_eq!(from.step, 2);
//! // Resuming forgets step 3: the file goes on as if the run had never stopped.
//! RunDir::resume(&output_dir, &from)?.metrics()?;
//! assert_eq!(planish_train::run::read_metrics(&output_dir.join("metrics.jsonl"))?.len(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod checkpoint;
mod dir;
mod error;
mod memory;
mod metrics;
mod observer;
pub mod report;
mod tensorboard;

#[cfg(test)]
mod tests;

pub use checkpoint::Checkpoint;
pub use dir::RunDir;
pub use error::RunError;
pub use memory::{MemoryUse, memory_use};
pub use metrics::{MetricsWriter, StepMetrics, read_metrics};
pub use observer::{Observer, Outcome, RunPlan, Silent};
pub use tensorboard::EventWriter;
