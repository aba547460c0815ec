//! The card: what it is, and what it does at best.

use planish_cuda::memory::DeviceBuffer;
use planish_cuda::ops::copy;
use planish_cuda::{DType, Driver, Queue, Result};

use super::clock::{Launch, Timing, host_time};
use super::item::{Need, Work, item, launch};
use super::{Entry, Figures, Ground, Outcome, Row, Trouble, Unit, products};

/// What is measured of every card.
pub(super) const NAMES: [&str; 5] =
    ["card/copy", "card/product", "card/launch", "card/launch_recorded", "card/round_trip"];

/// What a device is.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Facts {
    /// Its name.
    pub(crate) name: String,
    /// Whether it is emulated: then no time means anything.
    pub(crate) emulated: bool,
    /// Compute capability, such as 9.0.
    pub(crate) compute_capability: String,
    /// Streaming multiprocessors.
    pub(crate) multiprocessors: u32,
    /// Memory, bytes.
    pub(crate) memory_bytes: u64,
    /// Of that free in the beginning, bytes.
    pub(crate) free_bytes: u64,
    /// Second-level cache, bytes.
    pub(crate) l2_bytes: u64,
    /// The driver's own version, such as 570.86.10, where the system tells it.
    pub(crate) driver: Option<String>,
    /// The newest CUDA version that the driver supports.
    pub(crate) driver_supports_cuda: Option<String>,
    /// The compiler of kernels.
    pub(crate) nvrtc: Option<String>,
    /// Bytes read and written by a copy, 10⁹ a second.
    pub(crate) copy_gb_per_second: Option<f64>,
    /// The large product of bf16, 10¹² operations a second.
    pub(crate) product_tflops: Option<f64>,
}

/// What a device says of itself; its limits are measured later.
pub(super) fn facts(ground: &Ground<'_>) -> Result<Facts> {
    let (properties, report) = (ground.gpu.driver().properties(), planish_cuda::probe());
    let (major, minor) = properties.compute_capability;
    let supports = match report.driver {
        Driver::Works { cuda_version: (major, minor), .. } if !ground.emulated => Some(format!("{major}.{minor}")),
        _ => None,
    };
    Ok(Facts {
        name: properties.name.clone(),
        emulated: ground.emulated,
        compute_capability: format!("{major}.{minor}"),
        multiprocessors: properties.multiprocessors,
        memory_bytes: properties.memory_bytes,
        free_bytes: ground.gpu.driver().free_memory()?,
        l2_bytes: properties.l2_bytes,
        driver: if ground.emulated { None } else { driver_version() },
        driver_supports_cuda: supports,
        nvrtc: report.nvrtc.map(|found| format!("{}.{}", found.version.0, found.version.1)),
        copy_gb_per_second: None,
        product_tflops: None,
    })
}

/// As Linux has it.
fn driver_version() -> Option<String> {
    version_in(&std::fs::read_to_string("/proc/driver/nvidia/version").ok()?)
}

/// The first word of numbers with two points or one: `… Kernel Module  570.86.10  Release Build …`.
fn version_in(text: &str) -> Option<String> {
    let is_version = |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    text.split_whitespace().find(is_version).map(str::to_owned)
}

/// Lets what follows be compared with the limits.
pub(super) fn note(ground: &mut Ground<'_>, row: &Row) {
    let Outcome::Measured(figures) = &row.outcome else { return };
    match row.name.as_str() {
        "card/copy" => ground.copy_gb_per_second = Some(figures.rate),
        "card/product" => ground.product_tflops = Some(figures.rate),
        _ => {}
    }
}

/// Copying within the device, a large product, and three ways to launch a kernel that does nothing to speak of.
pub(super) fn entries(emulated: bool) -> Vec<Entry> {
    let bytes = if emulated { 1 << 16 } else { 1 << 30 };
    let copying = item(
        NAMES[0],
        format!("{bytes} bytes within the device"),
        Work::Bytes(2.0 * bytes as f64),
        [Need::bytes(bytes), Need::zeros(bytes, DType::U8)],
        |_, [from, to]| {
            launch(move |queue| queue.device.driver().copy(to.ptr(), from.ptr(), from.bytes(), queue.stream))
        },
    );
    let n = if emulated { 128 } else { 8192 };
    let product = products::square(NAMES[1], n, planish_cuda::ops::matmul::Layout::FORWARD);
    let launches = if emulated { 4 } else { 1000 };
    let one_by_one = latency(NAMES[2], "one after the other, none waited for", launches, move |queue, mut work| {
        samples(|| host_time(queue, launches, |queue| (0..launches).try_for_each(|_| work(queue))))
    });
    let recorded = latency(NAMES[3], "recorded as one graph", launches, move |queue, mut work| {
        let mut graph = queue.record(&mut work, |queue, work| (0..launches).try_for_each(|_| (**work)(queue)))?;
        samples(|| host_time(queue, launches, |queue| graph.replay(queue)))
    });
    let waited = latency(NAMES[4], "each waited for", launches, move |queue, mut work| {
        let once = |work: &mut Launch| work(queue).and_then(|()| queue.synchronize());
        samples(|| host_time(queue, launches, |_| (0..launches).try_for_each(|_| once(&mut work))))
    });
    vec![copying, product, one_by_one, recorded, waited]
}

/// Five of them, and one before that does not count.
fn samples(mut one: impl FnMut() -> Result<f64>) -> Result<Vec<f64>> {
    one()?;
    (0..5).map(|_| one()).collect()
}

/// Seconds that the host spends on a launch of the smallest kernel.
fn latency(
    name: &str,
    shape: &str,
    launches: usize,
    measure: impl Fn(Queue<'_>, Launch) -> Result<Vec<f64>> + 'static,
) -> Entry {
    let run = move |ground: &Ground<'_>| {
        let queue = ground.gpu.queue();
        let mut cell: DeviceBuffer = queue.zeros("a benchmark's tensor", 1, DType::F32)?;
        let work: Launch = Box::new(move |queue| copy::fill(queue, cell.slice_mut(DType::F32), 0));
        let timing = Timing::of(measure(queue, work)?, launches);
        let rate = 1.0 / timing.seconds;
        Ok::<_, Trouble>(Figures::new(timing, Unit::Launches, rate))
    };
    Entry { name: name.into(), shape: shape.into(), run: Box::new(run) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_drivers_version_is_found_in_its_file() {
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build  (dvs-builder@U16)\n\
            GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)";
        assert_eq!(super::version_in(text).as_deref(), Some("570.86.10"));
        assert_eq!(super::version_in("NVRM version: x86_64"), None);
    }
}
