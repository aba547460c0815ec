//! Losses. Each returns a sum and a count; the division happens once, over the whole optimizer step
//! (law 3 of the design).
//!
//! [`token_scores`] is the one way from a model to numbers and back. What is done with the numbers is arithmetic
//! without a model in it: [`CrossEntropy`](cross_entropy) of tokens, losses of preference pairs ([`PairLoss`]:
//! [`Dpo`], [`Orpo`], [`Cpo`]), of several answers ([`ListLoss`]: [`Nca`]), of labelled completions ([`Kto`]), of rewards
//! ([`BradleyTerry`]) and of steps ([`step_loss`]).

mod cpo;
mod cross_entropy;
mod dpo;
mod dual;
mod kto;
mod list;
mod nca;
mod orpo;
mod pair;
mod reward;
mod router;
mod tokens;

pub use cpo::Cpo;
pub use cross_entropy::{LossSum, UnreadLoss, cross_entropy, cross_entropy_beside, cross_entropy_unread};
pub use dpo::Dpo;
pub use dual::Dual;
pub use kto::{Kto, LabelSlope, Running};
pub use list::{AllPairs, ListLoss, ListSlope, ordered};
pub use nca::Nca;
pub use orpo::Orpo;
pub use pair::{Nll, Pair, PairLoss, PairSlope, Side};
pub use reward::{BradleyTerry, StepSlope, step_loss};
pub use router::{LayerLoad, Load, RouterTerms, router_loss};
pub use tokens::{Laid, TokenScores, Want, token_scores};
pub(crate) use tokens::{numbers, predicted};

#[cfg(test)]
mod tests;
