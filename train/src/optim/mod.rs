//! Optimizers and learning-rate schedules.

mod adamw;
mod schedule;

pub use adamw::{AdamW, AdamWSettings, Update, grad_norm};
pub use schedule::learning_rate;
