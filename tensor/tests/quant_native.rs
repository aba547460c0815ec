//! Quantised weights, with what the machine has.

mod quant;

use planish_tensor::simd;

#[test]
fn is_its_definition() {
    simd::restrict(simd::detected()).unwrap();
    quant::is_its_definition();
}
