//! Where a device's time goes: events round every launch, summed by kernel.
//!
//! A measured launch is followed by an event before the next begins, so launches do not overlap and a short one seems longer,
//! by a microsecond or two: good for finding what to improve, not for a step's time. Copies and fills of the driver are not
//! launches and are not seen.

use std::collections::HashMap;
use std::sync::PoisonError;

use crate::driver::Event;
use crate::{Device, Result};

/// A kernel's launches with one grid.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTime {
    /// Its name.
    pub name: &'static str,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// How often it was launched.
    pub launches: usize,
    /// Seconds, of all launches.
    pub seconds: f64,
}

/// A launch, between two events.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) name: &'static str,
    pub(crate) grid: [u32; 3],
    pub(crate) from: Event,
    pub(crate) to: Event,
}

impl Device {
    /// Whether launches are being measured one by one, as recorded ones cannot be.
    pub fn is_profiled(&self) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Runs `work` and says which kernels it launched, those that took most first.
    ///
    /// # Errors
    /// What the device failed with while the times were read; `work`'s own errors are in its result.
    pub fn profile<T>(&self, work: impl FnOnce() -> T) -> Result<(T, Vec<KernelTime>)> {
        let seen = |value| std::mem::replace(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner), value);
        seen(Some(Vec::new()));
        let result = work();
        let launches = seen(None).unwrap_or_default();
        self.queue().synchronize()?;
        let mut sums: HashMap<(&'static str, [u32; 3]), KernelTime> = HashMap::new();
        for Seen { name, grid, from, to } in launches {
            let seconds = self.driver().elapsed(from, to);
            self.driver().destroy_event(from)?;
            self.driver().destroy_event(to)?;
            let none = KernelTime { name, grid, launches: 0, seconds: 0.0 };
            let sum = sums.entry((name, grid)).or_insert(none);
            sum.launches += 1;
            sum.seconds += seconds?;
        }
        let mut all: Vec<KernelTime> = sums.into_values().collect();
        all.sort_by(|a, b| b.seconds.total_cmp(&a.seconds).then(a.name.cmp(b.name)).then(a.grid.cmp(&b.grid)));
        Ok((result, all))
    }
}
