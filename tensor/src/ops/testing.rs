//! What the tests of kernels share.

use crate::rng::{Purpose, Stream};
use crate::{DType, Tensor};

/// Standard normal values.
pub(crate) fn random(shape: &[usize], dtype: DType, salt: u64) -> Tensor {
    let stream = Stream::new(5, Purpose::Data, salt);
    let n = shape.iter().product::<usize>();
    let values: Vec<f64> = (0..n).map(|i| stream.normal(i as u64)).collect();
    Tensor::from_vec(values, shape).unwrap().to_dtype(dtype).unwrap()
}

/// Runs `f` on one to four threads and demands the same bits (law 5 of the design).
pub(crate) fn same_bits_on_any_threads(f: impl Fn() -> Vec<Tensor> + Send + Sync) {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| f().iter().map(bits).collect::<Vec<_>>())
    };
    let one = run(1);
    for threads in 2..=4 {
        assert!(run(threads) == one, "results differ between 1 and {threads} threads");
    }
}

/// The bits of an f32 tensor.
pub(crate) fn bits(t: &Tensor) -> Vec<u32> {
    t.to_vec::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
}

/// Values as f64.
pub(crate) fn values(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().to_vec().unwrap()
}

/// |a - b| <= tol (1 + |b|) everywhere.
pub(crate) fn assert_close(a: &[f64], b: &[f64], tol: f64) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tol * (1.0 + b.abs()), "element {i}: {a} is not {b}");
    }
}
