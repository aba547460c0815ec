//! The small run of each op works, and covers every file of kernels.

use planish_cuda::{kernels, sample};

use crate::support::*;

#[test]
fn every_file_has_a_sample() {
    for capability in [(8, 0), (9, 0)] {
        let Some(device) = device_of(capability) else { return };
        for kernel in kernels::ALL.iter().filter(|kernel| kernel.capability() == capability) {
            assert!(sample::run(device.queue(), kernel.name).unwrap(), "{}", kernel.name);
        }
        assert!(!sample::run(device.queue(), "no_such_file").unwrap());
        assert_eq!(device.pool().usage().in_use, 0, "everything was given back");
    }
}
