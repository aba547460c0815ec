//! The divergence of a student's predictions from a teacher's. What is one number a row or k is kept on the host, as on the
//! processor: k and the rows that carry a loss are few.

use planish_cuda::DType as Type;
use planish_cuda::memory::Slice;
use planish_cuda::ops::lm_head::{self as head, Gradients, Rows};
use planish_cuda::ops::lm_head_divergence::{self as kernel, Side, Top};

use super::On;
use super::lm_head::{dense, options, predictions};
use crate::ops::lm_head::LmHead;
use crate::ops::lm_head_divergence::{Divergence, DivergenceOutput, Teacher, finish_top, tempered};
use crate::{DType, Device, Result, Tensor};

const OP: &str = "lm_head_divergence";

/// A column of numbers on the device.
fn column(on: &On, values: &[f64]) -> Result<Tensor> {
    let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
    let len = values.len();
    Tensor::from_vec(values, [len])?.to_device(on.device())
}

fn host(t: &Tensor) -> Result<Vec<f64>> {
    Ok(t.to_device(Device::Cpu)?.to_vec::<f32>()?.into_iter().map(f64::from).collect())
}

/// A model's hidden states and head without gaps, and its options at the temperature.
struct Model {
    hidden: Tensor,
    weight: Tensor,
    head: head::LmHead,
}

impl Model {
    fn new(hidden: &Tensor, weight: &Tensor, of: &LmHead, temperature: f64) -> Result<Model> {
        let (hidden, weight) = dense(hidden, weight)?;
        Ok(Model { hidden, weight, head: options(&tempered(of, temperature)) })
    }

    /// `targets`: as many as there are rows, whichever they are.
    fn rows<'a>(&'a self, targets: Slice<'a>) -> Result<Rows<'a>> {
        Ok(Rows { hidden: self.hidden.cells()?, weight: self.weight.cells()?, targets })
    }

    fn side<'a>(&'a self, targets: Slice<'a>, lse: &'a Tensor) -> Result<Side<'a>> {
        Ok(Side { of: self.rows(targets)?, head: self.head, lse: lse.cells()? })
    }
}

pub(crate) fn forward(
    on: &On,
    hidden: &Tensor,
    weight: &Tensor,
    of: &LmHead,
    teacher: &Teacher<'_>,
    what: &Divergence,
) -> Result<DivergenceOutput> {
    let (rows, queue) = (hidden.dims()[0], on.queue());
    let student = Model::new(hidden, weight, of, what.temperature)?;
    if rows == 0 {
        let none = || on.zeros(OP, [0], DType::F32);
        return Ok(DivergenceOutput::of_none(none()?, none()?));
    }
    let words = on.words(&vec![0; rows])?;
    let targets = words.slice(Type::U32);
    let ours = predictions(on, student.rows(targets)?, &student.head)?;
    let best = |t: &Tensor| t.to_device(Device::Cpu)?.to_vec::<u32>();
    match teacher {
        Teacher::Head { hidden: theirs, weight, options } => {
            let theirs = Model::new(theirs, weight, options, what.temperature)?;
            let other = predictions(on, theirs.rows(targets)?, &theirs.head)?;
            let column = || on.scratch(OP, [rows], DType::F32);
            let (mut divergence, mut centre) = (column()?, column()?);
            let sides = [student.side(targets, &ours.lse)?, theirs.side(targets, &other.lse)?];
            let sums = [divergence.cells_mut()?, centre.cells_mut()?];
            kernel::forward(queue, sums, sides.each_ref(), what.beta as f32)?;
            Ok(DivergenceOutput {
                divergence,
                agrees: best(&ours.best)?.iter().zip(best(&other.best)?).map(|(a, b)| *a == b).collect(),
                lse: host(&ours.lse)?,
                teacher: host(&other.lse)?,
                centre: host(&centre)?,
                top: Vec::new(),
                entropy: ours.entropy,
            })
        }
        Teacher::Top { ids, logprobs, k } => {
            let table = on.words(ids)?;
            let mut kept = on.scratch(OP, [rows, *k], DType::F32)?;
            let mut rest = on.scratch(OP, [rows, 2], DType::F32)?;
            let top = Top { ids: table.slice(Type::U32), k: *k };
            let to = [kept.cells_mut()?, rest.cells_mut()?];
            kernel::forward_top(queue, to, &student.side(targets, &ours.lse)?, top)?;
            let (lse, kept, rest) = (host(&ours.lse)?, host(&kept)?, host(&rest)?);
            let (mut divergence, mut factor, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
            for (r, lse) in lse.iter().enumerate() {
                let row = r * k..(r + 1) * k;
                let others = (rest[2 * r], rest[2 * r + 1]);
                let (d, f, s) = finish_top(what.beta, &kept[row.clone()], *lse, others, &logprobs[row]);
                divergence.push(d);
                factor.push(f);
                slopes.extend(s);
            }
            Ok(DivergenceOutput {
                divergence: column(on, &divergence)?,
                agrees: best(&ours.best)?.iter().zip(ids.chunks(*k)).map(|(a, b)| *a == b[0]).collect(),
                lse,
                teacher: factor,
                centre: Vec::new(),
                top: slopes,
                entropy: ours.entropy,
            })
        }
    }
}

/// dhidden, f32; dW added to `dweight`.
pub(crate) fn backward(
    on: &On,
    ddivergence: &Tensor,
    hidden: &Tensor,
    weight: &Tensor,
    of: &LmHead,
    teacher: &Teacher<'_>,
    what: &Divergence,
    out: &DivergenceOutput,
    dweight: Option<&mut Tensor>,
) -> Result<Tensor> {
    let (rows, queue) = (hidden.dims()[0], on.queue());
    let student = Model::new(hidden, weight, of, what.temperature)?;
    let mut dhidden = on.scratch(OP, student.hidden.shape(), DType::F32)?;
    if rows == 0 {
        return Ok(dhidden);
    }
    let ddivergence = ddivergence.contiguous()?;
    let words = on.words(&vec![0; rows])?;
    let targets = words.slice(Type::U32);
    let to = Gradients {
        dlogprobs: Some(ddivergence.cells()?),
        dhidden: dhidden.cells_mut()?,
        dweight: dweight.map(Tensor::cells_mut).transpose()?,
    };
    let lse = column(on, &out.lse)?;
    match teacher {
        Teacher::Head { hidden: theirs, weight, options } => {
            let theirs = Model::new(theirs, weight, options, what.temperature)?;
            let (other, centre) = (column(on, &out.teacher)?, column(on, &out.centre)?);
            let sides = [student.side(targets, &lse)?, theirs.side(targets, &other)?];
            kernel::backward(queue, to, sides.each_ref(), centre.cells()?, what.beta as f32)?;
        }
        Teacher::Top { ids, k, .. } => {
            let (table, slopes, factors) = (on.words(ids)?, column(on, &out.top)?, column(on, &out.teacher)?);
            let top = Top { ids: table.slice(Type::U32), k: *k };
            let known = [slopes.cells()?, factors.cells()?];
            kernel::backward_top(queue, to, &student.side(targets, &lse)?, top, known)?;
        }
    }
    Ok(dhidden)
}
