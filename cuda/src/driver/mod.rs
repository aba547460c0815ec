//! The driver boundary: what the backend asks of a device.
//!
//! Everything above it (kernel cache, launchers, allocator, graphs) is written once, against [`Driver`]. Below it
//! stand NVIDIA's driver and the emulator, so `--device emulator` runs the very code that a GPU runs.
//!
//! Handles are plain numbers that the driver gave out. A driver checks every handle that it is given: a stale or
//! foreign one is an error, never undefined behaviour of this crate.

mod nvidia;
mod tensor_map;

pub use nvidia::Nvidia;
pub use tensor_map::{Fill, Swizzle, TENSOR_MAP_BYTES, TensorMap, TensorMapProblem};

use std::fmt::Debug;

use crate::error::Result;

/// An address in device memory. Null is never given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DevicePtr(pub u64);

/// Work in order; work of two streams is in no order but what events make. 0 is the stream that is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Stream(pub u64);

/// A point in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event(pub u64);

/// A loaded image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Module(pub u64);

/// A kernel of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Function(pub u64);

/// A captured sequence of work, ready to be launched again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Graph(pub u64);

/// Compiled kernels.
#[derive(Clone, Copy, Debug)]
pub enum Image<'a> {
    /// PTX text, without the zero that C asks for.
    Ptx(&'a str),
    /// A cubin for this device's architecture.
    Cubin(&'a [u8]),
}

/// What a device is.
#[derive(Clone, Debug, PartialEq)]
pub struct Properties {
    /// Its name, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Compute capability: (9, 0) for Hopper.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Second-level cache, bytes.
    pub l2_bytes: u64,
    /// Shared memory that a block may opt into, bytes.
    pub shared_bytes_per_block: u32,
    /// Shared memory of a multiprocessor, bytes.
    pub shared_bytes_per_multiprocessor: u32,
    /// Whether images are PTX for this device, as with the emulator, or should be cubins.
    pub wants_ptx: bool,
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Blocks of a cluster along x, y, z; ones for none.
    pub cluster: [u32; 3],
    /// Dynamic shared memory, bytes. Above 48 KiB the driver opts in.
    pub shared_bytes: u32,
}

/// One argument of a kernel, of exactly the size of its parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg<'a> {
    /// A pointer to device memory.
    Ptr(DevicePtr),
    /// 32 bits, unsigned.
    U32(u32),
    /// 32 bits, signed.
    I32(i32),
    /// 64 bits, unsigned.
    U64(u64),
    /// 64 bits, signed.
    I64(i64),
    /// A single float.
    F32(f32),
    /// A double.
    F64(f64),
    /// A structure by value, such as a tensor map; its alignment is the parameter's.
    Bytes(&'a [u8]),
}

/// A device: memory, streams, kernels.
///
/// Work on a stream may still be running when a call returns; `download` and `synchronize` wait for it. A failed
/// kernel may be reported by any later call. Once a device has failed so, every call fails.
pub trait Driver: Send + Sync + Debug {
    /// What the device is.
    fn properties(&self) -> &Properties;

    /// Memory that is free now, bytes.
    fn free_memory(&self) -> Result<u64>;

    /// `bytes` of memory, aligned to 256, with contents that nobody may rely on. In the order of the stream.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) with what was asked for and what is free.
    fn alloc(&self, bytes: usize, stream: Stream) -> Result<DevicePtr>;

    /// Gives memory back, once the work that the stream has now is done.
    fn free(&self, ptr: DevicePtr, stream: Stream) -> Result<()>;

    /// An allocator above the driver hands memory from [`alloc`](Driver::alloc) out for work of a stream: its first `bytes`,
    /// as if they were new. Said in the order of the stream, for a driver that checks accesses; others ignore it.
    fn lend(&self, _ptr: DevicePtr, _bytes: usize, _stream: Stream) {}

    /// The allocator has it back, after the work that the stream has now, and lends it to nobody.
    fn reclaim(&self, _ptr: DevicePtr, _stream: Stream) {}

    /// Copies to the device. `src` may be changed as soon as the call returns.
    fn upload(&self, dst: DevicePtr, src: &[u8], stream: Stream) -> Result<()>;

    /// Copies from the device, after the stream's work so far; returns when it is done.
    fn download(&self, dst: &mut [u8], src: DevicePtr, stream: Stream) -> Result<()>;

    /// Copies within the device; the ranges may not overlap.
    fn copy(&self, dst: DevicePtr, src: DevicePtr, bytes: usize, stream: Stream) -> Result<()>;

    /// Sets every byte.
    fn fill(&self, dst: DevicePtr, byte: u8, bytes: usize, stream: Stream) -> Result<()>;

    /// A new stream.
    fn create_stream(&self) -> Result<Stream>;

    /// Gives a stream back, after its work.
    fn destroy_stream(&self, stream: Stream) -> Result<()>;

    /// Waits for a stream's work, and reports what failed in it.
    fn synchronize(&self, stream: Stream) -> Result<()>;

    /// Marks a point in a stream.
    fn record(&self, stream: Stream) -> Result<Event>;

    /// Makes later work of `stream` wait for a point in another.
    fn wait(&self, stream: Stream, event: Event) -> Result<()>;

    /// Seconds between two points whose work is done. The emulator gives the time that it took itself.
    fn elapsed(&self, from: Event, to: Event) -> Result<f64>;

    /// Gives an event back.
    fn destroy_event(&self, event: Event) -> Result<()>;

    /// Loads kernels.
    fn load(&self, image: Image<'_>) -> Result<Module>;

    /// Unloads them.
    fn unload(&self, module: Module) -> Result<()>;

    /// A kernel by its name in the image.
    fn function(&self, module: Module, name: &str) -> Result<Function>;

    /// Starts a kernel. The number and sizes of `args` are checked against its parameters where the driver knows
    /// them.
    fn launch(&self, function: Function, launch: &Launch, args: &[Arg<'_>], stream: Stream) -> Result<()>;

    /// A tensor map for kernels of this device: 128 bytes that only it understands.
    ///
    /// # Errors
    /// [`Error::TensorMap`](crate::Error::TensorMap) for a description against the rules.
    fn tensor_map(&self, map: &TensorMap<'_>) -> Result<[u8; TENSOR_MAP_BYTES]>;

    /// Begins to record a stream's work instead of doing it.
    fn begin_capture(&self, stream: Stream) -> Result<()>;

    /// Ends the recording.
    fn end_capture(&self, stream: Stream) -> Result<Graph>;

    /// Does recorded work, in order, on a stream.
    fn launch_graph(&self, graph: Graph, stream: Stream) -> Result<()>;

    /// Gives a recording back.
    fn destroy_graph(&self, graph: Graph) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::emulator::Emulator;

    /// What a capture cannot hold is refused, and the capture goes on.
    fn captures(driver: &dyn Driver) {
        let stream = driver.create_stream().unwrap();
        let (x, y) = (driver.alloc(64, stream).unwrap(), driver.alloc(64, stream).unwrap());
        driver.fill(x, 1, 64, stream).unwrap();
        driver.begin_capture(stream).unwrap();
        driver.fill(x, 2, 64, stream).unwrap();
        driver.copy(y, x, 64, stream).unwrap();
        let empty =
            driver.begin_capture(Stream::default()).and_then(|()| driver.end_capture(Stream::default())).unwrap();
        let refused: [(&str, Result<()>); 8] = [
            ("alloc", driver.alloc(64, stream).map(drop)),
            ("free", driver.free(x, stream)),
            ("upload", driver.upload(x, &[3; 64], stream)),
            ("download", driver.download(&mut [0; 64], x, stream)),
            ("synchronize", driver.synchronize(stream)),
            ("destroy_stream", driver.destroy_stream(stream)),
            ("begin_capture", driver.begin_capture(stream)),
            ("launch_graph", driver.launch_graph(empty, stream)),
        ];
        for (call, result) in refused {
            let reason = "the stream is being captured".to_owned();
            assert_eq!(result, Err(Error::Driver { call, reason }), "{call}");
        }
        let graph = driver.end_capture(stream).unwrap();
        driver.launch_graph(graph, stream).unwrap();
        let mut back = [0; 64];
        driver.download(&mut back, y, stream).unwrap();
        assert_eq!(back, [2; 64]);
        driver.free(x, stream).unwrap();
        driver.free(y, stream).unwrap();
        driver.destroy_stream(stream).unwrap();
    }

    /// Runs on a GPU too, wherever there is one.
    #[test]
    fn every_driver_refuses_the_same_while_it_captures() {
        captures(&Emulator::new((9, 0)).unwrap());
        if let Ok(gpu) = Nvidia::open(0) {
            captures(&gpu);
        }
    }
}
