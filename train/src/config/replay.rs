//! The settings of replay in continued pretraining.

use super::setting::rules::*;
use super::table::settings;

settings! {
    /// Examples of what the model has learnt before, shown again so that it is not forgotten.
    pub struct ReplaySettings ("Data") {
        /// Files of earlier examples; may be repeated.
        replay_dataset: Vec<String> = Vec::new(), TEXT;
        /// Share of an epoch's examples that come from replay_dataset (arXiv 2403.08763 takes 0.05 and less).
        replay_share: f64 = 0.0, BELOW_ONE;
    }
}
