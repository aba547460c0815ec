//! Matrix products in f32 at the shapes that `benches/peers/torch_mm.py` runs, a JSON line a shape.
//!
//! ```console
//! cargo run --release -p planish-benches --features peers --example gemm_shapes -- --library planish --threads 2
//! ```
//!
//! y = x Wᵀ with x: (m, k) and W: (n, k), which `--weights bfloat16` stores as bf16. `best` and `median` are GFLOP/s over the repetitions. The first
//! line of planish's is `peak`: what multiply-adds in registers reach on as many threads.

// A program that prints its results.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::{Duration, Instant};

use planish_benches::{GEMM_SHAPES, normal};
use planish_tensor::gemm::{Mat, Store, gemm};
use planish_tensor::{DType, bf16};
use planish_train::ceilings;

/// What computes the product; the crate `gemm` only with the feature `peers`.
#[derive(Clone, Copy, PartialEq)]
enum Library {
    Planish,
    #[cfg(feature = "peers")]
    Gemm,
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut library, mut threads, mut seconds, mut weights) = (Library::Planish, 2_usize, 1.0_f64, DType::F32);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match (flag.as_str(), value.as_str()) {
            ("--library", "planish") => library = Library::Planish,
            #[cfg(feature = "peers")]
            ("--library", "gemm") => library = Library::Gemm,
            #[cfg(not(feature = "peers"))]
            ("--library", "gemm") => return Err("build this with --features peers for the crate gemm".into()),
            ("--threads", n) => threads = n.parse()?,
            ("--seconds", x) => seconds = x.parse()?,
            ("--weights", "float32") => weights = DType::F32,
            ("--weights", "bfloat16") => weights = DType::BF16,
            _ => {
                let usage = "--library planish|gemm, --weights float32|bfloat16, --threads N, --seconds X";
                return Err(format!("{flag} {value}: use {usage}").into());
            }
        }
    }
    if library != Library::Planish && weights != DType::F32 {
        return Err("the crate gemm has no product of f32 and bf16".into());
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let name = if library == Library::Planish { "planish" } else { "gemm" };
    if library == Library::Planish {
        let peak = ceilings::gflops(threads, Duration::from_millis(300));
        println!(r#"{{"library":"{name}","vectors":"{}","threads":{threads},"peak":{peak:.2}}}"#, ceilings::vectors());
    }
    for (m, k, n) in GEMM_SHAPES {
        let (x, w) = (normal(1, &[m, k])?, normal(2, &[n, k])?);
        let narrow = w.to_dtype(DType::BF16)?;
        let (x, w, narrow) = (x.as_slice::<f32>()?, w.as_slice::<f32>()?, narrow.as_slice::<bf16>()?);
        let mut y = vec![0.0_f32; m * n];
        let mut product = || match library {
            Library::Planish if weights == DType::BF16 => {
                gemm(Mat::new(x, m, k), Mat::new(narrow, n, k).t(), &mut y, Store::Set);
            }
            Library::Planish => gemm(Mat::new(x, m, k), Mat::new(w, n, k).t(), &mut y, Store::Set),
            #[cfg(feature = "peers")]
            Library::Gemm => peer(x, w, &mut y, (m, k, n), threads),
        };
        product();
        let (mut times, start) = (Vec::new(), Instant::now());
        while times.len() < 3 || start.elapsed().as_secs_f64() < seconds {
            let round = Instant::now();
            product();
            times.push(round.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let rate = |seconds: f64| 2e-9 * (m * k * n) as f64 / seconds;
        let (best, median, count) = (rate(times[0]), rate(times[times.len() / 2]), times.len());
        println!(
            r#"{{"library":"{name}","shape":"{m}x{k}x{n}","threads":{threads},"best":{best:.2},"median":{median:.2},"repetitions":{count}}}"#
        );
    }
    Ok(())
}

/// The same product by the `gemm` crate.
#[cfg(feature = "peers")]
fn peer(x: &[f32], w: &[f32], y: &mut [f32], (m, k, n): (usize, usize, usize), threads: usize) {
    assert!(x.len() == m * k && w.len() == n * k && y.len() == m * n);
    let parallel = if threads == 1 { ::gemm::Parallelism::None } else { ::gemm::Parallelism::Rayon(threads) };
    // SAFETY: the slices hold as many elements as the sizes and strides reach, and y overlaps neither.
    unsafe {
        ::gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            n as isize,
            false,
            x.as_ptr(),
            1,
            k as isize,
            w.as_ptr(),
            k as isize,
            1,
            0.0_f32,
            1.0_f32,
            false,
            false,
            false,
            parallel,
        );
    }
}
