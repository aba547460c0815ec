//! Micro-benchmarks and side-by-side runs against peers.
