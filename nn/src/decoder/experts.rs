//! Mixture of experts: a router chooses a few MLPs for each token.
//!
//! p = softmax(router(x)) over the experts, E the `per_token` experts of the largest p (of equal ones the first),
//! w_e = p_e, or p_e / Σ over E if the family says so: y = Σ over e in E of w_e · expert_e(x)
//! (+ sigmoid(gate(x)) · shared(x), Qwen 2).
//!
//! Tokens are sorted by expert, so that each expert is one product over its tokens; none is dropped, whatever the load.
//! A token's sum goes by the number of the expert, so its bits depend on the token alone (law 5 of the design). An
//! expert that no token chose computes nothing and gets no gradient.
//!
//! # Source
//! Shazeer et al., arXiv:1701.06538; Jiang et al., "Mixtral of Experts", arXiv:2401.04088, section 2.1.

use planish_autograd::ops::{
    concat::concat, elementwise, gather::gather, index_select::index_select, reduction, scatter_add::scatter_add,
    softmax::softmax, unary, view,
};
use planish_autograd::{Result, Var};
use planish_tensor::{DType, Tensor};

use super::mlp::Mlp;
use crate::Ctx;
use crate::modules::Linear;

/// The router and its experts.
#[derive(Clone, Debug)]
pub(super) struct Experts {
    pub(super) router: Linear,
    pub(super) experts: Vec<Mlp>,
    /// An expert for all tokens, and its gate.
    pub(super) shared: Option<(Mlp, Linear)>,
    /// Experts of a token.
    pub(super) per_token: usize,
    /// Whether a token's weights are made to sum to 1.
    pub(super) normalises: bool,
}

impl Experts {
    pub(super) fn forward(&self, ctx: &Ctx, x: &Var) -> Result<Var> {
        let (tokens, k) = (x.dims()[0], self.per_token);
        let probabilities = softmax(&self.router.forward(ctx, x)?)?;
        let chosen = most_probable(probabilities.value(), k)?;
        let mut weights = gather(&probabilities, &Tensor::from_slice(&chosen, [tokens, k])?)?;
        if self.normalises {
            let sums = view::reshape(&reduction::sum_axis(&weights, 1)?, &[tokens, 1])?;
            weights = elementwise::div(&weights, &sums)?;
        }
        let weights = view::reshape(&weights, &[tokens * k, 1])?;
        let (mut parts, mut order, mut picks) = (Vec::new(), Vec::new(), Vec::new());
        for (e, expert) in self.experts.iter().enumerate() {
            let own: Vec<u32> = (0..).zip(&chosen).filter(|&(_, &c)| c as usize == e).map(|(i, _)| i).collect();
            if own.is_empty() {
                continue;
            }
            let rows: Vec<u32> = own.iter().map(|&i| i / k as u32).collect();
            parts.push(expert.forward(&ctx.of_rows(&rows), &index_select(x, &rows)?)?);
            order.extend(rows);
            picks.extend(own);
        }
        let mut y = Var::constant(Tensor::zeros(x.dims(), x.value().dtype())?);
        if !parts.is_empty() {
            let parts = concat(&parts.iter().collect::<Vec<_>>(), 0)?;
            // A token's experts come in the order of their numbers.
            y = scatter_add(&y, &order, &elementwise::mul(&parts, &index_select(&weights, &picks)?)?)?;
        }
        match &self.shared {
            None => Ok(y),
            Some((mlp, gate)) => {
                let open = unary::sigmoid(&gate.forward(ctx, x)?)?;
                elementwise::add(&y, &elementwise::mul(&mlp.forward(ctx, x)?, &open)?)
            }
        }
    }

    pub(super) fn linears<'a>(&'a self, all: &mut Vec<&'a Linear>) {
        all.push(&self.router);
        self.experts.iter().for_each(|e| e.linears(all));
        if let Some((mlp, gate)) = &self.shared {
            mlp.linears(all);
            all.push(gate);
        }
    }

    pub(super) fn linears_mut<'a>(&'a mut self, all: &mut Vec<&'a mut Linear>) {
        all.push(&mut self.router);
        self.experts.iter_mut().for_each(|e| e.linears_mut(all));
        if let Some((mlp, gate)) = &mut self.shared {
            mlp.linears_mut(all);
            all.push(gate);
        }
    }
}

/// The k most probable experts of each row, in the order of their numbers: (rows · k).
fn most_probable(probabilities: &Tensor, k: usize) -> planish_tensor::Result<Vec<u32>> {
    let experts = probabilities.dims()[1];
    let p = probabilities.to_dtype(DType::F64)?.to_vec::<f64>()?;
    let mut all = Vec::with_capacity(probabilities.dims()[0] * k);
    let mut order: Vec<u32> = Vec::new();
    for row in p.chunks_exact(experts.max(1)) {
        order.clear();
        order.extend(0..experts as u32);
        // Stable: of equal ones the first.
        order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
        order.truncate(k);
        order.sort_unstable();
        all.extend_from_slice(&order);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_probable_are_chosen_in_order_of_number() {
        let p = Tensor::from_slice(&[0.1f32, 0.4, 0.3, 0.2, 0.25, 0.25, 0.25, 0.25], [2, 4]).unwrap();
        assert_eq!(most_probable(&p, 2).unwrap(), [1, 2, 0, 1]);
        assert_eq!(most_probable(&p, 4).unwrap(), [0, 1, 2, 3, 0, 1, 2, 3]);
        assert!(most_probable(&Tensor::zeros([0, 4], DType::F32).unwrap(), 2).unwrap().is_empty());
    }
}
