//! One direction of a layer of an LSTM.
//!
//! With the input's share of the gates given, G = x W_ihᵀ + b (rows i, f, g, o as torch has them), step by step
//!
//! i, f, o = σ(G_t + W_hh h_{t-1}), g = tanh(G_t + W_hh h_{t-1}),
//! c_t = f c_{t-1} + i g, h_t = o tanh(c_t), from h_0 = c_0 = 0.
//!
//! G: (steps, 4 hidden), W_hh: (4 hidden, hidden), h: (steps, hidden); `reverse` goes from the last row to the first.
//! Bound by the chain of steps: 8 hidden² operations each, which the next waits for.
//!
//! # Source
//! Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; Gers et al., "Learning to Forget", 2000.

use crate::device::{self, ops::lstm as on_device};
use crate::gemm::{Mat, Store, gemm, gemm_serial};
use crate::{Error, Real, Result, Tensor, dispatch_real};

const OP: &str = "lstm";

/// What the backward pass needs of the forward pass.
#[derive(Debug, Clone)]
pub struct Saved {
    /// i, f, g, o: (steps, 4 hidden).
    gates: Tensor,
    /// c: (steps, hidden).
    cells: Tensor,
    /// h: (steps, hidden).
    hidden: Tensor,
}

fn sizes(gates: &Tensor, w_hh: &Tensor) -> Result<(usize, usize)> {
    let hidden = w_hh.dims().get(1).copied().unwrap_or(0);
    let fits = gates.rank() == 2 && w_hh.rank() == 2 && [gates.dims()[1], w_hh.dims()[0]] == [4 * hidden; 2];
    if !fits {
        let (lhs, rhs) = (gates.dims().to_vec(), w_hh.dims().to_vec());
        return Err(Error::ShapeMismatch {
            op: OP,
            what: "gates (steps, 4 hidden) against W_hh (4 hidden, hidden)",
            lhs,
            rhs,
        });
    }
    Ok((gates.dims()[0], hidden))
}

fn sigmoid<R: Real>(x: R) -> R {
    R::ONE / (R::ONE + (R::ZERO - x).exp())
}

/// The rows in the order they are gone through, each with the one before it.
fn order(steps: usize, reverse: bool) -> impl DoubleEndedIterator<Item = (usize, Option<usize>)> {
    (0..steps).map(move |k| match reverse {
        false => (k, k.checked_sub(1)),
        true => (steps - 1 - k, (k > 0).then_some(steps - k)),
    })
}

/// h: (steps, hidden).
///
/// # Errors
/// Shapes that do not agree; a dtype other than f32 and f64, or two of them.
pub fn forward(gates: &Tensor, w_hh: &Tensor, reverse: bool) -> Result<(Tensor, Saved)> {
    let (steps, n) = sizes(gates, w_hh)?;
    if let Some(on) = device::of(OP, [gates, w_hh])? {
        let [gates, cells, hidden] = on_device::forward(&on, gates, w_hh, order(steps, reverse))?;
        return Ok((hidden.clone(), Saved { gates, cells, hidden }));
    }
    let (input, w) = (gates.contiguous()?, w_hh.contiguous()?);
    dispatch_real!(OP, input.dtype(), R => {
        let w = Mat::new(w.as_slice::<R>()?, 4 * n, n);
        let mut gates = input.as_slice::<R>()?.to_vec();
        let (mut cells, mut hidden) = (vec![R::ZERO; steps * n], vec![R::ZERO; steps * n]);
        let mut scratch = Vec::new();
        for (t, before) in order(steps, reverse) {
            let a = &mut gates[t * 4 * n..(t + 1) * 4 * n];
            if let Some(before) = before {
                let h = Mat::new(&hidden[before * n..(before + 1) * n], 1, n);
                gemm_serial(h, w.t(), a, Store::Add, &mut scratch);
            }
            for j in 0..n {
                let [i, f, o] = [0, 1, 3].map(|k| sigmoid(a[k * n + j]));
                let g = a[2 * n + j].tanh();
                let c = before.map_or(R::ZERO, |before| f * cells[before * n + j]) + i * g;
                (a[j], a[n + j], a[2 * n + j], a[3 * n + j]) = (i, f, g, o);
                (cells[t * n + j], hidden[t * n + j]) = (c, o * c.tanh());
            }
        }
        let hidden = Tensor::from_vec(hidden, [steps, n])?;
        let (gates, cells) = (Tensor::from_vec(gates, [steps, 4 * n])?, Tensor::from_vec(cells, [steps, n])?);
        Ok((hidden.clone(), Saved { gates, cells, hidden }))
    })
}

/// (dG, dW_hh) from dh, by going through the steps backward:
///
/// dc = dh o (1 - tanh² c) + f₊ dc₊, with dh the gradient of the row plus W_hhᵀ dG₊ and ₊ the row after it.
///
/// # Errors
/// As [`forward`]; a dh of another shape than h.
pub fn backward(dh: &Tensor, w_hh: &Tensor, saved: &Saved, reverse: bool) -> Result<(Tensor, Tensor)> {
    let (steps, n) = sizes(&saved.gates, w_hh)?;
    super::check::shape(OP, "gradient against h (steps, hidden)", dh, &[steps, n])?;
    if let Some(on) = device::of(OP, [dh, w_hh, &saved.gates])? {
        let saved = [&saved.gates, &saved.cells, &saved.hidden];
        return on_device::backward(&on, dh, w_hh, saved, order(steps, reverse).rev(), reverse);
    }
    let (dh, w) = (dh.contiguous()?, w_hh.contiguous()?);
    dispatch_real!(OP, saved.gates.dtype(), R => {
        let (dh, w) = (dh.as_slice::<R>()?, Mat::new(w.as_slice::<R>()?, 4 * n, n));
        let [gates, cells, hidden] = [&saved.gates, &saved.cells, &saved.hidden].map(|t| t.as_slice::<R>());
        let (gates, cells, hidden) = (gates?, cells?, hidden?);
        let mut dgates = vec![R::ZERO; steps * 4 * n];
        // h of the row before, for dW_hh; 0 before the first.
        let mut last = vec![R::ZERO; steps * n];
        let (mut dc, mut from_next) = (vec![R::ZERO; n], vec![R::ZERO; n]);
        let mut scratch = Vec::new();
        for (t, before) in order(steps, reverse).rev() {
            let (row, da) = (&gates[t * 4 * n..(t + 1) * 4 * n], &mut dgates[t * 4 * n..(t + 1) * 4 * n]);
            for j in 0..n {
                let [i, f, g, o] = [0, 1, 2, 3].map(|k| row[k * n + j]);
                let (th, dh) = (cells[t * n + j].tanh(), dh[t * n + j] + from_next[j]);
                // `dc` came with f₊ already.
                let d = dc[j] + dh * o * (R::ONE - th * th);
                let c_before = before.map_or(R::ZERO, |before| cells[before * n + j]);
                da[j] = d * g * i * (R::ONE - i);
                da[n + j] = d * c_before * f * (R::ONE - f);
                da[2 * n + j] = d * i * (R::ONE - g * g);
                da[3 * n + j] = dh * th * o * (R::ONE - o);
                dc[j] = d * f;
            }
            gemm_serial(Mat::new(da, 1, 4 * n), w, &mut from_next, Store::Set, &mut scratch);
            if let Some(before) = before {
                last[t * n..(t + 1) * n].copy_from_slice(&hidden[before * n..(before + 1) * n]);
            }
        }
        let mut dw = vec![R::ZERO; 4 * n * n];
        gemm(Mat::new(&dgates, steps, 4 * n).t(), Mat::new(&last, steps, n), &mut dw, Store::Set);
        Ok((Tensor::from_vec(dgates, [steps, 4 * n])?, Tensor::from_vec(dw, [4 * n, n])?))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, values};
    use super::*;
    use crate::DType;

    #[test]
    fn a_step_is_the_formula_and_reverse_is_the_mirror() {
        let (steps, n) = (5, 3);
        let (gates, w) = (random(&[steps, 4 * n], DType::F64, 0), random(&[4 * n, n], DType::F64, 1));
        let (h, _) = forward(&gates, &w, false).unwrap();
        let g = values(&gates);
        let sigma = |x: f64| 1.0 / (1.0 + (-x).exp());
        for j in 0..n {
            let want = sigma(g[3 * n + j]) * (sigma(g[j]) * g[2 * n + j].tanh()).tanh();
            assert!((values(&h)[j] - want).abs() <= 1e-15, "{j}");
        }
        let mirrored: Vec<f64> = g.chunks_exact(4 * n).rev().flatten().copied().collect();
        let (back, _) = forward(&Tensor::from_vec(mirrored, [steps, 4 * n]).unwrap(), &w, true).unwrap();
        let mirrored: Vec<f64> = values(&back).chunks_exact(n).rev().flatten().copied().collect();
        assert_eq!(mirrored, values(&h));
        assert!(forward(&w, &w, false).is_err() && forward(&gates, &gates, false).is_err());
        let (h, saved) =
            forward(&random(&[0, 4 * n], DType::F32, 2), &random(&[4 * n, n], DType::F32, 3), true).unwrap();
        assert_eq!(h.dims(), [0, n]);
        assert_eq!(values(&backward(&h, &random(&[4 * n, n], DType::F32, 3), &saved, true).unwrap().1), [0.0; 36]);
    }
}
