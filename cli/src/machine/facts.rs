//! The processor and its memory, as the system describes them.

use std::fs;
use std::thread::available_parallelism;

/// What is known about the machine.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Facts {
    /// Model of the processor, where the system tells.
    pub(crate) cpu: Option<String>,
    /// Architecture: `x86_64`, `aarch64`.
    pub(crate) architecture: &'static str,
    /// Instruction sets that kernels can use.
    pub(crate) features: Vec<&'static str>,
    /// Processors that this process may use.
    pub(crate) cores: usize,
    /// Memory of the machine, bytes.
    pub(crate) memory_bytes: Option<u64>,
    /// Memory that is free to use now, bytes.
    pub(crate) available_bytes: Option<u64>,
}

/// Asks the system.
pub(crate) fn facts() -> Facts {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Facts {
        cpu: cpu_model(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        architecture: std::env::consts::ARCH,
        features: features(),
        cores: available_parallelism().map_or(1, |n| n.get()),
        memory_bytes: kilobytes(&meminfo, "MemTotal"),
        available_bytes: kilobytes(&meminfo, "MemAvailable"),
    }
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn kilobytes(meminfo: &str, name: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    let all = [
        ("avx2", has!("avx2")),
        ("fma", has!("fma")),
        ("f16c", has!("f16c")),
        ("avx512f", has!("avx512f")),
        ("avx512bf16", has!("avx512bf16")),
        ("avx512vnni", has!("avx512vnni")),
    ];
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected as has;
    let all = [("neon", has!("neon")), ("bf16", has!("bf16")), ("i8mm", has!("i8mm")), ("dotprod", has!("dotprod"))];
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_words_are_understood() {
        assert_eq!(cpu_model("a : b\nmodel name\t: Fast 9000\n").as_deref(), Some("Fast 9000"));
        assert_eq!(kilobytes("MemTotal:       2 kB\n", "MemTotal"), Some(2048));
        assert_eq!(kilobytes("MemTotal: x kB\n", "MemTotal"), None);
        assert!(facts().cores >= 1);
    }
}
