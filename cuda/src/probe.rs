//! What of CUDA is on this machine. Never fails and never panics: absence is an answer.

use std::panic::catch_unwind;

use cudarc::driver::{result, sys};

use crate::Error;
use crate::nvrtc::{Nvrtc, find_nvrtc};

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number.
    pub ordinal: i32,
    /// Its name, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Its memory in bytes.
    pub memory_bytes: u64,
    /// Compute capability: (9, 0) for Hopper.
    pub compute_capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
}

/// The driver and what it drives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Driver {
    /// There is no driver library (`libcuda.so.1`, `nvcuda.dll`).
    Missing,
    /// The library is there but does not work.
    Failed {
        /// The driver's own words.
        reason: String,
    },
    /// It works; there may still be no GPU.
    Works {
        /// The newest CUDA version that the driver supports.
        cuda_version: (i32, i32),
        /// The GPUs.
        devices: Vec<DeviceInfo>,
    },
}

/// What a CUDA backend would find here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaReport {
    /// The driver.
    pub driver: Driver,
    /// The compiler of kernels.
    pub nvrtc: Option<Nvrtc>,
}

impl CudaReport {
    /// Why `--device cuda` cannot be used, and what to do: a clause; `None` if all that it needs is here.
    pub fn unavailable(&self) -> Option<String> {
        Some(match (&self.driver, &self.nvrtc) {
            (Driver::Missing, _) => {
                "this machine has no NVIDIA driver (libcuda.so.1; install the driver package of your system)".to_owned()
            }
            (Driver::Failed { reason }, _) => format!("the NVIDIA driver does not work ({reason})"),
            (Driver::Works { devices, .. }, _) if devices.is_empty() => "the NVIDIA driver sees no GPU".to_owned(),
            (Driver::Works { cuda_version, .. }, None) => {
                let package = Nvrtc::package(Some(*cuda_version));
                format!("a GPU is here but NVRTC is not (`pip install {package}` or set CUDA_HOME)")
            }
            (Driver::Works { cuda_version, .. }, Some(nvrtc)) if !nvrtc.serves(*cuda_version) => {
                let ((major, minor), (to, _)) = (*cuda_version, nvrtc.version);
                let package = Nvrtc::package(Some(*cuda_version));
                format!(
                    "the driver is for CUDA {major}.{minor} and does not run what NVRTC {to} compiles, which is all that is \
                     here: `pip install {package}`, or update the driver"
                )
            }
            (Driver::Works { .. }, Some(_)) => return None,
        })
    }

    /// Why kernels cannot be compiled, for the emulator or ahead, and what to do; `None` if they can.
    pub fn no_compiler(&self) -> Option<String> {
        let driver = match &self.driver {
            Driver::Works { cuda_version, .. } => Some(*cuda_version),
            _ => None,
        };
        self.nvrtc.is_none().then(|| Error::no_nvrtc(driver).to_string())
    }
}

/// Looks for the driver, its GPUs and NVRTC.
pub fn probe() -> CudaReport {
    // cudarc panics when a library lacks a symbol that it expects, as an old driver may.
    let driver = catch_unwind(probe_driver)
        .unwrap_or_else(|_| Driver::Failed { reason: "it is too old: a function is missing".to_owned() });
    CudaReport { driver, nvrtc: find_nvrtc() }
}

fn probe_driver() -> Driver {
    // SAFETY: only loads the system's driver library, whose initialisers any CUDA program runs.
    if !unsafe { sys::is_culib_present() } {
        return Driver::Missing;
    }
    match works() {
        Ok(found) => found,
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => {
            Driver::Works { cuda_version: version().unwrap_or((0, 0)), devices: Vec::new() }
        }
        Err(error) => Driver::Failed { reason: error.to_string() },
    }
}

/// The newest CUDA version that the driver supports; `None` without one.
pub(crate) fn driver_version() -> Option<(i32, i32)> {
    let ask = || {
        // SAFETY: as in `probe_driver`.
        let present = unsafe { sys::is_culib_present() };
        present.then(version)?.ok()
    };
    // As in `probe`.
    catch_unwind(ask).ok().flatten()
}

fn version() -> Result<(i32, i32), result::DriverError> {
    let mut version = 0;
    // SAFETY: the pointer is valid for the call; the library is loaded. Needs no `cuInit`.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok((version / 1000, version % 1000 / 10))
}

fn works() -> Result<Driver, result::DriverError> {
    use sys::CUdevice_attribute_enum as Attribute;
    result::init()?;
    let mut devices = Vec::new();
    for ordinal in 0..result::device::get_count()? {
        let device = result::device::get(ordinal)?;
        // SAFETY: `device` is a handle that the driver gave out for an existing ordinal.
        let (memory, major, minor, multiprocessors) = unsafe {
            let get = |attribute| result::device::get_attribute(device, attribute);
            (
                result::device::total_mem(device)?,
                get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
                get(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            )
        };
        devices.push(DeviceInfo {
            ordinal,
            name: result::device::get_name(device)?,
            memory_bytes: memory as u64,
            compute_capability: (major, minor),
            multiprocessors,
        });
    }
    Ok(Driver::Works { cuda_version: version()?, devices })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_answers_on_any_machine() {
        let report = probe();
        if let Driver::Works { devices, cuda_version } = &report.driver {
            assert!(cuda_version.0 >= 11);
            assert!(devices.iter().all(|device| device.memory_bytes > 1 << 28 && !device.name.is_empty()));
        }
        assert_eq!(
            report.unavailable().is_none(),
            matches!(&report.driver, Driver::Works { devices, cuda_version } if !devices.is_empty()
                && report.nvrtc.as_ref().is_some_and(|nvrtc| nvrtc.serves(*cuda_version)))
        );
    }

    #[test]
    fn each_state_is_told_apart() {
        let device = DeviceInfo {
            ordinal: 0,
            name: "G".into(),
            memory_bytes: 1,
            compute_capability: (9, 0),
            multiprocessors: 1,
        };
        let of = |cuda_version, devices| Driver::Works { cuda_version, devices };
        let works = |devices| of((13, 0), devices);
        let nvrtc = Some(Nvrtc { path: "x".into(), version: (13, 0) });
        let states = [
            (Driver::Missing, None, "no NVIDIA driver"),
            (Driver::Failed { reason: "why".into() }, None, "does not work (why)"),
            (works(vec![]), None, "sees no GPU"),
            (works(vec![device.clone()]), None, "NVRTC is not (`pip install nvidia-cuda-nvrtc` or"),
            (of((12, 4), vec![device.clone()]), None, "NVRTC is not (`pip install nvidia-cuda-nvrtc-cu12` or"),
            (
                of((12, 4), vec![device.clone()]),
                nvrtc.clone(),
                "the driver is for CUDA 12.4 and does not run what NVRTC 13 compiles, which is all that is here: `pip install \
                 nvidia-cuda-nvrtc-cu12`, or update the driver",
            ),
        ];
        for (driver, nvrtc, words) in states {
            let why = CudaReport { driver, nvrtc }.unavailable().unwrap();
            assert!(why.contains(words), "{why}");
        }
        assert_eq!(CudaReport { driver: works(vec![device.clone()]), nvrtc: nvrtc.clone() }.unavailable(), None);
        let older = Some(Nvrtc { path: "x".into(), version: (12, 9) });
        for version in [(12, 4), (13, 0)] {
            let report = CudaReport { driver: of(version, vec![device.clone()]), nvrtc: older.clone() };
            assert_eq!(report.unavailable(), None);
        }
        // Any will do where no driver has to run it.
        assert_eq!(CudaReport { driver: of((12, 4), vec![]), nvrtc }.no_compiler(), None);
        let why = CudaReport { driver: of((12, 4), vec![]), nvrtc: None }.no_compiler().unwrap();
        assert!(why.contains("`pip install nvidia-cuda-nvrtc-cu12` in the Python on PATH"), "{why}");
        let why = CudaReport { driver: Driver::Missing, nvrtc: None }.no_compiler().unwrap();
        assert!(why.contains("`pip install nvidia-cuda-nvrtc` in the Python on PATH"), "{why}");
    }
}
