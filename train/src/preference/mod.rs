//! Learning from preferences: from batches of pairs and labels to gradients.
//!
//! ```text
//! Batch ─► reference (no gradient) ─┐
//!       └► token_scores (recorded) ─┴► loss: numbers and slopes ─► TokenScores::backward
//! ```
//!
//! [`Pairs`], [`Ranked`], [`Unpaired`], [`Rewards`], [`StepRewards`] and [`Mixed`] are the
//! [`Objective`](crate::trainer::Objective)s that recipes give to the trainer, [`Reference`] is what they compare with.

mod ensemble;
mod head;
mod judged;
mod labelled;
mod lengths;
mod members;
mod mixed;
mod moved;
mod objective;
mod pairs;
mod precompute;
mod ranked;
mod reference;
mod rewards;
mod steps;
mod unpaired;
mod watch;

pub use ensemble::Spread;
pub use judged::{Bin, Judged, Judgement, Length, Share};
pub use members::{Member, MemberLoss, Origins};
pub use mixed::Mixed;
pub use pairs::Pairs;
pub use precompute::{Known, Scoring, precompute};
pub use ranked::Ranked;
pub use reference::{Follow, Reference, same_vocabulary};
pub use rewards::Rewards;
pub use steps::{Answer, StepJudgement, StepRewards};
pub use unpaired::Unpaired;

use std::sync::Arc;

use planish_autograd::Tape;
use planish_nn::Ctx;
use planish_nn::decoder::Model;
use planish_tensor::rng::{Purpose, Rows, Stream};

use crate::Result;
use crate::config::OptimSettings;
use crate::data::Batch;
use crate::losses::RouterTerms;
use crate::trainer::router::Routers;
use crate::trainer::{packed, row_keys};

/// How a batch goes through the model: a training step with so many behind it, or held-out data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Train { done: u64, dropout: bool },
    HeldOut,
}

impl Mode {
    /// The context of a part whose tokens have these random keys.
    fn ctx(self, optim: &OptimSettings, keys: &Arc<[u64]>, tape: Option<&Tape>) -> Ctx {
        let Mode::Train { done, dropout } = self else { return Ctx::inference() };
        let rows = |purpose| Rows::new(Stream::new(optim.seed, purpose, done), keys.clone());
        let mut ctx = match tape {
            Some(tape) => Ctx::training(tape, dropout.then(|| rows(Purpose::Dropout))),
            None => Ctx::training(&Tape::new(), dropout.then(|| rows(Purpose::Dropout))).on(None),
        };
        ctx = ctx.lean(optim.recomputes_mlps());
        if let Some(alpha) = optim.neftune_noise_alpha.filter(|a| *a > 0.0) {
            ctx = ctx.with_embedding_noise(alpha, rows(Purpose::Noise));
        }
        ctx
    }
}

/// The losses of the routers of a training step of these passes, where the model has any.
fn routers(
    model: &Model,
    terms: RouterTerms,
    optim: &OptimSettings,
    parts: &[Vec<Part>],
    mode: Mode,
) -> Result<Option<Routers>> {
    if model.config.moe.is_none() || mode == Mode::HeldOut {
        return Ok(None);
    }
    let all: Vec<&Part> = parts.iter().flatten().collect();
    let pass = |part: &&Part| (packed(&part.batch), mode.ctx(optim, &part.keys, None));
    Routers::new(model, terms, all.iter().map(pass)).map(Some)
}

/// A pass: whole examples, with the random keys of their tokens.
struct Part {
    batch: Batch,
    keys: Arc<[u64]>,
}

/// The passes of each micro-batch, cut between examples.
fn passes(micro_batches: &[Batch], limit: u64) -> Vec<Vec<Part>> {
    let parts: Vec<Vec<Batch>> =
        micro_batches.iter().map(|b| b.split(usize::try_from(limit).unwrap_or(usize::MAX))).collect();
    let flat: Vec<Batch> = parts.iter().flatten().cloned().collect();
    let mut keys = row_keys(&flat).into_iter();
    let mut part = |batch: Batch| Part { batch, keys: keys.next().expect("a list of keys for each part") };
    parts.into_iter().map(|parts| parts.into_iter().map(&mut part).collect()).collect()
}
