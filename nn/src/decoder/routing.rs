//! What the routers of a pass did: for the losses that balance them, and for statistics.

use std::cell::RefCell;
use std::rc::Rc;

use planish_autograd::{Result, Var};
use planish_tensor::{Device, Element, dispatch_real};

use super::experts::Experts;

/// What the router of one layer did with the rows of a pass.
#[derive(Clone, Debug)]
pub struct LayerRouting {
    /// The layer's number.
    pub layer: usize,
    /// The router's logits, (rows, experts).
    pub logits: Var,
    /// Scores of the experts that sum to 1 in each row, (rows, experts); tracked if the logits are.
    pub shares: Var,
    /// How many rows chose each expert; they sum to rows · experts of a token.
    pub load: Vec<u64>,
}

impl LayerRouting {
    pub(super) fn new(layer: usize, experts: &Experts, logits: Var) -> Result<LayerRouting> {
        Ok(LayerRouting { layer, shares: experts.shares(&logits)?, load: experts.load(&logits)?, logits })
    }

    /// Rows of the pass.
    pub fn rows(&self) -> usize {
        self.logits.dims()[0]
    }

    /// Σ over the rows of the shares, one number an expert.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn mass(&self) -> Result<Vec<f64>> {
        let mut mass = vec![0.0; self.load.len()];
        let shares = self.shares.value().to_device(Device::Cpu)?.contiguous()?;
        let mut add = || -> planish_tensor::Result<()> {
            dispatch_real!("the mass of experts", shares.dtype(), R => {
                for row in shares.as_slice::<R>()?.chunks_exact(mass.len()) {
                    mass.iter_mut().zip(row).for_each(|(m, p)| *m += p.to_f64());
                }
                Ok(())
            })
        };
        add()?;
        Ok(mass)
    }
}

/// Takes note of every router of the passes whose context has it ([`Ctx::with_routing`](crate::Ctx::with_routing)). A
/// clone is the same notebook.
#[derive(Clone, Debug, Default)]
pub struct Routing(Rc<RefCell<Vec<LayerRouting>>>);

impl Routing {
    pub(super) fn note(&self, layer: LayerRouting) {
        self.0.borrow_mut().push(layer);
    }

    /// What was noted, layer by layer, leaving nothing.
    pub fn take(&self) -> Vec<LayerRouting> {
        self.0.take()
    }
}
