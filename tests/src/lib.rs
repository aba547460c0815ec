//! What crosses crates is tested in this crate's `tests/`; here is what several test programs have: the
//! program, whole runs, the ways to a log-probability, a heap that counts; and what keeps the book true.

pub mod blocks;
pub mod heap;
pub mod law5;
pub mod methods;
pub mod program;
pub mod runs;
mod settings_page;
pub mod tiny;

pub use settings_page::settings_page;

/// The book's examples in Rust, compiled and run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/src/gradcheck.md")]
pub struct GradcheckPage;
