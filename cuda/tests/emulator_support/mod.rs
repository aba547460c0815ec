//! A device with arrays, for tests of the emulator.

#![allow(dead_code, unreachable_pub)]

use planish_cuda::driver::{Arg, DevicePtr, Driver, Image, Launch, Stream};
use planish_cuda::emulator::{Checks, Emulator, FaultKind};
use planish_cuda::{Error, Result};

pub const STREAM: Stream = Stream(0);

/// An sm_80 device with one module.
pub struct Device {
    pub emulator: Emulator,
    pub module: planish_cuda::driver::Module,
}

impl Device {
    pub fn new(ptx: &str) -> Self {
        Self::with(Emulator::new((8, 0)).unwrap(), ptx)
    }

    pub fn unchecked(ptx: &str, change: impl Fn(&mut Checks)) -> Self {
        let mut checks = Checks::default();
        change(&mut checks);
        Self::with(Emulator::new((8, 0)).unwrap().with_checks(checks), ptx)
    }

    pub fn with(emulator: Emulator, ptx: &str) -> Self {
        let module = emulator.load(Image::Ptx(ptx)).unwrap();
        Self { emulator, module }
    }

    pub fn bytes(&self, bytes: &[u8]) -> DevicePtr {
        let at = self.emulator.alloc(bytes.len(), STREAM).unwrap();
        self.emulator.upload(at, bytes, STREAM).unwrap();
        at
    }

    pub fn empty(&self, bytes: usize) -> DevicePtr {
        self.emulator.alloc(bytes, STREAM).unwrap()
    }

    pub fn f32s(&self, values: &[f32]) -> DevicePtr {
        self.bytes(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
    }

    pub fn u32s(&self, values: &[u32]) -> DevicePtr {
        self.bytes(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
    }

    pub fn u16s(&self, values: &[u16]) -> DevicePtr {
        self.bytes(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
    }

    pub fn launch(&self, kernel: &str, grid: [u32; 3], block: [u32; 3], shared: u32, args: &[Arg<'_>]) -> Result<()> {
        let function = self.emulator.function(self.module, kernel)?;
        let launch = Launch { grid, block, cluster: [1; 3], shared_bytes: shared };
        self.emulator.launch(function, &launch, args, STREAM)
    }

    pub fn read<const N: usize>(&self, from: DevicePtr, count: usize) -> Vec<[u8; N]> {
        let mut bytes = vec![0; count * N];
        self.emulator.download(&mut bytes, from, STREAM).unwrap();
        bytes.chunks_exact(N).map(|chunk| chunk.try_into().unwrap()).collect()
    }

    pub fn read_u16(&self, from: DevicePtr, count: usize) -> Vec<u16> {
        self.read(from, count).into_iter().map(u16::from_le_bytes).collect()
    }

    pub fn read_u32(&self, from: DevicePtr, count: usize) -> Vec<u32> {
        self.read(from, count).into_iter().map(u32::from_le_bytes).collect()
    }

    pub fn read_f32(&self, from: DevicePtr, count: usize) -> Vec<f32> {
        self.read(from, count).into_iter().map(f32::from_le_bytes).collect()
    }

    pub fn read_f64(&self, from: DevicePtr, count: usize) -> Vec<f64> {
        self.read(from, count).into_iter().map(f64::from_le_bytes).collect()
    }
}

/// A whole module around a kernel's parameters and body.
pub fn kernel(parameters: &str, body: &str) -> String {
    format!(".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k({parameters})\n{{\n{body}\n}}\n")
}

/// The fault of a launch that must fail by one.
pub fn fault(result: Result<()>) -> planish_cuda::emulator::Fault {
    match result {
        Err(Error::Emulator(fault)) => *fault,
        other => panic!("a fault was expected, and this came: {other:?}"),
    }
}

pub fn kind(result: Result<()>) -> FaultKind {
    fault(result).kind
}

/// Numbers that look random, in [-1, 1).
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}
