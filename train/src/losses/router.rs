//! What keeps the experts of a mixture in use: the load-balancing loss, and the z-loss of the router's logits.
//!
//! Over the N rows (token, layer of experts) of an optimizer step, with f_e the share of rows that chose expert e (they
//! sum to the experts of a token), P_e the mean of its share p_e of the router's distribution, and E experts:
//!
//! balance = E Σ_e f_e P_e, z = 1/N Σ_rows (ln Σ_e exp(logit_e))².
//!
//! f is counted, so the gradient of the balance goes through P alone: E f_e / N for each p_e. Both are means over the
//! whole step (law 3 of the design), every token of it, the unsupervised ones too.
//!
//! # Source
//! Fedus et al., "Switch Transformers", arXiv:2101.03961, equations 4 to 6, over several experts a token and all layers
//! together, as transformers has it; Zoph et al., "ST-MoE", arXiv:2202.08906, equation 5. Deviation from
//! transformers, which has the balance of each micro-batch and their mean: here it is that of the whole step
//! (arXiv:2501.11873 finds that the better one), so that accumulation does not change it.

use planish_autograd::Var;
use planish_autograd::ops::{elementwise, reduction, softmax};
use planish_nn::decoder::LayerRouting;
use planish_tensor::{DType, Device, Tensor};

use crate::Result;

/// Weights of the two losses in what is minimised.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RouterTerms {
    /// Of the balance.
    pub balance: f64,
    /// Of the z-loss.
    pub z: f64,
}

impl RouterTerms {
    /// Whether there is one.
    pub fn any(&self) -> bool {
        self.balance > 0.0 || self.z > 0.0
    }
}

/// What one layer's router did in a step.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerLoad {
    /// The layer's number.
    pub layer: usize,
    /// Rows.
    pub rows: u64,
    /// Rows that chose each expert.
    pub load: Vec<u64>,
    /// Σ over the rows of each expert's share.
    pub mass: Vec<f64>,
}

impl LayerLoad {
    /// Entropy of the mean routing distribution, nats: ln E if all experts are used alike, 0 if only one is.
    pub fn entropy(&self) -> f64 {
        let all: f64 = self.mass.iter().sum();
        let terms = self.mass.iter().map(|m| m / all).filter(|p| *p > 0.0);
        -terms.map(|p| p * p.ln()).sum::<f64>()
    }

    /// Rows of the most chosen expert over the mean of all: 1 if they are chosen alike.
    pub fn peak(&self) -> f64 {
        let (most, all) = (self.load.iter().max().copied().unwrap_or(0), self.load.iter().sum::<u64>());
        most as f64 * self.load.len() as f64 / all as f64
    }

    /// Experts that no row chose.
    pub fn dead(&self) -> usize {
        self.load.iter().filter(|n| **n == 0).count()
    }
}

/// What the routers of a step, or of several, did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Load {
    /// Each layer of experts.
    pub layers: Vec<LayerLoad>,
}

impl Load {
    /// Adds a pass.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn add(&mut self, pass: &[LayerRouting]) -> Result<()> {
        for routing in pass {
            let rows = routing.rows() as u64;
            self.put(LayerLoad { layer: routing.layer, rows, load: routing.load.clone(), mass: routing.mass()? });
        }
        Ok(())
    }

    /// Adds another.
    pub fn merge(&mut self, other: &Load) {
        other.layers.iter().for_each(|layer| self.put(layer.clone()));
    }

    fn put(&mut self, new: LayerLoad) {
        let Some(old) = self.layers.iter_mut().find(|l| l.layer == new.layer) else { return self.layers.push(new) };
        old.rows += new.rows;
        old.load.iter_mut().zip(new.load).for_each(|(a, b)| *a += b);
        old.mass.iter_mut().zip(new.mass).for_each(|(a, b)| *a += b);
    }

    /// Rows of all layers.
    pub fn rows(&self) -> f64 {
        self.layers.iter().map(|l| l.rows as f64).sum()
    }

    /// f: for each expert the share of rows that chose it.
    pub fn shares(&self) -> Vec<f64> {
        let rows = self.rows();
        let experts = self.layers.first().map_or(0, |l| l.load.len());
        (0..experts).map(|e| self.layers.iter().map(|l| l.load[e] as f64).sum::<f64>() / rows).collect()
    }

    /// E Σ_e f_e P_e.
    pub fn balance(&self) -> f64 {
        let (rows, f) = (self.rows(), self.shares());
        let p = |e: usize| self.layers.iter().map(|l| l.mass[e]).sum::<f64>() / rows;
        f.len() as f64 * f.iter().enumerate().map(|(e, f)| f * p(e)).sum::<f64>()
    }
}

/// Σ over a pass's rows of `terms.balance` · E Σ_e f_e p_e / N + `terms.z` · lse² / N, a number, and Σ lse² apart.
/// `load` is that of the step which the pass is a part of: f and N.
///
/// # Errors
/// Those of the kernels.
pub fn router_loss(pass: &[LayerRouting], load: &Load, terms: RouterTerms) -> Result<(Option<Var>, f64)> {
    let (mut sum, mut squares): (Option<Var>, f64) = (None, 0.0);
    let (rows, f) = (load.rows(), load.shares());
    let mut add = |term: Var| -> Result<()> {
        sum = Some(match sum.take() {
            Some(sum) => elementwise::add(&sum, &term)?,
            None => term,
        });
        Ok(())
    };
    for routing in pass {
        let (value, experts) = (routing.logits.value(), f.len());
        if terms.balance > 0.0 {
            let f = Tensor::from_vec(f.clone(), [1, experts])?.to_dtype(value.dtype())?.to_device(value.device())?;
            let chosen = reduction::sum(&elementwise::mul(&routing.shares, &Var::constant(f))?)?;
            add(elementwise::scale(&chosen, terms.balance * experts as f64 / rows)?)?;
        }
        if terms.z > 0.0 {
            let lse = softmax::logsumexp(&routing.logits)?;
            let square = reduction::sum(&elementwise::mul(&lse, &lse)?)?;
            let square_here = square.value().to_device(Device::Cpu)?.to_dtype(DType::F64)?;
            squares += square_here.to_vec::<f64>()?.iter().sum::<f64>();
            add(elementwise::scale(&square, terms.z / rows)?)?;
        }
    }
    Ok((sum, squares))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(layer: usize, rows: u64, load: &[u64], mass: &[f64]) -> Load {
        Load { layers: vec![LayerLoad { layer, rows, load: load.to_vec(), mass: mass.to_vec() }] }
    }

    #[test]
    fn a_router_that_uses_all_alike_has_the_least_balance() {
        // Two experts a row of four: f_e = 1/2, P_e = 1/4.
        let even = layer(3, 8, &[4, 4, 4, 4], &[2.0; 4]);
        assert!((even.balance() - 2.0).abs() < 1e-12, "{}", even.balance());
        assert!((even.layers[0].entropy() - 4f64.ln()).abs() < 1e-12);
        assert_eq!((even.layers[0].peak(), even.layers[0].dead()), (1.0, 0));
        // All rows to the same two, with all of the router's trust: f = P · 2 = (1, 1, 0, 0).
        let collapsed = layer(3, 8, &[8, 8, 0, 0], &[4.0, 4.0, 0.0, 0.0]);
        assert!((collapsed.balance() - 4.0).abs() < 1e-12, "{}", collapsed.balance());
        assert!((collapsed.layers[0].entropy() - 2f64.ln()).abs() < 1e-12);
        assert_eq!((collapsed.layers[0].peak(), collapsed.layers[0].dead()), (2.0, 2));
    }

    #[test]
    fn layers_and_passes_add_up() {
        let mut all = layer(0, 2, &[2, 0], &[1.5, 0.5]);
        all.merge(&layer(1, 2, &[0, 2], &[0.5, 1.5]));
        all.merge(&layer(0, 4, &[1, 3], &[1.0, 3.0]));
        assert_eq!(all.layers.len(), 2);
        assert_eq!((all.layers[0].rows, &all.layers[0].load[..]), (6, &[3, 3][..]));
        assert_eq!(all.rows(), 8.0);
        assert_eq!(all.shares(), [3.0 / 8.0, 5.0 / 8.0]);
        let want = 2.0 * (3.0 / 8.0 * 3.0 / 8.0 + 5.0 / 8.0 * 5.0 / 8.0);
        assert!((all.balance() - want).abs() < 1e-12, "{}", all.balance());
    }

    #[test]
    fn gradients_are_those_of_the_losses() {
        use planish_autograd::{GradCheck, gradcheck};
        let logits = |layer: u64, rows: usize| {
            let random = planish_tensor::rng::Stream::new(3, planish_tensor::rng::Purpose::Data, layer);
            let values: Vec<f64> = (0..rows as u64 * 4).map(|i| 2.0 * random.normal(i)).collect();
            Tensor::from_vec(values, [rows, 4]).unwrap()
        };
        // f is of the whole step, of which these rows may be a part.
        let mut load = layer(1, 9, &[7, 1, 4, 6], &[0.0; 4]);
        load.merge(&layer(2, 3, &[1, 0, 3, 2], &[0.0; 4]));
        let routing = |layer: usize, logits: &Var| LayerRouting {
            layer,
            logits: logits.clone(),
            shares: softmax::softmax(logits).unwrap(),
            load: vec![0; 4],
        };
        for terms in [
            RouterTerms { balance: 0.7, z: 0.0 },
            RouterTerms { balance: 0.0, z: 0.3 },
            RouterTerms { balance: 0.2, z: 0.1 },
        ] {
            let loss = |v: &[Var]| {
                let pass = [routing(1, &v[0]), routing(2, &v[1])];
                Ok(vec![router_loss(&pass, &load, terms).unwrap().0.unwrap()])
            };
            gradcheck(loss, &[logits(1, 5), logits(2, 3)], GradCheck::default()).unwrap();
        }
        // Nothing to add, and rows that are none.
        let pass = [routing(1, &Var::constant(logits(1, 5)))];
        assert!(router_loss(&pass, &load, RouterTerms::default()).unwrap().0.is_none());
        let pass = [routing(1, &Var::constant(logits(1, 0)))];
        let (loss, squares) = router_loss(&pass, &load, RouterTerms { balance: 1.0, z: 1.0 }).unwrap();
        assert_eq!((loss.unwrap().value().to_vec::<f64>().unwrap(), squares), (vec![0.0], 0.0));
    }
}
