//! Every loss against central differences in f64, and against itself where it must not change.

use proptest::prelude::*;

use super::*;
use crate::config::{CpoLossType, DpoLossType, FDivergence, KtoLossType};

fn dpo(loss_type: DpoLossType) -> Dpo {
    Dpo {
        losses: vec![(loss_type, 1.0)],
        beta: 0.3,
        label_smoothing: 0.1,
        f_divergence: FDivergence::ReverseKl,
        f_alpha: 0.5,
        discopop_tau: 0.5,
        nca_alpha: 0.7,
        ld_alpha: None,
        use_weighting: false,
        reference_free: false,
    }
}

fn all() -> Vec<(String, Box<dyn PairLoss>)> {
    let mut all: Vec<(String, Box<dyn PairLoss>)> = Vec::new();
    for &t in DpoLossType::ALL {
        all.push((t.to_string(), Box::new(dpo(t))));
        all.push((format!("weighted {t}"), Box::new(Dpo { use_weighting: true, ..dpo(t) })));
    }
    for &f in FDivergence::ALL {
        for t in [DpoLossType::Sigmoid, DpoLossType::SigmoidNorm, DpoLossType::Hinge, DpoLossType::Ipo] {
            all.push((format!("{t} with {f}"), Box::new(Dpo { f_divergence: f, ..dpo(t) })));
        }
    }
    let losses = vec![(DpoLossType::Sigmoid, 0.8), (DpoLossType::BcoPair, 0.2), (DpoLossType::Aot, 0.5)];
    all.push(("several".into(), Box::new(Dpo { losses, ..dpo(DpoLossType::Sigmoid) })));
    all.push(("orpo".into(), Box::new(Orpo { beta: 0.7 })));
    for &t in CpoLossType::ALL {
        for alpha in [0.0, 0.2, -0.3] {
            let cpo = Cpo { loss_type: t, beta: 0.4, label_smoothing: 0.1, cpo_alpha: 1.0, simpo_gamma: 0.5, alpha };
            all.push((format!("cpo {t}, alpha {alpha}"), Box::new(cpo)));
        }
    }
    all
}

fn side() -> impl Strategy<Value = Side> {
    // Sums of a few token log-probabilities, and as far from the reference as a run gets.
    (-9.0..-0.05f64, -3.0..3.0f64, 1u32..12, -1.0..0.0f64).prop_map(|(logp, ratio, tokens, alignment)| Side {
        logp,
        reference: logp - ratio,
        tokens: tokens.into(),
        alignment,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn slopes_are_those_of_the_loss(sides in prop::collection::vec((side(), side()), 0..5)) {
        let pairs: Vec<Pair> = sides.iter().map(|&(chosen, rejected)| Pair { chosen, rejected }).collect();
        const STEP: f64 = 1e-6;
        for (name, loss) in all() {
            let total = |pairs: &[Pair]| loss.losses(pairs).iter().map(|p| p.loss).sum::<f64>();
            let slopes = loss.losses(&pairs);
            prop_assert_eq!(slopes.len(), pairs.len());
            for i in 0..pairs.len() {
                for which in 0..2 {
                    let moved = |by: f64| {
                        let mut pairs = pairs.clone();
                        let side = if which == 0 { &mut pairs[i].chosen } else { &mut pairs[i].rejected };
                        side.logp += by;
                        total(&pairs)
                    };
                    let numeric = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                    let analytic = if which == 0 { slopes[i].chosen } else { slopes[i].rejected };
                    // The difference has an error of step² and of rounding / step, both some 1e-10 of the loss.
                    let scale = 1.0 + numeric.abs() + total(&pairs).abs();
                    let kink = (name.contains("hinge") || name.contains("rrhf")) && (moved(STEP) - 2.0 * total(&pairs) + moved(-STEP)).abs() > 1e-9;
                    prop_assert!(
                        kink || (analytic - numeric).abs() <= 1e-6 * scale,
                        "{}: pair {} side {}: {} against {}", name, i, which, analytic, numeric
                    );
                }
            }
        }
    }

    #[test]
    fn labelled_slopes_are_those_of_the_loss(r in -6.0..6.0f64, kl in 0.0..3.0f64, label: bool) {
        const STEP: f64 = 1e-6;
        for &loss_type in KtoLossType::ALL {
            let kto = Kto { loss_type, beta: 0.4, desirable_weight: 1.5, undesirable_weight: 0.7 };
            let found = kto.loss(r, label, kl);
            let numeric = (kto.loss(r + STEP, label, kl).loss - kto.loss(r - STEP, label, kl).loss) / (2.0 * STEP);
            prop_assert!((found.slope - numeric).abs() <= 1e-8, "{}: {} against {}", loss_type, found.slope, numeric);
            // A better answer is one the model likes more, a worse one less.
            if loss_type == KtoLossType::Bco {
                let flat = Kto { desirable_weight: 1.0, undesirable_weight: 1.0, ..kto.clone() };
                let x = if label { 0.4 * r - kl } else { kl - 0.4 * r };
                prop_assert!((flat.loss(r, label, kl).loss - (1.0 + (-x).exp()).ln()).abs() <= 1e-12);
            }
            let right_way = (found.slope < 0.0) == label && found.slope != 0.0;
            prop_assert!(right_way, "{}: slope {}", loss_type, found.slope);
        }
    }
}

proptest! {
    #[test]
    fn slopes_of_answers_are_those_of_the_loss(
        answers in prop::collection::vec((side(), -2.0..2.0f64), 1..6),
        alpha in 0.05..3.0f64,
        info: bool,
    ) {
        const STEP: f64 = 1e-6;
        let (sides, scores): (Vec<Side>, Vec<f64>) = answers.into_iter().unzip();
        let nca = Nca { info, beta: 0.4, alpha, weight: 0.7, nll: 0.0, reference_free: false };
        let cpo = Cpo { loss_type: CpoLossType::Rrhf, beta: 0.4, label_smoothing: 0.0, cpo_alpha: 1.0, simpo_gamma: 0.0, alpha: 0.0 };
        let ranking = AllPairs::new(Box::new(cpo));
        for (name, loss) in [("nca", &nca as &dyn ListLoss), ("rrhf", &ranking)] {
            let found = loss.loss(&sides, &scores);
            prop_assert_eq!(found.slopes.len(), sides.len());
            for i in 0..sides.len() {
                let moved = |by: f64| {
                    let mut sides = sides.clone();
                    sides[i].logp += by;
                    loss.loss(&sides, &scores).loss
                };
                let numeric = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                let kink = name == "rrhf" && (moved(STEP) - 2.0 * moved(0.0) + moved(-STEP)).abs() > 1e-9;
                prop_assert!(kink || (found.slopes[i] - numeric).abs() <= 1e-7, "{}: {} and {}", name, found.slopes[i], numeric);
            }
        }
        // Written out.
        let z: f64 = scores.iter().map(|s| (s / alpha).exp()).sum();
        let rho: Vec<f64> = sides.iter().map(|side| 0.4 * (side.logp - side.reference)).collect();
        let all: f64 = rho.iter().map(|r| r.exp()).sum();
        let log_sigmoid = |x: f64| -(1.0 + (-x).exp()).ln();
        let want: f64 = scores.iter().zip(&rho).map(|(s, r)| {
            let w = (s / alpha).exp() / z;
            match info {
                true => -w * (r.exp() / all).ln(),
                false => -w * log_sigmoid(*r) - log_sigmoid(-r) / rho.len() as f64,
            }
        }).sum();
        let found = nca.loss(&sides, &scores).loss;
        prop_assert!((found - 0.7 * want).abs() <= 1e-9 * (1.0 + want), "{} and {}", found, 0.7 * want);
    }
}

/// Small α leave the chosen answer alone: InfoNCA of a pair is then DPO, NCA `nca_pair`.
#[test]
fn of_a_pair_nca_is_what_is_known() {
    let side = |ratio| Side { logp: -9.0 + ratio, reference: -9.0, tokens: 4.0, alignment: 0.0 };
    let pair = Pair { chosen: side(1.5), rejected: side(-0.4) };
    for (loss_type, known) in [(DpoLossType::Nca, DpoLossType::NcaPair), (DpoLossType::InfoNca, DpoLossType::Sigmoid)] {
        let found = Dpo { nca_alpha: 1e-3, ..dpo(loss_type) }.losses(&[pair])[0];
        let want = Dpo { label_smoothing: 0.0, ..dpo(known) }.losses(&[pair])[0];
        for (a, b) in [(found.loss, want.loss), (found.chosen, want.chosen), (found.rejected, want.rejected)] {
            assert!((a - b).abs() <= 1e-12, "{loss_type}: {found:?} and {want:?}");
        }
        // As a row of two answers with other scores of the same difference.
        let info = loss_type == DpoLossType::InfoNca;
        let nca = Nca { info, beta: 0.3, alpha: 0.7, weight: 1.0, nll: 0.0, reference_free: false };
        let row = nca.loss(&[pair.rejected, pair.chosen], &[-3.0, -2.0]);
        let want = dpo(loss_type).losses(&[pair])[0];
        for (a, b) in [(row.loss, want.loss), (row.slopes[1], want.chosen), (row.slopes[0], want.rejected)] {
            assert!((a - b).abs() <= 1e-12, "{loss_type}: {row:?} and {want:?}");
        }
    }
    // Far out, and with scores far apart.
    let far = Nca { info: false, beta: 1.0, alpha: 1e-9, weight: 1.0, nll: 0.0, reference_free: false };
    let sides = [side(-5000.0), side(900.0), side(0.0)];
    for info in [false, true] {
        let found = Nca { info, ..far.clone() }.loss(&sides, &[1.0, -1.0, 0.5]);
        assert!(found.loss.is_finite() && found.slopes.iter().all(|s| s.is_finite()), "{found:?}");
    }
}

#[test]
fn a_running_mean_is_that_of_all() {
    let mut running = Running::default();
    for chunk in [&[3.0, -1.0][..], &[], &[0.5], &[10.0, 2.0, 2.0]] {
        running.add(chunk);
    }
    assert!((running.mean - 16.5 / 6.0).abs() <= 1e-15 && running.count == 6, "{running:?}");
}

proptest! {
    #[test]
    fn slopes_of_rewards_are_those_of_the_loss(c in -4.0..4.0f64, r in -4.0..4.0f64, m in 0.0..2.0f64) {
        const STEP: f64 = 1e-6;
        let loss = BradleyTerry { center: 0.03 };
        let found = loss.loss(c, r, m);
        let by = |a: f64, b: f64| (loss.loss(c + a, r + b, m).loss - loss.loss(c - a, r - b, m).loss) / (2.0 * STEP);
        prop_assert!((found.chosen - by(STEP, 0.0)).abs() <= 1e-8);
        prop_assert!((found.rejected - by(0.0, STEP)).abs() <= 1e-8);
    }
}

proptest! {
    #[test]
    fn slopes_of_steps_are_those_of_the_loss(z0 in -30.0..30.0f64, z1 in -30.0..30.0f64, right: bool) {
        const STEP: f64 = 1e-6;
        let found = step_loss([z0, z1], right);
        let by = |a: f64, b: f64| {
            (step_loss([z0 + a, z1 + b], right).loss - step_loss([z0 - a, z1 - b], right).loss) / (2.0 * STEP)
        };
        prop_assert!((found.slopes[0] - by(STEP, 0.0)).abs() <= 1e-8);
        prop_assert!((found.slopes[1] - by(0.0, STEP)).abs() <= 1e-8);
        // Softmax over both, written out.
        let p = z1.exp() / (z0.exp() + z1.exp());
        prop_assert!((found.right - p).abs() <= 1e-12);
        let want = -(if right { p } else { 1.0 - p }).ln();
        prop_assert!(!(1e-9..=1.0 - 1e-9).contains(&p) || (found.loss - want).abs() <= 1e-6 * (1.0 + want));
    }
}

#[test]
fn dpo_at_the_reference_is_log_two() {
    let side = |logp| Side { logp, reference: logp, tokens: 3.0, alignment: 0.0 };
    let pair = Pair { chosen: side(-4.0), rejected: side(-7.0) };
    let plain = Dpo { label_smoothing: 0.0, ..dpo(DpoLossType::Sigmoid) };
    let found = plain.losses(&[pair])[0];
    let want = PairSlope { loss: 2f64.ln(), chosen: -0.15, rejected: 0.15 };
    assert!((found.loss - want.loss).abs() <= 1e-15, "{found:?}");
    assert!((found.chosen - want.chosen).abs() <= 1e-15 && (found.rejected - want.rejected).abs() <= 1e-15);
}

/// cDPO, which no peer computes: the mean of the loss over the label being right and being wrong.
#[test]
fn label_smoothing_is_the_mean_over_wrong_labels() {
    let side = |ratio| Side { logp: -9.0 + ratio, reference: -9.0, tokens: 4.0, alignment: 0.0 };
    let pair = Pair { chosen: side(1.5), rejected: side(-0.4) };
    let turned = Pair { chosen: pair.rejected, rejected: pair.chosen };
    let of = |label_smoothing: f64, pair| Dpo { label_smoothing, ..dpo(DpoLossType::Sigmoid) }.losses(&[pair])[0].loss;
    let want = 0.8 * of(0.0, pair) + 0.2 * of(0.0, turned);
    assert!((of(0.2, pair) - want).abs() <= 1e-15, "{} and {want}", of(0.2, pair));
    // -log σ(0.3 · 1.9), by hand.
    assert!((of(0.0, pair) - (-0.57f64).exp().ln_1p()).abs() <= 1e-15);
}

#[test]
fn far_out_nothing_overflows() {
    let side = |logp, reference| Side { logp, reference, tokens: 900.0, alignment: 0.0 };
    for (a, b) in [(-5000.0, -10.0), (-10.0, -5000.0)] {
        let pair = Pair { chosen: side(a, b), rejected: side(b, a) };
        for t in DpoLossType::ALL {
            let found = dpo(*t).losses(&[pair])[0];
            assert!(found.loss.is_finite() && found.chosen.is_finite() && found.rejected.is_finite(), "{t}: {found:?}");
        }
        let sure = Pair { chosen: Side { logp: 0.0, ..pair.chosen }, ..pair };
        for pair in [pair, sure, Pair { chosen: pair.rejected, rejected: sure.chosen }] {
            let found = Orpo { beta: 0.1 }.losses(&[pair])[0];
            assert!(found.loss.is_finite() && found.chosen.is_finite() && found.rejected.is_finite(), "{found:?}");
        }
    }
}
