//! The emulator in the place of NVIDIA's driver.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::block::Grid;
use super::decode::{Globals, decode};
use super::exec::fastest;
use super::isa::Kernel;
use super::launch;
use super::memory::Memory;
use super::ptx::{Problem, parse};
use super::report::Report;
use super::shared::Checks;
use crate::driver::{Arg, DevicePtr, Driver, Event, Function, Graph, Image, Launch, Module, Properties, Stream};
use crate::error::{Error, Result};

/// Warp instructions that a block may run before it counts as hanging.
const BUDGET: u64 = 1 << 30;

/// A device that interprets PTX on the CPU.
///
/// Every call does its work before it returns, so streams and events are in order by themselves. After a fault every
/// call fails with it, as on a card.
#[derive(Debug)]
pub struct Emulator {
    properties: Properties,
    checks: Checks,
    budget: u64,
    keep_reports: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    memory: Memory,
    next: u64,
    modules: HashMap<u64, Loaded>,
    functions: HashMap<u64, (u64, Arc<Kernel>)>,
    streams: HashSet<u64>,
    /// The capture that a stream takes part in, by the stream that began it.
    capturing: HashMap<u64, u64>,
    captures: HashMap<u64, Vec<Work>>,
    /// When an event was, and the capture that it is of.
    events: HashMap<u64, (Instant, Option<u64>)>,
    graphs: HashMap<u64, Arc<Vec<Work>>>,
    failed: Option<Error>,
    reports: Vec<Report>,
    last: Option<Report>,
    launches: u64,
}

#[derive(Debug)]
struct Loaded {
    kernels: HashMap<String, Result<Arc<Kernel>>>,
    variables: HashMap<String, (u64, u64)>,
}

#[derive(Clone, Debug)]
enum Work {
    Upload(u64, Vec<u8>),
    Copy(u64, u64, u64),
    Fill(u64, u8, u64),
    Launch(Arc<Kernel>, Launch, Vec<u8>),
}

/// Shared memory of a block and of a multiprocessor, multiprocessors, and a name.
fn model(compute_capability: (u32, u32)) -> Option<(u32, u32, u32, &'static str)> {
    const KIB: u32 = 1024;
    Some(match compute_capability {
        (8, 0) => (163 * KIB, 164 * KIB, 108, "A100"),
        (8, 6) => (99 * KIB, 100 * KIB, 84, "RTX A6000"),
        (8, 9) => (99 * KIB, 100 * KIB, 128, "RTX 4090"),
        (9, 0) => (227 * KIB, 228 * KIB, 132, "H100"),
        _ => return None,
    })
}

impl Emulator {
    /// A device of compute capability (8, 0), (8, 6), (8, 9) or (9, 0), with all checks on.
    ///
    /// # Errors
    /// [`Error::NotEmulated`] for another capability.
    pub fn new(compute_capability: (u32, u32)) -> Result<Self> {
        let Some((block, multiprocessor, multiprocessors, name)) = model(compute_capability) else {
            let (major, minor) = compute_capability;
            return Err(Error::NotEmulated { what: format!("a device of compute capability {major}.{minor}") });
        };
        Ok(Self {
            properties: Properties {
                name: format!("planish emulator of an {name}"),
                compute_capability,
                multiprocessors,
                memory_bytes: 16 << 30,
                l2_bytes: 50 << 20,
                shared_bytes_per_block: block,
                shared_bytes_per_multiprocessor: multiprocessor,
                wants_ptx: true,
            },
            checks: Checks::default(),
            budget: BUDGET,
            keep_reports: false,
            state: Mutex::new(State {
                memory: Memory::new(),
                next: 1,
                modules: HashMap::new(),
                functions: HashMap::new(),
                streams: HashSet::from([0]),
                capturing: HashMap::new(),
                captures: HashMap::new(),
                events: HashMap::new(),
                graphs: HashMap::new(),
                failed: None,
                reports: Vec::new(),
                last: None,
                launches: 0,
            }),
        })
    }

    /// Looks for these things instead.
    #[must_use]
    pub fn with_checks(mut self, checks: Checks) -> Self {
        self.checks = checks;
        self
    }

    /// A block that runs more warp instructions counts as hanging. 2³⁰ unless told.
    #[must_use]
    pub fn with_budget(mut self, warp_instructions: u64) -> Self {
        self.budget = warp_instructions;
        self
    }

    /// Pretends to so many bytes of memory. 16 GiB unless told.
    #[must_use]
    pub fn with_memory(mut self, bytes: u64) -> Self {
        self.properties.memory_bytes = bytes;
        self
    }

    /// Keeps the report of every launch until [`Emulator::take_reports`], not only of the last.
    #[must_use]
    pub fn with_reports(mut self) -> Self {
        self.keep_reports = true;
        self
    }

    /// The report of the last launch that succeeded.
    pub fn last_report(&self) -> Option<Report> {
        self.lock().last.clone()
    }

    /// The reports since the last call, in the order of the launches; empty without [`Emulator::with_reports`].
    pub fn take_reports(&self) -> Vec<Report> {
        std::mem::take(&mut self.lock().reports)
    }

    /// Address and bytes of a module's `__device__` or `__constant__` variable.
    ///
    /// # Errors
    /// [`Error::Handle`] for a module of another device, [`Error::NoKernel`] without such a variable.
    pub fn variable(&self, module: Module, name: &str) -> Result<(DevicePtr, u64)> {
        let state = self.state()?;
        let loaded = state.modules.get(&module.0).ok_or(Error::Handle { what: "module", handle: module.0 })?;
        let found = loaded.variables.get(name).copied();
        found.map(|(at, bytes)| (DevicePtr(at), bytes)).ok_or_else(|| Error::NoKernel { name: name.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The state, unless a fault has ended everything.
    fn state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.lock();
        match &state.failed {
            Some(error) => Err(error.clone()),
            None => Ok(state),
        }
    }

    /// Does work now, or records it.
    fn submit(&self, work: Work, stream: Stream) -> Result<()> {
        let mut state = self.state()?;
        state.check_stream(stream)?;
        if let Some(origin) = state.capturing.get(&stream.0).copied() {
            state.captures.entry(origin).or_default().push(work);
            return Ok(());
        }
        self.work(&mut state, &work)
    }

    fn work(&self, state: &mut State, work: &Work) -> Result<()> {
        let refused = |call, kind: super::fault::FaultKind| Error::Driver { call, reason: kind.to_string() };
        match work {
            Work::Upload(to, bytes) => state.memory.upload(*to, bytes).map_err(|kind| refused("upload", kind)),
            Work::Copy(to, from, bytes) => state.memory.copy(*to, *from, *bytes).map_err(|kind| refused("copy", kind)),
            Work::Fill(to, byte, bytes) => state.memory.fill(*to, *byte, *bytes).map_err(|kind| refused("fill", kind)),
            Work::Launch(kernel, launch, arguments) => {
                state.launches += 1;
                let begin = Instant::now();
                let grid = Grid {
                    kernel,
                    memory: &state.memory,
                    arguments,
                    blocks: launch.grid,
                    threads: launch.block,
                    dynamic_shared: launch.shared_bytes,
                    multiprocessors: self.properties.multiprocessors,
                    grid_id: state.launches,
                    checks: self.checks,
                    budget: self.budget,
                    arithmetic: fastest(),
                };
                match launch::run(&grid) {
                    Ok(stats) => {
                        let blocks = launch.grid.iter().map(|size| u64::from(*size)).product();
                        let threads = launch.block.iter().product();
                        let report = Report::new(kernel, &stats, blocks, threads, begin.elapsed().as_secs_f64());
                        if self.keep_reports {
                            state.reports.push(report.clone());
                        }
                        state.last = Some(report);
                        Ok(())
                    }
                    Err(fault) => {
                        let error = Error::Emulator(fault);
                        state.failed = Some(error.clone());
                        Err(error)
                    }
                }
            }
        }
    }

    /// The arguments as the kernel sees them, and the shape of the launch, checked.
    fn prepare(&self, kernel: &Kernel, launch: &Launch, args: &[Arg<'_>]) -> Result<Vec<u8>> {
        let wrong = |problem: String| Err(Error::Launch { kernel: kernel.name.clone(), problem });
        if args.len() != kernel.parameters.len() {
            return wrong(format!("it has {} parameters, and {} were given", kernel.parameters.len(), args.len()));
        }
        let mut bytes = vec![0; kernel.parameter_bytes as usize];
        for (number, (arg, (at, size))) in args.iter().zip(&kernel.parameters).enumerate() {
            let scalar: [u8; 8];
            let given: &[u8] = match arg {
                Arg::Bytes(bytes) => bytes,
                Arg::Ptr(ptr) => {
                    scalar = ptr.0.to_le_bytes();
                    &scalar
                }
                Arg::U64(x) => {
                    scalar = x.to_le_bytes();
                    &scalar
                }
                Arg::I64(x) => {
                    scalar = x.to_le_bytes();
                    &scalar
                }
                Arg::F64(x) => {
                    scalar = x.to_le_bytes();
                    &scalar
                }
                Arg::U32(x) => {
                    scalar = u64::from(*x).to_le_bytes();
                    &scalar[..4]
                }
                Arg::I32(x) => {
                    scalar = u64::from(*x as u32).to_le_bytes();
                    &scalar[..4]
                }
                Arg::F32(x) => {
                    scalar = u64::from(x.to_bits()).to_le_bytes();
                    &scalar[..4]
                }
            };
            if given.len() != *size as usize {
                return wrong(format!("parameter {number} has {size} bytes, and {} were given", given.len()));
            }
            bytes[*at as usize..][..given.len()].copy_from_slice(given);
        }
        let threads = launch.block.iter().fold(1_u64, |all, size| all.saturating_mul(u64::from(*size)));
        let [gx, gy, gz] = launch.grid;
        if launch.grid.contains(&0) || threads == 0 {
            return wrong("a grid or block without threads".to_owned());
        }
        if gx > 0x7fff_ffff || gy > 65535 || gz > 65535 {
            return wrong(format!("a grid of {gx} x {gy} x {gz} blocks is too large"));
        }
        if threads > 1024 || launch.block[2] > 64 {
            return wrong(format!(
                "a block has at most 1024 threads, 64 along z, and {:?} were asked for",
                launch.block
            ));
        }
        if launch.cluster != [1; 3] {
            return wrong("clusters are not emulated".to_owned());
        }
        if kernel.required_threads.is_some_and(|required| required != launch.block) {
            return wrong(format!("it needs blocks of {:?} threads", kernel.required_threads.unwrap_or_default()));
        }
        if kernel.most_threads.is_some_and(|most| threads > most) {
            return wrong(format!("its blocks have at most {} threads", kernel.most_threads.unwrap_or_default()));
        }
        let shared = u64::from(kernel.static_shared) + u64::from(launch.shared_bytes);
        if shared > u64::from(self.properties.shared_bytes_per_block) {
            return wrong(format!(
                "{shared} bytes of shared memory, of which {} are static; the device has {} for a block",
                kernel.static_shared, self.properties.shared_bytes_per_block
            ));
        }
        Ok(bytes)
    }

    /// A kernel for this device: `sm_80` runs on 8.0 and later, `sm_90a` on 9.0 only.
    fn check_target(&self, target: &str) -> Result<()> {
        let (major, minor) = self.properties.compute_capability;
        let number = target.trim_start_matches("sm_").trim_end_matches(['a', 'f']).parse::<u32>();
        let own = major * 10 + minor;
        let fits = number.is_ok_and(|number| if target.ends_with('a') { number == own } else { number <= own });
        if fits {
            return Ok(());
        }
        let reason = format!("the PTX is for {target}, the device is of compute capability {major}.{minor}");
        Err(Error::Driver { call: "load", reason })
    }
}

impl State {
    fn handle(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn check_stream(&self, stream: Stream) -> Result<()> {
        if self.streams.contains(&stream.0) { Ok(()) } else { Err(Error::Handle { what: "stream", handle: stream.0 }) }
    }

    /// What a capture cannot hold.
    fn not_captured(&self, stream: Stream, call: &'static str) -> Result<()> {
        self.check_stream(stream)?;
        if self.capturing.contains_key(&stream.0) {
            return Err(Error::Driver { call, reason: "the stream is being captured".to_owned() });
        }
        Ok(())
    }
}

fn ptx_error(problem: Problem, lines: &[&str]) -> Error {
    let text = lines.get((problem.line as usize).wrapping_sub(1)).map_or("", |text| text.trim());
    Error::Ptx { line: problem.line, text: text.to_owned(), problem: problem.what }
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

    fn upload(&self, dst: DevicePtr, src: &[u8], stream: Stream) -> Result<()> {
        self.submit(Work::Upload(dst.0, src.to_vec()), stream)
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

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        let mut state = self.state()?;
        state.not_captured(stream, "begin_capture")?;
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
