//! Data, losses, optimizers, recipes and run directories of planish.

pub mod adapt;
pub mod builtin;
pub mod ceilings;
pub mod certify;
pub mod config;
pub mod data;
pub mod device;
pub mod distill;
mod error;
pub mod losses;
pub mod models;
pub mod optim;
pub mod plan;
pub mod preference;
pub mod recipes;
pub mod run;
pub mod score;
mod sources;
pub mod trainer;

pub use error::{Error, Result};
