//! What is read off the LM head besides log-probabilities of targets. Full logits never exist.

use planish_autograd::Var;
use planish_autograd::ops::index_select;
use planish_autograd::ops::lm_head_divergence::{Divergence, Divergences, Teacher, lm_head_divergence};
use planish_tensor::gemm::Store;
use planish_tensor::ops::linear::{matmul, matmul_into};
use planish_tensor::{DType, Device, Tensor};

use super::Model;
use crate::{Ctx, Result};

impl Model {
    /// The head's two inputs at rows of `hidden`: hidden states, (rows, size), and weight, (vocabulary, size), with
    /// an adapter's low-rank update as `size` more columns.
    ///
    /// # Errors
    /// A row out of range.
    pub fn head_inputs(&self, ctx: &Ctx, hidden: &Var, rows: &[u32]) -> Result<(Var, Var)> {
        let selected = index_select::index_select(hidden, rows)?;
        let head = self.head(ctx);
        match self.head_lora.active(ctx) {
            None => Ok((selected, head)),
            Some(lora) => Ok(lora.widen(ctx, &selected, &head, Some(rows))?),
        }
    }

    /// How far this model's predictions at rows of `hidden` are from a teacher's; see [`lm_head_divergence`].
    ///
    /// # Errors
    /// A row out of range; a teacher that does not fit.
    pub fn divergences(
        &self,
        ctx: &Ctx,
        hidden: &Var,
        rows: &[u32],
        teacher: &Teacher,
        what: &Divergence,
    ) -> Result<Divergences> {
        let (hidden, head) = self.head_inputs(ctx, hidden, rows)?;
        Ok(lm_head_divergence(&hidden, &head, &self.head_options(), teacher, what)?)
    }

    /// What a student needs to know of this model at rows of `hidden`. Nothing is recorded.
    ///
    /// # Errors
    /// A row out of range.
    pub fn as_teacher(&self, ctx: &Ctx, hidden: &Var, rows: &[u32]) -> Result<Teacher> {
        let (hidden, head) = self.head_inputs(&ctx.on(None), &hidden.detach(), rows)?;
        Ok(Teacher::Head { hidden: hidden.into_value(), weight: head.into_value(), options: self.head_options() })
    }

    /// The mean over the vocabulary of the logits at rows of `hidden`: scale · h · (mean row of W), without a single
    /// logit. `None` where logits are capped, since the mean of capped numbers is not that of the others.
    ///
    /// # Errors
    /// A row out of range.
    pub fn mean_logits(&self, ctx: &Ctx, hidden: &Var, rows: &[u32]) -> Result<Option<Vec<f64>>> {
        let options = self.head_options();
        if options.softcap.is_some() {
            return Ok(None);
        }
        let (hidden, head) = self.head_inputs(&ctx.on(None), &hidden.detach(), rows)?;
        let (h, w) = (hidden.value(), head.value());
        let (vocabulary, size, dtype) = (w.dims()[0], w.dims()[1], h.dtype());
        let factor = options.scale / vocabulary as f64;
        if !h.device().is_cpu() {
            // Ones are exact in halves, and so the products may be on tensor cores; sums are f32.
            let ones = Tensor::full(1.0, [1, vocabulary])?.to_dtype(dtype)?.to_device(h.device())?;
            let sum = matmul(&ones, w, DType::F32)?;
            let out = matmul(&h.to_dtype(DType::F32)?, &sum.transpose(0, 1)?, DType::F32)?;
            let out = out.to_device(Device::Cpu)?.to_vec::<f32>()?;
            return Ok(Some(out.into_iter().map(|x| factor * f64::from(x)).collect()));
        }
        let ones = Tensor::full(factor, [1, vocabulary])?.to_dtype(dtype)?;
        let mut mean = Tensor::zeros([1, size], dtype)?;
        matmul_into(&ones, w, &mut mean, Store::Set)?;
        let mut out = Tensor::zeros([rows.len(), 1], dtype)?;
        matmul_into(h, &mean.transpose(0, 1)?, &mut out, Store::Set)?;
        Ok(Some(out.to_dtype(DType::F64)?.to_vec::<f64>()?))
    }
}
