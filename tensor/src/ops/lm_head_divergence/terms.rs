//! The arithmetic of one entry of the vocabulary.

use crate::Real;

/// The arithmetic of one entry.
#[derive(Clone, Copy)]
pub(super) struct Terms<R> {
    pub(super) kind: Kind,
    /// 1 - β, and the logarithms of β and of it.
    other: R,
    beta: R,
    ln_beta: R,
    ln_other: R,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Forward,
    Reverse,
    Mixed,
}

impl<R: Real> Terms<R> {
    pub(super) fn new(beta: f64) -> Terms<R> {
        let kind = match beta {
            0.0 => Kind::Forward,
            1.0 => Kind::Reverse,
            _ => Kind::Mixed,
        };
        let [other, beta, ln_beta, ln_other] = [1.0 - beta, beta, beta.ln(), (1.0 - beta).ln()].map(R::from_f64);
        Terms { kind, other, beta, ln_beta, ln_other }
    }

    /// log(β e^t + (1 - β) e^s).
    #[inline(always)]
    fn mixture(&self, s: R, t: R) -> R {
        let (a, b) = (s + self.ln_other, t + self.ln_beta);
        let top = a.max(b);
        top + ln_1p((a + b - top - top).exp())
    }

    /// A term of D, with what sums to 0 added.
    #[inline(always)]
    pub(super) fn divergence(&self, s: R, t: R) -> R {
        match self.kind {
            Kind::Forward => t.exp() * (t - s) - t.exp() + s.exp(),
            Kind::Reverse => s.exp() * (s - t) - s.exp() + t.exp(),
            Kind::Mixed => {
                let m = self.mixture(s, t);
                self.beta * t.exp() * (t - m) + self.other * s.exp() * (s - m)
            }
        }
    }

    /// P g: with it ∂D/∂z = P g - P Σ P g. For β = 0 that is -Q.
    #[inline(always)]
    pub(super) fn slope(&self, s: R, t: R) -> R {
        match self.kind {
            Kind::Forward => -t.exp(),
            Kind::Reverse => s.exp() * (s - t),
            Kind::Mixed => self.other * s.exp() * (s - self.mixture(s, t)),
        }
    }
}

/// log(1 + x) for x in \[0, 1\]: 2 artanh(x / (2 + x)), whose series falls by 9 a term. A loop over it vectorises.
#[inline(always)]
fn ln_1p<R: Real>(x: R) -> R {
    let z = x / (x + R::from_f64(2.0));
    let squared = z * z;
    let terms = if R::DTYPE == crate::DType::F64 { 18 } else { 8 };
    let mut sum = R::ZERO;
    for i in (0..terms).rev() {
        sum = sum.mul_add(squared, R::from_f64(2.0 / (2 * i + 1) as f64));
    }
    sum * z
}
