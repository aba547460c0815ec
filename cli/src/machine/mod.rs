//! What this machine is and what it could do at best.

mod ceilings;
mod facts;

pub(crate) use ceilings::{Ceilings, measure};
pub(crate) use facts::{Facts, facts};
