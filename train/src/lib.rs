//! Data, losses, optimizers, recipes and run directories of planish.

pub mod adapt;
pub mod builtin;
pub mod ceilings;
pub mod certify;
pub mod config;
pub mod data;
pub mod device;
mod error;
pub mod losses;
pub mod models;
pub mod optim;
pub mod plan;
pub mod preference;
pub mod recipes;
pub mod run;
pub mod score;
pub mod trainer;

pub use error::{Error, Result};
