//! The boundary's methods, each a call of the driver.

use std::ffi::{CString, c_void};
use std::ptr;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUresult};

use super::handles::{Kernel, Signature};
use super::{Nvidia, call, error, new_stream};
use crate::driver::{
    Arg, DevicePtr, Driver, Event, Fill, Function, Graph, Image, Launch, Module, Properties, Stream, Swizzle,
    TENSOR_MAP_BYTES, TensorMap,
};
use crate::{DType, Error, Result};

/// Refuses what may not be recorded on a stream whose work is.
fn not_recorded(what: &'static str, stream: sys::CUstream) -> Result<()> {
    // SAFETY: the stream is alive.
    let status = unsafe { result::stream::is_capturing(stream) };
    match status.map_err(|e| error("cuStreamIsCapturing", e.0))? {
        sys::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE => Ok(()),
        _ => Err(Error::Driver { call: what, reason: "the stream is being captured".to_owned() }),
    }
}

/// Sizes of a kernel's parameters.
fn signature(function: sys::CUfunction, name: &str) -> Result<Signature> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is loaded; both pointers are valid for the call.
        match unsafe { sys::cuFuncGetParamInfo(function, sizes.len(), &raw mut offset, &raw mut size) } {
            CUresult::CUDA_SUCCESS => sizes.push(size),
            // An index past the last parameter.
            CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(Signature { name: name.to_owned(), sizes }),
            other => return Err(error("cuFuncGetParamInfo", other)),
        }
    }
}

/// Address and size of an argument's value.
fn value(arg: &Arg<'_>) -> (*mut c_void, usize) {
    fn of<V>(value: &V) -> (*mut c_void, usize) {
        (ptr::from_ref(value).cast_mut().cast(), size_of::<V>())
    }
    match arg {
        Arg::Ptr(DevicePtr(v)) | Arg::U64(v) => of(v),
        Arg::U32(v) => of(v),
        Arg::I32(v) => of(v),
        Arg::I64(v) => of(v),
        Arg::F32(v) => of(v),
        Arg::F64(v) => of(v),
        Arg::Bytes(bytes) => (bytes.as_ptr().cast_mut().cast(), bytes.len()),
    }
}

impl Driver for Nvidia {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn free_memory(&self) -> Result<u64> {
        self.with(|_| Ok(result::mem_get_info().map_err(|e| error("cuMemGetInfo", e.0))?.0 as u64))
    }

    fn alloc(&self, bytes: usize, stream: Stream) -> Result<DevicePtr> {
        self.with(|state| {
            let stream = state.handles.streams.get(stream.0)?;
            // Recorded, it would be memory of the graph, there while that runs and not before.
            not_recorded("alloc", stream)?;
            let mut ptr = 0;
            // SAFETY: the pointer is valid for the call and the stream is alive. A size of 0 is refused by the driver.
            match unsafe { sys::cuMemAllocAsync(&raw mut ptr, bytes.max(1), stream) } {
                CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                    let (free, total) = result::mem_get_info().map_err(|e| error("cuMemGetInfo", e.0))?;
                    Err(Error::OutOfMemory { asked: bytes as u64, free: free as u64, total: total as u64 })
                }
                status => {
                    call("cuMemAllocAsync", status)?;
                    state.handles.memory.insert(ptr, bytes.max(1));
                    Ok(DevicePtr(ptr))
                }
            }
        })
    }

    fn free(&self, ptr: DevicePtr, stream: Stream) -> Result<()> {
        self.with(|state| {
            let stream = state.handles.streams.get(stream.0)?;
            not_recorded("free", stream)?;
            state.handles.memory.remove(ptr.0)?;
            // SAFETY: allocated here and not freed before; the stream is alive.
            call("cuMemFreeAsync", unsafe { sys::cuMemFreeAsync(ptr.0, stream) })
        })
    }

    fn upload(&self, dst: DevicePtr, src: &[u8], stream: Stream) -> Result<()> {
        self.with(|state| {
            let pointer = state.handles.streams.get(stream.0)?;
            state.handles.memory.check(dst.0, src.len())?;
            // A recorded copy would read the staging memory again when it holds something else.
            not_recorded("upload", pointer)?;
            // SAFETY: the range was checked, the stream is alive, the context current.
            unsafe { state.staging.upload(dst.0, src, pointer) }
        })
    }

    fn download(&self, dst: &mut [u8], src: DevicePtr, stream: Stream) -> Result<()> {
        let stream = self.with(|state| {
            let stream = state.handles.streams.get(stream.0)?;
            state.handles.memory.check(src.0, dst.len())?;
            // A recorded copy would write to `dst` when that is long gone.
            not_recorded("download", stream)?;
            if !dst.is_empty() {
                // SAFETY: both ranges are valid, and `dst` is borrowed until the stream was waited for below.
                let status = unsafe { sys::cuMemcpyDtoHAsync_v2(dst.as_mut_ptr().cast(), src.0, dst.len(), stream) };
                call("cuMemcpyDtoHAsync", status)?;
            }
            Ok(stream)
        })?;
        self.wait(stream)
    }

    fn copy(&self, dst: DevicePtr, src: DevicePtr, bytes: usize, stream: Stream) -> Result<()> {
        self.with(|state| {
            let stream = state.handles.streams.get(stream.0)?;
            state.handles.memory.check(dst.0, bytes)?;
            state.handles.memory.check(src.0, bytes)?;
            if bytes == 0 {
                return Ok(());
            }
            // SAFETY: both ranges lie in memory of this device; the stream is alive.
            call("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(dst.0, src.0, bytes, stream) })
        })
    }

    fn fill(&self, dst: DevicePtr, byte: u8, bytes: usize, stream: Stream) -> Result<()> {
        self.with(|state| {
            let stream = state.handles.streams.get(stream.0)?;
            state.handles.memory.check(dst.0, bytes)?;
            if bytes == 0 {
                return Ok(());
            }
            // SAFETY: the range lies in memory of this device; the stream is alive.
            call("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(dst.0, byte, bytes, stream) })
        })
    }

    fn create_stream(&self) -> Result<Stream> {
        self.with(|state| Ok(Stream(state.handles.streams.insert(new_stream()?))))
    }

    fn destroy_stream(&self, stream: Stream) -> Result<()> {
        if stream == Stream::default() {
            return Err(Error::Handle { what: "the stream that is always there,", handle: stream.0 });
        }
        self.with(|state| {
            not_recorded("destroy_stream", state.handles.streams.get(stream.0)?)?;
            let pointer = state.handles.streams.remove(stream.0)?;
            // SAFETY: made here, destroyed once. The driver lets its work end first.
            call("cuStreamDestroy", unsafe { sys::cuStreamDestroy_v2(pointer) })
        })
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        let stream = self.with(|state| {
            let stream = state.handles.streams.get(stream.0)?;
            // The driver would refuse too, and spoil the capture.
            not_recorded("synchronize", stream)?;
            Ok(stream)
        })?;
        self.wait(stream)
    }

    fn record(&self, stream: Stream) -> Result<Event> {
        self.with(|state| {
            let stream = state.handles.streams.get(stream.0)?;
            let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT);
            let event = event.map_err(|e| error("cuEventCreate", e.0))?;
            let handle = state.handles.events.insert(event);
            // SAFETY: event and stream are alive.
            call("cuEventRecord", unsafe { sys::cuEventRecord(event, stream) }).inspect_err(|_| {
                let _ = state.handles.events.remove(handle);
                // SAFETY: made above, used by nobody.
                let _ = unsafe { sys::cuEventDestroy_v2(event) };
            })?;
            Ok(Event(handle))
        })
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<()> {
        self.with(|state| {
            let (stream, event) = (state.handles.streams.get(stream.0)?, state.handles.events.get(event.0)?);
            // SAFETY: both are alive. Flags 0: the default.
            call("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream, event, 0) })
        })
    }

    fn elapsed(&self, from: Event, to: Event) -> Result<f64> {
        self.with(|state| {
            let (from, to) = (state.handles.events.get(from.0)?, state.handles.events.get(to.0)?);
            // SAFETY: both are alive.
            let milliseconds = unsafe { result::event::elapsed(from, to) };
            Ok(f64::from(milliseconds.map_err(|e| error("cuEventElapsedTime", e.0))?) / 1e3)
        })
    }

    fn destroy_event(&self, event: Event) -> Result<()> {
        self.with(|state| {
            let event = state.handles.events.remove(event.0)?;
            // SAFETY: made here, destroyed once.
            call("cuEventDestroy", unsafe { sys::cuEventDestroy_v2(event) })
        })
    }

    fn load(&self, image: Image<'_>) -> Result<Module> {
        let ptx;
        let data = match image {
            Image::Cubin(bytes) if !bytes.starts_with(b"\x7fELF") => {
                return Err(Error::Driver { call: "cuModuleLoadData", reason: "the image is no cubin".into() });
            }
            // An ELF file says itself how long it is.
            Image::Cubin(bytes) => bytes.as_ptr().cast(),
            Image::Ptx(text) => {
                ptx = CString::new(text).map_err(|_| Error::Driver {
                    call: "cuModuleLoadData",
                    reason: "the PTX text holds a zero byte".into(),
                })?;
                ptx.as_ptr().cast::<c_void>()
            }
        };
        self.with(|state| {
            let mut module = ptr::null_mut();
            // SAFETY: the image lives through the call, and is ELF or ends with a zero.
            call("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&raw mut module, data) })?;
            Ok(Module(state.handles.modules.insert(module)))
        })
    }

    fn unload(&self, module: Module) -> Result<()> {
        self.with(|state| {
            let pointer = state.handles.modules.remove(module.0)?;
            state.handles.kernels.retain(|kernel| kernel.module != module.0);
            // SAFETY: loaded here, unloaded once; its kernels are no longer known.
            call("cuModuleUnload", unsafe { sys::cuModuleUnload(pointer) })
        })
    }

    fn function(&self, module: Module, name: &str) -> Result<Function> {
        let missing = || Error::NoKernel { name: name.to_owned() };
        let c_name = CString::new(name).map_err(|_| missing())?;
        self.with(|state| {
            let pointer = state.handles.modules.get(module.0)?;
            let mut function = ptr::null_mut();
            // SAFETY: the module is loaded and the name ends with a zero.
            match unsafe { sys::cuModuleGetFunction(&raw mut function, pointer, c_name.as_ptr()) } {
                CUresult::CUDA_ERROR_NOT_FOUND => return Err(missing()),
                status => call("cuModuleGetFunction", status)?,
            }
            let signatures = &mut state.handles.signatures;
            signatures.push(signature(function, name)?);
            let kernel = Kernel { function, module: module.0, signature: signatures.len() - 1, shared: 0 };
            Ok(Function(state.handles.kernels.insert(kernel)))
        })
    }

    fn launch(&self, function: Function, launch: &Launch, args: &[Arg<'_>], stream: Stream) -> Result<()> {
        self.with(|state| {
            let pointer = state.handles.streams.get(stream.0)?;
            let mut kernel = state.handles.kernels.get(function.0)?;
            let signature = &state.handles.signatures[kernel.signature];
            let refuse = |problem| Err(Error::Launch { kernel: signature.name.clone(), problem });
            let values: Vec<(*mut c_void, usize)> = args.iter().map(value).collect();
            if !values.iter().map(|value| value.1).eq(signature.sizes.iter().copied()) {
                let given: Vec<usize> = values.iter().map(|value| value.1).collect();
                return refuse(format!("arguments of {given:?} bytes for parameters of {:?}", signature.sizes));
            }
            if launch.shared_bytes > self.properties.shared_bytes_per_block {
                let most = self.properties.shared_bytes_per_block;
                return refuse(format!(
                    "{} bytes of shared memory, the device has {most} a block",
                    launch.shared_bytes
                ));
            }
            const WITHOUT_ASKING: u32 = 48 << 10;
            if launch.shared_bytes > WITHOUT_ASKING.max(kernel.shared) {
                let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                // SAFETY: the function is loaded.
                let status = unsafe { sys::cuFuncSetAttribute(kernel.function, attribute, launch.shared_bytes as i32) };
                call("cuFuncSetAttribute", status)?;
                kernel.shared = launch.shared_bytes;
                state.handles.kernels.insert_at(function.0, kernel);
            }
            let mut pointers: Vec<*mut c_void> = values.iter().map(|value| value.0).collect();
            let mut attribute = sys::CUlaunchAttribute {
                id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                pad: [0; 4],
                // SAFETY: a union of numbers, for which zeros are valid.
                value: unsafe { std::mem::zeroed() },
            };
            let [x, y, z] = launch.cluster;
            attribute.value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
            let config = sys::CUlaunchConfig {
                gridDimX: launch.grid[0],
                gridDimY: launch.grid[1],
                gridDimZ: launch.grid[2],
                blockDimX: launch.block[0],
                blockDimY: launch.block[1],
                blockDimZ: launch.block[2],
                sharedMemBytes: launch.shared_bytes,
                hStream: pointer,
                attrs: &raw mut attribute,
                numAttrs: u32::from(launch.cluster != [1; 3]),
            };
            // SAFETY: the function is loaded and the stream alive; there is a value of the right size for each
            // parameter, and all live through the call, in which the driver copies them.
            call("cuLaunchKernelEx", unsafe {
                sys::cuLaunchKernelEx(&raw const config, kernel.function, pointers.as_mut_ptr(), ptr::null_mut())
            })
        })
    }

    fn tensor_map(&self, map: &TensorMap<'_>) -> Result<[u8; TENSOR_MAP_BYTES]> {
        map.check(self.properties.compute_capability)?;
        let dtype = match map.dtype {
            DType::F32 => sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            DType::F64 => sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
            DType::BF16 => sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F16 => sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::U32 => sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_UINT32,
            DType::U8 => sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        };
        let swizzle = match map.swizzle {
            Swizzle::None => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::Bytes32 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_32B,
            Swizzle::Bytes64 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_64B,
            Swizzle::Bytes128 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let fill = match map.fill {
            Fill::Zeros => sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            Fill::Nan => sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA,
        };
        let interleave = sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE;
        let promotion = sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_128B;
        self.with(|_| {
            let mut made = sys::CUtensorMap_st { opaque: [0; 16] };
            // SAFETY: the map has the alignment of its type, and by `check` there are as many sizes, box sizes and
            // traversal strides as dimensions and one stride less, of at most 5. The address is not read here.
            call("cuTensorMapEncodeTiled", unsafe {
                sys::cuTensorMapEncodeTiled(
                    &raw mut made,
                    dtype,
                    map.sizes.len() as u32,
                    map.base.0 as *mut c_void,
                    map.sizes.as_ptr(),
                    map.strides.as_ptr(),
                    map.tile.as_ptr(),
                    [1_u32; 5].as_ptr(),
                    interleave,
                    swizzle,
                    promotion,
                    fill,
                )
            })?;
            let mut bytes = [0; TENSOR_MAP_BYTES];
            for (to, word) in bytes.chunks_exact_mut(8).zip(made.opaque) {
                to.copy_from_slice(&word.to_ne_bytes());
            }
            Ok(bytes)
        })
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        self.with(|state| {
            let pointer = state.handles.streams.get(stream.0)?;
            not_recorded("begin_capture", pointer)?;
            // Relaxed: other threads may allocate and load meanwhile.
            let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
            // SAFETY: the stream is alive.
            call("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(pointer, mode) })
        })
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        self.with(|state| {
            let pointer = state.handles.streams.get(stream.0)?;
            let mut graph = ptr::null_mut();
            // SAFETY: the stream is alive and the pointer valid for the call.
            call("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(pointer, &raw mut graph) })?;
            let mut executable = ptr::null_mut();
            // SAFETY: the graph was just made, and is destroyed once; the executable one does not need it.
            let status = unsafe {
                let status = sys::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0);
                let _ = sys::cuGraphDestroy(graph);
                status
            };
            call("cuGraphInstantiate", status)?;
            Ok(Graph(state.handles.graphs.insert(executable)))
        })
    }

    fn launch_graph(&self, graph: Graph, stream: Stream) -> Result<()> {
        self.with(|state| {
            let (stream, graph) = (state.handles.streams.get(stream.0)?, state.handles.graphs.get(graph.0)?);
            not_recorded("launch_graph", stream)?;
            // SAFETY: both are alive.
            call("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph, stream) })
        })
    }

    fn destroy_graph(&self, graph: Graph) -> Result<()> {
        self.with(|state| {
            let graph = state.handles.graphs.remove(graph.0)?;
            // SAFETY: made here, destroyed once. The driver lets a running one end first.
            call("cuGraphExecDestroy", unsafe { sys::cuGraphExecDestroy(graph) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_have_the_sizes_of_their_types() {
        let bytes = [1, 2, 3];
        let args = [Arg::Ptr(DevicePtr(5)), Arg::U32(6), Arg::F64(1.5), Arg::Bytes(&bytes)];
        let sizes: Vec<usize> = args.iter().map(|arg| value(arg).1).collect();
        assert_eq!(sizes, [8, 4, 8, 3]);
        // SAFETY: the pointer is to the u32 within `args`.
        assert_eq!(unsafe { *value(&args[1]).0.cast::<u32>() }, 6);
    }
}
