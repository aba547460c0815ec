//! [`Tape`] and [`Var`]: recording, and the backward pass.
//!
//! A [`Var`] is a tensor and, if gradients are wanted, a place on a tape. An op computes its output
//! and, if any input is tracked, appends a node with what its backward rule needs. Without tracked
//! inputs nothing is recorded: inference runs the very same code (law 5 of the design).

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use planish_tensor::{DType, Device, Tensor};

use crate::param::{Param, accumulate, grad_dtype, widened};
use crate::registry::{Backward, Op};
use crate::saved::{Recipe, Saved};
use crate::sum::Sum;
use crate::{Error, Result};

/// A record of differentiable operations, for one backward pass.
#[derive(Clone, Default)]
pub struct Tape(Rc<Inner>);

#[derive(Default)]
struct Inner {
    nodes: RefCell<Vec<Node>>,
    /// What is known of each slot, by slot number.
    slots: RefCell<Vec<Slot>>,
}

/// A tracked value's place: where its gradient goes.
struct Slot {
    shape: Vec<usize>,
    dtype: DType,
    device: Device,
    of: Of,
}

/// What a tracked value is.
enum Of {
    Param(Param),
    Leaf,
    /// An op's output.
    Output,
}

impl Slot {
    /// Dtype of the gradient where it is read. Those of parameters and leaves are in the compute dtype. An op's rule hears
    /// of its output's gradient in the output's own dtype on a device, where kernels compute on halves, and in the compute
    /// dtype on the processor, where none does.
    fn read_as(&self) -> DType {
        match self.of {
            Of::Output if !self.device.is_cpu() && self.dtype.is_float() => self.dtype,
            _ => grad_dtype(self.dtype),
        }
    }

    /// Whether a rule may give a gradient of this dtype. On a device a half is rounded or widened where it is read.
    fn takes(&self, dtype: DType) -> bool {
        let both = [dtype, self.read_as()];
        both[0] == both[1]
            || !self.device.is_cpu() && both.iter().all(|d| matches!(d, DType::F32 | DType::BF16 | DType::F16))
    }
}

struct Node {
    op: &'static Op,
    inputs: Vec<Option<usize>>,
    outputs: Range<usize>,
    rule: Box<dyn Rule>,
}

/// The backward rule of one application of an op, holding what it saved.
pub trait Rule {
    /// Reads the upstream gradients from `grads` and adds those of the inputs.
    ///
    /// # Errors
    /// Those of the kernels.
    fn backward(self: Box<Self>, grads: &mut Grads<'_>) -> Result<()>;
}

impl<F: FnOnce(&mut Grads<'_>) -> Result<()>> Rule for F {
    fn backward(self: Box<Self>, grads: &mut Grads<'_>) -> Result<()> {
        self(grads)
    }
}

/// A tensor that may be tracked by a tape.
#[derive(Clone)]
pub struct Var {
    value: Tensor,
    place: Option<(Tape, usize)>,
    recipe: Option<Rc<Recipe>>,
}

impl Var {
    /// A value that no gradient is wanted for.
    pub fn constant(value: Tensor) -> Var {
        Var { value, place: None, recipe: None }
    }

    /// The value.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The value, by value.
    pub fn into_value(self) -> Tensor {
        self.value
    }

    /// Sizes of the value.
    pub fn dims(&self) -> &[usize] {
        self.value.dims()
    }

    /// Whether a tape tracks it.
    pub fn is_tracked(&self) -> bool {
        self.place.is_some()
    }

    /// The same value, untracked: no gradient flows through.
    pub fn detach(&self) -> Var {
        Var::constant(self.value.clone())
    }

    /// What a rule that needs this value should keep: the value itself, or the recipe that its op left.
    pub fn saved(&self) -> Saved {
        match &self.recipe {
            Some(recipe) => Saved::remade(recipe.clone()),
            None => Saved::kept(self.value.clone()),
        }
    }

    /// The same, with a recipe by which rules can make the value again, bit for bit, instead of keeping it.
    /// `recipe` is called only if the value is tracked; what it holds should be kept anyway.
    pub fn remade<F: Fn() -> Result<Tensor> + 'static>(mut self, recipe: impl FnOnce() -> F) -> Var {
        self.recipe = self.is_tracked().then(|| Recipe::new(recipe()));
        self
    }

    /// The tape that tracks it.
    pub fn tape(&self) -> Option<&Tape> {
        self.place.as_ref().map(|(tape, _)| tape)
    }
}

impl std::fmt::Debug for Var {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Var({:?}, tracked: {})", self.value, self.is_tracked())
    }
}

impl Tape {
    /// An empty tape.
    pub fn new() -> Tape {
        Tape::default()
    }

    /// A value whose gradient is wanted, found after the backward pass in [`Gradients`].
    pub fn leaf(&self, value: Tensor) -> Var {
        self.track(value, Of::Leaf)
    }

    /// A parameter's value. Its gradient is added to the [`Param`] itself; a frozen one is untracked.
    pub fn param(&self, param: &Param) -> Var {
        if param.is_trainable() {
            self.track(param.value(), Of::Param(param.clone()))
        } else {
            Var::constant(param.value())
        }
    }

    fn track(&self, value: Tensor, of: Of) -> Var {
        let mut slots = self.0.slots.borrow_mut();
        let (shape, dtype, device) = (value.dims().to_vec(), value.dtype(), value.device());
        slots.push(Slot { shape, dtype, device, of });
        Var { value, place: Some((self.clone(), slots.len() - 1)), recipe: None }
    }

    /// Number of recorded operations.
    pub fn len(&self) -> usize {
        self.0.nodes.borrow().len()
    }

    /// Whether nothing is recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Records a node whose outputs are tracked whatever its inputs are: for ops that reach
    /// parameters by other ways (checkpointing).
    pub(crate) fn record_always(
        &self,
        op: &'static Op,
        inputs: &[&Var],
        outputs: Vec<Tensor>,
        rule: Box<dyn Rule>,
    ) -> Result<Vec<Var>> {
        let mut slots = Vec::with_capacity(inputs.len());
        for var in inputs {
            slots.push(match &var.place {
                Some((tape, _)) if !Rc::ptr_eq(&tape.0, &self.0) => return Err(Error::ForeignTape { op: op.name }),
                Some((_, slot)) => Some(*slot),
                None => None,
            });
        }
        let outputs: Vec<Var> = outputs.into_iter().map(|t| self.track(t, Of::Output)).collect();
        let end = self.0.slots.borrow().len();
        self.0.nodes.borrow_mut().push(Node { op, inputs: slots, outputs: end - outputs.len()..end, rule });
        Ok(outputs)
    }

    /// Gradients of `loss`, one number, by every tracked leaf; parameters' are added to them.
    ///
    /// The tape is used up: saved tensors are freed as the pass goes.
    ///
    /// # Errors
    /// [`Error::NotScalar`], [`Error::Untracked`], and those of the rules.
    pub fn backward(&self, loss: &Var) -> Result<Gradients> {
        if loss.value.numel() != 1 {
            return Err(Error::NotScalar { shape: loss.dims().to_vec() });
        }
        let one = Tensor::full(1.0f64, loss.dims())?.to_dtype(loss.value.dtype())?;
        let one = one.to_device(loss.value.device())?;
        self.backward_from(vec![(loss.clone(), one)])
    }

    /// As [`Tape::backward`] for any number of outputs, each with its upstream gradient.
    ///
    /// # Errors
    /// [`Error::Untracked`] if an output is not tracked by this tape, an upstream gradient of another
    /// shape or dtype, and those of the rules.
    pub fn backward_from(&self, outputs: Vec<(Var, Tensor)>) -> Result<Gradients> {
        let mut grads: Vec<Sum> = Vec::new();
        grads.resize_with(self.0.slots.borrow().len(), Sum::default);
        for (var, upstream) in outputs {
            match &var.place {
                Some((tape, slot)) if Rc::ptr_eq(&tape.0, &self.0) => {
                    let slots = self.0.slots.borrow();
                    check(&slots[*slot], &upstream, "backward", 0)?;
                    deposit(&slots[*slot], &mut grads[*slot], upstream)?;
                }
                _ => return Err(Error::Untracked { shape: var.dims().to_vec() }),
            }
        }
        loop {
            // Taken out one by one, so that what a rule saved is freed as soon as it has run.
            let Some(node) = self.0.nodes.borrow_mut().pop() else { break };
            let slots = self.0.slots.borrow();
            let places = grads[node.outputs.clone()].iter_mut().zip(&slots[node.outputs.clone()]);
            let upstream: Vec<Option<Tensor>> =
                places.map(|(sum, slot)| sum.take(slot.read_as())).collect::<Result<_>>()?;
            if upstream.iter().all(Option::is_none) {
                continue;
            }
            node.rule.backward(&mut Grads {
                op: node.op,
                upstream,
                inputs: &node.inputs,
                slots: &slots,
                grads: &mut grads,
            })?;
        }
        Ok(Gradients { tape: self.clone(), grads })
    }
}

/// Gradients of tracked leaves, after a backward pass.
pub struct Gradients {
    tape: Tape,
    grads: Vec<Sum>,
}

impl Gradients {
    /// The gradient of a leaf; `None` if the loss does not depend on it.
    pub fn get(&self, var: &Var) -> Option<&Tensor> {
        match &var.place {
            Some((tape, slot)) if Rc::ptr_eq(&tape.0, &self.tape.0) => self.grads[*slot].whole(),
            _ => None,
        }
    }
}

/// What a backward rule reads from and writes to.
pub struct Grads<'a> {
    op: &'static Op,
    upstream: Vec<Option<Tensor>>,
    inputs: &'a [Option<usize>],
    slots: &'a [Slot],
    grads: &'a mut [Sum],
}

impl Grads<'_> {
    /// The upstream gradient of the op's only output (or its first).
    ///
    /// # Panics
    /// If output 0 has none, which cannot happen for an op of one output.
    pub fn upstream(&self) -> &Tensor {
        self.upstream[0].as_ref().expect("a rule of one output runs only if it has an upstream gradient")
    }

    /// The upstream gradient of output `i`; `None` if nothing depends on it.
    pub fn upstream_of(&self, i: usize) -> Option<&Tensor> {
        self.upstream[i].as_ref()
    }

    /// The upstream gradient of output 0, by value: a rule that may overwrite it need not copy.
    ///
    /// # Panics
    /// As [`Grads::upstream`], or if taken twice.
    pub fn take_upstream(&mut self) -> Tensor {
        self.upstream[0].take().expect("a rule of one output runs only if it has an upstream gradient")
    }

    /// Whether input `i`'s gradient is wanted.
    pub fn wants(&self, i: usize) -> bool {
        self.inputs[i].is_some()
    }

    /// Adds `grad` to the gradient of input `i`, if that is wanted.
    ///
    /// # Errors
    /// [`Error::GradientShape`] if it is of another shape, or not of the gradient dtype; on a device it may be any of
    /// f32, bf16 and f16, and several are added up in f32.
    pub fn add(&mut self, i: usize, grad: Tensor) -> Result<()> {
        let Some(slot) = self.inputs[i] else { return Ok(()) };
        check(&self.slots[slot], &grad, self.op.name, i)?;
        deposit(&self.slots[slot], &mut self.grads[slot], grad)
    }

    /// Lets `f` add (`+=`) into the gradient buffer of input `i`, if that is wanted. The buffer has the
    /// input's shape and the compute dtype (f64 for f64, else f32), and holds zeros where nothing was added yet.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn add_with(&mut self, i: usize, f: impl FnOnce(&mut Tensor) -> planish_tensor::Result<()>) -> Result<()> {
        let Some(slot) = self.inputs[i] else { return Ok(()) };
        let info = &self.slots[slot];
        let filled = |buffer: Option<Tensor>| -> Result<Tensor> {
            let mut buffer = match buffer {
                Some(buffer) => buffer,
                None => Tensor::zeros_on(info.device, info.shape.as_slice(), grad_dtype(info.dtype))?,
            };
            f(&mut buffer)?;
            Ok(buffer)
        };
        match &info.of {
            Of::Param(param) => {
                let mut place = param.lock_grad();
                let before = place.take().map(widened).transpose()?;
                *place = Some(filled(before)?);
                Ok(())
            }
            Of::Leaf | Of::Output => {
                let sum = &mut self.grads[slot];
                let before = sum.take_wide()?;
                sum.add(filled(before)?)
            }
        }
    }
}

fn check(slot: &Slot, grad: &Tensor, op: &'static str, input: usize) -> Result<()> {
    if grad.dims() != slot.shape || !slot.takes(grad.dtype()) {
        return Err(Error::GradientShape {
            op,
            input,
            got: format!("{} {:?}", grad.dtype(), grad.dims()),
            expected: format!("{} {:?}", slot.dtype, slot.shape),
        });
    }
    Ok(())
}

fn deposit(slot: &Slot, sum: &mut Sum, grad: Tensor) -> Result<()> {
    match &slot.of {
        Of::Param(param) => accumulate(&mut param.lock_grad(), grad.to_dtype(slot.read_as())?),
        Of::Leaf => sum.add(grad.to_dtype(slot.read_as())?),
        Of::Output => sum.add(grad),
    }
}

/// Wraps an op's outputs: recorded with `rule` if any input is tracked, plain otherwise.
///
/// `rule` is called only when recording, so what it would save is not kept at inference.
///
/// # Errors
/// [`Error::NoRule`] if the registry says that the op has none and an input is tracked;
/// [`Error::ForeignTape`].
pub fn record<R: Rule + 'static>(
    op: &'static Op,
    inputs: &[&Var],
    outputs: Vec<Tensor>,
    rule: impl FnOnce() -> R,
) -> Result<Vec<Var>> {
    match inputs.iter().find_map(|v| v.tape()) {
        None => Ok(outputs.into_iter().map(Var::constant).collect()),
        Some(tape) => {
            if let Backward::None(reason) = op.backward {
                return Err(Error::NoRule { op: op.name, reason });
            }
            if inputs.iter().any(|v| v.is_tracked() && v.value().quantized().is_some()) {
                return Err(Error::NoRule { op: op.name, reason: "a quantised weight is frozen" });
            }
            tape.record_always(op, inputs, outputs, Box::new(rule()))
        }
    }
}

/// As [`record`] for an op of one output.
///
/// # Errors
/// As [`record`].
pub fn record1<R: Rule + 'static>(
    op: &'static Op,
    inputs: &[&Var],
    output: Tensor,
    rule: impl FnOnce() -> R,
) -> Result<Var> {
    let mut outputs = record(op, inputs, vec![output], rule)?;
    Ok(outputs.pop().expect("one output"))
}

/// Wraps the outputs of an op that has no rule.
///
/// # Errors
/// [`Error::NoRule`] if an input is tracked: a gradient is never lost silently.
pub fn record_without_rule(op: &'static Op, inputs: &[&Var], output: Tensor) -> Result<Var> {
    if inputs.iter().any(|v| v.is_tracked()) {
        let reason = match op.backward {
            Backward::None(reason) => reason,
            Backward::Rule => "it was recorded without its rule",
        };
        return Err(Error::NoRule { op: op.name, reason });
    }
    Ok(Var::constant(output))
}
