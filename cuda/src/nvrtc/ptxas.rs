//! What `--ptxas-options=-v` says of each kernel.

/// What a kernel takes on one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The kernel.
    pub kernel: String,
    /// Registers a thread.
    pub registers: u32,
    /// Bytes a thread writes to memory because it ran out of registers.
    pub spill_stores: u32,
    /// Bytes it reads back.
    pub spill_loads: u32,
    /// Bytes of stack a thread: arrays that could not be kept in registers.
    pub stack: u32,
    /// Whether the assembler runs the `wgmma` one by one that the code lets overlap.
    pub serialised: bool,
    /// Static shared memory of a block, bytes.
    pub shared: u32,
}

/// Reads a log. Lines that are not understood are passed over.
///
/// ```text
/// ptxas info    : Compiling entry function 'f' for 'sm_80'
/// ptxas info    : Function properties for f
///     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 10 registers, used 1 barriers, 512 bytes smem, 380 bytes cmem[0]
/// ```
pub(super) fn parse(log: &str) -> Vec<Usage> {
    let (mut kernels, mut serialised): (Vec<Usage>, Vec<&str>) = Default::default();
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            kernels.push(Usage { kernel, ..Usage::default() });
            continue;
        }
        // This stands before the kernel's own lines.
        if line.contains("wgmma.mma_async instructions are serialized")
            && let Some(name) = line.split("function '").nth(1).and_then(|rest| rest.split('\'').next())
        {
            serialised.push(name);
            continue;
        }
        let Some(last) = kernels.last_mut() else { continue };
        let mut take = |words: &str, slot: fn(&mut Usage) -> &mut u32| {
            if let Some(number) = number_before(line, words) {
                *slot(last) = number;
            }
        };
        take(" bytes stack frame", |u| &mut u.stack);
        take(" bytes spill stores", |u| &mut u.spill_stores);
        take(" bytes spill loads", |u| &mut u.spill_loads);
        take(" registers", |u| &mut u.registers);
        take(" bytes smem", |u| &mut u.shared);
    }
    for kernel in &mut kernels {
        kernel.serialised = serialised.contains(&kernel.kernel.as_str());
    }
    kernels
}

/// The number that stands before these words.
fn number_before(line: &str, words: &str) -> Option<u32> {
    let before = &line[..line.find(words)?];
    let digits = before.len() - before.bytes().rev().take_while(u8::is_ascii_digit).count();
    before[digits..].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kernel_has_its_numbers() {
        let log = "ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized due to \
            something in the function 'second'\n\
            ptxas info    : 11 bytes gmem\n\
            ptxas info    : Compiling entry function 'first' for 'sm_80'\n\
            ptxas info    : Function properties for first\n\
            \x20   8 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads\n\
            ptxas info    : Used 10 registers, used 1 barriers, 8 bytes cumulative stack size, 512 bytes smem, 380 bytes cmem[0]\n\
            ptxas info    : Compile time = 3.1 ms\n\
            ptxas info    : Compiling entry function 'second' for 'sm_80'\n\
            ptxas info    : Used 255 registers\n";
        let first = Usage {
            kernel: "first".into(),
            registers: 10,
            spill_stores: 16,
            spill_loads: 24,
            stack: 8,
            serialised: false,
            shared: 512,
        };
        let second = Usage { kernel: "second".into(), registers: 255, serialised: true, ..Usage::default() };
        assert_eq!(parse(log), [first, second]);
        assert_eq!(parse("Used 3 registers\nnonsense"), []);
    }
}
