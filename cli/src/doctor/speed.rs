//! Timing a case, on one thread and on all.

use std::time::{Duration, Instant};

use anyhow::Context;
use planish_autograd::{Param, Tape, Var};
use planish_tensor::Tensor;
use planish_train::ceilings::Ceilings;

use super::case::{Case, Input, Kind, Work, upstream};

/// What a rate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) enum Unit {
    /// 10⁹ floating-point operations a second.
    #[serde(rename = "GFLOP/s")]
    Gflops,
    /// 10⁹ bytes read and written a second.
    #[serde(rename = "GB/s")]
    Gigabytes,
    /// 10⁹ bytes read a second.
    #[serde(rename = "GB/s read")]
    Reads,
}

impl Unit {
    /// As it is printed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Unit::Gflops => "GFLOP/s",
            Unit::Gigabytes => "GB/s",
            Unit::Reads => "read",
        }
    }
}

/// The time of one direction on one number of threads.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Speed {
    /// Threads.
    pub(crate) threads: usize,
    /// Seconds, the best of some.
    pub(crate) seconds: f64,
    /// In the row's unit.
    pub(crate) rate: f64,
    /// Of the machine's measured ceiling for these threads: multiply-adds, or copying or reading memory.
    pub(crate) share: f64,
}

/// The times of a case.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Timed {
    /// The op's name in the registry.
    pub(crate) op: &'static str,
    /// Which case of it.
    pub(crate) variant: &'static str,
    /// What the rates count.
    pub(crate) unit: Unit,
    /// Forward, on one thread and on all.
    pub(crate) forward: Vec<Speed>,
    /// Backward, without the forward before it; empty where there is none.
    pub(crate) backward: Vec<Speed>,
}

/// Times a case; nothing where there is no work.
pub(super) fn time(op: &'static str, case: &Case, ceilings: &Ceilings) -> anyhow::Result<Option<Timed>> {
    let (unit, forward, backward) = match case.work {
        Work::None => return Ok(None),
        Work::Flops(forward, backward) => (Unit::Gflops, forward, backward),
        Work::Bytes(forward, backward) => (Unit::Gigabytes, forward, backward),
        Work::Reads(forward) => (Unit::Reads, forward, 0.0),
    };
    let mut timed = Timed { op, variant: case.variant, unit, forward: vec![], backward: vec![] };
    let of = |unit: Unit, c: &Ceilings| match unit {
        Unit::Gflops => [c.gflops_one_core, c.gflops],
        Unit::Gigabytes => [c.copy_gb_per_second_one_core, c.copy_gb_per_second],
        Unit::Reads => [c.read_gb_per_second_one_core, c.read_gb_per_second],
    };
    let [one, all] = of(unit, ceilings);
    for (threads, ceiling) in
        if ceilings.threads == 1 { vec![(1, one)] } else { vec![(1, one), (ceilings.threads, all)] }
    {
        let speed = |seconds: f64, work: f64| {
            let rate = work / seconds / 1e9;
            Speed { threads, seconds, rate, share: rate / ceiling }
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("cannot start the threads")?;
        timed.forward.push(speed(pool.install(|| time_forward(case))?, forward));
        if backward > 0.0 {
            timed.backward.push(speed(pool.install(|| time_backward(case))?, backward));
        }
    }
    Ok(Some(timed))
}

/// Long enough for a clock, short enough for all ops.
const ENOUGH: Duration = Duration::from_millis(60);

/// The best of at least two rounds, `prepare` not counted.
fn best<T>(
    mut prepare: impl FnMut() -> anyhow::Result<T>,
    mut run: impl FnMut(T) -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let (mut best, mut rounds, start) = (f64::INFINITY, 0, Instant::now());
    while rounds < 2 || (start.elapsed() < ENOUGH && rounds < 100) {
        let ready = prepare()?;
        let round = Instant::now();
        run(ready)?;
        best = best.min(round.elapsed().as_secs_f64());
        rounds += 1;
    }
    Ok(best)
}

fn time_forward(case: &Case) -> anyhow::Result<f64> {
    let vars: Vec<Var> = case.inputs.iter().map(|input| Var::constant(input.tensor.clone())).collect();
    best(|| Ok(()), |()| Ok((case.run)(&vars).map(drop)?))
}

fn time_backward(case: &Case) -> anyhow::Result<f64> {
    // Weights have a gradient that is added to, as in a training step.
    let mut params: Vec<Option<Param>> = Vec::new();
    for Input { tensor, kind } in &case.inputs {
        let param = (*kind == Kind::Weight).then(|| Param::trainable("weight", tensor.clone()));
        if let Some(param) = &param {
            param.set_grad(Some(Tensor::zeros(tensor.dims(), param.grad_dtype())?));
        }
        params.push(param);
    }
    let mut gradient: Option<Tensor> = None;
    let prepare = || {
        let tape = Tape::new();
        let var = |(input, param): (&Input, &Option<Param>)| match (input.kind, param) {
            (_, Some(param)) => tape.param(param),
            (Kind::Frozen, None) => Var::constant(input.tensor.clone()),
            (_, None) => tape.leaf(input.tensor.clone()),
        };
        let vars: Vec<Var> = case.inputs.iter().zip(&params).map(var).collect();
        let out = (case.run)(&vars)?.swap_remove(0);
        let seed = match &gradient {
            Some(seed) => seed.clone(),
            None => gradient.insert(upstream(out.value(), 0, false)?).clone(),
        };
        // The leaves live until the gradients are there.
        Ok((tape, vars, out, seed))
    };
    best(prepare, |(tape, vars, out, seed)| {
        tape.backward_from(vec![(out, seed)])?;
        drop(vars);
        Ok(())
    })
}
