use super::*;
use crate::bf16;
use crate::rng::{Purpose, Stream};

fn random<T: Float>(n: usize, salt: u64) -> Vec<T> {
    let s = Stream::new(salt, Purpose::Data, 0);
    (0..n).map(|i| T::from_f64(s.normal(i as u64))).collect()
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

/// Many rows, whose last blocks are cut: between panels where there are several, between rows where there is one. Each element is
/// written once, with the bits that one thread gives it.
#[test]
fn the_parts_of_the_last_blocks_are_all_of_them() {
    for (m, n, k) in [(801, 7, 9), (769, 49, 300), (1000, 131, 40), (1200, 530, 5), (192, 530, 9), (600, 530, 300)] {
        let (a, b) = (random::<f32>(m * k, 1), random::<f32>(k * n, 2));
        let product = |threads, store, c: f32| {
            let mut c = vec![c; m * n];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| gemm(Mat::new(&a, m, k), Mat::new(&b, n, k).t(), &mut c, store));
            c.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        };
        let [set, added] = [(Store::Set, f32::NAN), (Store::Add, 1.0)].map(|(store, c)| product(1, store, c));
        assert!(set.iter().all(|bits| f32::from_bits(*bits).is_finite()));
        for threads in 2..=4 {
            assert!(product(threads, Store::Set, f32::NAN) == set, "{m} x {n} x {k} on {threads} threads");
            assert!(product(threads, Store::Add, 1.0) == added, "{m} x {n} x {k} added on {threads} threads");
        }
    }
}

#[test]
#[should_panic(expected = "reaches past")]
fn a_matrix_past_its_data_is_refused() {
    let data = [0f32; 5];
    Mat::new(&data, 2, 3);
}
