//! Numbers that carry their slopes: how losses of a few numbers are differentiated.
//!
//! A loss of a pair is a formula in two numbers, the log-probabilities of its sides. Written over [`Dual`] it is
//! the formula of its paper, and its two slopes come with it by the rules of calculus; no derivative is worked
//! out by hand for each loss, and none can disagree with its formula.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// A value f(a, b) with (∂f/∂a, ∂f/∂b): forward-mode differentiation in f64.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dual {
    /// f.
    pub value: f64,
    /// By a, by b.
    pub slope: [f64; 2],
}

impl Dual {
    /// A number that depends on neither variable.
    pub fn constant(value: f64) -> Dual {
        Dual { value, slope: [0.0; 2] }
    }

    /// Variable 0 or 1.
    ///
    /// # Panics
    /// For any other.
    pub fn variable(value: f64, which: usize) -> Dual {
        let mut slope = [0.0; 2];
        slope[which] = 1.0;
        Dual { value, slope }
    }

    /// g(f) with g's value and slope at f.
    fn chain(self, value: f64, slope: f64) -> Dual {
        Dual { value, slope: self.slope.map(|s| s * slope) }
    }

    /// e^f.
    pub fn exp(self) -> Dual {
        let e = self.value.exp();
        self.chain(e, e)
    }

    /// σ(f) = 1 / (1 + e^-f).
    pub fn sigmoid(self) -> Dual {
        let s = sigmoid(self.value);
        self.chain(s, s * sigmoid(-self.value))
    }

    /// log σ(f), without overflow on either side.
    pub fn log_sigmoid(self) -> Dual {
        let x = self.value;
        self.chain(x.min(0.0) - (-x.abs()).exp().ln_1p(), sigmoid(-x))
    }

    /// log(1 - e^f) for f < 0, without cancellation near 0 and far from it.
    ///
    /// # Source
    /// Mächler, "Accurately computing log(1 - exp(-|a|))", 2012, equation 7.
    pub fn log1mexp(self) -> Dual {
        let x = self.value;
        let value = if x < -std::f64::consts::LN_2 { (-x.exp()).ln_1p() } else { (-x.exp_m1()).ln() };
        self.chain(value, -1.0 / (-x).exp_m1())
    }

    /// max(f, 0), with slope 0 at 0.
    pub fn relu(self) -> Dual {
        self.chain(self.value.max(0.0), if self.value > 0.0 { 1.0 } else { 0.0 })
    }

    /// min(f, limit), with slope 0 beyond the limit.
    pub fn at_most(self, limit: f64) -> Dual {
        if self.value > limit { Dual::constant(limit) } else { self }
    }

    /// f².
    pub fn squared(self) -> Dual {
        self * self
    }
}

/// 1 / (1 + e^-x).
pub(super) fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// (f g)′ = f′ g + f g′.
fn product_rule(f: Dual, g: Dual) -> [f64; 2] {
    [0, 1].map(|i| f.slope[i] * g.value + f.value * g.slope[i])
}

impl Add for Dual {
    type Output = Dual;
    fn add(self, o: Dual) -> Dual {
        Dual { value: self.value + o.value, slope: [self.slope[0] + o.slope[0], self.slope[1] + o.slope[1]] }
    }
}

impl Neg for Dual {
    type Output = Dual;
    fn neg(self) -> Dual {
        self.chain(-self.value, -1.0)
    }
}

impl Sub for Dual {
    type Output = Dual;
    fn sub(self, o: Dual) -> Dual {
        self + -o
    }
}

impl Mul for Dual {
    type Output = Dual;
    fn mul(self, o: Dual) -> Dual {
        Dual { value: self.value * o.value, slope: product_rule(self, o) }
    }
}

impl Add<f64> for Dual {
    type Output = Dual;
    fn add(self, o: f64) -> Dual {
        Dual { value: self.value + o, ..self }
    }
}

impl Sub<f64> for Dual {
    type Output = Dual;
    fn sub(self, o: f64) -> Dual {
        self + -o
    }
}

impl Mul<f64> for Dual {
    type Output = Dual;
    fn mul(self, o: f64) -> Dual {
        self.chain(self.value * o, o)
    }
}

impl Div<f64> for Dual {
    type Output = Dual;
    fn div(self, o: f64) -> Dual {
        self.chain(self.value / o, 1.0 / o)
    }
}
