//! Work that is recorded once and done again by one call.
//!
//! A step of decoding or of training is hundreds of launches, each of which costs the host some microseconds. If every
//! step launches the same kernels at the same addresses, the driver can be given all of them at once. What changes from
//! step to step (token ids, lengths, places in a cache) then lies in device memory and is uploaded between the steps.

use crate::device::{Device, Queue};
use crate::driver::{DevicePtr, Driver, Graph, Stream};
use crate::error::Result;

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
    device: &'a Device,
    graph: Option<Graph>,
    /// The stream that it was recorded on.
    own: Stream,
    /// The stream that it last ran on.
    last: Stream,
    /// What the work takes and gives back meanwhile.
    blocks: Vec<(DevicePtr, u64)>,
    held: W,
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

impl<'a> Queue<'a> {
    /// Does `work`, then records it to be done again. `held` is all that it works on: buffers that may not be
    /// exchanged for others later, and whatever else it needs to know.
    ///
    /// `work` runs twice, once for good, which also compiles its kernels and takes its memory, and once to be recorded.
    /// It must launch the same both times. It can neither upload nor download: what the host says or learns does
    /// not happen again when the recording is replayed. (What it uploads to a buffer of another stream is not seen to be
    /// wrong, and happens twice and no more.)
    ///
    /// # Errors
    /// Those of `work`, and of the driver for what cannot be recorded.
    pub fn record<W>(self, held: W, work: impl Fn(Queue<'_>, &mut W) -> Result<()>) -> Result<Recording<'a, W>> {
        let driver = self.device.driver();
        let own = driver.create_stream()?;
        let mut made = Recording { device: self.device, graph: None, own, last: self.stream, blocks: Vec::new(), held };
        let queue = self.device.queue_on(own);
        after(driver.as_ref(), self.stream, own)?;
        work(queue, &mut made.held)?;
        // All that the work took is given back now, and is there when the same is asked for again.
        driver.begin_capture(own)?;
        let recorded = work(queue, &mut made.held);
        let graph = driver.end_capture(own);
        made.blocks = self.device.pool().withhold(own);
        if let Ok(graph) = &graph {
            made.graph = Some(*graph);
        }
        recorded.and(graph)?;
        after(driver.as_ref(), own, self.stream)?;
        Ok(made)
    }
}

impl<W> Recording<'_, W> {
    /// Does the work again, after what the queue has by now.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn replay(&mut self, queue: Queue<'_>) -> Result<()> {
        let driver = self.device.driver();
        // Two runs at once would share the memory in between.
        after(driver.as_ref(), self.last, queue.stream)?;
        self.last = queue.stream;
        self.graph.map_or(Ok(()), |graph| driver.launch_graph(graph, queue.stream))
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

impl<W> Drop for Recording<'_, W> {
    fn drop(&mut self) {
        let driver = self.device.driver();
        // A device that has failed has nothing left to give back.
        let _ = after(driver.as_ref(), self.last, self.own);
        if let Some(graph) = self.graph {
            let _ = driver.destroy_graph(graph);
        }
        self.device.pool().let_go(std::mem::take(&mut self.blocks), self.own);
        let _ = driver.destroy_stream(self.own);
    }
}
