//! What a device is made of: driver, memory, compiled kernels, one stream. One of each device in a process.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use planish_cuda::Queue;
use planish_cuda::cache::KernelCache;
use planish_cuda::driver::{Driver, Nvidia, Stream};
use planish_cuda::emulator::Emulator;

use super::Device;
use super::kept::Kept;
use crate::{Error, Result, Tensor};

/// Compute capability of the emulated GPU: Hopper.
const EMULATED: (u32, u32) = (9, 0);

/// An open device.
pub(crate) struct Context {
    device: Device,
    gpu: Arc<planish_cuda::Device>,
    kept: Mutex<Kept>,
    uploads: [AtomicU64; 2],
    downloads: [AtomicU64; 2],
    replays: AtomicU64,
}

thread_local! {
    /// The device whose work this thread records, and the stream that it goes to meanwhile.
    static RECORDING: Cell<Option<(Device, Stream)>> = const { Cell::new(None) };
}

/// Sends this thread's work for a device to a stream until it is dropped.
pub(super) struct Recording(Option<(Device, Stream)>);

impl Recording {
    pub(super) fn to(device: Device, stream: Stream) -> Recording {
        Recording(RECORDING.replace(Some((device, stream))))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDING.set(self.0);
    }
}

/// Copies between the host and a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transfers {
    /// Copies to the device.
    pub uploads: u64,
    /// Bytes of them.
    pub upload_bytes: u64,
    /// Copies from the device, each of which waits for its work.
    pub downloads: u64,
    /// Bytes of them.
    pub download_bytes: u64,
}

/// Bytes of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// Of tensors alive now, after the allocator's rounding.
    pub in_use: u64,
    /// The most that ever was, or was since [`Device::peak_of`] began.
    pub peak: u64,
    /// Still free: what the driver has, and what the allocator keeps for reuse.
    pub free: u64,
    /// Of the device.
    pub total: u64,
}

fn open() -> MutexGuard<'static, BTreeMap<Device, Arc<Context>>> {
    static OPEN: Mutex<BTreeMap<Device, Arc<Context>>> = Mutex::new(BTreeMap::new());
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The device, opened if it is not yet.
pub(super) fn get(device: Device) -> Result<Arc<Context>> {
    let mut open = open();
    if let Some(found) = open.get(&device) {
        return Ok(found.clone());
    }
    if matches!(device, Device::Cuda(_))
        && let Some(why) = planish_cuda::probe().unavailable()
    {
        return Err(Error::NoDevice { device, why });
    }
    let driver: Arc<dyn Driver> = match device {
        Device::Cpu => unreachable!("the processor has no context"),
        Device::Cuda(number) => {
            let opened = Nvidia::open(i32::try_from(number).unwrap_or(i32::MAX));
            Arc::new(opened.map_err(|error| Error::NoDevice { device, why: error.to_string() })?)
        }
        Device::Emulator(_) => Arc::new(Emulator::new(EMULATED)?),
    };
    // The emulator says on which line a kernel went wrong.
    let cache = KernelCache::of_user();
    let cache = if matches!(device, Device::Emulator(_)) { cache.with_lines() } else { cache };
    cache.compiler().map_err(|error| Error::NoDevice { device, why: error.to_string() })?;
    let made = Arc::new(Context::new(device, planish_cuda::Device::new(driver, Arc::new(cache))));
    open.insert(device, made.clone());
    Ok(made)
}

pub(super) fn install(device: Device, gpu: planish_cuda::Device) -> Result<()> {
    let mut open = open();
    if device.is_cpu() || open.contains_key(&device) {
        return Err(Error::DeviceOpen { device });
    }
    open.insert(device, Arc::new(Context::new(device, gpu)));
    Ok(())
}

/// The device that tensors share; `None` if it is the processor.
///
/// # Errors
/// [`Error::MixedDevices`].
pub(crate) fn of<'a>(op: &'static str, tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<Option<Arc<Context>>> {
    let mut tensors = tensors.into_iter();
    let Some(first) = tensors.next() else { return Ok(None) };
    let lhs = first.device();
    for t in tensors {
        if t.device() != lhs {
            return Err(Error::MixedDevices { op, lhs, rhs: t.device() });
        }
    }
    Ok(first.context().cloned())
}

impl Context {
    fn new(device: Device, gpu: planish_cuda::Device) -> Context {
        let (uploads, downloads) = Default::default();
        Context { device, gpu: Arc::new(gpu), kept: Mutex::default(), uploads, downloads, replays: AtomicU64::new(0) }
    }

    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// Where kernels go.
    pub(crate) fn queue(&self) -> Queue<'_> {
        match self.recorded_on() {
            Some(stream) => self.gpu.queue_on(stream),
            None => self.gpu.queue(),
        }
    }

    /// The stream that this thread's work is recorded on, if it is.
    fn recorded_on(&self) -> Option<Stream> {
        RECORDING.get().filter(|(device, _)| *device == self.device).map(|(_, stream)| stream)
    }

    /// Refuses what would happen once, and not again when recorded work is replayed.
    pub(crate) fn not_recorded(&self, what: &'static str) -> Result<()> {
        if self.recorded_on().is_some() { Err(Error::NotRecorded { what }) } else { Ok(()) }
    }

    pub(super) fn gpu(&self) -> &Arc<planish_cuda::Device> {
        &self.gpu
    }

    pub(super) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn name(&self) -> String {
        self.gpu.driver().properties().name.clone()
    }

    pub(super) fn memory(&self) -> Result<MemoryUse> {
        let usage = self.gpu.pool().usage();
        let (in_use, peak) = (usage.in_use, usage.peak);
        let free = self.gpu.driver().free_memory()? + (usage.reserved - usage.in_use);
        Ok(MemoryUse { in_use, peak, free, total: self.gpu.driver().properties().memory_bytes })
    }

    pub(super) fn reset_peak(&self) {
        self.gpu.pool().reset_peak();
    }

    pub(super) fn uploaded(&self, bytes: usize) {
        self.uploads[0].fetch_add(1, Relaxed);
        self.uploads[1].fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn downloaded(&self, bytes: usize) {
        self.downloads[0].fetch_add(1, Relaxed);
        self.downloads[1].fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn replayed(&self) {
        self.replays.fetch_add(1, Relaxed);
    }

    pub(super) fn replays(&self) -> u64 {
        self.replays.load(Relaxed)
    }

    pub(super) fn transfers(&self) -> Transfers {
        let [uploads, upload_bytes] = [0, 1].map(|i| self.uploads[i].load(Relaxed));
        let [downloads, download_bytes] = [0, 1].map(|i| self.downloads[i].load(Relaxed));
        Transfers { uploads, upload_bytes, downloads, download_bytes }
    }
}

impl Device {
    /// Bytes that a tensor of so many takes here: its allocator hands out 512 at a time, and above 1 MiB eighths of a power
    /// of two. The processor's takes what is asked for.
    pub fn taken(self, bytes: u64) -> u64 {
        if self.is_cpu() || bytes == 0 {
            return bytes;
        }
        let step = if bytes <= 1 << 20 { 512 } else { bytes.next_power_of_two() / 16 };
        bytes.next_multiple_of(step)
    }

    /// Runs `f`, and says how many bytes of tensors were alive on this device at most during it, beyond those alive
    /// before; of the processor, those of the calling thread, as [`crate::memory::peak_of`].
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn peak_of<T>(self, f: impl FnOnce() -> T) -> Result<(T, usize)> {
        if self.is_cpu() {
            return Ok(crate::memory::peak_of(f));
        }
        let context = get(self)?;
        let before = context.gpu.pool().usage().in_use;
        context.reset_peak();
        let result = f();
        Ok((result, context.gpu.pool().usage().peak.saturating_sub(before) as usize))
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Context({})", self.device)
    }
}
