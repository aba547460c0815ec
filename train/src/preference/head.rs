//! Through a model and its head of rewards, and back.

use planish_autograd::Tape;
use planish_nn::Ctx;
use planish_nn::decoder::{Model, Packed, Routing};
use planish_tensor::Tensor;

use super::{Mode, Part};
use crate::Result;
use crate::config::OptimSettings;
use crate::losses::{Laid, numbers};
use crate::trainer::packed;
use crate::trainer::router::Routers;

/// [`Laid::new`] or [`Laid::beginnings`].
pub(super) type Lay = fn(&Model, &Ctx, Packed, bool) -> Laid;

/// Reads the head at these tokens of a pass, and goes back with the slopes that `loss` finds of the numbers, one each.
/// `routers`, which have no losses here, are watched.
pub(super) fn through_head(
    model: &Model,
    optim: &OptimSettings,
    (part, mode): (&Part, Mode),
    (lay, share): (Lay, bool),
    tokens: impl Iterator<Item = u32>,
    routers: Option<&mut Routers>,
    loss: impl FnOnce(&[f64]) -> Vec<f64>,
) -> Result<()> {
    let tape = (mode != Mode::HeldOut).then(Tape::new);
    let (mut ctx, routing) = (mode.ctx(optim, &part.keys, tape.as_ref()), Routing::default());
    if routers.is_some() {
        ctx = ctx.with_routing(&routing);
    }
    let laid = lay(model, &ctx, packed(&part.batch), share);
    let hidden = model.forward(&ctx, laid.stream(), optim.recomputes_layers())?;
    if let Some(routers) = routers {
        routers.see(&routing.take())?;
    }
    let rows: Vec<u32> = tokens.map(|i| laid.at(i)).collect();
    let said = model.rewards(&ctx, &hidden, &rows)?;
    drop(hidden);
    let slopes = loss(&numbers(said.value())?);
    if let Some(tape) = &tape {
        let value = said.value();
        let upstream = Tensor::from_vec(slopes, said.dims())?.to_dtype(value.dtype())?.to_device(value.device())?;
        tape.backward_from(vec![(said, upstream)])?;
    }
    Ok(())
}
