//! DPO and its family: losses of pairs by how far the model has moved from a reference.

use super::dual::Dual;
use super::nca::contrast;
use super::pair::{Nll, Pair, PairLoss, PairSlope, Side};
use crate::config::{DpoLossType, FDivergence};

/// With u = log π/π_ref of the chosen and v of the rejected completion (nats), s = f'(e^u) and t = f'(e^v) for the
/// chosen f-divergence (u and v themselves for the reverse KL), n and m their tokens, Δ = s - t, ε the label
/// smoothing:
///
/// | type | ℓ | source |
/// | --- | --- | --- |
/// | `sigmoid` | -(1 - ε) log σ(βΔ) - ε log σ(-βΔ) | DPO, arXiv 2305.18290, equation 7; cDPO, Mitchell 2023 |
/// | `hinge` | max(0, 1 - βΔ) | SLiC, arXiv 2305.10425 |
/// | `ipo` | (s/n - t/m - 1/2β)² | IPO, arXiv 2310.12036, equation 17, by the token |
/// | `exo_pair` | σ(βΔ) (log σ(βΔ) - log(1 - ε)) + σ(-βΔ) (log σ(-βΔ) - log ε) | EXO, arXiv 2402.00856, equation 16 |
/// | `nca_pair` | -log σ(βu) - ½ log σ(-βu) - ½ log σ(-βv) | NCA, arXiv 2402.05369 |
/// | `robust` | (-(1 - ε) log σ(βΔ) + ε log σ(-βΔ)) / (1 - 2ε) | robust DPO, arXiv 2403.00409, equation 12 |
/// | `bco_pair` | -log σ(βu) - log σ(-βv) | BCO, arXiv 2404.04656, without its shift δ |
/// | `sppo_hard` | (u - 1/2β)² + (v + 1/2β)² | SPPO, arXiv 2405.00675, equation 4.7 with P = 1 |
/// | `aot` | `sigmoid` of sorted(log π(chosen)/π(rejected)) - sorted(the same of π_ref) | AOT, arXiv 2406.05882 |
/// | `aot_unpaired` | `sigmoid` of sorted(u) - sorted(v) | the same |
/// | `apo_zero` | 1 - σ(βu) + σ(βv) | APO, arXiv 2408.06266, equation 7 |
/// | `apo_down` | σ(βu) + 1 - σ(β(u - v)) | APO, equation 8 |
/// | `discopop` | (1 - w)(-log σ(βΔ)) + w e^(-βΔ), w = σ(βΔ/τ) | DiscoPOP, arXiv 2406.08414, equation 5 |
/// | `sft` | cross-entropy of the chosen completion | RPO, arXiv 2404.19733 |
/// | `sigmoid_norm` | -log σ(β(s/n - t/m)) | Tulu 3, arXiv 2411.15124 |
/// | `nca`, `info_nca` | [`Nca`](super::Nca) of two answers with the scores 1 and 0 | NCA |
///
/// f'(t) is log t for `reverse_kl`, 1 - 1/t for `forward_kl`, log(2t/(t + 1)) for `js_divergence` and
/// (t^(α-1) - 1)/(α - 1) for `alpha_divergence` (f-DPO, arXiv 2309.16240). With `use_weighting` ℓ is multiplied by
/// exp of both sides' [`Side::alignment`], not differentiated (WPO, arXiv 2406.11827, equation 2). LD-DPO
/// (arXiv 2409.06411) enters by [`PairLoss::verbose_weight`].
///
/// Deviation from TRL 1.16: it applies ε to `exo_pair`, `robust` and the two `aot` only; here also to `sigmoid`,
/// which is cDPO.
#[derive(Debug, Clone, PartialEq)]
pub struct Dpo {
    /// Losses and their weights.
    pub losses: Vec<(DpoLossType, f64)>,
    /// β; IPO's τ.
    pub beta: f64,
    /// ε.
    pub label_smoothing: f64,
    /// f.
    pub f_divergence: FDivergence,
    /// α of the α-divergence.
    pub f_alpha: f64,
    /// τ of DiscoPOP.
    pub discopop_tau: f64,
    /// LD-DPO's α.
    pub ld_alpha: Option<f64>,
    /// α of NCA with scores.
    pub nca_alpha: f64,
    /// WPO.
    pub use_weighting: bool,
    /// Without: π_ref is 1 everywhere.
    pub reference_free: bool,
}

/// e^x stays finite in f32 below; TRL cuts there.
const LARGEST_EXPONENT: f64 = 80.0;

impl Dpo {
    /// f'(e^u).
    fn score(&self, u: Dual) -> Dual {
        match self.f_divergence {
            FDivergence::ReverseKl => u,
            FDivergence::ForwardKl => -(-u).exp() + 1.0,
            FDivergence::JsDivergence => u.log_sigmoid() + std::f64::consts::LN_2,
            FDivergence::AlphaDivergence if (self.f_alpha - 1.0).abs() < 1e-6 => u,
            FDivergence::AlphaDivergence => {
                let a = self.f_alpha - 1.0;
                ((u * a).at_most(LARGEST_EXPONENT).exp() - 1.0) / a
            }
        }
    }

    /// -(1 - ε) log σ(x) - ε log σ(-x).
    fn smoothed(&self, x: Dual) -> Dual {
        -(x.log_sigmoid() * (1.0 - self.label_smoothing)) - (-x).log_sigmoid() * self.label_smoothing
    }

    /// ℓ of a pair by itself, for a loss that does not couple pairs.
    fn loss(&self, loss_type: DpoLossType, pair: &Pair) -> Dual {
        let (b, e) = (self.beta, self.label_smoothing);
        let u = Dual::variable(pair.chosen.logratio(), 0);
        let v = Dual::variable(pair.rejected.logratio(), 1);
        let (s, t) = (self.score(u), self.score(v));
        let (x, by_token) = ((s - t) * b, s / pair.chosen.tokens.max(1.0) - t / pair.rejected.tokens.max(1.0));
        let one = Dual::constant(1.0);
        match loss_type {
            DpoLossType::Sigmoid => self.smoothed(x),
            DpoLossType::Hinge => (one - x).relu(),
            DpoLossType::Ipo => (by_token - 1.0 / (2.0 * b)).squared(),
            DpoLossType::ExoPair => {
                let (w, l) = (x.log_sigmoid(), (-x).log_sigmoid());
                x.sigmoid() * (w - (-e).ln_1p()) + (-x).sigmoid() * (l - e.ln())
            }
            DpoLossType::NcaPair => {
                let (cu, rv) = (u * b, v * b);
                -cu.log_sigmoid() - (-cu).log_sigmoid() * 0.5 - (-rv).log_sigmoid() * 0.5
            }
            DpoLossType::Robust => (-(x.log_sigmoid() * (1.0 - e)) + (-x).log_sigmoid() * e) / (1.0 - 2.0 * e),
            DpoLossType::BcoPair => -(u * b).log_sigmoid() - (-(v * b)).log_sigmoid(),
            DpoLossType::SppoHard => (u - 0.5 / b).squared() + (v + 0.5 / b).squared(),
            DpoLossType::ApoZero => one - (u * b).sigmoid() + (v * b).sigmoid(),
            DpoLossType::ApoDown => (u * b).sigmoid() + one - ((u - v) * b).sigmoid(),
            DpoLossType::Discopop => {
                // w e^-x by its logarithm: far out the one factor is 0 where the other is infinite.
                let w = x / self.discopop_tau;
                -x.log_sigmoid() * (one - w.sigmoid()) + (w.log_sigmoid() - x).exp()
            }
            DpoLossType::SigmoidNorm => -(by_token * b).log_sigmoid(),
            DpoLossType::Nca | DpoLossType::InfoNca => {
                let info = loss_type == DpoLossType::InfoNca;
                let found = contrast(info, &[b * u.value, b * v.value], &[1.0, 0.0], self.nca_alpha);
                Dual { value: found.loss, slope: [b * found.slopes[0], b * found.slopes[1]] }
            }
            // Of tokens, or of several pairs at once.
            DpoLossType::Sft | DpoLossType::Aot | DpoLossType::AotUnpaired => Dual::constant(0.0),
        }
    }

    /// The AOT losses: the k-th smallest of one quantity against the k-th smallest of another.
    fn transport(&self, loss_type: DpoLossType, weight: f64, pairs: &[Pair], out: &mut [PairSlope]) {
        let paired = loss_type == DpoLossType::Aot;
        let order = |by: &dyn Fn(&Pair) -> f64| {
            let mut order: Vec<usize> = (0..pairs.len()).collect();
            order.sort_by(|&i, &j| by(&pairs[i]).total_cmp(&by(&pairs[j])));
            order
        };
        let (left, right) = match paired {
            true => {
                (order(&|p| p.chosen.logp - p.rejected.logp), order(&|p| p.chosen.reference - p.rejected.reference))
            }
            false => (order(&|p| p.chosen.logratio()), order(&|p| p.rejected.logratio())),
        };
        for (&i, &j) in left.iter().zip(&right) {
            let (a, b) = (&pairs[i], &pairs[j]);
            let delta = match paired {
                true => {
                    Dual::variable(a.chosen.logp, 0)
                        - Dual::variable(a.rejected.logp, 1)
                        - (b.chosen.reference - b.rejected.reference)
                }
                false => Dual::variable(a.chosen.logratio(), 0) - Dual::variable(b.rejected.logratio(), 1),
            };
            let l = self.smoothed(delta * self.beta) * weight;
            out[i].loss += l.value;
            out[i].chosen += l.slope[0];
            out[if paired { i } else { j }].rejected += l.slope[1];
        }
    }
}

impl PairLoss for Dpo {
    fn losses(&self, pairs: &[Pair]) -> Vec<PairSlope> {
        let mut out = vec![PairSlope::default(); pairs.len()];
        for &(loss_type, weight) in &self.losses {
            match loss_type {
                DpoLossType::Aot | DpoLossType::AotUnpaired => self.transport(loss_type, weight, pairs, &mut out),
                _ => {
                    for (pair, out) in pairs.iter().zip(&mut out) {
                        let alignment = pair.chosen.alignment + pair.rejected.alignment;
                        let l = self.loss(loss_type, pair) * (weight * alignment.exp());
                        out.loss += l.value;
                        out.chosen += l.slope[0];
                        out.rejected += l.slope[1];
                    }
                }
            }
        }
        out
    }

    fn couples(&self) -> bool {
        self.losses.iter().any(|(l, _)| matches!(l, DpoLossType::Aot | DpoLossType::AotUnpaired))
    }

    fn is_of_bradley_and_terry(&self) -> bool {
        let smooth = matches!(self.losses[..], [(DpoLossType::Sigmoid, 1.0)]) && self.label_smoothing == 0.0;
        !self.use_weighting && (smooth || matches!(self.losses[..], [(DpoLossType::SigmoidNorm, 1.0)]))
    }

    fn has_reference(&self) -> bool {
        !self.reference_free
    }

    fn nll(&self) -> Option<Nll> {
        let weight: f64 = self.losses.iter().filter(|(l, _)| *l == DpoLossType::Sft).map(|(_, w)| w).sum();
        (weight != 0.0).then_some(Nll { weight, prompt: false })
    }

    fn verbose_weight(&self) -> f64 {
        self.ld_alpha.unwrap_or(1.0)
    }

    fn weighs(&self) -> bool {
        self.use_weighting
    }

    fn reward(&self, side: &Side) -> f64 {
        self.beta * side.logratio()
    }
}
