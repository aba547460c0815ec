//! Data, losses, optimizers, recipes and run directories of planish.

pub mod config;
pub mod data;
pub mod run;
