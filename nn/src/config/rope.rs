//! The rotary position embedding's entries of config.json, in transformers 4's form (`rope_theta`,
//! `rope_scaling`) and in transformers 5's (`rope_parameters`, possibly one per layer type).

use super::fields::{ConfigError, Fields};

/// How the frequencies are changed for contexts longer than the model was pretrained on.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// Positions divided by `factor`.
    Linear {
        /// Divisor of the positions.
        factor: f64,
    },
    /// A larger base once a sequence is longer than the model was made for (dynamic NTK).
    Dynamic {
        /// Stretch per multiple of the original length.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, those between interpolated.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths over original / this are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths under original / this are high frequencies.
        high_freq_factor: f64,
        /// Positions the model was pretrained on.
        original: usize,
    },
    /// YaRN (arXiv:2309.00071).
    Yarn {
        /// Stretch.
        factor: f64,
        /// Positions the model was pretrained on.
        original: usize,
        /// Factor on cos and sin; from `factor` and the m-scales if absent.
        attention_factor: Option<f64>,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which a dimension is interpolated.
        beta_slow: f64,
        /// DeepSeek's m-scale.
        mscale: Option<f64>,
        /// DeepSeek's m-scale over all dimensions.
        mscale_all_dim: Option<f64>,
        /// Whether the correction range is rounded to whole dimensions.
        truncate: bool,
    },
    /// LongRoPE (arXiv:2402.13753): one divisor a frequency, short or long by the sequence's length.
    LongRope {
        /// Divisors for sequences up to `original`.
        short_factor: Vec<f64>,
        /// Divisors for longer ones.
        long_factor: Vec<f64>,
        /// Positions the model was pretrained on.
        original: usize,
        /// Stretch, for the factor on cos and sin.
        factor: f64,
        /// Factor on cos and sin; from `factor` and `original` if absent.
        attention_factor: Option<f64>,
    },
}

/// One rotation.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base θ of the frequencies θ^(-2i/d).
    pub theta: f64,
    /// Leading dimensions of a head that are turned.
    pub rotary_dim: usize,
    /// Positions the model was made for.
    pub max_positions: usize,
    /// Change for long contexts.
    pub scaling: RopeScaling,
}

type Result<T> = std::result::Result<T, ConfigError>;

impl Rope {
    /// Without scaling.
    pub fn plain(theta: f64, rotary_dim: usize, max_positions: usize) -> Rope {
        Rope { theta, rotary_dim, max_positions, scaling: RopeScaling::Default }
    }

    /// Positions that it reaches: those that it was made for, or, where scaling stretches fewer, those.
    pub fn window(&self) -> usize {
        use RopeScaling::*;
        let stretched = match &self.scaling {
            Default => 0.0,
            Linear { factor } | Dynamic { factor } => self.max_positions as f64 * factor,
            Llama3 { factor, original, .. } | Yarn { factor, original, .. } | LongRope { factor, original, .. } => {
                *original as f64 * factor
            }
        };
        self.max_positions.max(stretched as usize)
    }

    /// From config.json; `layer_type` picks the entry where there is one for each type.
    ///
    /// # Errors
    /// [`ConfigError`] that names the key.
    pub fn read(
        f: &Fields<'_>,
        layer_type: Option<&str>,
        theta: f64,
        rotary_dim: usize,
        max_positions: usize,
    ) -> Result<Rope> {
        let theta = f.f64("rope_theta", theta)?;
        let parameters = match f.opt_object("rope_parameters")? {
            None => f.opt_object("rope_scaling")?,
            Some(all) => match layer_type.filter(|t| all.has(t)) {
                Some(t) => all.opt_object(t)?,
                // Each type has its own entry, and the caller will ask for it.
                None if all.has("full_attention") => all.opt_object("full_attention")?,
                None => Some(all),
            },
        };
        let Some(p) = parameters else {
            return Ok(Rope::plain(check_theta(theta)?, rotary_dim, max_positions));
        };
        let theta = check_theta(p.f64("rope_theta", theta)?)?;
        let scaling = read_scaling(f, &p, rotary_dim, max_positions)?;
        Ok(Rope { theta, rotary_dim, max_positions, scaling })
    }
}

fn check_theta(theta: f64) -> Result<f64> {
    if theta > 0.0 && theta.is_finite() {
        Ok(theta)
    } else {
        Err(ConfigError::Value { key: "rope_theta", value: theta.to_string(), expected: "positive".into() })
    }
}

fn read_scaling(f: &Fields<'_>, p: &Fields<'_>, rotary_dim: usize, max_positions: usize) -> Result<RopeScaling> {
    let kind = match p.opt_str("rope_type")? {
        Some(kind) => kind,
        None => p.opt_str("type")?.unwrap_or("default"),
    };
    let positive = |key: &'static str, value: Option<f64>| match value {
        None => Err(ConfigError::Missing { key }),
        Some(v) if v > 0.0 && v.is_finite() => Ok(v),
        Some(v) => Err(ConfigError::Value { key, value: v.to_string(), expected: "positive".into() }),
    };
    let factor = || positive("rope_scaling.factor", p.opt_f64("factor")?);
    let original = || -> Result<usize> {
        let nested = p.opt_usize("original_max_position_embeddings")?;
        let found = nested.or(f.opt_usize("original_max_position_embeddings")?).unwrap_or(max_positions);
        if found == 0 {
            let key = "original_max_position_embeddings";
            return Err(ConfigError::Value { key, value: "0".into(), expected: "at least 1".into() });
        }
        Ok(found)
    };
    Ok(match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: factor()? },
        "dynamic" => RopeScaling::Dynamic { factor: factor()? },
        "llama3" => RopeScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: positive("rope_scaling.low_freq_factor", p.opt_f64("low_freq_factor")?)?,
            high_freq_factor: positive("rope_scaling.high_freq_factor", p.opt_f64("high_freq_factor")?)?,
            original: original()?,
        },
        "yarn" => RopeScaling::Yarn {
            factor: factor()?,
            original: original()?,
            attention_factor: p.opt_f64("attention_factor")?,
            beta_fast: positive("rope_scaling.beta_fast", Some(p.f64("beta_fast", 32.0)?))?,
            beta_slow: positive("rope_scaling.beta_slow", Some(p.f64("beta_slow", 1.0)?))?,
            mscale: p.opt_f64("mscale")?,
            mscale_all_dim: p.opt_f64("mscale_all_dim")?,
            truncate: p.bool("truncate", true)?,
        },
        "longrope" | "su" => {
            let factors = |key: &'static str| -> Result<Vec<f64>> {
                let list = p.opt_f64s(key)?.ok_or(ConfigError::Missing { key })?;
                if list.len() != rotary_dim / 2 || list.iter().any(|x| !(*x > 0.0 && x.is_finite())) {
                    let expected = format!("a list of {} positive numbers", rotary_dim / 2);
                    return Err(ConfigError::Value { key, value: format!("a list of {}", list.len()), expected });
                }
                Ok(list)
            };
            let original = original()?;
            let factor = match p.opt_f64("factor")? {
                Some(factor) => factor,
                None => max_positions as f64 / original as f64,
            };
            RopeScaling::LongRope {
                short_factor: factors("short_factor")?,
                long_factor: factors("long_factor")?,
                original,
                factor,
                attention_factor: p.opt_f64("attention_factor")?,
            }
        }
        other => return Err(ConfigError::Unsupported { what: format!("rope type {other:?}") }),
    })
}

impl Rope {
    /// (frequencies, factor on cos and sin) for a sequence of `length` tokens.
    ///
    /// Frequencies are radians a position, `rotary_dim / 2` of them, computed in f64 and rounded to f32
    /// as the angles of the peers are; only the dynamic kinds depend on `length`.
    ///
    /// # Source
    /// The formulas of transformers' `modeling_rope_utils`; YaRN: arXiv:2309.00071, section 3;
    /// LongRoPE: arXiv:2402.13753; Llama 3.1: its release notes.
    pub fn frequencies(&self, length: usize) -> (Vec<f32>, f64) {
        let half = self.rotary_dim / 2;
        let dim = self.rotary_dim as f64;
        let with_base = |theta: f64| (0..half).map(move |i| theta.powf(-2.0 * i as f64 / dim));
        let plain = || with_base(self.theta);
        let (frequencies, factor): (Vec<f64>, f64) = match &self.scaling {
            RopeScaling::Default => (plain().collect(), 1.0),
            RopeScaling::Linear { factor } => (plain().map(|f| f / factor).collect(), 1.0),
            RopeScaling::Dynamic { factor } => {
                let stretch = (length as f64 / self.max_positions as f64).max(1.0);
                let theta = self.theta * (factor * stretch - (factor - 1.0)).powf(dim / (dim - 2.0));
                (with_base(if stretch > 1.0 { theta } else { self.theta }).collect(), 1.0)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let original = *original as f64;
                let scale = |f: f64| {
                    let wavelength = std::f64::consts::TAU / f;
                    if wavelength < original / high_freq_factor {
                        f
                    } else if wavelength > original / low_freq_factor {
                        f / factor
                    } else {
                        let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                (plain().map(scale).collect(), 1.0)
            }
            RopeScaling::Yarn { factor, attention_factor, mscale, mscale_all_dim, .. } => {
                let scale_of = |m: f64| if *factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
                let on_cos = attention_factor.unwrap_or(match (mscale, mscale_all_dim) {
                    (Some(m), Some(all)) if *m != 0.0 && *all != 0.0 => scale_of(*m) / scale_of(*all),
                    _ => scale_of(1.0),
                });
                (self.yarn(*factor, plain()), on_cos)
            }
            RopeScaling::LongRope { short_factor, long_factor, original, factor, attention_factor } => {
                let divisors = if length > *original { long_factor } else { short_factor };
                let on_cos = attention_factor.unwrap_or(if *factor <= 1.0 {
                    1.0
                } else {
                    (1.0 + factor.ln() / (*original as f64).ln()).sqrt()
                });
                (plain().zip(divisors).map(|(f, d)| f / d).collect(), on_cos)
            }
        };
        (frequencies.into_iter().map(|f| f as f32).collect(), factor)
    }

    /// YaRN's frequencies: kept above a ramp over the dimensions, divided by `factor` below it.
    fn yarn(&self, factor: f64, plain: impl Iterator<Item = f64>) -> Vec<f64> {
        let RopeScaling::Yarn { original, beta_fast, beta_slow, truncate, .. } = &self.scaling else {
            unreachable!("called for YaRN alone");
        };
        let dim = self.rotary_dim as f64;
        // The dimension that makes that many rotations over the original context.
        let at = |rotations: f64| {
            dim * (*original as f64 / (rotations * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (at(*beta_fast), at(*beta_slow));
        if *truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        plain
            .enumerate()
            .map(|(i, f)| {
                let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                f / factor * ramp + f * (1.0 - ramp)
            })
            .collect()
    }

    /// Whether the frequencies depend on the sequence's length.
    pub fn depends_on_length(&self) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. } | RopeScaling::LongRope { .. })
    }
}
