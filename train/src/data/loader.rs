//! Steps made ahead of the training loop, on a thread of their own.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use super::error::Result;
use super::sampler::{Step, Steps};

/// The steps of a [`Steps`], in its order, made up to `depth` ahead. What comes out does not depend
/// on `depth` or on timing; dropping the loader ends the thread.
pub struct Loader {
    steps: Option<Receiver<Result<Step>>>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// Starts making steps; at most `depth` (at least 1) wait to be taken.
    pub fn new(steps: Steps, depth: usize) -> Loader {
        let (send, receive) = sync_channel(depth.max(1));
        let thread = std::thread::spawn(move || {
            for step in steps {
                let failed = step.is_err();
                // The other end is gone when the run has ended.
                if send.send(step).is_err() || failed {
                    break;
                }
            }
        });
        Loader { steps: Some(receive), thread: Some(thread) }
    }
}

impl Iterator for Loader {
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Self::Item> {
        self.steps.as_ref()?.recv().ok()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Hang up first, or a thread that waits to send would be waited for.
        self.steps = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the panic hook; a second one here would abort.
            let _ = thread.join();
        }
    }
}
