//! Matching of layers: a student's hidden states, projected, against the teacher's.

use std::collections::BTreeMap;
use std::path::Path;

use planish_autograd::ops::cast::cast;
use planish_autograd::ops::index_select::index_select;
use planish_autograd::ops::{elementwise, linear, reduction};
use planish_autograd::{Param, Var};
use planish_nn::Ctx;
use planish_nn::decoder::Model;
use planish_nn::weights::{WeightsReader, save_safetensors};
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Tensor};

use crate::config::ConfigError;
use crate::trainer::PROJECTIONS_FILE;
use crate::{Error, Result};

/// Pairs of layers, each with a projection W, (teacher's hidden, student's hidden), trained beside the student:
///
/// ```text
/// weight · Σ_layers Σ_tokens |W h_student - h_teacher|² / (teacher's hidden)
/// ```
///
/// # Source
/// Romero et al., "FitNets", arXiv 1412.6550, equation 3, with the mean for the sum over features.
pub struct Features {
    student: Vec<usize>,
    pub(super) teacher: Vec<usize>,
    projections: Vec<Param>,
    weight: f64,
}

impl Features {
    /// From entries `STUDENT=TEACHER`. The projections are drawn by `seed` and put beside the student.
    ///
    /// # Errors
    /// [`ConfigError::Conflict`]: an entry that is none, or a layer that there is not.
    pub fn new(student: &mut Model, teacher: &Model, layers: &[String], weight: f64, seed: u64) -> Result<Features> {
        let bad = || ConfigError::Conflict {
            key: "feature_layers",
            problem: "must be STUDENT=TEACHER, two numbers of layers that the models have, from 0",
        };
        let number = |text: &str, model: &Model| -> Option<usize> {
            text.trim().parse::<usize>().ok().filter(|n| *n < model.layers.len())
        };
        let pair = |entry: &String| -> Option<(usize, usize)> {
            let (s, t) = entry.split_once('=')?;
            Some((number(s, student)?, number(t, teacher)?))
        };
        let pairs = layers.iter().map(|entry| pair(entry).ok_or_else(bad)).collect::<Result<Vec<_>, _>>()?;
        let (from, to) = (student.config.hidden_size, teacher.config.hidden_size);
        let mut projections = Vec::new();
        for i in 0..pairs.len() {
            let stream = Stream::new(seed, Purpose::Init, 1 + i as u64);
            let deviation = (from as f64).sqrt().recip();
            let values: Vec<f64> = (0..(to * from) as u64).map(|k| stream.normal(k) * deviation).collect();
            let value = Tensor::from_vec(values, [to, from])?.to_dtype(student.dtype())?.to_device(student.device())?;
            projections.push(Param::trainable(format!("distill.projection.{i}"), value));
        }
        student.beside.extend(projections.iter().cloned());
        let (student, teacher): (Vec<usize>, Vec<usize>) = pairs.into_iter().unzip();
        Ok(Features { student, teacher, projections, weight })
    }

    /// Layers of the student.
    pub(super) fn layers(&self) -> &[usize] {
        &self.student
    }

    /// The term at `rows` of what came out of the student's layers, against the teacher's there: a sum over rows.
    pub(super) fn distance(&self, ctx: &Ctx, student: &[Var], teacher: &[Tensor], rows: &[u32]) -> Result<Var> {
        let mut sum: Option<Var> = None;
        for ((own, theirs), projection) in student.iter().zip(teacher).zip(&self.projections) {
            // Of halves the distance is f32, as every sum is.
            let own = cast(&index_select(own, rows)?, theirs.dtype())?;
            let projected = linear::linear(&own, &ctx.param(projection), None)?;
            let off = elementwise::sub(&projected, &Var::constant(theirs.clone()))?;
            let factor = self.weight / theirs.dims()[1] as f64;
            let term = elementwise::scale(&reduction::sum(&elementwise::mul(&off, &off)?)?, factor)?;
            sum = Some(match sum {
                None => term,
                Some(sum) => elementwise::add(&sum, &term)?,
            });
        }
        Ok(sum.expect("there are layers"))
    }

    pub(super) fn save(&self, dir: &Path) -> Result<()> {
        let tensors: Vec<_> = self.projections.iter().map(|p| (p.name().to_string(), p.value())).collect();
        Ok(save_safetensors(dir.join(PROJECTIONS_FILE), tensors, &BTreeMap::new())?)
    }

    pub(super) fn load(&self, dir: &Path) -> Result<()> {
        let bad = |problem: String| Error::Checkpoint { path: dir.to_path_buf(), problem };
        let path = dir.join(PROJECTIONS_FILE);
        if !path.is_file() {
            return Err(bad(format!("{PROJECTIONS_FILE} is missing: the run matched no layers")));
        }
        let reader = WeightsReader::open(path)?;
        for p in &self.projections {
            let found = reader.contains(p.name()).then(|| reader.get(p.name())).transpose()?;
            let fits = found.filter(|t| t.dims() == p.value().dims() && t.dtype() == p.value().dtype());
            let tensor = fits.ok_or_else(|| bad(format!("{PROJECTIONS_FILE} has no `{}` that fits", p.name())))?;
            p.update(|t| -> Result<()> {
                // Out of the mapped file, so that it can be written.
                *t = if t.device().is_cpu() { tensor.copied()? } else { tensor.to_device(t.device())? };
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Hidden states at rows, as a teacher's, in the type of a distance: nothing is recorded.
pub(super) fn selected(hidden: &[Var], rows: &[u32]) -> Result<Vec<Tensor>> {
    let wide = |dtype| if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let of = |h: &Var| index_select(&h.detach(), rows).map(|rows| rows.value().clone());
    hidden.iter().map(|h| of(h).and_then(|rows| Ok(rows.to_dtype(wide(rows.dtype()))?)).map_err(Into::into)).collect()
}
