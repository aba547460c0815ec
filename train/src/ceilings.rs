//! Measured ceilings: what no kernel on this machine can exceed.
//!
//! Arithmetic: fused multiply-adds on registers only, as many chains as hide the latency; two
//! operations each. Memory: the sum of blocks far larger than any cache, in bytes read, and copying them,
//! in bytes read and bytes written. Each figure is the best of some rounds, because other programs can
//! only take away.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// What this machine does at best, f32.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Ceilings {
    /// Vector instructions of the loop of multiply-adds.
    pub vectors: &'static str,
    /// 10⁹ operations a second on one core.
    pub gflops_one_core: f64,
    /// 10⁹ operations a second on all threads.
    pub gflops: f64,
    /// 10⁹ bytes read a second by one thread.
    pub read_gb_per_second_one_core: f64,
    /// 10⁹ bytes read a second by all threads.
    pub read_gb_per_second: f64,
    /// 10⁹ bytes a second, read and written, that one thread copies.
    pub copy_gb_per_second_one_core: f64,
    /// 10⁹ bytes a second, read and written, that all threads copy.
    pub copy_gb_per_second: f64,
    /// Threads of the figures that are not of one core.
    pub threads: usize,
}

/// Measures for about two seconds.
pub fn measure(threads: usize) -> Ceilings {
    let threads = threads.max(1);
    let (short, long) = (Duration::from_millis(200), Duration::from_millis(400));
    Ceilings {
        vectors: vectors(),
        gflops_one_core: gflops(1, short),
        gflops: gflops(threads, short),
        read_gb_per_second_one_core: read_rate(1, long),
        read_gb_per_second: read_rate(threads, long),
        copy_gb_per_second_one_core: copy_rate(1, long),
        copy_gb_per_second: copy_rate(threads, long),
        threads,
    }
}

/// The vector instructions that [`measure`] uses on this processor.
pub fn vectors() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return "AVX-512";
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            return "AVX2 and FMA";
        }
    }
    if cfg!(target_arch = "aarch64") { "NEON" } else { "the baseline's" }
}

/// 10⁹ multiplications and additions a second of `threads` threads that each run for `time`.
pub fn gflops(threads: usize, time: Duration) -> f64 {
    on_threads(threads, || {
        let mut best = 0.0_f64;
        let start = Instant::now();
        while start.elapsed() < time {
            let round = Instant::now();
            let operations: f64 = (0..8).map(|_| chains()).sum();
            best = best.max(operations / round.elapsed().as_secs_f64());
        }
        best / 1e9
    })
}

/// Loops of [`chains`] between looks at the clock: some tens of microseconds.
const LOOPS: usize = 10_000;

/// Words of 8 bytes in a block of a thread: 64 MB.
const WORDS: usize = 8 << 20;

fn read_rate(threads: usize, time: Duration) -> f64 {
    on_threads(threads, || {
        let block = vec![1_u64; WORDS];
        let mut best = 0.0_f64;
        let start = Instant::now();
        while start.elapsed() < time {
            let round = Instant::now();
            let sum = black_box(&block).iter().fold(0_u64, |sum, word| sum.wrapping_add(*word));
            black_box(sum);
            best = best.max((WORDS * 8) as f64 / round.elapsed().as_secs_f64());
        }
        best / 1e9
    })
}

fn copy_rate(threads: usize, time: Duration) -> f64 {
    on_threads(threads, || {
        let (from, mut to) = (vec![1_u64; WORDS], vec![2_u64; WORDS]);
        let mut best = 0.0_f64;
        let start = Instant::now();
        while start.elapsed() < time {
            let round = Instant::now();
            to.copy_from_slice(black_box(&from));
            black_box(&mut to);
            best = best.max((2 * WORDS * 8) as f64 / round.elapsed().as_secs_f64());
        }
        best / 1e9
    })
}

/// The sum of what each thread measured while all of them ran.
fn on_threads(threads: usize, work: impl Fn() -> f64 + Sync) -> f64 {
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        handles.into_iter().map(|handle| handle.join().unwrap_or(0.0)).sum()
    })
}

/// Runs the widest multiply-adds of this processor; returns how many operations that were.
#[cfg(target_arch = "x86_64")]
fn chains() -> f64 {
    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512F.
        unsafe { x86::avx512() }
    } else if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has AVX2 and FMA.
        unsafe { x86::avx2() }
    } else {
        portable()
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn chains() -> f64 {
    portable()
}

/// Chains per loop: latency 4 to 5 cycles times two units a core, or four where vectors are of 128 bits,
/// rounded up.
const CHAINS: usize = if cfg!(target_arch = "aarch64") { 20 } else { 12 };

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{CHAINS, LOOPS, black_box};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2() -> f64 {
        let (factor, term) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
        let mut sums = [_mm256_setzero_ps(); CHAINS];
        for _ in 0..LOOPS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, term);
            }
        }
        black_box(sums);
        (LOOPS * CHAINS * 8 * 2) as f64
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512() -> f64 {
        let (factor, term) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..LOOPS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, term);
            }
        }
        black_box(sums);
        (LOOPS * CHAINS * 16 * 2) as f64
    }
}

/// Multiply and add on four lanes, which compilers turn into the baseline's vectors (NEON, SSE2).
fn portable() -> f64 {
    let (factor, term) = (black_box(0.999_f32), black_box(0.001_f32));
    let mut sums = [[0.0_f32; 4]; CHAINS];
    for _ in 0..LOOPS {
        for lane in sums.as_flattened_mut() {
            *lane = if cfg!(target_arch = "aarch64") { lane.mul_add(factor, term) } else { *lane * factor + term };
        }
    }
    black_box(sums);
    (LOOPS * CHAINS * 4 * 2) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_a_rate() {
        let measured = measure(2);
        // A tenth of a GFLOP/s and of a GB/s: slower than any machine that builds this.
        let m = &measured;
        for rate in [
            m.gflops_one_core,
            m.gflops,
            m.read_gb_per_second_one_core,
            m.read_gb_per_second,
            m.copy_gb_per_second_one_core,
            m.copy_gb_per_second,
        ] {
            assert!(rate.is_finite() && rate > 0.1, "{measured:?}");
        }
        assert!(portable() > 0.0);
    }
}
