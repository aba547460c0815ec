//! The language-model head.

use planish_cuda::DType as Type;
use planish_cuda::ops::lm_head::{self as kernel, Gradients, Output, Rows};
use planish_cuda::ops::lm_head_top;

use super::super::memory::type_of;
use super::On;
use crate::ops::linear::matmul;
use crate::ops::lm_head::{LmHead, LmHeadOutput};
use crate::{DType, Device, Result, Tensor};

const OP: &str = "lm_head";

pub(super) fn options(of: &LmHead) -> kernel::LmHead {
    kernel::LmHead { scale: of.scale as f32, softcap: of.softcap.map(|c| c as f32) }
}

/// Bytes that the head takes on a device beside its arguments and results, for so many rows of this dtype: where the
/// logits are made once, and where they are made tile by tile, in the backward pass or for want of room.
///
/// # Errors
/// A dtype that devices do not have.
pub fn scratch_bytes(device: Device, rows: usize, vocabulary: usize, hidden: DType) -> Result<[u64; 2]> {
    let all = kernel::scratch_bytes(rows, vocabulary, type_of(OP, hidden)?);
    Ok(all.map(|buffers| buffers.into_iter().map(|bytes| device.taken(bytes as u64)).sum()))
}

/// Both without gaps; the weight in the type of half hidden states, for tensor cores.
pub(super) fn dense(hidden: &Tensor, weight: &Tensor) -> Result<(Tensor, Tensor)> {
    let weight = weight.contiguous()?;
    let as_it_is = hidden.dtype() == DType::F32 && weight.dtype() != DType::Packed;
    let weight = if as_it_is { weight } else { weight.rounded(hidden.dtype())? };
    Ok((hidden.contiguous()?, weight))
}

/// Places of the results of `rows` rows.
pub(super) struct Results {
    logprobs: Tensor,
    pub(super) entropy: Tensor,
    pub(super) lse: Tensor,
    pub(super) best: Tensor,
}

impl Results {
    fn new(on: &On, rows: usize) -> Result<Results> {
        let column = |dtype| on.scratch(OP, [rows], dtype);
        let [logprobs, entropy, lse] = [(); 3].map(|()| column(DType::F32));
        Ok(Results { logprobs: logprobs?, entropy: entropy?, lse: lse?, best: column(DType::U32)? })
    }

    fn places(&mut self) -> Result<Output<'_>> {
        Ok(Output {
            logprobs: self.logprobs.cells_mut()?,
            entropy: Some(self.entropy.cells_mut()?),
            lse: self.lse.cells_mut()?,
            best: self.best.cells_mut()?,
        })
    }
}

/// All that the head says of rows, of which there is at least one.
pub(super) fn predictions(on: &On, of: Rows<'_>, head: &kernel::LmHead) -> Result<Results> {
    let mut out = Results::new(on, of.targets.len())?;
    kernel::forward(on.queue(), out.places()?, of, head)?;
    Ok(out)
}

/// Log-probabilities of the targets.
pub(crate) fn forward(on: &On, hidden: &Tensor, weight: &Tensor, targets: &[u32], of: &LmHead) -> Result<LmHeadOutput> {
    let (hidden, weight) = dense(hidden, weight)?;
    let mut out = Results::new(on, targets.len())?;
    if !targets.is_empty() {
        let words = on.words(targets)?;
        let rows = Rows { hidden: hidden.cells()?, weight: weight.cells()?, targets: words.slice(Type::U32) };
        kernel::forward(on.queue(), out.places()?, rows, &options(of))?;
    }
    let Results { logprobs, entropy, lse, best } = out;
    Ok(LmHeadOutput { logprobs, entropy, lse, correct: Correct::new(best, targets) })
}

/// dhidden, f32; dW added to `dweight`.
pub(crate) fn backward(
    on: &On,
    dlogprobs: &Tensor,
    hidden: &Tensor,
    weight: &Tensor,
    targets: &[u32],
    lse: &Tensor,
    of: &LmHead,
    dweight: Option<&mut Tensor>,
) -> Result<Tensor> {
    let (hidden, weight) = dense(hidden, weight)?;
    let (dlogprobs, lse) = (dlogprobs.contiguous()?, lse.contiguous()?);
    let mut dhidden = on.scratch(OP, hidden.shape(), DType::F32)?;
    if !targets.is_empty() {
        let words = on.words(targets)?;
        let rows = Rows { hidden: hidden.cells()?, weight: weight.cells()?, targets: words.slice(Type::U32) };
        let to = Gradients {
            dlogprobs: Some(dlogprobs.cells()?),
            dhidden: dhidden.cells_mut()?,
            dweight: dweight.map(Tensor::cells_mut).transpose()?,
        };
        kernel::backward(on.queue(), to, lse.cells()?, rows, &options(of))?;
    }
    Ok(dhidden)
}

/// As [`forward`], and dhidden: (rows, size) f32, of the same logits, for `dlogprobs` (ones if not given); dW is added to
/// `dweight`.
pub(crate) fn forward_with_gradients(
    on: &On,
    dlogprobs: Option<&Tensor>,
    hidden: &Tensor,
    weight: &Tensor,
    targets: &[u32],
    of: &LmHead,
    dweight: Option<&mut Tensor>,
) -> Result<(LmHeadOutput, Tensor)> {
    let (hidden, weight) = dense(hidden, weight)?;
    let dlogprobs = dlogprobs.map(Tensor::contiguous).transpose()?;
    let mut out = Results::new(on, targets.len())?;
    let mut dhidden = on.scratch(OP, hidden.shape(), DType::F32)?;
    if !targets.is_empty() {
        let words = on.words(targets)?;
        let rows = Rows { hidden: hidden.cells()?, weight: weight.cells()?, targets: words.slice(Type::U32) };
        let to = Gradients {
            dlogprobs: dlogprobs.as_ref().map(Tensor::cells).transpose()?,
            dhidden: dhidden.cells_mut()?,
            dweight: dweight.map(Tensor::cells_mut).transpose()?,
        };
        kernel::forward_with_gradients(on.queue(), out.places()?, to, rows, &options(of))?;
    }
    let Results { logprobs, entropy, lse, best } = out;
    Ok((LmHeadOutput { logprobs, entropy, lse, correct: Correct::new(best, targets) }, dhidden))
}

/// W h of a few rows, f32 whatever h is: the sums that [`forward`] computes within.
pub(crate) fn logits(hidden: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (hidden, weight) = dense(hidden, weight)?;
    matmul(&hidden, &weight.transpose(0, 1)?, DType::F32)
}

/// Logits capped and scaled, in place.
pub(crate) fn cap(on: &On, logits: &mut Tensor, of: &LmHead) -> Result<()> {
    if of.scale == 1.0 && of.softcap.is_none() {
        return Ok(());
    }
    Ok(kernel::cap(on.queue(), logits.cells_mut()?, &options(of))?)
}

/// Log-probability of each row's target from whole rows of logits, raw but for what `of` says.
pub(crate) fn from_logits(on: &On, logits: &Tensor, targets: &[u32], of: &LmHead) -> Result<Tensor> {
    let (logits, vocabulary) = (logits.contiguous()?, logits.dims()[1]);
    let mut out = Results::new(on, targets.len())?;
    if !targets.is_empty() {
        let words = on.words(targets)?;
        let (logits, targets) = (logits.cells()?, words.slice(Type::U32));
        kernel::from_logits(on.queue(), out.places()?, logits, targets, vocabulary, &options(of))?;
    }
    Ok(out.logprobs)
}

/// The `k` most probable tokens of each row of logits, and their log-probabilities at a temperature.
pub(crate) fn most_probable(on: &On, logits: &Tensor, k: usize, temperature: f64) -> Result<Vec<(u32, f64)>> {
    let (logits, what) = (logits.contiguous()?, "the most probable tokens");
    let (n, width) = (logits.dims()[0] * k, logits.dims()[1]);
    if n == 0 {
        return Ok(Vec::new());
    }
    // Ids, then their log-probabilities: one copy brings both home.
    let mut both = on.queue().alloc(what, 2 * n, Type::U32)?;
    let (ids, logprobs) = both.slice_mut(Type::U32).split(n)?;
    let logprobs = logprobs.bits_of(Type::F32)?;
    lm_head_top::most_probable(on.queue(), ids, logprobs, logits.cells()?, width, k, temperature as f32)?;
    let both: Vec<u32> = both.download()?;
    on.downloaded(size_of_val(&*both));
    let (ids, bits) = both.split_at(n);
    Ok(ids.iter().zip(bits).map(|(&id, &bits)| (id, f64::from(f32::from_bits(bits)))).collect())
}

/// Whether each target is the most probable token: known on the host, or still on the device.
#[derive(Debug, Clone)]
pub struct Correct(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Here(Vec<bool>),
    There { best: Tensor, targets: Vec<u32> },
}

impl Correct {
    fn new(best: Tensor, targets: &[u32]) -> Correct {
        Correct(Kind::There { best, targets: targets.to_vec() })
    }

    /// The answers; copied from the device, if they are there.
    ///
    /// # Errors
    /// A kernel that failed.
    pub fn read(&self) -> Result<Vec<bool>> {
        match &self.0 {
            Kind::Here(all) => Ok(all.clone()),
            Kind::There { best, targets } => {
                let best = best.to_device(Device::Cpu)?.to_vec::<u32>()?;
                Ok(best.iter().zip(targets).map(|(b, t)| b == t).collect())
            }
        }
    }
}

impl From<Vec<bool>> for Correct {
    fn from(all: Vec<bool>) -> Correct {
        Correct(Kind::Here(all))
    }
}
