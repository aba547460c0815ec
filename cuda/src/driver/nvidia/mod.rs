//! NVIDIA's driver.
//!
//! Each method is the driver call of its name, after the handles were checked and the device's context was made
//! current on the calling thread. Stream 0 is a stream of its own, not the legacy default stream, which cannot be
//! captured and waits for all others. Memory comes from the device's default stream-ordered pool.
//!
//! # Sticky errors
//! After a kernel has failed (an illegal address, a failed assertion) the context is lost: every later call gives the
//! same error. It is remembered here, so that the driver is not asked again.

mod calls;
mod handles;
mod staging;

use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};

use self::handles::Handles;
use self::staging::Staging;
use super::{Properties, Stream};
use crate::{Error, Result};

/// The oldest CUDA version whose driver has all functions that are called here.
const OLDEST: i32 = 12040;

/// A GPU behind NVIDIA's driver.
#[derive(Debug)]
pub struct Nvidia {
    device: sys::CUdevice,
    context: sys::CUcontext,
    properties: Properties,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    handles: Handles,
    staging: Staging,
    failed: Option<Error>,
}

// SAFETY: the pointers are handles of the driver, whose functions may be called from any thread (driver API, "Difference
// between the driver and runtime APIs": a context may be current to several threads). What is mutable is behind a mutex.
unsafe impl Send for Nvidia {}
// SAFETY: as above.
unsafe impl Sync for Nvidia {}

/// An error of a call.
fn error(call: &'static str, status: CUresult) -> Error {
    let error = DriverError(status);
    let text = |found: Result<&std::ffi::CStr, DriverError>| found.ok().map(|text| text.to_string_lossy().into_owned());
    let name = text(error.error_name()).unwrap_or_else(|| format!("error {}", status as u32));
    let words = text(error.error_string()).unwrap_or_default();
    Error::Driver { call, reason: format!("{name} ({words})") }
}

fn call(name: &'static str, status: CUresult) -> Result<()> {
    if status == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(error(name, status)) }
}

/// Whether the context is lost with this error.
fn is_sticky(error: &Error) -> bool {
    const LOST: [&str; 12] = [
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "CUDA_ERROR_LAUNCH_TIMEOUT",
        "CUDA_ERROR_ASSERT",
        "CUDA_ERROR_HARDWARE_STACK_ERROR",
        "CUDA_ERROR_ILLEGAL_INSTRUCTION",
        "CUDA_ERROR_MISALIGNED_ADDRESS",
        "CUDA_ERROR_INVALID_ADDRESS_SPACE",
        "CUDA_ERROR_INVALID_PC",
        "CUDA_ERROR_LAUNCH_FAILED",
        "CUDA_ERROR_ECC_UNCORRECTABLE",
        "CUDA_ERROR_NVLINK_UNCORRECTABLE",
        "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    ];
    matches!(error, Error::Driver { reason, .. } if LOST.iter().any(|name| reason.split(' ').next() == Some(name)))
}

impl Nvidia {
    /// Opens a GPU by its number.
    ///
    /// # Errors
    /// No driver, one that is too old, no such GPU.
    pub fn open(ordinal: i32) -> Result<Nvidia> {
        // SAFETY: only loads the system's driver library, whose initialisers any CUDA program runs.
        if !unsafe { sys::is_culib_present() } {
            let reason = "there is no NVIDIA driver on this machine (libcuda.so.1)".to_owned();
            return Err(Error::Driver { call: "loading the driver", reason });
        }
        let mut version = 0;
        // SAFETY: the pointer is valid for the call, which needs no initialisation.
        call("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version) })?;
        if version < OLDEST {
            let major_minor = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
            let reason = format!("the driver is for CUDA {}, {} is needed", major_minor(version), major_minor(OLDEST));
            return Err(Error::Driver { call: "cuDriverGetVersion", reason });
        }
        result::init().map_err(|e| error("cuInit", e.0))?;
        let device = result::device::get(ordinal).map_err(|e| error("cuDeviceGet", e.0))?;
        let properties = properties(device)?;
        // SAFETY: the driver gave out `device`. Given back in `drop`.
        let context = unsafe { result::primary_ctx::retain(device) };
        let context = context.map_err(|e| error("cuDevicePrimaryCtxRetain", e.0))?;
        let begin = || -> Result<State> {
            // SAFETY: the context was just retained.
            unsafe { result::ctx::set_current(context) }.map_err(|e| error("cuCtxSetCurrent", e.0))?;
            let mut handles = Handles::new();
            handles.streams.insert_at(Stream::default().0, new_stream()?);
            Ok(State { handles, staging: Staging::new()?, failed: None })
        };
        match begin() {
            Ok(state) => Ok(Nvidia { device, context, properties, state: Mutex::new(state) }),
            Err(error) => {
                // SAFETY: retained above, and used by nobody.
                let _ = unsafe { result::primary_ctx::release(device) };
                Err(error)
            }
        }
    }

    /// The state, with the context current on this thread.
    fn enter(&self) -> Result<MutexGuard<'_, State>> {
        // Each change of the state is one statement: a panic leaves nothing half done.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.context) }.map_err(|e| error("cuCtxSetCurrent", e.0))?;
        Ok(state)
    }

    /// Does something with the state; an error after which the context is lost is remembered.
    fn with<R>(&self, work: impl FnOnce(&mut State) -> Result<R>) -> Result<R> {
        let mut state = self.enter()?;
        let done = work(&mut state);
        if let Err(error) = &done
            && is_sticky(error)
        {
            state.failed = Some(error.clone());
        }
        done
    }

    fn wait(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: the stream was looked up while it was alive; destroying it elsewhere meanwhile makes the driver answer
        // with an error. The state is not locked, so that other threads can go on.
        let done = call("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream) });
        if let Err(error) = &done
            && is_sticky(error)
        {
            self.state.lock().unwrap_or_else(PoisonError::into_inner).failed = Some(error.clone());
        }
        done
    }
}

fn new_stream() -> Result<sys::CUstream> {
    result::stream::create(result::stream::StreamKind::NonBlocking).map_err(|e| error("cuStreamCreate", e.0))
}

fn properties(device: sys::CUdevice) -> Result<Properties> {
    use sys::CUdevice_attribute_enum as A;
    let get = |attribute| -> Result<u32> {
        // SAFETY: the driver gave out `device`.
        let value = unsafe { result::device::get_attribute(device, attribute) };
        Ok(value.map_err(|e| error("cuDeviceGetAttribute", e.0))?.max(0) as u32)
    };
    Ok(Properties {
        name: result::device::get_name(device).map_err(|e| error("cuDeviceGetName", e.0))?,
        compute_capability: (
            get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: get(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device) }.map_err(|e| error("cuDeviceTotalMem", e.0))? as u64,
        l2_bytes: u64::from(get(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
        shared_bytes_per_block: get(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        shared_bytes_per_multiprocessor: get(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
        wants_ptx: false,
    })
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let handles = &mut state.handles;
        // SAFETY: everything was made here and is given back once, after the work that uses it; the context is
        // released last. Errors are those of a context that is lost, which the release ends all the same.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            for stream in handles.streams.values() {
                let _ = sys::cuStreamSynchronize(stream);
            }
            for graph in handles.graphs.drain() {
                let _ = sys::cuGraphExecDestroy(graph);
            }
            for event in handles.events.drain() {
                let _ = sys::cuEventDestroy_v2(event);
            }
            for module in handles.modules.drain() {
                let _ = sys::cuModuleUnload(module);
            }
            for ptr in handles.memory.drain() {
                let _ = sys::cuMemFree_v2(ptr);
            }
            for stream in handles.streams.drain() {
                let _ = sys::cuStreamDestroy_v2(stream);
            }
            state.staging.release();
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs wherever there is a GPU; elsewhere it must say what is missing.
    #[test]
    fn opening_works_or_says_why_not() {
        match Nvidia::open(0) {
            Ok(gpu) => {
                use crate::driver::Driver;
                let ptr = gpu.alloc(1000, Stream::default()).unwrap();
                gpu.upload(ptr, &[7; 1000], Stream::default()).unwrap();
                let mut back = [0; 1000];
                gpu.download(&mut back, ptr, Stream::default()).unwrap();
                assert_eq!(back, [7; 1000]);
                assert!(gpu.upload(ptr, &[0; 1001], Stream::default()).is_err());
                gpu.free(ptr, Stream::default()).unwrap();
                assert!(gpu.free(ptr, Stream::default()).is_err());
            }
            Err(error) => assert!(matches!(error, Error::Driver { .. }), "{error}"),
        }
    }

    #[test]
    fn only_a_lost_context_is_remembered() {
        let of = |reason: &str| Error::Driver { call: "cuLaunchKernel", reason: reason.to_owned() };
        assert!(is_sticky(&of("CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access was encountered)")));
        assert!(!is_sticky(&of("CUDA_ERROR_INVALID_VALUE (invalid argument)")));
        assert!(!is_sticky(&of("CUDA_ERROR_ASSERTX (no)")));
        assert!(!is_sticky(&Error::OutOfMemory { asked: 1, free: 0, total: 1 }));
    }
}
