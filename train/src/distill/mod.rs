//! Distillation: a student that learns a teacher's predictions token by token.
//!
//! ```text
//! Batch ─► teacher (no gradient), or its stored predictions ─┐
//!       └► student (recorded) ───────────────────────────────┴► lm_head_divergence ─► backward
//! ```

mod features;
mod objective;
mod stored;

pub use features::Features;
pub use objective::{Distill, Guide};
pub use stored::StoredTeacher;
