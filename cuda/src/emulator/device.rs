//! What a device keeps: memory, modules, streams, captures; and how work is checked and done.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::block::Grid;
use super::exec::fastest;
use super::isa::Kernel;
use super::launch;
use super::memory::Memory;
use super::report::Report;
use super::shared::Checks;
use super::trace::{Trace, Watch};
use crate::driver::{Arg, DevicePtr, Launch, Module, Properties, Stream};
use crate::error::{Error, Result};

/// Warp instructions that a block may run before it counts as hanging.
const BUDGET: u64 = 1 << 30;

/// A device that interprets PTX on the CPU.
///
/// Every call does its work before it returns, so streams and events are in order by themselves. After a fault every
/// call fails with it, as on a card.
#[derive(Debug)]
pub struct Emulator {
    pub(crate) properties: Properties,
    checks: Checks,
    budget: u64,
    /// Whether streams may be captured.
    pub(crate) captures: bool,
    keep_reports: bool,
    watch: Option<Watch>,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) memory: Memory,
    pub(crate) next: u64,
    pub(crate) modules: HashMap<u64, Loaded>,
    pub(crate) functions: HashMap<u64, (u64, Arc<Kernel>)>,
    pub(crate) streams: HashSet<u64>,
    /// The capture that a stream takes part in, by the stream that began it.
    pub(crate) capturing: HashMap<u64, u64>,
    pub(crate) captures: HashMap<u64, Vec<Work>>,
    /// When an event was, and the capture that it is of.
    pub(crate) events: HashMap<u64, (Instant, Option<u64>)>,
    pub(crate) graphs: HashMap<u64, Arc<Vec<Work>>>,
    pub(crate) failed: Option<Error>,
    pub(crate) reports: Vec<Report>,
    pub(crate) traces: Vec<Trace>,
    pub(crate) last: Option<Report>,
    pub(crate) launches: u64,
}

#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) kernels: HashMap<String, Result<Arc<Kernel>>>,
    pub(crate) variables: HashMap<String, (u64, u64)>,
}

#[derive(Clone, Debug)]
pub(crate) enum Work {
    Copy(u64, u64, u64),
    Fill(u64, u8, u64),
    Launch(Arc<Kernel>, Launch, Vec<u8>),
    Lend(u64, u64),
    Reclaim(u64),
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

/// Blocks of a cluster that every device with clusters takes.
const MOST_OF_CLUSTER: u32 = 8;

/// What is against the rules of clusters.
fn wrong_cluster(launch: &Launch, capability: (u32, u32)) -> Option<String> {
    let [x, y, z] = launch.cluster;
    if launch.cluster == [1; 3] {
        return None;
    }
    if capability < (9, 0) {
        return Some(format!("a device of compute capability {}.{} has no clusters", capability.0, capability.1));
    }
    let blocks = launch.cluster.iter().fold(1_u32, |all, size| all.saturating_mul(*size));
    if blocks == 0 || blocks > MOST_OF_CLUSTER {
        return Some(format!("a cluster has 1 to {MOST_OF_CLUSTER} blocks, and {x} x {y} x {z} were asked for"));
    }
    let fits = launch.grid.iter().zip(launch.cluster).all(|(grid, cluster)| grid.is_multiple_of(cluster));
    let [gx, gy, gz] = launch.grid;
    (!fits).then(|| format!("a grid of {gx} x {gy} x {gz} blocks is not made of clusters of {x} x {y} x {z}"))
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
            captures: true,
            keep_reports: false,
            watch: None,
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
                traces: Vec::new(),
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

    /// A device whose driver captures no work.
    #[must_use]
    pub fn without_captures(mut self) -> Self {
        self.captures = false;
        self
    }

    /// Keeps the report of every launch until [`Emulator::take_reports`], not only of the last.
    #[must_use]
    pub fn with_reports(mut self) -> Self {
        self.keep_reports = true;
        self
    }

    /// Keeps what one warp of every launch does until [`Emulator::take_traces`].
    #[must_use]
    pub fn with_watch(mut self, watch: Watch) -> Self {
        self.watch = Some(watch);
        self
    }

    /// What the watched warps did since the last call, in the order of the launches; a launch without such a warp has
    /// none.
    pub fn take_traces(&self) -> Vec<Trace> {
        std::mem::take(&mut self.lock().traces)
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
    pub(crate) fn state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.lock();
        match &state.failed {
            Some(error) => Err(error.clone()),
            None => Ok(state),
        }
    }

    /// Does work now, or records it.
    pub(crate) fn submit(&self, work: Work, stream: Stream) -> Result<()> {
        let mut state = self.state()?;
        state.check_stream(stream)?;
        if let Some(origin) = state.capturing.get(&stream.0).copied() {
            state.captures.entry(origin).or_default().push(work);
            return Ok(());
        }
        self.work(&mut state, &work)
    }

    pub(crate) fn work(&self, state: &mut State, work: &Work) -> Result<()> {
        let refused = |call, kind: super::fault::FaultKind| Error::Driver { call, reason: kind.to_string() };
        match work {
            Work::Copy(to, from, bytes) => state.memory.copy(*to, *from, *bytes).map_err(|kind| refused("copy", kind)),
            Work::Fill(to, byte, bytes) => state.memory.fill(*to, *byte, *bytes).map_err(|kind| refused("fill", kind)),
            Work::Lend(base, bytes) => {
                state.memory.lend(*base, *bytes);
                Ok(())
            }
            Work::Reclaim(base) => {
                state.memory.reclaim(*base);
                Ok(())
            }
            Work::Launch(kernel, launch, arguments) => {
                state.launches += 1;
                let begin = Instant::now();
                let grid = Grid {
                    kernel,
                    memory: &state.memory,
                    arguments,
                    blocks: launch.grid,
                    cluster: launch.cluster,
                    threads: launch.block,
                    dynamic_shared: launch.shared_bytes,
                    multiprocessors: self.properties.multiprocessors,
                    grid_id: state.launches,
                    checks: self.checks,
                    budget: self.budget,
                    arithmetic: fastest(),
                    watch: self.watch,
                };
                match launch::run(&grid) {
                    Ok(launch::Done { stats, watched }) => {
                        if let Some((steps, cut)) = watched {
                            state.traces.push(Trace { kernel: kernel.name.clone(), steps, cut });
                        }
                        let count = |sizes: [u32; 3]| sizes.iter().map(|size| u64::from(*size)).product();
                        let sizes = [launch.grid, launch.cluster, launch.block].map(count);
                        let report = Report::new(kernel, &stats, sizes, begin.elapsed().as_secs_f64());
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
    pub(crate) fn prepare(&self, kernel: &Kernel, launch: &Launch, args: &[Arg<'_>]) -> Result<Vec<u8>> {
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
        if let Some(problem) = wrong_cluster(launch, self.properties.compute_capability) {
            return wrong(problem);
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
    pub(crate) fn check_target(&self, target: &str) -> Result<()> {
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
    pub(crate) fn handle(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn check_stream(&self, stream: Stream) -> Result<()> {
        if self.streams.contains(&stream.0) { Ok(()) } else { Err(Error::Handle { what: "stream", handle: stream.0 }) }
    }

    /// What a capture cannot hold.
    pub(crate) fn not_captured(&self, stream: Stream, call: &'static str) -> Result<()> {
        self.check_stream(stream)?;
        if self.capturing.contains_key(&stream.0) {
            return Err(Error::Driver { call, reason: "the stream is being captured".to_owned() });
        }
        Ok(())
    }
}
