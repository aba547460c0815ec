//! Whole recipes on small models: resumed runs, saved results, what they write.

mod adapters;
mod choices;
mod experts;
mod memory;
mod resume;
mod split;

use planish_tests::runs::{Listener, files, metrics, repo, result, stopped_or_not};
use planish_train::config::{Recipe, resolve};

/// Settings as flags give them.
fn settings<C: Recipe>(flags: &[(&str, &str)]) -> C {
    let flags: Vec<_> = flags.iter().map(|(k, v)| (k.to_string(), vec![v.to_string()])).collect();
    resolve::<C>(None, &flags).unwrap().config
}
