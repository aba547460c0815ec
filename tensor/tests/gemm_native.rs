//! The product, as this machine computes it.

mod gemm;

#[test]
fn is_the_documented_sum() {
    gemm::is_the_documented_sum();
}
