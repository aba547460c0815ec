//! Central differences against every backward rule, with random upstream gradients, odd and empty sizes
//! and views; and a walk over the registry, so that no rule goes unchecked.

use planish_autograd::registry::{Backward, ops};

mod activation;
mod attention;
mod block_rotate;
mod cast;
mod cayley;
mod checkpoint;
mod combine;
mod concat;
mod dora_linear;
mod dropout;
mod elementwise;
mod embedding;
mod gather;
mod glu;
mod grouped_linear;
mod index_select;
mod layer_norm;
mod linear;
mod lm_head;
mod lm_head_divergence;
mod lora_embedding;
mod lora_linear;
mod lstm;
mod reduction;
mod rms_norm;
mod rope;
mod scatter_add;
mod softmax;
mod support;
mod unary;
mod view;

/// The ops whose gradients are checked here, as each module says of itself.
fn covered() -> Vec<&'static str> {
    [
        activation::COVERS,
        attention::COVERS,
        block_rotate::COVERS,
        cast::COVERS,
        cayley::COVERS,
        checkpoint::COVERS,
        combine::COVERS,
        concat::COVERS,
        dora_linear::COVERS,
        dropout::COVERS,
        elementwise::COVERS,
        embedding::COVERS,
        gather::COVERS,
        glu::COVERS,
        grouped_linear::COVERS,
        index_select::COVERS,
        layer_norm::COVERS,
        linear::COVERS,
        lm_head::COVERS,
        lm_head_divergence::COVERS,
        lora_embedding::COVERS,
        lora_linear::COVERS,
        lstm::COVERS,
        reduction::COVERS,
        rms_norm::COVERS,
        rope::COVERS,
        scatter_add::COVERS,
        softmax::COVERS,
        unary::COVERS,
        view::COVERS,
    ]
    .concat()
}

#[test]
fn every_rule_is_checked() {
    let covered = covered();
    let missing: Vec<_> = ops()
        .iter()
        .filter(|op| op.backward == Backward::Rule && !covered.contains(&op.name))
        .map(|op| op.name)
        .collect();
    assert!(missing.is_empty(), "ops with a backward rule but no gradcheck: {missing:?}");
}

#[test]
fn what_is_checked_is_registered_once() {
    let names: Vec<_> = ops().iter().map(|op| op.name).collect();
    for name in covered() {
        assert_eq!(names.iter().filter(|n| **n == name).count(), 1, "{name} in the registry");
    }
    for op in ops() {
        if let Backward::None(reason) = op.backward {
            assert!(!reason.is_empty() && !covered().contains(&op.name), "{}", op.name);
        }
    }
}
