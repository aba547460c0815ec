//! The product, with AVX2 at most.

mod gemm;

use planish_tensor::simd::{self, Simd};

#[test]
fn is_the_documented_sum() {
    // On a machine without AVX2 this is what `gemm_portable` tests.
    simd::restrict(Simd::Avx2.min(simd::detected())).unwrap();
    gemm::is_the_documented_sum();
}
