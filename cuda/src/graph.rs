//! Work that is recorded once and done again by one call.
//!
//! A step of decoding or of training is hundreds of launches, each of which costs the host some microseconds. If every
//! step launches the same kernels at the same addresses, the driver can be given all of them at once. What changes from
//! step to step (token ids, lengths, places in a cache) then lies in device memory and is uploaded between the steps.

use std::ops::Deref;

use crate::device::{Device, Queue};
use crate::driver::{DevicePtr, Driver, Graph, Stream};
use crate::error::Result;

/// Recorded work of several kinds, such as steps with so many sequences, of which one runs at a time: what they use
/// between their launches they share, and nobody else gets it as long as this lives. `D` is whatever keeps the device.
#[derive(Debug)]
pub struct Recorder<D: Deref<Target = Device>> {
    device: D,
    /// The stream that work is recorded on.
    own: Stream,
    /// The stream that some of it last ran on.
    last: Stream,
    /// What the work takes and gives back meanwhile.
    blocks: Vec<(DevicePtr, u64)>,
    graphs: Vec<Graph>,
}

/// Later work of `to` waits for what `from` has by now.
fn after(driver: &dyn Driver, from: Stream, to: Stream) -> Result<()> {
    if from == to {
        return Ok(());
    }
    let event = driver.record(from)?;
    let done = driver.wait(to, event);
    driver.destroy_event(event)?;
    done
}

impl<D: Deref<Target = Device>> Recorder<D> {
    /// Nothing is recorded yet.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn new(device: D) -> Result<Recorder<D>> {
        let own = device.driver().create_stream()?;
        Ok(Recorder { device, own, last: own, blocks: Vec::new(), graphs: Vec::new() })
    }

    /// Does `work` after what `queue` has by now, then records it to be done again; later work of `queue` comes after it.
    ///
    /// `work` runs twice, once for good, which also compiles its kernels and takes its memory, and once to be recorded. It
    /// must launch the same both times, on the queue that it is given, and keep nothing that it allocates there. It can
    /// neither upload nor download: what the host says or learns does not happen again when the recording is replayed.
    ///
    /// # Errors
    /// Those of the driver, also for what cannot be recorded; within, those of `work`. Both times `work` may have been done
    /// for good.
    pub fn record<E>(
        &mut self,
        queue: Queue<'_>,
        work: impl FnMut(Queue<'_>) -> Result<(), E>,
    ) -> Result<Result<Graph, E>> {
        let (device, own) = (&*self.device, self.own);
        let (driver, pool) = (device.driver().as_ref(), device.pool());
        after(driver, self.last, own)?;
        after(driver, queue.stream, own)?;
        let before = std::mem::take(&mut self.blocks);
        pool.hand_back(&before, own);
        let made = twice(device.queue_on(own), work);
        self.blocks = pool.withhold(own);
        if !before.iter().all(|block| self.blocks.contains(block)) {
            // For want of room some was given back to the driver, or somebody kept it: what worked with it is no more.
            self.graphs.drain(..).for_each(|graph| drop(driver.destroy_graph(graph)));
        }
        let ordered = after(driver, own, queue.stream);
        self.last = queue.stream;
        if let Ok(Ok(graph)) = &made {
            self.graphs.push(*graph);
        }
        ordered.and(made)
    }

    /// Whether it is recorded here, and can still be replayed.
    pub fn has(&self, graph: Graph) -> bool {
        self.graphs.contains(&graph)
    }

    /// Does recorded work again, after what the queue has by now.
    ///
    /// # Errors
    /// [`Error::Handle`](crate::Error::Handle) for work that is not recorded here; those of the driver.
    pub fn replay(&mut self, graph: Graph, queue: Queue<'_>) -> Result<()> {
        if !self.has(graph) {
            return Err(crate::Error::Handle { what: "recording", handle: graph.0 });
        }
        let driver = self.device.driver();
        // Two runs at once would share the memory in between.
        after(driver.as_ref(), self.last, queue.stream)?;
        self.last = queue.stream;
        driver.launch_graph(graph, queue.stream)
    }

    /// Forgets recorded work.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn forget(&mut self, graph: Graph) -> Result<()> {
        match self.graphs.iter().position(|known| *known == graph) {
            Some(at) => self.device.driver().destroy_graph(self.graphs.remove(at)),
            None => Ok(()),
        }
    }
}

/// Does `work` on a queue, then records it there.
fn twice<E>(queue: Queue<'_>, mut work: impl FnMut(Queue<'_>) -> Result<(), E>) -> Result<Result<Graph, E>> {
    if let Err(error) = work(queue) {
        return Ok(Err(error));
    }
    // All that the work took is given back now, and is there when the same is asked for again.
    let (driver, pool) = (queue.device.driver(), queue.device.pool());
    // Another thread that finds no room gives back what the pool keeps.
    pool.set_recorded(queue.stream, true);
    let captured = driver.begin_capture(queue.stream).map(|()| (work(queue), driver.end_capture(queue.stream)));
    pool.set_recorded(queue.stream, false);
    match captured? {
        (Ok(()), graph) => graph.map(Ok),
        (Err(error), graph) => {
            let _ = graph.map(|graph| driver.destroy_graph(graph));
            Ok(Err(error))
        }
    }
}

impl<D: Deref<Target = Device>> Drop for Recorder<D> {
    fn drop(&mut self) {
        let driver = self.device.driver();
        // A device that has failed has nothing left to give back.
        let _ = after(driver.as_ref(), self.last, self.own);
        for graph in self.graphs.drain(..) {
            let _ = driver.destroy_graph(graph);
        }
        self.device.pool().retire(std::mem::take(&mut self.blocks), self.own);
        let _ = driver.destroy_stream(self.own);
    }
}

/// A recorded sequence of work and everything that it works on.
///
/// The buffers that the work uses between its launches are its own until it is dropped: nobody else gets their memory.
///
/// ```no_run
/// # use planish_cuda::{DType, Device, Result, memory::DeviceBuffer, ops::elementwise};
/// # fn run(device: &Device, x: DeviceBuffer) -> Result<()> {
/// let queue = device.queue();
/// let mut doubling = queue.record(x, |queue, x| {
///     let mut twice = queue.alloc("twice", 64, DType::F32)?;
///     elementwise::axpby(queue, twice.slice_mut(DType::F32), x.slice(DType::F32), 2.0, 0.0)?;
///     elementwise::axpby(queue, x.slice_mut(DType::F32), twice.slice(DType::F32), 1.0, 0.0)
/// })?;
/// // Done once by now.
/// doubling.replay(queue)?;
/// doubling.held_mut().upload(&[1.0f32; 64])?;
/// doubling.replay(queue)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Recording<'a, W> {
    recorder: Recorder<&'a Device>,
    graph: Graph,
    held: W,
}

impl<'a> Queue<'a> {
    /// Does `work`, then records it to be done again, as [`Recorder::record`] does. `held` is all that it works on: buffers
    /// that may not be exchanged for others later, and whatever else it needs to know.
    ///
    /// (What `work` uploads to a buffer of another stream is not seen to be wrong, and happens twice and no more.)
    ///
    /// # Errors
    /// Those of `work`, and of the driver for what cannot be recorded.
    pub fn record<W>(self, mut held: W, work: impl Fn(Queue<'_>, &mut W) -> Result<()>) -> Result<Recording<'a, W>> {
        let mut recorder = Recorder::new(self.device)?;
        let graph = recorder.record(self, |queue| work(queue, &mut held))??;
        Ok(Recording { recorder, graph, held })
    }
}

impl<W> Recording<'_, W> {
    /// Does the work again, after what the queue has by now.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn replay(&mut self, queue: Queue<'_>) -> Result<()> {
        self.recorder.replay(self.graph, queue)
    }

    /// What it works on.
    pub fn held(&self) -> &W {
        &self.held
    }

    /// What it works on, to be uploaded to. A buffer that is put in the place of another is not noticed.
    pub fn held_mut(&mut self) -> &mut W {
        &mut self.held
    }
}
