//! What this machine is as the system describes it.

mod facts;

pub(crate) use facts::{Facts, facts};
