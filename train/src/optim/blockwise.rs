//! [`Blockwise`]: an optimizer whose state is updated run by run, in memory or from a file.

use std::path::Path;

use planish_autograd::Param;
use planish_tensor::{DType, Float, Real, Tensor, dispatch, dispatch_float, dispatch_real};

use super::adamw::decays;
use super::codes::Rounding;
use super::paging::{Next, Page, Pager, Piece, Scratch};
use super::rules::{Field, How, Rule};
use super::{Optimizer, Rates, Update};
use crate::Result;

/// Numbers of a parameter that are updated at a time: whole blocks, and 8 MiB of AdamW's state.
const RUN: usize = 1 << 20;
/// Numbers of a task.
const TASK: usize = 1 << 14;

/// How a state is kept.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Keep<'a> {
    /// In 8 bits, blockwise, where the tensor is large enough.
    pub eight_bits: bool,
    /// How a number finds its 8 bits.
    pub rounding: Rounding,
    /// Bytes of states that stay in memory, and the directory in which there is a file for the others; everything
    /// stays in memory if `None`.
    pub paged: Option<(u64, &'a Path)>,
}

/// AdamW, Lion or SGD, with its state in full or in 8 bits, in memory or, beyond a budget, in a file.
///
/// Weights stored in bf16 or f16 have an f32 master, which is part of the state. Where the state is does not change
/// a bit of the result: the same runs of numbers go through the same code.
pub struct Blockwise {
    rule: Rule,
    rounding: Rounding,
    slots: Vec<Slot>,
    step: u64,
    pager: Option<Pager>,
}

/// One parameter.
struct Slot {
    param: Param,
    decays: bool,
    /// Factor on the learning rate.
    rate: f64,
    numel: usize,
    wide: DType,
    fields: Vec<Field>,
    home: Home,
}

/// Where the fields are.
enum Home {
    Memory(Vec<Tensor>),
    /// Their places in the file.
    File(Vec<u64>),
}

/// The name of a master among the fields.
const MASTER: &str = "master";

/// The fields of a parameter's state, its master included.
pub(super) fn fields(rule: &Rule, param: &Param, eight_bits: bool) -> Vec<Field> {
    let (value, wide) = (param.value(), param.grad_dtype());
    let mut fields = rule.fields(value.numel(), wide, param.name(), eight_bits);
    if value.dtype() != wide {
        fields.push(Field::full(MASTER, wide));
    }
    fields
}

/// Bytes of the states that `budget` bytes of memory hold, in the order of the parameters, and of those that they do
/// not; the buffers through which these go are part of the first.
pub(super) fn split(sizes: impl Iterator<Item = (Vec<Field>, usize)>, budget: u64) -> (Vec<bool>, u64, u64) {
    let (mut here, mut memory, mut file, mut buffer) = (Vec::new(), 0, 0, 0);
    for (fields, n) in sizes {
        let bytes: u64 = fields.iter().map(|f| f.bytes(n) as u64).sum();
        let stays = memory + bytes <= budget;
        if stays {
            memory += bytes;
        } else {
            file += bytes;
            buffer = buffer.max(Page::capacity(&fields, n.min(RUN)));
        }
        here.push(stays);
    }
    (here, memory + (buffer * Pager::PAGES) as u64, file)
}

impl Blockwise {
    /// Of the trainable ones among `params`.
    ///
    /// # Errors
    /// Out of memory; a file that cannot be made, or that the disk has no room for.
    pub fn new(params: &[Param], rule: Rule, keep: Keep<'_>, rates: &Rates) -> Result<Blockwise> {
        let trained: Vec<&Param> = params.iter().filter(|p| p.is_trainable()).collect();
        let layout: Vec<_> = trained.iter().map(|p| (fields(&rule, p, keep.eight_bits), p.value().numel())).collect();
        let budget = keep.paged.map_or(u64::MAX, |(budget, _)| budget);
        let (here, _, _) = split(layout.iter().cloned(), budget);
        let (mut slots, mut end, mut capacity) = (Vec::with_capacity(trained.len()), 0u64, 0);
        for ((param, (fields, numel)), here) in trained.into_iter().zip(layout).zip(here) {
            let home = if here {
                Home::Memory(fields.iter().map(|f| Ok(Tensor::zeros([f.len(numel)], f.dtype)?)).collect::<Result<_>>()?)
            } else {
                capacity = capacity.max(Page::capacity(&fields, numel.min(RUN)));
                let place = |f: &Field| {
                    let at = end;
                    // Whole cache lines, so that what is mapped is aligned.
                    end = (end + f.bytes(numel) as u64).next_multiple_of(64);
                    at
                };
                Home::File(fields.iter().map(place).collect())
            };
            let (decays, rate, wide) = (decays(param.name()), rates.of(param), param.grad_dtype());
            slots.push(Slot { param: param.clone(), decays, rate, numel, wide, fields, home });
        }
        let pager = match keep.paged {
            Some((_, dir)) if end > 0 => Some(Pager::new(Scratch::new(dir, end)?, capacity)?),
            _ => None,
        };
        let mut all = Blockwise { rule, rounding: keep.rounding, slots, step: 0, pager };
        for slot in &mut all.slots {
            if let Some(i) = slot.fields.iter().position(|f| f.name == MASTER) {
                let master = slot.param.value().to_dtype(slot.wide)?;
                slot.put(i, &master, all.pager.as_ref())?;
            }
        }
        Ok(all)
    }
}

impl Slot {
    /// Puts a tensor in the place of a field.
    fn put(&mut self, i: usize, tensor: &Tensor, pager: Option<&Pager>) -> Result<()> {
        match (&mut self.home, pager) {
            (Home::Memory(tensors), _) => {
                let flat = tensor.reshape([tensor.numel()])?;
                tensors[i] = flat.copied()?;
            }
            (Home::File(places), Some(pager)) => {
                let tensor = tensor.contiguous()?;
                let place = places[i];
                dispatch!(tensor.dtype(), T => pager.scratch().write(bytemuck::cast_slice(tensor.as_slice::<T>()?), place))?;
            }
            (Home::File(_), None) => unreachable!("a slot in the file comes with one"),
        }
        Ok(())
    }

    /// The shape of a field in a checkpoint.
    fn shape(&self, field: &Field) -> Vec<usize> {
        if field.per == 1 { self.param.value().dims().to_vec() } else { vec![field.len(self.numel)] }
    }

    /// Where the run that begins at `start` is in the file.
    fn pieces(&self, start: usize, len: usize) -> Vec<Piece> {
        let Home::File(places) = &self.home else { return Vec::new() };
        let piece = |(f, place): (&Field, &u64)| Piece { place: place + f.bytes(start) as u64, bytes: f.bytes(len) };
        self.fields.iter().zip(places).map(piece).collect()
    }

    /// Updates the run that begins at `start` by `g`, whose state lies in `state`.
    fn run(&self, rule: &Rule, how: &How, g: &Tensor, start: usize, len: usize, state: Vec<&mut [u8]>) -> Result<()> {
        let inner = || -> planish_tensor::Result<()> {
            dispatch_real!("optimizer", self.wide, R => {
                let g = &g.as_slice::<R>()?[start..start + len];
                let mut state = state;
                if self.param.value().dtype() == self.wide {
                    return self.param.update(|w| {
                        let w = &mut w.as_slice_mut::<R>()?[start..start + len];
                        tasks(rule, how, w, g, &self.fields, state);
                        Ok(())
                    });
                }
                let master = state.pop().expect("narrow weights have a master");
                let master: &mut [R] = bytemuck::cast_slice_mut(master);
                tasks(rule, how, master, g, &self.fields, state);
                self.param.update(|w| {
                    dispatch_float!("optimizer", w.dtype(), W => {
                        let w = &mut w.as_slice_mut::<W>()?[start..start + len];
                        w.iter_mut().zip(&*master).for_each(|(w, &m)| *w = <W as Float>::round(m));
                    });
                    Ok(())
                })
            })
        };
        Ok(inner()?)
    }
}

/// Splits a run over the threads. Tasks are of whole blocks: any split gives the same bits.
fn tasks<R: Real>(rule: &Rule, how: &How, w: &mut [R], g: &[R], fields: &[Field], state: Vec<&mut [u8]>) {
    let mut states: Vec<_> = fields.iter().zip(state).map(|(f, s)| s.chunks_mut(f.bytes(TASK).max(1))).collect();
    let all: Vec<_> = w
        .chunks_mut(TASK)
        .zip(g.chunks(TASK))
        .map(|(w, g)| (w, g, states.iter_mut().map(|s| s.next().unwrap_or_default()).collect::<Vec<_>>()))
        .collect();
    use rayon::prelude::*;
    all.into_par_iter().for_each(|(w, g, mut state)| rule.apply(how, w, g, &mut state));
}

/// A run of a slot.
#[derive(Clone, Copy)]
struct Part {
    slot: usize,
    start: usize,
    len: usize,
}

impl Blockwise {
    /// The runs of this step in memory and in the file, evenly mixed, so that there is work while the file is read.
    fn parts(&self, grads: &[Option<Tensor>]) -> Vec<(bool, Part)> {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for (i, slot) in self.slots.iter().enumerate().filter(|(i, _)| grads[*i].is_some()) {
            let to = if matches!(slot.home, Home::Memory(_)) { &mut here } else { &mut there };
            to.extend((0..slot.numel).step_by(RUN).map(|start| Part {
                slot: i,
                start,
                len: RUN.min(slot.numel - start),
            }));
        }
        let (n, m) = (here.len().max(1), there.len().max(1));
        let here = here.into_iter().enumerate().map(|(i, p)| ((2 * i + 1) * m, false, p));
        let there = there.into_iter().enumerate().map(|(i, p)| ((2 * i + 1) * n, true, p));
        let mut all: Vec<_> = here.chain(there).collect();
        all.sort_by_key(|(at, paged, _)| (*at, *paged));
        all.into_iter().map(|(_, paged, part)| (paged, part)).collect()
    }
}

impl Optimizer for Blockwise {
    fn params(&self) -> Vec<Param> {
        self.slots.iter().map(|s| s.param.clone()).collect()
    }

    fn step(&mut self, update: Update) -> Result<()> {
        self.step += 1;
        let take = |s: &Slot| s.param.take_grad().map(|g| g.contiguous()).transpose();
        let grads = self.slots.iter().map(take).collect::<planish_tensor::Result<Vec<_>>>()?;
        let parts = self.parts(&grads);
        let (rule, step, rounding) = (self.rule, self.step, self.rounding);
        let how = |slot: &Slot| How {
            rate: update.learning_rate * slot.rate,
            scale: update.grad_scale,
            decays: slot.decays,
            step,
            rounding,
        };
        let pages = parts.iter().filter(|(paged, _)| *paged);
        let pages: Vec<Vec<Piece>> = pages.map(|(_, p)| self.slots[p.slot].pieces(p.start, p.len)).collect();
        let slots = &mut self.slots;
        let mut work = |next: &mut Next<'_>| {
            for (paged, part) in &parts {
                let slot = &mut slots[part.slot];
                let how = how(slot);
                let Some(grad) = &grads[part.slot] else { continue };
                if *paged {
                    next(&mut |page| slot.run(&rule, &how, grad, part.start, part.len, page.parts()))?;
                    continue;
                }
                let Home::Memory(mut tensors) = std::mem::replace(&mut slot.home, Home::Memory(Vec::new())) else {
                    unreachable!("parts in memory are of slots in memory")
                };
                let mut state = Vec::with_capacity(tensors.len());
                for (tensor, field) in tensors.iter_mut().zip(&slot.fields) {
                    let (from, bytes) = (field.bytes(part.start), field.bytes(part.len));
                    let all: &mut [u8] = bytes_of(tensor)?;
                    state.push(&mut all[from..from + bytes]);
                }
                slot.run(&rule, &how, grad, part.start, part.len, state)?;
                slot.home = Home::Memory(tensors);
            }
            Ok(())
        };
        match &mut self.pager {
            Some(pager) => pager.through(&pages, work),
            None => work(&mut |_| unreachable!("nothing is in a file")),
        }
    }

    /// What is in the file is mapped, not read: these tensors hold until the next step.
    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let map = self.pager.as_ref().map(|p| p.scratch().map()).transpose()?;
        let mut all = Vec::new();
        for slot in &self.slots {
            for (i, field) in slot.fields.iter().enumerate() {
                let tensor = match (&slot.home, &map) {
                    (Home::Memory(tensors), _) => tensors[i].reshape(slot.shape(field))?,
                    (Home::File(places), Some(map)) => {
                        Tensor::from_mapped(map, places[i] as usize, field.dtype, slot.shape(field))?
                    }
                    (Home::File(_), None) => unreachable!("a slot in the file comes with one"),
                };
                all.push((format!("{}.{}", field.name, slot.param.name()), tensor));
            }
        }
        Ok(all)
    }

    fn restore(&mut self, step: u64, get: &dyn Fn(&str) -> Result<Tensor>) -> Result<()> {
        for slot in &mut self.slots {
            for i in 0..slot.fields.len() {
                let field = slot.fields[i];
                let tensor = get(&format!("{}.{}", field.name, slot.param.name()))?;
                let shape = slot.shape(&field);
                if tensor.dims() != shape || tensor.dtype() != field.dtype {
                    let (lhs, rhs) = (tensor.dims().to_vec(), shape);
                    let what = "a tensor of the optimizer's state against the weight";
                    return Err(planish_tensor::Error::ShapeMismatch { op: "optimizer", what, lhs, rhs }.into());
                }
                slot.put(i, &tensor, self.pager.as_ref())?;
            }
        }
        self.step = step;
        Ok(())
    }
}

/// The bytes of a tensor, for writing.
fn bytes_of(tensor: &mut Tensor) -> planish_tensor::Result<&mut [u8]> {
    dispatch!(tensor.dtype(), T => Ok(bytemuck::cast_slice_mut(tensor.as_slice_mut::<T>()?)))
}

#[cfg(test)]
mod tests {
    use super::super::AdamWSettings;
    use super::*;

    /// A checkpoint without its states would go on as another run.
    #[test]
    fn states_that_cannot_be_read_are_an_error_and_not_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let param = Param::trainable("w", Tensor::zeros([64, 64], DType::F32).unwrap());
        let rule = Rule::AdamW(AdamWSettings { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0 });
        let keep = Keep { paged: Some((0, dir.path())), ..Keep::default() };
        let optimizer = Blockwise::new(&[param], rule, keep, &Rates::default()).unwrap();
        assert_eq!(optimizer.state().unwrap().len(), 2);
        optimizer.pager.as_ref().unwrap().scratch().cut();
        assert!(optimizer.state().is_err());
    }
}
