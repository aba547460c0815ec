//! Mixture of experts: a router chooses a few MLPs for each token.
//!
//! s = softmax(router(x)), or a sigmoid of each logit; E the `per_token` experts of the largest s (of equal ones the
//! first), of a few groups only where there are groups, and by s + bias where there is a bias; w_e = s_e, or
//! s_e / Σ over E if the family says so, times a factor: y = Σ over e in E of w_e · expert_e(x)
//! (+ shared(x), DeepSeek; + sigmoid(gate(x)) · shared(x), Qwen 2).
//!
//! Tokens are sorted by expert, so that each expert is one product over a run of rows, and all products of a map are one
//! call that splits work over experts, columns and rows; none is dropped, whatever the load. A token's sum goes by the number of the expert, so its bits depend on the token alone (law 5 of the design). An
//! expert that no token chose computes nothing and gets no gradient.
//!
//! # Source
//! Shazeer et al., arXiv:1701.06538; Jiang et al., "Mixtral of Experts", arXiv:2401.04088, section 2.1; groups and
//! shared experts: "DeepSeek-V2", arXiv:2405.04434, equations 20 to 22; sigmoids and the bias: "DeepSeek-V3",
//! arXiv:2412.19437, equations 12 to 16.

use std::cmp::Ordering;

use planish_autograd::ops::{
    cast::cast, combine::combine, concat::concat, elementwise, gather::gather, index_select::index_select, reduction,
    softmax::softmax, unary, view,
};
use planish_autograd::{Param, Result, Var};
use planish_tensor::ops::choose;
use planish_tensor::{DType, Device, Element, Tensor, dispatch_real};
use rayon::prelude::*;

use super::mlp::Mlp;
use crate::Ctx;
use crate::config::{Groups, Moe, Scoring};
use crate::modules::Linear;

/// What keeps a sum of sigmoids that all vanish from dividing by zero, as in DeepSeek's code.
const TINY: f64 = 1e-20;

/// The router and its experts.
#[derive(Clone, Debug)]
pub(super) struct Experts {
    pub(super) router: Linear,
    /// Added to the scores for the choice alone: (experts).
    pub(super) bias: Option<Param>,
    pub(super) experts: Vec<Mlp>,
    /// An expert for all tokens, and its gate if it has one.
    pub(super) shared: Option<(Mlp, Option<Linear>)>,
    /// How experts are chosen.
    pub(super) moe: Moe,
}

impl Experts {
    /// What goes on to the next block, and the router's logits, (tokens, experts).
    pub(super) fn forward(&self, ctx: &Ctx, x: &Var) -> Result<(Var, Var)> {
        let (tokens, k, dtype) = (x.dims()[0], self.moe.per_token, x.value().dtype());
        let logits = self.router.forward(ctx, x)?;
        // Of halves the scores are f32, as in transformers, and so are weights and sums.
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let logits = cast(&logits, wide)?;
        let scores = self.scores(&logits)?;
        let chosen = self.choose(scores.value())?;
        let mut weights = gather(&scores, &Tensor::from_slice(&chosen, [tokens, k])?)?;
        if self.moe.normalises {
            let mut sums = view::reshape(&reduction::sum_axis(&weights, 1)?, &[tokens, 1])?;
            if self.moe.scoring == Scoring::Sigmoid {
                sums = elementwise::add_scalar(&sums, TINY)?;
            }
            weights = elementwise::div(&weights, &sums)?;
        }
        if self.moe.scale != 1.0 {
            weights = elementwise::scale(&weights, self.moe.scale)?;
        }
        let runs = Runs::new(&chosen, self.experts.len());
        let rows: Vec<u32> = runs.picks.iter().map(|&i| i / k as u32).collect();
        let y = if rows.is_empty() {
            Var::constant(Tensor::zeros_on(x.value().device(), x.dims(), dtype)?)
        } else {
            let parts = self.of_runs(ctx, &index_select(x, &rows)?, &rows, &runs)?;
            // A token's experts come in the order of their numbers.
            combine(&parts, &weights, &runs.places())?
        };
        let y = match &self.shared {
            None => y,
            Some((mlp, None)) => elementwise::add(&y, &mlp.forward(ctx, x)?)?,
            Some((mlp, Some(gate))) => {
                let open = unary::sigmoid(&gate.forward(ctx, x)?)?;
                elementwise::add(&y, &elementwise::mul(&mlp.forward(ctx, x)?, &open)?)?
            }
        };
        Ok((y, logits))
    }

    /// What the experts make of their runs of the sorted tokens, which are these rows of the stream.
    fn of_runs(&self, ctx: &Ctx, sorted: &Var, rows: &[u32], runs: &Runs) -> Result<Var> {
        let used = self.experts.iter().zip(runs.starts.windows(2)).filter(|(_, run)| run[0] < run[1]);
        let (experts, mut starts): (Vec<&Mlp>, Vec<usize>) = used.clone().map(|(expert, run)| (expert, run[0])).unzip();
        starts.push(rows.len());
        if let Some(parts) = Mlp::grouped(ctx, &experts, &starts, sorted)? {
            return Ok(parts);
        }
        // An adapter's part is computed expert by expert.
        let mut parts = Vec::new();
        for (expert, run) in used {
            let (start, end) = (run[0], run[1]);
            let own = view::narrow(sorted, 0, start, end - start)?;
            parts.push(expert.forward(&ctx.of_rows(&rows[start..end]), &own)?);
        }
        concat(&parts.iter().collect::<Vec<_>>(), 0)
    }

    /// Scores of the experts, (rows, experts), from the router's logits.
    fn scores(&self, logits: &Var) -> Result<Var> {
        match self.moe.scoring {
            Scoring::Softmax => softmax(logits),
            Scoring::Sigmoid => unary::sigmoid(logits),
        }
    }

    /// Scores that sum to 1: the shares of the experts that are balanced, (rows, experts).
    pub(super) fn shares(&self, logits: &Var) -> Result<Var> {
        let scores = self.scores(logits)?;
        if self.moe.scoring == Scoring::Softmax {
            return Ok(scores);
        }
        let sums = elementwise::add_scalar(&reduction::sum_axis(&scores, 1)?, TINY)?;
        elementwise::div(&scores, &view::reshape(&sums, &[logits.dims()[0], 1])?)
    }

    /// How many rows chose each expert.
    pub(super) fn load(&self, logits: &Var) -> Result<Vec<u64>> {
        let mut load = vec![0; self.experts.len()];
        self.choose(self.scores(&logits.detach())?.value())?.iter().for_each(|&e| load[e as usize] += 1);
        Ok(load)
    }

    /// The experts of each row, in the order of their numbers: (rows · k).
    fn choose(&self, scores: &Tensor) -> planish_tensor::Result<Vec<u32>> {
        let (k, experts) = (self.moe.per_token, scores.dims()[1]);
        if self.moe.groups.is_none()
            && let Some(chosen) = choose::on_device(scores, self.bias.as_ref().map(Param::value).as_ref(), k)?
        {
            return Ok(chosen);
        }
        let scores = scores.to_device(Device::Cpu)?.contiguous()?;
        let bias = match &self.bias {
            Some(bias) => bias.value().to_device(Device::Cpu)?.to_dtype(DType::F64)?.to_vec::<f64>()?,
            None => vec![0.0; experts],
        };
        let mut all = vec![0; scores.dims()[0] * k];
        dispatch_real!("the choice of experts", scores.dtype(), R => {
            // Rows of a thread: with fewer it costs more to wake another.
            let rows = scores.as_slice::<R>()?.par_chunks_exact(experts.max(1)).with_min_len(64);
            rows.zip(all.par_chunks_exact_mut(k)).for_each_init(
                || (vec![0.0; experts], Vec::with_capacity(experts)),
                |(row, order), (scores, chosen)| {
                    row.iter_mut().zip(scores.iter().zip(&bias)).for_each(|(row, (s, b))| *row = s.to_f64() + b);
                    order.clear();
                    match &self.moe.groups {
                        None => order.extend(0..experts as u32),
                        Some(groups) => in_groups(row, groups, order),
                    }
                    best(row, k, order);
                    chosen.copy_from_slice(order);
                },
            );
            Ok(all)
        })
    }

    pub(super) fn linears<'a>(&'a self, all: &mut Vec<&'a Linear>) {
        all.push(&self.router);
        self.experts.iter().for_each(|e| e.linears(all));
        if let Some((mlp, gate)) = &self.shared {
            mlp.linears(all);
            all.extend(gate);
        }
    }

    pub(super) fn linears_mut<'a>(&'a mut self, all: &mut Vec<&'a mut Linear>) {
        all.push(&mut self.router);
        self.experts.iter_mut().for_each(|e| e.linears_mut(all));
        if let Some((mlp, gate)) = &mut self.shared {
            mlp.linears_mut(all);
            all.extend(gate);
        }
    }
}

/// Places of the choices (token · k + choice), sorted by expert and within it by place: one pass of a counting sort.
struct Runs {
    picks: Vec<u32>,
    /// Those of expert e are `starts[e]..starts[e + 1]`.
    starts: Vec<usize>,
}

impl Runs {
    fn new(chosen: &[u32], experts: usize) -> Runs {
        let mut starts = vec![0; experts + 1];
        chosen.iter().for_each(|&e| starts[e as usize + 1] += 1);
        (1..=experts).for_each(|e| starts[e] += starts[e - 1]);
        let (mut next, mut picks) = (starts.clone(), vec![0; chosen.len()]);
        for (i, &e) in (0..).zip(chosen) {
            picks[next[e as usize]] = i;
            next[e as usize] += 1;
        }
        Runs { picks, starts }
    }

    /// Where each choice is in the sorted rows.
    fn places(&self) -> Vec<u32> {
        let mut places = vec![0; self.picks.len()];
        (0..).zip(&self.picks).for_each(|(place, &pick)| places[pick as usize] = place);
        places
    }
}

/// The larger first, of equals the smaller number.
fn larger_first(row: &[f64], a: u32, b: u32) -> Ordering {
    row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b))
}

/// Up to so many are found by insertion.
const FEW: usize = 16;

/// Leaves the k of `order`, which goes by number, with the largest scores, in the order of their numbers.
fn best(row: &[f64], k: usize, order: &mut Vec<u32>) {
    if k < order.len() && (1..=FEW).contains(&k) {
        // The best so far, the largest first; a later one has the larger number and comes after those that are equal.
        let (mut found, mut count) = ([0; FEW], 0);
        for &e in order.iter() {
            let before = |other: &u32| row[*other as usize].total_cmp(&row[e as usize]).is_ge();
            if count == k && before(&found[k - 1]) {
                continue;
            }
            let at = found[..count].iter().rposition(before).map_or(0, |last| last + 1);
            count = (count + 1).min(k);
            found.copy_within(at..count - 1, at + 1);
            found[at] = e;
        }
        order.clear();
        order.extend_from_slice(&found[..k]);
    } else if k < order.len() {
        order.select_nth_unstable_by(k, |&a, &b| larger_first(row, a, b));
        order.truncate(k);
    }
    order.sort_unstable();
}

/// The experts of the best groups.
fn in_groups(row: &[f64], groups: &Groups, order: &mut Vec<u32>) {
    let size = row.len() / groups.count;
    let merits: Vec<f64> = row
        .chunks_exact(size)
        .map(|group| {
            let mut own: Vec<u32> = (0..size as u32).collect();
            best(group, groups.judged_by, &mut own);
            own.iter().map(|&e| group[e as usize]).sum()
        })
        .collect();
    let mut kept: Vec<u32> = (0..groups.count as u32).collect();
    best(&merits, groups.kept, &mut kept);
    order.extend(kept.into_iter().flat_map(|g| g * size as u32..(g + 1) * size as u32));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(row: &[f64], k: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        best(row, k, &mut order);
        order
    }

    #[test]
    fn the_most_probable_are_chosen_in_order_of_number() {
        assert_eq!(chosen(&[0.1, 0.4, 0.3, 0.2], 2), [1, 2]);
        assert_eq!(chosen(&[0.25, 0.25, 0.25, 0.25], 2), [0, 1], "of equals the first");
        assert_eq!(chosen(&[0.1, 0.4, 0.3, 0.2], 4), [0, 1, 2, 3]);
    }

    /// By insertion as by sorting all.
    #[test]
    fn however_many_they_are_the_same() {
        for salt in 0..50u64 {
            let stream = planish_tensor::rng::Stream::new(salt, planish_tensor::rng::Purpose::Data, 0);
            // Many are equal.
            let row: Vec<f64> = (0..40).map(|i| stream.below(i, 12) as f64).collect();
            for k in 1..40 {
                let mut all: Vec<u32> = (0..40).collect();
                all.sort_by(|&a, &b| larger_first(&row, a, b));
                all.truncate(k);
                all.sort_unstable();
                assert_eq!(chosen(&row, k), all, "{k} of {row:?}");
            }
        }
    }

    #[test]
    fn groups_are_judged_by_their_best() {
        let row = [0.9, 0.0, 0.5, 0.6, 0.3, 0.4];
        let kept = |judged_by, kept| {
            let mut order = Vec::new();
            in_groups(&row, &Groups { count: 3, kept, judged_by }, &mut order);
            order
        };
        assert_eq!(kept(1, 1), [0, 1], "0.9 alone is the largest");
        assert_eq!(kept(2, 1), [2, 3], "0.5 + 0.6 is the largest sum");
        assert_eq!(kept(2, 2), [0, 1, 2, 3]);
    }

    #[test]
    fn runs_hold_every_choice_once_in_order() {
        let runs = Runs::new(&[2, 0, 2, 1, 2, 0], 4);
        assert_eq!(runs.starts, [0, 2, 3, 6, 6]);
        assert_eq!(runs.picks, [1, 5, 3, 0, 2, 4]);
        assert_eq!(runs.places(), [3, 0, 4, 2, 5, 1]);
        let none = Runs::new(&[], 3);
        assert!(none.picks.is_empty() && none.starts == [0; 4]);
    }
}
