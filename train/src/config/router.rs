//! The settings of the router of a mixture of experts.

use super::setting::rules::*;
use super::table::settings;

settings! {
    /// Losses that keep a router balanced and its logits small.
    pub struct RouterSettings ("Training") {
        /// Weight of the load-balancing loss of a mixture of experts; 0 for none [that of the model's config.json].
        router_aux_loss_coef: Option<f64> = None, NOT_NEGATIVE;
        /// Weight of the mean squared log-sum-exp of the router's logits (arXiv 2202.08906, equation 5).
        router_z_loss_coef: f64 = 0.0, NOT_NEGATIVE;
    }
}
