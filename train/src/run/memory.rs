//! How much memory the process has.

/// Memory of this process in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Resident now.
    pub current: u64,
    /// The most that was ever resident.
    pub peak: u64,
}

/// Reads the kernel's figures (`VmRSS`, `VmHWM`); `None` where there is no `/proc`.
pub fn memory_use() -> Option<MemoryUse> {
    parse_status(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse_status(status: &str) -> Option<MemoryUse> {
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(MemoryUse { current: bytes("VmRSS")?, peak: bytes("VmHWM")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(parse_status(status), Some(MemoryUse { current: 1 << 20, peak: 2 << 20 }));
        assert_eq!(parse_status("VmRSS: many kB\nVmHWM: 1 kB\n"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_in_use_is_seen_and_its_peak_remembered() {
        let before = memory_use().unwrap();
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        let during = memory_use().unwrap();
        drop(block);
        let after = memory_use().unwrap();
        // Other tests run beside this one; a 64 MB block is far above what they move.
        assert!(during.current >= before.current + (32 << 20), "{before:?} {during:?}");
        // The kernel counts per processor and adds up late: a few MB.
        assert!(after.peak + (8 << 20) >= during.current, "{during:?} {after:?}");
    }
}
