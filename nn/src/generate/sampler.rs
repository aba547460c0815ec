//! One token out of one row of logits.

use planish_tensor::Real;

use super::SamplingParams;

/// Chooses the next token; `None` if the logits are not numbers.
///
/// `history` is the prompt, of `n_prompt` tokens, and what has been generated; `uniform` in [0, 1) decides
/// (greedy needs none).
pub(super) fn choose<R: Real>(
    logits: &[R],
    (history, n_prompt): (&[u32], usize),
    params: &SamplingParams,
    uniform: f64,
) -> Option<u32> {
    let too_soon = history.len() - n_prompt < params.min_new_tokens;
    let forbidden = if too_soon { &params.eos_token_ids[..] } else { &[] };
    if params.greedy() && params.repetition_penalty == 1.0 {
        let best = argmax(logits)?;
        if !forbidden.contains(&best) {
            return Some(best);
        }
    }
    let mut z: Vec<f64> = logits.iter().map(|z| z.to_f64()).collect();
    if z.iter().any(|z| z.is_nan()) {
        // Not to be hidden by what is forbidden.
        return None;
    }
    penalise(&mut z, history, params.repetition_penalty);
    for &id in forbidden {
        if let Some(z) = z.get_mut(id as usize) {
            *z = f64::NEG_INFINITY;
        }
    }
    let best = argmax(&z)?;
    if params.greedy() {
        return Some(best);
    }
    Some(draw(&weights(&z, z[best as usize], params), uniform).unwrap_or(best))
}

/// The first of the largest; `None` if any is NaN or the largest is infinite.
fn argmax<R: Real>(values: &[R]) -> Option<u32> {
    // In lanes, for vectors: a vocabulary is looked through for every token.
    const LANES: usize = 16;
    let (mut best, mut numbers) = ([R::NEG_INFINITY; LANES], [true; LANES]);
    let mut see = |lanes: &[R]| {
        for ((best, number), &z) in best.iter_mut().zip(&mut numbers).zip(lanes) {
            *best = if z > *best { z } else { *best };
            // Not so of NaN.
            *number &= z >= R::NEG_INFINITY;
        }
    };
    let (chunks, rest) = values.as_chunks::<LANES>();
    chunks.iter().for_each(|chunk| see(chunk));
    see(rest);
    let best = best.into_iter().reduce(|a, b| if b > a { b } else { a })?;
    if numbers.contains(&false) || !best.to_f64().is_finite() {
        return None;
    }
    values.iter().position(|&z| z == best).map(|at| at as u32)
}

fn penalise(z: &mut [f64], history: &[u32], penalty: f64) {
    if penalty == 1.0 {
        return;
    }
    let mut seen: Vec<u32> = history.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some(z) = z.get_mut(id as usize) {
            *z = if *z < 0.0 { *z * penalty } else { *z / penalty };
        }
    }
}

/// Tokens that may be drawn, by id, each with its probability relative to the most probable one.
fn weights(z: &[f64], max: f64, params: &SamplingParams) -> Vec<(u32, f64)> {
    // The distance to the largest, so that no temperature overflows.
    let mut kept: Vec<(u32, f64)> =
        z.iter().enumerate().map(|(i, z)| (i as u32, (z - max) / params.temperature)).collect();
    if 0 < params.top_k && params.top_k < kept.len() {
        let mut sorted: Vec<f64> = kept.iter().map(|k| k.1).collect();
        let (_, &mut least, _) = sorted.select_nth_unstable_by(params.top_k - 1, |a, b| b.total_cmp(a));
        kept.retain(|k| k.1 >= least);
    }
    kept.iter_mut().for_each(|k| k.1 = k.1.exp());
    if params.top_p < 1.0 {
        kept = nucleus(kept, params.top_p);
    }
    kept.retain(|k| k.1 >= params.min_p);
    kept
}

/// The most probable tokens, as many as it takes to reach `top_p` of the total; at least one.
fn nucleus(mut kept: Vec<(u32, f64)>, top_p: f64) -> Vec<(u32, f64)> {
    let total: f64 = kept.iter().map(|k| k.1).sum();
    // Together these are less than what is cut off, so they need not be sorted: nearly all of a vocabulary.
    let negligible = 0.5 * (1.0 - top_p) * total / kept.len() as f64;
    kept.retain(|k| k.1 > negligible);
    kept.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut before = 0.0;
    let mut count = 0;
    while count < kept.len() && (count == 0 || before < top_p * total) {
        before += kept[count].1;
        count += 1;
    }
    kept.truncate(count);
    kept.sort_unstable_by_key(|k| k.0);
    kept
}

/// The token at `uniform` of the cumulative weights.
fn draw(weights: &[(u32, f64)], uniform: f64) -> Option<u32> {
    let total: f64 = weights.iter().map(|w| w.1).sum();
    let mut left = uniform * total;
    for &(id, w) in weights {
        if left < w {
            return Some(id);
        }
        left -= w;
    }
    // Rounding may leave a crumb after the last.
    weights.iter().rev().find(|w| w.1 > 0.0).map(|w| w.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> SamplingParams {
        SamplingParams::default()
    }

    fn ids(z: &[f64], p: &SamplingParams) -> Vec<u32> {
        weights(z, z.iter().fold(f64::NEG_INFINITY, |m, &z| m.max(z)), p).into_iter().map(|w| w.0).collect()
    }

    /// log of 0.1, 0.4, 0.2, 0.3 and a constant.
    fn logits() -> Vec<f64> {
        [0.1f64, 0.4, 0.2, 0.3].iter().map(|p| p.ln() + 7.0).collect()
    }

    #[test]
    fn filters_keep_what_transformers_keeps() {
        let z = logits();
        assert_eq!(ids(&z, &params()), [0, 1, 2, 3]);
        assert_eq!(ids(&z, &SamplingParams { top_k: 2, ..params() }), [1, 3]);
        assert_eq!(ids(&z, &SamplingParams { top_k: 9, ..params() }), [0, 1, 2, 3]);
        // Those equal to the k-th stay.
        assert_eq!(ids(&[1.0, 2.0, 1.0, 0.0], &SamplingParams { top_k: 2, ..params() }), [0, 1, 2]);
        assert_eq!(ids(&z, &SamplingParams { top_p: 0.0, ..params() }), [1]);
        assert_eq!(ids(&z, &SamplingParams { top_p: 0.39, ..params() }), [1]);
        assert_eq!(ids(&z, &SamplingParams { top_p: 0.65, ..params() }), [1, 3]);
        assert_eq!(ids(&z, &SamplingParams { top_p: 0.75, ..params() }), [1, 2, 3]);
        assert_eq!(ids(&z, &SamplingParams { min_p: 0.45, ..params() }), [1, 2, 3]);
        assert_eq!(ids(&z, &SamplingParams { min_p: 1.0, ..params() }), [1]);
        // The nucleus is of what top-k left: 0.4/0.7 alone is 0.57.
        assert_eq!(ids(&z, &SamplingParams { top_k: 2, top_p: 0.5, ..params() }), [1]);
        // Temperature comes first: at 1/2 the probabilities are as 1 : 16 : 4 : 9.
        assert_eq!(ids(&z, &SamplingParams { temperature: 0.5, min_p: 0.3, ..params() }), [1, 3]);
        assert_eq!(ids(&z, &SamplingParams { temperature: 1e-320, ..params() }).len(), 4);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let z = logits();
        let n = 1000;
        let mut counts = [0; 4];
        for i in 0..n {
            counts[choose(&z, (&[], 0), &params(), (i as f64 + 0.5) / n as f64).unwrap() as usize] += 1;
        }
        // The uniforms are an even grid: each count is exact but for the cell that holds a border.
        for (count, want) in counts.iter().zip([100i32, 400, 200, 300]) {
            assert!((count - want).abs() <= 1, "{counts:?}");
        }
        assert_eq!(choose(&z, (&[], 0), &params(), 0.0), Some(0));
        assert_eq!(choose(&z, (&[], 0), &params(), 1.0 - f64::EPSILON), Some(3));
        // A token of probability zero is never drawn, even at the very end.
        assert_eq!(draw(&[(4, 1.0), (5, 0.0)], 1.0), Some(4));
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let p = SamplingParams { temperature: 0.0, min_new_tokens: 1, eos_token_ids: vec![35], ..params() };
        let pick = |z: &[f32], new| choose(z, (&vec![0; new], 0), &p, 0.0);
        let mut z: Vec<f32> = (0..37).map(|i| (i * 7 % 5) as f32).collect();
        assert_eq!(pick(&z, 1), Some(2));
        (z[16], z[35], z[36]) = (9.0, 9.5, 9.0);
        assert_eq!(pick(&z, 1), Some(35));
        // Where it may not end yet, the first of the next largest.
        assert_eq!(pick(&z, 0), Some(16));
        for bad in [f32::NAN, f32::INFINITY] {
            for at in [3, 36] {
                let mut z = z.clone();
                z[at] = bad;
                assert_eq!([pick(&z, 0), pick(&z, 1)], [None, None]);
            }
        }
        assert_eq!([pick(&[f32::NEG_INFINITY; 3], 1), pick(&[], 1)], [None, None]);
    }

    #[test]
    fn the_penalty_divides_positive_and_multiplies_negative_logits_once() {
        let p = SamplingParams { temperature: 0.0, repetition_penalty: 2.0, ..params() };
        assert_eq!(choose(&[3.0f32, 2.0, 1.0], (&[0, 0, 9], 3), &p, 0.0), Some(1));
        assert_eq!(choose(&[-1.0f32, -1.5, -3.0], (&[0], 1), &p, 0.0), Some(1));
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_nan_is_refused() {
        let greedy = SamplingParams { temperature: 0.0, ..params() };
        assert_eq!(choose(&[1.0f32, 5.0, 5.0], (&[], 0), &greedy, 0.5), Some(1));
        for p in [params(), greedy] {
            assert_eq!(choose(&[1.0f32, f32::NAN], (&[], 0), &p, 0.5), None);
            assert_eq!(choose(&[1.0f32, f32::INFINITY], (&[], 0), &p, 0.5), None);
            assert_eq!(choose(&[f32::NEG_INFINITY; 2], (&[], 0), &p, 0.5), None);
            assert_eq!(choose(&[f32::NEG_INFINITY, 0.0], (&[], 0), &p, 0.5), Some(1));
            assert_eq!(choose::<f32>(&[], (&[], 0), &p, 0.5), None);
        }
    }
}
