//! Quantised weights, with AVX2 at most.

mod quant;

use planish_tensor::simd::{self, Simd};

#[test]
fn is_its_definition() {
    simd::restrict(Simd::Avx2.min(simd::detected())).unwrap();
    quant::is_its_definition();
}
