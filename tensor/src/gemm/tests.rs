use super::*;
use crate::rng::{Purpose, Stream};
use crate::{bf16, f16};
use proptest::prelude::*;

fn random<T: Float>(n: usize, salt: u64) -> Vec<T> {
    let s = Stream::new(salt, Purpose::Data, 0);
    (0..n).map(|i| T::from_f64(s.normal(i as u64))).collect()
}

/// The documented order, written out: k-blocks of KC, each a chain of fused multiply-adds.
fn reference<R: Real, B: Float>(a: Mat<R>, b: Mat<B>, c: &mut [R], store: Store) {
    for i in 0..a.rows {
        for j in 0..b.cols {
            let c = &mut c[i * b.cols + j];
            let mut total = if store == Store::Set { None } else { Some(*c) };
            for k0 in (0..a.cols).step_by(KC) {
                let mut sum = R::ZERO;
                for k in k0..a.cols.min(k0 + KC) {
                    sum = a.data[i * a.rs + k * a.cs].mul_add(b.data[k * b.rs + j * b.cs].widen(), sum);
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Exactly the documented sum, for every transpose, dtype and odd size.
    #[test]
    fn is_the_documented_sum(m in 0usize..90, n in 0usize..110, k in 0usize..40, deep: bool, ta: bool, tb: bool, add: bool) {
        let store = if add { Store::Add } else { Store::Set };
        let k = if deep { k + KC - 10 } else { k };
        check::<f32, f32>(m, n, k, ta, tb, store);
        check::<f64, f64>(m, n, k, ta, tb, store);
        check::<f32, bf16>(m, n, k, ta, tb, store);
        check::<f32, f16>(m, n, k, ta, tb, store);
    }
}

/// A row alone equals the same row among many, on any number of threads.
#[test]
fn a_row_does_not_depend_on_its_company() {
    let (m, n, k) = (203, 131, 700);
    let (a, b) = (random::<f32>(m * k, 1), random::<bf16>(k * n, 2));
    let mut whole = vec![0f32; m * n];
    gemm(Mat::new(&a, m, k), Mat::new(&b, n, k).t(), &mut whole, Store::Set);
    for threads in 1..=4 {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for rows in [1usize, 5, 24, 49, 100] {
            for start in [0, 57, m - rows] {
                let mut part = vec![0f32; rows * n];
                pool.install(|| {
                    gemm(Mat::new(&a[start * k..], rows, k), Mat::new(&b, n, k).t(), &mut part, Store::Set)
                });
                assert!(
                    part.iter().zip(&whole[start * n..]).all(|(x, y)| x.to_bits() == y.to_bits()),
                    "{rows} rows from {start} on {threads} threads"
                );
            }
        }
    }
}

#[test]
#[should_panic(expected = "reaches past")]
fn a_matrix_past_its_data_is_refused() {
    let data = [0f32; 5];
    Mat::new(&data, 2, 3);
}
