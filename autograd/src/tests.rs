use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Tensor, bf16};

use crate::ops::linear::linear;
use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::*;

fn random(shape: &[usize], salt: u64) -> Tensor {
    let s = Stream::new(11, Purpose::Data, salt);
    let n = shape.iter().product::<usize>();
    Tensor::from_vec((0..n).map(|i| s.normal(i as u64)).collect(), shape).unwrap()
}

static TOY: Op = Op {
    name: "toy",
    backward: Backward::Rule,
    cuda: Cuda::CpuOnly("a test"),
    fixture: Fixture::None("only in this test"),
};
static RULELESS: Op = Op {
    name: "ruleless",
    backward: Backward::None("of the test"),
    cuda: Cuda::CpuOnly("a test"),
    fixture: Fixture::None("a test"),
};

/// y = 2x with a rule that multiplies the upstream gradient by `factor`.
fn double(x: &Var, factor: f64) -> Result<Var> {
    let scale = |t: &Tensor, k: f64| {
        Tensor::from_vec(t.to_vec::<f64>().unwrap().iter().map(|v| v * k).collect(), t.dims()).unwrap()
    };
    record1(&TOY, &[x], scale(x.value(), 2.0), || {
        move |grads: &mut Grads<'_>| {
            let g = scale(grads.upstream(), factor);
            grads.add(0, g)
        }
    })
}

#[test]
fn gradcheck_passes_right_rules_and_fails_wrong_ones() {
    let x = random(&[3, 2], 0);
    let check =
        |factor| gradcheck(|v| Ok(vec![double(&v[0], factor)?]), std::slice::from_ref(&x), GradCheck::default());
    check(2.0).unwrap();
    assert!(matches!(check(2.001), Err(Error::GradientMismatch(_))));
    assert!(matches!(check(f64::NAN), Err(Error::GradientMismatch(_))), "NaN fails");
    // A rule that forgets its input altogether.
    let forgetful = |v: &[Var]| {
        let y = double(&v[0], 2.0)?;
        Ok(vec![record1(&TOY, &[&v[0]], y.into_value(), || |_: &mut Grads<'_>| Ok(()))?])
    };
    assert!(gradcheck(forgetful, std::slice::from_ref(&x), GradCheck::default()).is_err());
    let single = x.to_dtype(DType::F32).unwrap();
    assert!(gradcheck(|v| Ok(vec![v[0].clone()]), &[single], GradCheck::default()).is_err());
}

#[test]
fn gradients_of_shared_inputs_add_up() {
    let x = random(&[4], 1);
    gradcheck(
        |v| {
            let y = double(&v[0], 2.0)?;
            Ok(vec![double(&y, 2.0)?, y, v[0].clone()])
        },
        &[x],
        GradCheck::default(),
    )
    .unwrap();
}

#[test]
fn nothing_is_recorded_without_tracked_inputs() {
    let tape = Tape::new();
    let frozen = Param::frozen("w", random(&[2, 3], 2));
    let y = linear(&Var::constant(random(&[1, 3], 3)), &tape.param(&frozen), None).unwrap();
    assert!(!y.is_tracked() && tape.is_empty());
    assert!(matches!(tape.backward(&y.detach()), Err(Error::NotScalar { .. })));
    let one = Var::constant(random(&[1], 3));
    assert!(matches!(tape.backward(&one), Err(Error::Untracked { .. })));
}

#[test]
fn an_op_without_a_rule_refuses_tracked_inputs() {
    let tape = Tape::new();
    let x = tape.leaf(random(&[2], 4));
    let plain = record_without_rule(&RULELESS, &[&x.detach()], random(&[2], 5)).unwrap();
    assert!(!plain.is_tracked());
    for op in [&RULELESS, &TOY] {
        assert!(matches!(record_without_rule(op, &[&x], random(&[2], 5)), Err(Error::NoRule { .. })));
    }
    let recorded = record1(&RULELESS, &[&x], random(&[2], 5), || |_: &mut Grads<'_>| Ok(()));
    assert!(matches!(recorded, Err(Error::NoRule { .. })));
}

#[test]
fn wrong_gradients_and_foreign_tapes_are_refused() {
    let (a, b) = (Tape::new(), Tape::new());
    let (x, w) = (a.leaf(random(&[1, 2], 6)), b.leaf(random(&[1, 2], 7)));
    assert!(matches!(linear(&x, &w, None), Err(Error::ForeignTape { .. })));
    let y = record1(&TOY, &[&x], random(&[1], 8), || |g: &mut Grads<'_>| g.add(0, random(&[3], 9))).unwrap();
    assert!(matches!(a.backward(&y), Err(Error::GradientShape { .. })));
    let y = double(&x, 2.0).unwrap();
    assert!(a.backward_from(vec![(y, random(&[5], 1))]).is_err());
}

#[test]
fn parameters_accumulate_over_passes_in_the_compute_dtype() {
    let w = Tensor::from_vec(vec![bf16::from_f32(1.5); 6], [2, 3]).unwrap();
    let param = Param::trainable("w", w);
    let x = random(&[4, 3], 10).to_dtype(DType::F32).unwrap();
    let pass = || {
        let tape = Tape::new();
        let y = linear(&Var::constant(x.clone()), &tape.param(&param), None).unwrap();
        tape.backward_from(vec![(y, Tensor::full(1.0f32, [4, 2]).unwrap())]).unwrap();
        param.grad().unwrap()
    };
    let once = pass();
    assert_eq!(once.dtype(), DType::F32);
    let twice = pass().to_vec::<f32>().unwrap();
    for (a, b) in once.to_vec::<f32>().unwrap().iter().zip(twice) {
        assert_eq!(2.0 * a, b, "doubling is exact");
    }
    assert_eq!(param.take_grad().unwrap().dims(), [2, 3]);
    assert!(param.grad().is_none());
}

/// Checkpointed gradients are the recorded ones, bit for bit, for inputs and for parameters inside.
#[test]
fn checkpointing_changes_no_bit() {
    let w = [Param::trainable("a", random(&[3, 3], 12)), Param::trainable("b", random(&[2, 3], 13))];
    let inside = w.clone();
    let segment = move |tape: Option<&Tape>, x: &[Var]| -> Result<Vec<Var>> {
        let get = |p: &Param| tape.map_or_else(|| Var::constant(p.value()), |t| t.param(p));
        let y = linear(&x[0], &get(&inside[0]), None)?;
        Ok(vec![linear(&y, &get(&inside[1]), None)?, y])
    };
    let run = |checkpointed: bool, track_input: bool| {
        w.iter().for_each(Param::clear_grad);
        let tape = Tape::new();
        let x = if track_input { tape.leaf(random(&[5, 3], 14)) } else { Var::constant(random(&[5, 3], 14)) };
        let out = if checkpointed {
            checkpoint(&tape, segment.clone(), &[&x]).unwrap()
        } else {
            segment(Some(&tape), std::slice::from_ref(&x)).unwrap()
        };
        let seeds = out.into_iter().enumerate().map(|(i, o)| (o.clone(), random(o.dims(), 20 + i as u64))).collect();
        let gradients = tape.backward_from(seeds).unwrap();
        let dx = gradients.get(&x).map(|g| g.to_vec::<f64>().unwrap());
        (dx, w.each_ref().map(|p| p.grad().unwrap().to_vec::<f64>().unwrap()))
    };
    for track_input in [true, false] {
        let (plain, again) = (run(false, track_input), run(true, track_input));
        assert_eq!(plain, again);
        assert_eq!(plain.0.is_some(), track_input);
    }
}
