//! The last resort against a template that does not end.
//!
//! Steps bound what a template does, except where the engine walks through a value by itself: `x == y`, `x ~ ''` or a
//! filter on a list that holds a list twice, and that another, sixty levels deep, visits 2⁶⁰ entries and asks nobody.
//! No thread can be stopped from outside, so that a program which has to go on asks here to be told.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::error::TemplateError;

/// How often the renders under way are looked at.
const EVERY: Duration = Duration::from_millis(500);

type Told = Box<dyn Fn(&TemplateError) + Send + Sync>;

static TOLD: OnceLock<Told> = OnceLock::new();
/// Renders by a number of their own: when each must have ended, and what is said of it if it has not.
type Renders = BTreeMap<u64, (Instant, TemplateError)>;

/// The next number, and the renders under way.
static UNDER_WAY: Mutex<(u64, Renders)> = Mutex::new((0, BTreeMap::new()));

/// Has `told` called, once and from a thread of its own, with the error of the first rendering that can neither end nor
/// be stopped. That rendering goes on and takes memory: a program prints the error and exits. Only the first call counts.
pub fn when_one_does_not_end(told: impl Fn(&TemplateError) + Send + Sync + 'static) {
    if TOLD.set(Box::new(told)).is_ok() {
        // Without the thread there is no watch, as without a call.
        let _ = std::thread::Builder::new().name("template watch".to_owned()).spawn(watch);
    }
}

fn watch() {
    loop {
        std::thread::sleep(EVERY);
        let late = {
            let now = Instant::now();
            let under_way = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
            under_way.1.values().find(|(until, _)| *until < now).map(|(_, error)| error.clone())
        };
        if let (Some(error), Some(told)) = (late, TOLD.get()) {
            return told(&error);
        }
    }
}

/// A rendering that is watched until this is dropped.
pub(super) struct Watch(Option<u64>);

impl Watch {
    pub(super) fn start(error: impl FnOnce() -> TemplateError, limit: Duration) -> Watch {
        if TOLD.get().is_none() {
            return Watch(None);
        }
        let mut under_way = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
        let number = under_way.0;
        under_way.0 += 1;
        under_way.1.insert(number, (Instant::now() + limit, error()));
        Watch(Some(number))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(number) = self.0 {
            UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn one_that_does_not_end_is_told() {
        let (send, receive) = mpsc::channel();
        when_one_does_not_end(move |e| send.send(e.to_string()).unwrap());
        let error = |name: &str| TemplateError::TooSlow { name: name.to_owned(), seconds: 1 };
        drop(Watch::start(|| error("ends"), Duration::ZERO));
        let _late = Watch::start(|| error("stays"), Duration::ZERO);
        assert!(receive.recv_timeout(Duration::from_secs(60)).unwrap().contains("\"stays\""));
    }
}
