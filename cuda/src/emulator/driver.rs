//! The emulator in the place of NVIDIA's driver.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::decode::{Globals, decode, tidy};
use super::device::{Emulator, Loaded, Work};
use super::ptx::{Problem, parse};
use super::tensor_map;
use crate::driver::{
    Arg, DevicePtr, Driver, Event, Function, Graph, Image, Launch, Module, Properties, Stream, TENSOR_MAP_BYTES,
    TensorMap,
};
use crate::error::{Error, Result};

fn ptx_error(problem: Problem, lines: &[&str]) -> Error {
    let text = lines.get((problem.line as usize).wrapping_sub(1)).copied().map(tidy).unwrap_or_default();
    Error::Ptx { line: problem.line, text, problem: problem.what }
}

impl Driver for Emulator {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn free_memory(&self) -> Result<u64> {
        Ok(self.properties.memory_bytes.saturating_sub(self.state()?.memory.used))
    }

    fn alloc(&self, bytes: usize, stream: Stream) -> Result<DevicePtr> {
        let mut state = self.state()?;
        state.not_captured(stream, "alloc")?;
        let free = self.properties.memory_bytes.saturating_sub(state.memory.used);
        if bytes as u64 > free {
            return Err(Error::OutOfMemory { asked: bytes as u64, free, total: self.properties.memory_bytes });
        }
        Ok(DevicePtr(state.memory.alloc(bytes as u64)))
    }

    fn free(&self, ptr: DevicePtr, stream: Stream) -> Result<()> {
        let mut state = self.state()?;
        state.not_captured(stream, "free")?;
        if state.memory.free(ptr.0) { Ok(()) } else { Err(Error::Handle { what: "allocation", handle: ptr.0 }) }
    }

    // In the order of the stream, so that a graph lends and reclaims what it works on each time that it runs. After a
    // fault there is nothing left to look after.
    fn lend(&self, ptr: DevicePtr, bytes: usize, stream: Stream) {
        let _ = self.submit(Work::Lend(ptr.0, bytes as u64), stream);
    }

    fn reclaim(&self, ptr: DevicePtr, stream: Stream) {
        let _ = self.submit(Work::Reclaim(ptr.0), stream);
    }

    fn upload(&self, dst: DevicePtr, src: &[u8], stream: Stream) -> Result<()> {
        let state = self.state()?;
        // A card's recorded copy would read the host's memory again when it holds something else.
        state.not_captured(stream, "upload")?;
        let done = state.memory.upload(dst.0, src);
        done.map_err(|kind| Error::Driver { call: "upload", reason: kind.to_string() })
    }

    fn download(&self, dst: &mut [u8], src: DevicePtr, stream: Stream) -> Result<()> {
        let state = self.state()?;
        state.not_captured(stream, "download")?;
        let done = state.memory.download(dst, src.0);
        done.map_err(|kind| Error::Driver { call: "download", reason: kind.to_string() })
    }

    fn copy(&self, dst: DevicePtr, src: DevicePtr, bytes: usize, stream: Stream) -> Result<()> {
        let overlap = dst.0 < src.0.saturating_add(bytes as u64) && src.0 < dst.0.saturating_add(bytes as u64);
        if overlap && bytes > 0 {
            return Err(Error::Driver { call: "copy", reason: "the ranges overlap".to_owned() });
        }
        self.submit(Work::Copy(dst.0, src.0, bytes as u64), stream)
    }

    fn fill(&self, dst: DevicePtr, byte: u8, bytes: usize, stream: Stream) -> Result<()> {
        self.submit(Work::Fill(dst.0, byte, bytes as u64), stream)
    }

    fn create_stream(&self) -> Result<Stream> {
        let mut state = self.state()?;
        let handle = state.handle();
        state.streams.insert(handle);
        Ok(Stream(handle))
    }

    fn destroy_stream(&self, stream: Stream) -> Result<()> {
        let mut state = self.state()?;
        state.not_captured(stream, "destroy_stream")?;
        if stream.0 == 0 || !state.streams.remove(&stream.0) {
            return Err(Error::Handle { what: "stream", handle: stream.0 });
        }
        Ok(())
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        self.state()?.not_captured(stream, "synchronize")
    }

    fn record(&self, stream: Stream) -> Result<Event> {
        let mut state = self.state()?;
        state.check_stream(stream)?;
        let handle = state.handle();
        let capture = state.capturing.get(&stream.0).copied();
        state.events.insert(handle, (Instant::now(), capture));
        Ok(Event(handle))
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<()> {
        let mut state = self.state()?;
        state.check_stream(stream)?;
        let known = state.events.get(&event.0).ok_or(Error::Handle { what: "event", handle: event.0 })?;
        // A stream that waits for a captured event takes part in the capture.
        if let Some(origin) = known.1.filter(|origin| state.captures.contains_key(origin)) {
            state.capturing.entry(stream.0).or_insert(origin);
        }
        Ok(())
    }

    fn elapsed(&self, from: Event, to: Event) -> Result<f64> {
        let state = self.state()?;
        let when = |event: Event| {
            let known = state.events.get(&event.0).ok_or(Error::Handle { what: "event", handle: event.0 })?;
            match known.1 {
                None => Ok(known.0),
                Some(_) => Err(Error::Driver { call: "elapsed", reason: "the event is of a capture".to_owned() }),
            }
        };
        let (from, to) = (when(from)?, when(to)?);
        Ok(match to.checked_duration_since(from) {
            Some(span) => span.as_secs_f64(),
            None => -from.duration_since(to).as_secs_f64(),
        })
    }

    fn destroy_event(&self, event: Event) -> Result<()> {
        let known = self.state()?.events.remove(&event.0);
        known.map(|_| ()).ok_or(Error::Handle { what: "event", handle: event.0 })
    }

    fn load(&self, image: Image<'_>) -> Result<Module> {
        let Image::Ptx(text) = image else {
            return Err(Error::Driver { call: "load", reason: "the emulator takes PTX, not cubins".to_owned() });
        };
        let lines: Vec<&str> = text.lines().collect();
        let file = parse(text).map_err(|problem| ptx_error(problem, &lines))?;
        self.check_target(file.target)?;
        let mut state = self.state()?;
        let (mut globals, mut variables) = (Globals::new(), HashMap::new());
        for variable in file.variables.iter().filter(|variable| matches!(variable.space, ".global" | ".const")) {
            let read_only = variable.space == ".const";
            let at = state.memory.alloc_variable(variable.bytes, &variable.init, read_only);
            globals.insert(variable.name.to_owned(), at);
            variables.insert(variable.name.to_owned(), (at, variable.bytes));
        }
        let kernels = file
            .entries
            .iter()
            .map(|entry| {
                let decoded = decode(&file, entry, &globals, &lines);
                (entry.name.to_owned(), decoded.map(Arc::new).map_err(|problem| ptx_error(problem, &lines)))
            })
            .collect();
        let handle = state.handle();
        state.modules.insert(handle, Loaded { kernels, variables });
        Ok(Module(handle))
    }

    fn unload(&self, module: Module) -> Result<()> {
        let mut state = self.state()?;
        let loaded = state.modules.remove(&module.0).ok_or(Error::Handle { what: "module", handle: module.0 })?;
        for (at, _) in loaded.variables.values() {
            state.memory.free(*at);
        }
        state.functions.retain(|_, (of, _)| *of != module.0);
        Ok(())
    }

    fn function(&self, module: Module, name: &str) -> Result<Function> {
        let mut state = self.state()?;
        let loaded = state.modules.get(&module.0).ok_or(Error::Handle { what: "module", handle: module.0 })?;
        let kernel = loaded.kernels.get(name).ok_or_else(|| Error::NoKernel { name: name.to_owned() })?.clone()?;
        let handle = state.handle();
        state.functions.insert(handle, (module.0, kernel));
        Ok(Function(handle))
    }

    fn launch(&self, function: Function, launch: &Launch, args: &[Arg<'_>], stream: Stream) -> Result<()> {
        let kernel = {
            let state = self.state()?;
            let known = state.functions.get(&function.0);
            known.map(|(_, kernel)| Arc::clone(kernel)).ok_or(Error::Handle { what: "function", handle: function.0 })?
        };
        let arguments = self.prepare(&kernel, launch, args)?;
        self.submit(Work::Launch(kernel, *launch, arguments), stream)
    }

    fn tensor_map(&self, map: &TensorMap<'_>) -> Result<[u8; TENSOR_MAP_BYTES]> {
        tensor_map::encode(map, self.properties.compute_capability)
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        let mut state = self.state()?;
        state.not_captured(stream, "begin_capture")?;
        if !self.captures {
            return Err(Error::Driver { call: "begin_capture", reason: "this device captures no work".to_owned() });
        }
        state.capturing.insert(stream.0, stream.0);
        state.captures.insert(stream.0, Vec::new());
        Ok(())
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        let mut state = self.state()?;
        let Some(work) = state.captures.remove(&stream.0) else {
            return Err(Error::Driver { call: "end_capture", reason: "the stream began no capture".to_owned() });
        };
        state.capturing.retain(|_, origin| *origin != stream.0);
        let handle = state.handle();
        state.graphs.insert(handle, Arc::new(work));
        Ok(Graph(handle))
    }

    fn launch_graph(&self, graph: Graph, stream: Stream) -> Result<()> {
        let mut state = self.state()?;
        state.not_captured(stream, "launch_graph")?;
        let known = state.graphs.get(&graph.0).cloned();
        for work in known.ok_or(Error::Handle { what: "graph", handle: graph.0 })?.iter() {
            self.work(&mut state, work)?;
        }
        Ok(())
    }

    fn destroy_graph(&self, graph: Graph) -> Result<()> {
        let known = self.state()?.graphs.remove(&graph.0);
        known.map(|_| ()).ok_or(Error::Handle { what: "graph", handle: graph.0 })
    }
}
