//! A device with everything that launchers need: driver, memory, compiled kernels.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cache::{Defines, KernelCache};
use crate::driver::{Arg, Driver, Function, Image, Launch, Module, Stream};
use crate::kernels::Kernel;
use crate::memory::{DeviceBuffer, Pod, Pool};
use crate::nvrtc::Arch;
use crate::profile::Seen;
use crate::{DType, Result};

/// A device.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use planish_cuda::cache::KernelCache;
/// use planish_cuda::emulator::Emulator;
/// use planish_cuda::ops::softmax::{self, Kind};
/// use planish_cuda::{DType, Device};
///
/// // Or `driver::Nvidia::open(0)?`. Kernels are compiled by NVRTC when they are first asked for.
/// let device = Device::new(Arc::new(Emulator::new((9, 0))?), Arc::new(KernelCache::of_user()));
/// let queue = device.queue();
/// let x = queue.upload("logits", &[0.0f32, 1.0, 2.0, 5.0, 5.0, 5.0])?;
/// let mut y = queue.alloc("probabilities", 6, DType::F32)?;
/// softmax::forward(queue, Kind::Softmax, y.slice_mut(DType::F32), x.slice(DType::F32), 3)?;
/// println!("{:?}", y.download::<f32>()?);
/// # Ok::<(), planish_cuda::Error>(())
/// ```
#[derive(Debug)]
pub struct Device {
    driver: Arc<dyn Driver>,
    pool: Arc<Pool>,
    cache: Arc<KernelCache>,
    arch: Arch,
    loaded: Mutex<Loaded>,
    /// Launches, while somebody wants to know where time goes.
    pub(crate) seen: Mutex<Option<Vec<Seen>>>,
}

#[derive(Debug, Default)]
struct Loaded {
    modules: HashMap<(&'static str, Defines), Module>,
    functions: HashMap<(Module, &'static str), Function>,
}

/// A stream of a device: where launchers put their work.
#[derive(Clone, Copy, Debug)]
pub struct Queue<'a> {
    /// The device.
    pub device: &'a Device,
    /// The stream.
    pub stream: Stream,
}

impl Device {
    /// A device behind `driver`, whose kernels come from `cache`.
    pub fn new(driver: Arc<dyn Driver>, cache: Arc<KernelCache>) -> Device {
        let arch = Arch::of_device(driver.properties().compute_capability);
        Device {
            pool: Pool::new(driver.clone()),
            driver,
            cache,
            arch,
            loaded: Mutex::default(),
            seen: Mutex::default(),
        }
    }

    /// Its driver.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// Its memory.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// What kernels are compiled for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The stream that is always there.
    pub fn queue(&self) -> Queue<'_> {
        self.queue_on(Stream::default())
    }

    /// A stream.
    pub fn queue_on(&self, stream: Stream) -> Queue<'_> {
        Queue { device: self, stream }
    }

    /// A kernel of a file, compiled and loaded when it is first asked for.
    ///
    /// # Errors
    /// Those of the compiler and of the driver.
    pub fn function(&self, kernel: &Kernel, name: &'static str, defines: &Defines) -> Result<Function> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (kernel.name, defines.clone());
        let module = match loaded.modules.get(&key) {
            Some(&module) => module,
            None => {
                let compiled = self.cache.get(kernel, defines, self.arch)?;
                let image = match self.driver.properties().wants_ptx {
                    true => Image::Ptx(&compiled.ptx),
                    false => Image::Cubin(&compiled.cubin),
                };
                let module = self.driver.load(image)?;
                loaded.modules.insert(key, module);
                module
            }
        };
        if let Some(&function) = loaded.functions.get(&(module, name)) {
            return Ok(function);
        }
        let function = self.driver.function(module, name)?;
        loaded.functions.insert((module, name), function);
        Ok(function)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let loaded = self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner);
        for module in loaded.modules.values() {
            // A device that has failed has nothing left to unload.
            let _ = self.driver.unload(*module);
        }
    }
}

impl Queue<'_> {
    /// `len` elements of `dtype` with contents that nobody may rely on.
    ///
    /// # Errors
    /// [`Error::NoRoom`](crate::Error::NoRoom).
    pub fn alloc(&self, what: &'static str, len: usize, dtype: DType) -> Result<DeviceBuffer> {
        self.device.pool.alloc(what, len * dtype.size(), self.stream)
    }

    /// `len` zeros.
    ///
    /// # Errors
    /// As [`alloc`](Queue::alloc).
    pub fn zeros(&self, what: &'static str, len: usize, dtype: DType) -> Result<DeviceBuffer> {
        let mut buffer = self.alloc(what, len, dtype)?;
        buffer.fill(0)?;
        Ok(buffer)
    }

    /// A copy of `data` on the device.
    ///
    /// # Errors
    /// As [`alloc`](Queue::alloc).
    pub fn upload<T: Pod>(&self, what: &'static str, data: &[T]) -> Result<DeviceBuffer> {
        let mut buffer = self.device.pool.alloc(what, size_of_val(data), self.stream)?;
        buffer.upload(data)?;
        Ok(buffer)
    }

    /// Waits for the stream's work.
    ///
    /// # Errors
    /// What failed in it.
    pub fn synchronize(&self) -> Result<()> {
        self.device.driver.synchronize(self.stream)
    }

    /// Starts a kernel; a grid of no blocks is no work.
    ///
    /// The launchers in [`ops`](crate::ops) check what they are given; this checks nothing but what the driver does.
    ///
    /// # Errors
    /// Those of the compiler and of the driver.
    pub fn launch(
        &self,
        kernel: &Kernel,
        name: &'static str,
        defines: &Defines,
        shape: Shape,
        args: &[Arg<'_>],
    ) -> Result<()> {
        if shape.grid.contains(&0) {
            return Ok(());
        }
        let function = self.device.function(kernel, name, defines)?;
        let Shape { grid, block, cluster, shared_bytes } = shape;
        let launch = Launch { grid, block: [block, 1, 1], cluster: [cluster, 1, 1], shared_bytes };
        let driver = &self.device.driver;
        let seen = || self.device.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen().is_none() {
            return driver.launch(function, &launch, args, self.stream);
        }
        let from = driver.record(self.stream)?;
        driver.launch(function, &launch, args, self.stream)?;
        let to = driver.record(self.stream)?;
        if let Some(seen) = &mut *seen() {
            seen.push(Seen { name, grid, from, to });
        }
        Ok(())
    }
}

/// The shape of a launch of blocks in one dimension.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Blocks of a cluster along x; 1 for none.
    pub cluster: u32,
    /// Dynamic shared memory, bytes.
    pub shared_bytes: u32,
}

impl Shape {
    /// A line of blocks.
    pub fn line(blocks: usize, block: u32) -> Shape {
        Shape::grid([blocks, 1, 1], block)
    }

    /// Blocks in three dimensions.
    ///
    /// More of them than a device takes is for the driver to refuse: it names the launch.
    pub fn grid(blocks: [usize; 3], block: u32) -> Shape {
        Shape { grid: blocks.map(|n| u32::try_from(n).unwrap_or(u32::MAX)), block, cluster: 1, shared_bytes: 0 }
    }

    /// The same in clusters of so many blocks along x, of which the grid must be made.
    pub fn clusters(self, blocks: usize) -> Shape {
        Shape { cluster: u32::try_from(blocks).unwrap_or(u32::MAX), ..self }
    }

    /// The same with this much dynamic shared memory.
    pub fn shared(self, bytes: usize) -> Shape {
        Shape { shared_bytes: u32::try_from(bytes).unwrap_or(u32::MAX), ..self }
    }
}
