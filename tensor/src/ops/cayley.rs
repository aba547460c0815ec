//! Orthogonal matrices from free numbers, by Cayley's transform, exact or as a polynomial.
//!
//! Row g of q holds the n (n - 1) / 2 entries above the diagonal of a skew-symmetric Q_g, row by row. Then
//!
//! R = (I - Q)(I + Q)⁻¹, or cut after T terms: R = I + 2 Q + 2 Q² + … + 2 Q^(k-1) + Q^k with k = max(T - 1, 3)
//! (I for T = 1, I + 2 Q for T = 2), as PEFT has it.
//!
//! q: (blocks, n (n - 1) / 2), R: (blocks, n, n). Note the sign: the polynomial is the expansion of
//! (I + Q)(I - Q)⁻¹, as it is in PEFT. Small matrices: n is a few dozen; n³ operations a product.
//!
//! # Source
//! Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning" (OFT), arXiv:2306.07280, section 4;
//! Qiu et al., "Orthogonal Finetuning Made Scalable", arXiv:2506.19847, equation 6.

use crate::device::{self, ops::rotations as on_device};
use crate::{Error, Real, Result, Tensor, dispatch_real, parallel};

const OP: &str = "cayley";

/// The exact transform, or so many terms of its series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cayley {
    /// (I - Q)(I + Q)⁻¹.
    Exact,
    /// Its series, cut after this many terms; at least 1.
    Series(usize),
}

impl Cayley {
    /// Coefficients of Q⁰, Q¹, …
    fn coefficients(terms: usize) -> Vec<f64> {
        let mut c = vec![1.0];
        if terms > 1 {
            c.push(2.0);
        }
        if terms > 2 {
            let last = (terms - 1).max(3);
            c.extend((2..last).map(|_| 2.0));
            c.push(1.0);
        }
        c
    }
}

/// C = A B for n × n matrices.
fn product<R: Real>(a: &[R], b: &[R], n: usize) -> Vec<R> {
    let mut c = vec![R::ZERO; n * n];
    for (a, c) in a.chunks_exact(n).zip(c.chunks_exact_mut(n)) {
        for (&a, b) in a.iter().zip(b.chunks_exact(n)) {
            for (c, &b) in c.iter_mut().zip(b) {
                *c = a.mul_add(b, *c);
            }
        }
    }
    c
}

fn transposed<R: Real>(a: &[R], n: usize) -> Vec<R> {
    (0..n * n).map(|i| a[i % n * n + i / n]).collect()
}

/// ±Q from its entries, plus `diagonal` on the diagonal.
fn skew<R: Real>(q: &[R], n: usize, sign: R, diagonal: R) -> Vec<R> {
    let mut m = vec![R::ZERO; n * n];
    let mut entries = q.iter();
    for i in 0..n {
        m[i * n + i] = diagonal;
        for j in i + 1..n {
            let x = sign * *entries.next().expect("n (n - 1) / 2 entries");
            (m[i * n + j], m[j * n + i]) = (x, R::ZERO - x);
        }
    }
    m
}

/// X with M X = B, by elimination with row pivots. M = I ± Q is never singular.
fn solve<R: Real>(mut m: Vec<R>, mut b: Vec<R>, n: usize) -> Vec<R> {
    for k in 0..n {
        let size = |i: usize, m: &[R]| m[i * n + k].to_f64().abs();
        let pivot = (k..n).fold(k, |best, i| if size(i, &m) > size(best, &m) { i } else { best });
        for j in 0..n {
            m.swap(k * n + j, pivot * n + j);
            b.swap(k * n + j, pivot * n + j);
        }
        for i in 0..n {
            if i == k {
                continue;
            }
            let f = m[i * n + k] / m[k * n + k];
            for j in 0..n {
                let (mk, bk) = (m[k * n + j], b[k * n + j]);
                m[i * n + j] -= f * mk;
                b[i * n + j] -= f * bk;
            }
        }
    }
    for i in 0..n {
        for j in 0..n {
            b[i * n + j] = b[i * n + j] / m[i * n + i];
        }
    }
    b
}

fn one<R: Real>(q: &[R], n: usize, kind: Cayley) -> Vec<R> {
    match kind {
        // Rᵀ = (I - Q)⁻¹ (I + Q).
        Cayley::Exact => transposed(&solve(skew(q, n, R::ZERO - R::ONE, R::ONE), skew(q, n, R::ONE, R::ONE), n), n),
        Cayley::Series(terms) => {
            let q = skew(q, n, R::ONE, R::ZERO);
            let mut r = vec![R::ZERO; n * n];
            let mut power = skew(&vec![R::ZERO; n * n.saturating_sub(1) / 2], n, R::ONE, R::ONE);
            for (k, c) in Cayley::coefficients(terms).into_iter().enumerate() {
                if k > 0 {
                    power = product(&power, &q, n);
                }
                let c = R::from_f64(c);
                r.iter_mut().zip(&power).for_each(|(r, &p)| *r = c.mul_add(p, *r));
            }
            r
        }
    }
}

/// dQ from dR, as a full matrix.
fn one_backward<R: Real>(dr: &[R], q: &[R], n: usize, kind: Cayley) -> Vec<R> {
    match kind {
        // dR = -(I + R) dQ (I + Q)⁻¹, so G_Q = -(I + Rᵀ) H with H (I - Q) = G_R, that is (I + Q) Hᵀ = G_Rᵀ.
        Cayley::Exact => {
            let h = transposed(&solve(skew(q, n, R::ONE, R::ONE), transposed(dr, n), n), n);
            let mut left = transposed(&one(q, n, kind), n);
            (0..n).for_each(|i| left[i * n + i] += R::ONE);
            product(&left, &h, n).into_iter().map(|x| R::ZERO - x).collect()
        }
        // G_Q = Σ_k c_k Σ_{i<k} (Qᵀ)^i G_R (Qᵀ)^(k-1-i), by Horner's rule: S_k = Qᵀ S_{k-1} + G_R (Qᵀ)^(k-1).
        Cayley::Series(terms) => {
            let qt = skew(q, n, R::ZERO - R::ONE, R::ZERO);
            let (mut sum, mut right) = (vec![R::ZERO; n * n], dr.to_vec());
            let mut total = vec![R::ZERO; n * n];
            for (k, c) in Cayley::coefficients(terms).into_iter().enumerate().skip(1) {
                if k > 1 {
                    right = product(&right, &qt, n);
                    sum = product(&qt, &sum, n);
                }
                sum.iter_mut().zip(&right).for_each(|(s, &r)| *s += r);
                let c = R::from_f64(c);
                total.iter_mut().zip(&sum).for_each(|(t, &s)| *t = c.mul_add(s, *t));
            }
            total
        }
    }
}

fn check(q: &Tensor, n: usize, kind: Cayley) -> Result<()> {
    if q.rank() != 2 || q.dims()[1] != n * n.saturating_sub(1) / 2 {
        let (lhs, rhs) = (q.dims().to_vec(), vec![n]);
        return Err(Error::ShapeMismatch { op: OP, what: "q (blocks, n (n - 1) / 2) against n", lhs, rhs });
    }
    if kind == Cayley::Series(0) {
        return Err(Error::InvalidValue { op: OP, name: "terms", value: 0.0, expected: "at least 1" });
    }
    Ok(())
}

/// R: (blocks, n, n).
///
/// # Errors
/// A q of another shape; a series of no term; a dtype other than f32 and f64.
pub fn forward(q: &Tensor, n: usize, kind: Cayley) -> Result<Tensor> {
    check(q, n, kind)?;
    if let Some(on) = device::of(OP, [q])? {
        return on_device::orthogonal(&on, q, n, kind);
    }
    let (blocks, entries, q) = (q.dims()[0], q.dims()[1], q.contiguous()?);
    dispatch_real!(OP, q.dtype(), R => {
        let q = q.as_slice::<R>()?;
        let all = parallel::map(blocks, |g| one(&q[g * entries..(g + 1) * entries], n, kind));
        Tensor::from_vec(all.concat(), [blocks, n, n])
    })
}

/// dq from dR.
///
/// # Errors
/// As [`forward`]; a dR of another shape than R.
pub fn backward(dr: &Tensor, q: &Tensor, n: usize, kind: Cayley) -> Result<Tensor> {
    check(q, n, kind)?;
    let (blocks, entries) = (q.dims()[0], q.dims()[1]);
    super::check::shape(OP, "gradient against R (blocks, n, n)", dr, &[blocks, n, n])?;
    if let Some(on) = device::of(OP, [dr, q])? {
        return on_device::orthogonal_backward(&on, dr, q, n, kind);
    }
    let (q, dr) = (q.contiguous()?, dr.contiguous()?);
    dispatch_real!(OP, q.dtype(), R => {
        let (qs, dr) = (q.as_slice::<R>()?, dr.as_slice::<R>()?);
        let all = parallel::map(blocks, |g| {
            let full = one_backward(&dr[g * n * n..(g + 1) * n * n], &qs[g * entries..(g + 1) * entries], n, kind);
            let above = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j)));
            above.map(|(i, j)| full[i * n + j] - full[j * n + i]).collect::<Vec<R>>()
        });
        Tensor::from_vec(all.concat(), q.shape().clone())
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, values};
    use super::*;
    use crate::DType;

    #[test]
    fn the_exact_transform_is_orthogonal_and_the_series_nears_it() {
        let n = 6;
        let q = super::super::elementwise::scale(&random(&[3, 15], DType::F64, 0), 0.05).unwrap();
        let exact = values(&forward(&q, n, Cayley::Exact).unwrap());
        for r in exact.chunks_exact(n * n) {
            let identity = product(r, &transposed(r, n), n);
            for (i, x) in identity.iter().enumerate() {
                let want = if i % n == i / n { 1.0 } else { 0.0 };
                assert!((x - want).abs() <= 1e-14, "{i}: {x}");
            }
        }
        // The series is that of the inverse rotation: Q of the other sign.
        let minus = super::super::elementwise::scale(&q, -1.0).unwrap();
        for (terms, tolerance) in [(3, 0.1), (30, 1e-13)] {
            let series = values(&forward(&minus, n, Cayley::Series(terms)).unwrap());
            let worst = series.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst <= tolerance, "{terms} terms: {worst}");
        }
        assert_eq!(
            values(&forward(&Tensor::zeros([1, 1], DType::F64).unwrap(), 2, Cayley::Exact).unwrap()),
            [1.0, 0.0, 0.0, 1.0]
        );
        assert!(forward(&q, 5, Cayley::Exact).is_err());
        assert!(forward(&q, n, Cayley::Series(0)).is_err());
    }
}
