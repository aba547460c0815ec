//! Data, losses, optimizers, recipes and run directories of planish.

pub mod builtin;
pub mod config;
pub mod data;
mod error;
pub mod losses;
pub mod optim;
pub mod run;

pub use error::{Error, Result};
