//! Reverse-mode differentiation over coarse, hand-differentiated ops.
