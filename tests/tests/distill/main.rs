//! Distillation: six steps of TRL's loss, whole runs, stored predictions, and what is refused.

mod parity;
mod runs;
