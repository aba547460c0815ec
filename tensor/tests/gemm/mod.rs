//! The product against its documented sum, bit for bit: the body of one test for each set of vector instructions,
//! each in a process of its own, since a process keeps to one.

use planish_tensor::gemm::{KC, Mat, Store, gemm, gemm_serial, gemm_update};
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{Float, Real, bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

fn random<T: Float>(n: usize, salt: u64) -> Vec<T> {
    let s = Stream::new(salt, Purpose::Data, 0);
    (0..n).map(|i| T::from_f64(s.normal(i as u64))).collect()
}

/// The documented order, written out: k-blocks of KC, each a chain of fused multiply-adds.
fn reference<R: Real, B: Float>(a: Mat<R>, b: Mat<B>, c: &mut [R], store: Store) {
    for i in 0..a.rows() {
        for j in 0..b.cols() {
            let c = &mut c[i * b.cols() + j];
            let mut total = if store == Store::Set { None } else { Some(*c) };
            for k0 in (0..a.cols()).step_by(KC) {
                let mut sum = R::ZERO;
                for k in k0..a.cols().min(k0 + KC) {
                    sum = a.at(i, k).mul_add(b.at(k, j).widen(), sum);
                }
                total = Some(match total {
                    None => sum,
                    Some(t) => t + sum,
                });
            }
            *c = total.unwrap_or(R::ZERO);
        }
    }
}

fn check<R: Real, B: Float>(m: usize, n: usize, k: usize, ta: bool, tb: bool, store: Store) {
    let (a, b) = (random::<R>(m * k, 1), random::<B>(k * n, 2));
    let a = if ta { Mat::new(&a, k, m).t() } else { Mat::new(&a, m, k) };
    let b = if tb { Mat::new(&b, n, k).t() } else { Mat::new(&b, k, n) };
    let mut want = random::<R>(m * n, 3);
    let mut got = want.clone();
    reference(a, b, &mut want, store);
    gemm(a, b, &mut got, store);
    let bits = |v: &[R]| v.iter().map(|x| x.to_f64().to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&got), bits(&want), "{m}x{n}x{k} ta {ta} tb {tb} {store:?}");
    let mut serial = random::<R>(m * n, 3);
    gemm_serial(a, b, &mut serial, store, &mut Vec::new());
    assert_eq!(bits(&serial), bits(&want), "serial {m}x{n}x{k} ta {ta} tb {tb} {store:?}");
    let (u, v) = (random::<R>(m * 5, 4), random::<B>(5 * n, 5));
    let (u, v) = (Mat::new(&u, m, 5), Mat::new(&v, n, 5).t());
    let mut updated = random::<R>(m * n, 3);
    reference(u, v, &mut want, if k == 0 { store } else { Store::Add });
    gemm_update(a, b, u, v, &mut updated, store);
    assert_eq!(bits(&updated), bits(&want), "update {m}x{n}x{k} ta {ta} tb {tb} {store:?}");
}

/// Exactly the documented sum, for every transpose, dtype and odd size.
pub(crate) fn is_the_documented_sum() {
    let sizes = (0usize..90, 0usize..110, 0usize..40);
    let case = (sizes, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let config = ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() };
    let product = |((m, n, k), deep, ta, tb, add): ((usize, usize, usize), bool, bool, bool, bool)| {
        let store = if add { Store::Add } else { Store::Set };
        let k = if deep { k + KC - 10 } else { k };
        check::<f32, f32>(m, n, k, ta, tb, store);
        check::<f64, f64>(m, n, k, ta, tb, store);
        check::<f32, bf16>(m, n, k, ta, tb, store);
        check::<f32, f16>(m, n, k, ta, tb, store);
        Ok(())
    };
    TestRunner::new(config).run(&case, product).unwrap();
    // A depth of 1, at which a transposed matrix is also one that is not.
    for (m, n) in [(1, 16), (3, 48), (3, 50), (17, 32)] {
        check::<f32, f32>(m, n, 1, true, true, Store::Add);
        check::<f64, f64>(m, n, 1, false, true, Store::Set);
    }
    // Enough rows for several tasks and several groups of packed ones, at heights that no tile divides.
    for m in [61, 64, 66, 203, 421] {
        for (ta, tb) in [(true, true), (true, false), (false, true), (false, false)] {
            check::<f32, f32>(m, 49, 33, ta, tb, Store::Set);
        }
    }
}
