//! Quantised weights, in plain Rust.

mod quant;

use planish_tensor::simd::{self, Simd};

#[test]
fn is_its_definition() {
    simd::restrict(Simd::Portable).unwrap();
    quant::is_its_definition();
}
