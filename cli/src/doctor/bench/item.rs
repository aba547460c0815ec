//! A benchmark of kernels: what it needs, what it launches, and what that is worth.

use planish_cuda::driver::DevicePtr;
use planish_cuda::memory::DeviceBuffer;
use planish_cuda::{DType, Queue, Result};
use planish_tensor::rng::{Purpose, Stream};

use super::clock::{Launch, Pace, time};
use super::{Entry, Figures, Ground, Trouble, Unit};

/// What a launch does at least: what a rate counts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// Floating-point operations.
    Flops(f64),
    /// Bytes read and written.
    Bytes(f64),
}

/// What a buffer holds.
#[derive(Clone, Copy, Debug)]
enum Fill {
    /// Normal numbers times a factor. Zeros would be faster than what a model computes with: they take less power.
    Normal(f32),
    /// Zeros.
    Zeros,
    /// Numbers below this one.
    Below(usize),
    /// Any bytes.
    Bytes,
}

/// A buffer that is needed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    len: usize,
    dtype: DType,
    fill: Fill,
}

impl Need {
    /// Normal numbers.
    pub(super) fn normal(len: usize, dtype: DType) -> Need {
        Need { len, dtype, fill: Fill::Normal(1.0) }
    }

    /// Normal bf16 numbers.
    pub(super) fn half(len: usize) -> Need {
        Need::normal(len, DType::BF16)
    }

    /// Zeros, of f32 where nothing else is said: gradients of weights, and places for results.
    pub(super) fn zeros(len: usize, dtype: DType) -> Need {
        Need { len, dtype, fill: Fill::Zeros }
    }

    /// Token ids.
    pub(super) fn ids(len: usize, below: usize) -> Need {
        Need { len, dtype: DType::U32, fill: Fill::Below(below) }
    }

    /// Bytes.
    pub(super) fn bytes(len: usize) -> Need {
        Need { len, dtype: DType::U8, fill: Fill::Bytes }
    }

    /// The numbers smaller or larger.
    pub(super) fn times(self, factor: f32) -> Need {
        Need { fill: Fill::Normal(factor), ..self }
    }

    /// What the allocator takes for it at most.
    fn size(&self) -> u64 {
        (self.len * self.dtype.size()) as u64 * 9 / 8
    }

    /// The buffer: a block of numbers made here, and copies of it made there.
    fn make(&self, queue: Queue<'_>, block: usize) -> Result<DeviceBuffer> {
        const WHAT: &str = "a benchmark's tensor";
        match self.fill {
            _ if self.len == 0 => return queue.alloc(WHAT, 0, self.dtype),
            Fill::Zeros => return queue.zeros(WHAT, self.len, self.dtype),
            _ => {}
        }
        let made = self.len.min(block);
        let stream = Stream::new(self.len as u64, Purpose::Data, 0);
        let mut buffer = queue.alloc(WHAT, self.len, self.dtype)?;
        match (self.fill, self.dtype) {
            (Fill::Normal(factor), DType::F32) => buffer.upload(&normals(stream, made, factor))?,
            // The upper half of a single is a bf16.
            (Fill::Normal(factor), _) => {
                let halves = normals(stream, made, factor).into_iter().map(|x| (x.to_bits() >> 16) as u16);
                buffer.upload(&halves.collect::<Vec<u16>>())?;
            }
            (Fill::Below(below), _) => buffer.upload(&ids(made, below))?,
            _ => buffer.upload(&(0..made as u64).map(|i| stream.u32(i) as u8).collect::<Vec<u8>>())?,
        }
        let (all, mut done) = (self.len * self.dtype.size(), made * self.dtype.size());
        while done < all {
            let more = done.min(all - done);
            let to = DevicePtr(buffer.ptr().0 + done as u64);
            queue.device.driver().copy(to, buffer.ptr(), more, queue.stream)?;
            done += more;
        }
        Ok(buffer)
    }
}

fn normals(stream: Stream, n: usize, factor: f32) -> Vec<f32> {
    (0..n as u64).map(|i| factor * stream.normal(i) as f32).collect()
}

/// Indices in no order.
pub(super) fn ids(n: usize, below: usize) -> Vec<u32> {
    (0..n as u64).map(|i| (i * 2_654_435_761 % below as u64) as u32).collect()
}

/// A benchmark of one launch, whose rate is compared with what the card can do. `make` is given the buffers that are
/// needed, in their order.
pub(super) fn item<const N: usize>(
    name: impl Into<String>,
    shape: String,
    work: Work,
    needs: [Need; N],
    make: impl Fn(Queue<'_>, [DeviceBuffer; N]) -> Result<Launch> + 'static,
) -> Entry {
    let run = move |ground: &Ground<'_>| {
        let queue = ground.gpu.queue();
        ground.room(needs.iter().map(Need::size).sum())?;
        let mut buffers = Vec::with_capacity(N);
        for need in &needs {
            buffers.push(need.make(queue, ground.block)?);
        }
        let buffers = buffers.try_into().unwrap_or_else(|_| unreachable!("one for each need"));
        let pace = if ground.emulated { Pace::EMULATED } else { Pace::CARD };
        let timing = time(queue, &mut make(queue, buffers)?, &pace)?;
        let (unit, rate, ceiling) = match work {
            Work::Flops(flops) => (Unit::Tflops, flops / timing.seconds / 1e12, ground.product_tflops),
            Work::Bytes(bytes) => (Unit::Gigabytes, bytes / timing.seconds / 1e9, ground.copy_gb_per_second),
        };
        let share = ceiling.map(|ceiling| rate / ceiling);
        Ok::<_, Trouble>(Figures { share, ..Figures::new(timing, unit, rate) })
    };
    Entry { name: name.into(), shape, run: Box::new(run) }
}

/// The boxed launch.
pub(super) fn launch(work: impl FnMut(Queue<'_>) -> Result<()> + 'static) -> Result<Launch> {
    Ok(Box::new(work))
}
