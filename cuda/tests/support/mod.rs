//! What the tests of kernels share.
#![allow(dead_code, reason = "each test program uses its part")]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use planish_cuda::cache::KernelCache;

/// The kernel cache of all tests, in Cargo's folder; `None`, said on stderr, if there is no NVRTC.
///
/// With `PLANISH_REQUIRE_NVRTC=1` its absence is a failure.
pub(crate) fn cache() -> Option<Arc<KernelCache>> {
    static CACHE: OnceLock<Option<Arc<KernelCache>>> = OnceLock::new();
    CACHE
        .get_or_init(|| {
            let cache = KernelCache::new(Some(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("kernels")));
            match cache.compiler() {
                Ok(_) => Some(Arc::new(cache)),
                Err(error) => {
                    let required = std::env::var("PLANISH_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
                    assert!(!required, "{error}; scripts/fetch-nvrtc gets it");
                    eprintln!("skipped: {error}; scripts/fetch-nvrtc gets it");
                    None
                }
            }
        })
        .clone()
}
