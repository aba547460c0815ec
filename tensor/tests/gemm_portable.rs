//! The product, in plain Rust.

mod gemm;

use planish_tensor::simd::{self, Simd};

#[test]
fn is_the_documented_sum() {
    simd::restrict(Simd::Portable).unwrap();
    gemm::is_the_documented_sum();
}
