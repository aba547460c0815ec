//! Element types: what can be stored ([`Element`]) and what can be computed in ([`Real`]).

use bytemuck::Pod;
pub use half::{bf16, f16};

/// Type of the elements of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// IEEE 754 binary16.
    F16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// Truth value in a byte; any byte but 0 is true.
    Bool,
    /// A quantised weight: no elements in memory, only blocks that stand for them (see [`crate::quant`]).
    Packed,
}

impl DType {
    /// Every dtype that elements are stored in.
    pub const ALL: [DType; 10] = {
        use DType::*;
        [F64, F32, BF16, F16, I64, I32, U32, U8, I8, Bool]
    };

    /// Bytes of an element; of [`DType::Packed`] the least, for the sake of checks ([`crate::Tensor::nbytes`] knows).
    pub const fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::BF16 | DType::F16 => 2,
            DType::U8 | DType::I8 | DType::Bool | DType::Packed => 1,
        }
    }

    /// Whether gradients can flow through tensors of this dtype.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::BF16 | DType::F16)
    }

    /// Name as PyTorch writes it.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F64 => "float64",
            DType::F32 => "float32",
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            DType::I64 => "int64",
            DType::I32 => "int32",
            DType::U32 => "uint32",
            DType::U8 => "uint8",
            DType::I8 => "int8",
            DType::Bool => "bool",
            DType::Packed => "packed",
        }
    }

    /// Parses PyTorch's name or its common abbreviation (`bf16`, `fp32`, `half`, …).
    pub fn parse(name: &str) -> Option<DType> {
        let name = name.strip_prefix("torch.").unwrap_or(name);
        Some(match name {
            "float64" | "double" | "f64" | "fp64" => DType::F64,
            "float32" | "float" | "f32" | "fp32" => DType::F32,
            "bfloat16" | "bf16" => DType::BF16,
            "float16" | "half" | "f16" | "fp16" => DType::F16,
            "int64" | "i64" | "long" => DType::I64,
            "int32" | "i32" | "int" => DType::I32,
            "uint32" | "u32" => DType::U32,
            "uint8" | "u8" => DType::U8,
            "int8" | "i8" => DType::I8,
            "bool" => DType::Bool,
            _ => return None,
        })
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A truth value that any byte is a valid bit pattern of, so that mapped files can hold it.
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Bool(u8);

impl Bool {
    /// The truth value.
    pub const fn get(self) -> bool {
        self.0 != 0
    }
}

impl From<bool> for Bool {
    fn from(value: bool) -> Self {
        Bool(value as u8)
    }
}

impl PartialEq for Bool {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that a tensor can hold.
pub trait Element: Pod + Send + Sync + std::fmt::Debug + PartialEq + sealed::Sealed {
    /// The dtype this type stores.
    const DTYPE: DType;
    /// The value as f64 (integers beyond 2^53 round).
    fn to_f64(self) -> f64;
    /// The nearest value of this type (integers truncate and saturate, as `as` does).
    fn from_f64(value: f64) -> Self;
}

macro_rules! element {
    ($($t:ty => $dtype:ident, |$x:ident| $to:expr, |$y:ident| $from:expr;)*) => {$(
        impl sealed::Sealed for $t {}
        impl Element for $t {
            const DTYPE: DType = DType::$dtype;
            #[inline(always)]
            fn to_f64(self) -> f64 { let $x = self; $to }
            #[inline(always)]
            fn from_f64($y: f64) -> Self { $from }
        }
    )*};
}
element! {
    f64 => F64, |x| x, |y| y;
    f32 => F32, |x| x as f64, |y| y as f32;
    // Through f32, as torch does; `half` cuts off the lower bits of an f64 and so misses what lies beside a tie.
    bf16 => BF16, |x| x.to_f64(), |y| round_bf16(y as f32);
    f16 => F16, |x| x.to_f64(), |y| f16::from_f32(y as f32);
    i64 => I64, |x| x as f64, |y| y as i64;
    i32 => I32, |x| x as f64, |y| y as i32;
    u32 => U32, |x| x as f64, |y| y as u32;
    u8 => U8, |x| x as f64, |y| y as u8;
    i8 => I8, |x| x as f64, |y| y as i8;
    Bool => Bool, |x| x.get() as u8 as f64, |y| Bool::from(y != 0.0);
}

/// A type that arithmetic is done in: f32 for training, f64 for gradient checks.
///
/// Kernels are generic over `Real`, so the code that gradcheck exercises in f64 is the code
/// that training runs in f32.
pub trait Real:
    Element
    + Float
    + Default
    + ViaF32
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
    + PartialOrd
    + crate::gemm::Kernel
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Negative infinity.
    const NEG_INFINITY: Self;
    /// `self * a + b`, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// e^self. In f32 branch-free, so that loops over it vectorise; the same bits on every machine.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Error function.
    fn erf(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// The larger; a NaN in `self` loses.
    fn max(self, other: Self) -> Self;
    /// Whether it is neither infinite nor NaN.
    fn is_finite(self) -> bool;
}

/// A floating-point storage type: can be widened to and rounded from a compute type.
pub trait Float: Element {
    /// Widens (or, f64 to f32, rounds) to the compute type.
    fn widen<R: Real>(self) -> R;
    /// Rounds from the compute type.
    fn round<R: Real>(value: R) -> Self;
}

macro_rules! float {
    ($($t:ty),*) => {$(
        impl Float for $t {
            #[inline(always)]
            fn widen<R: Real>(self) -> R {
                // Both branches are constants of the instance: bf16 and f16 widen through f32.
                if R::DTYPE.size() == 4 { R::from_f32(<$t as ToF32>::to_f32_(self)) } else { R::from_f64(self.to_f64()) }
            }
            #[inline(always)]
            fn round<R: Real>(value: R) -> Self {
                if R::DTYPE.size() == 4 { <$t as ToF32>::from_f32_(value.to_f32()) } else { Self::from_f64(value.to_f64()) }
            }
        }
    )*};
}
float!(f64, f32, bf16, f16);

/// Conversions through f32 that stay exact where the types allow it.
trait ToF32 {
    fn to_f32_(self) -> f32;
    fn from_f32_(x: f32) -> Self;
}
macro_rules! to_f32 {
    ($($t:ty: |$x:ident| $to:expr, |$y:ident| $from:expr;)*) => {$(
        impl ToF32 for $t {
            #[inline(always)] fn to_f32_(self) -> f32 { let $x = self; $to }
            #[inline(always)] fn from_f32_($y: f32) -> Self { $from }
        }
    )*};
}
to_f32! {
    f64: |x| x as f32, |y| y as f64;
    f32: |x| x, |y| y;
    // A bf16 is the upper half of an f32: widening is a shift, which vectorises.
    bf16: |x| f32::from_bits((x.to_bits() as u32) << 16), |y| round_bf16(y);
    f16: |x| x.to_f32(), |y| f16::from_f32(y);
}

/// Rounds to nearest even without a branch on ordinary values, so that loops vectorise.
#[inline(always)]
fn round_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // A NaN must stay one: rounding could carry its payload into the exponent.
    let quiet = (bits >> 16) | 0x40;
    bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16)
}

/// Exact passage between f32 and a compute type.
pub trait ViaF32 {
    /// From f32, exactly.
    fn from_f32(x: f32) -> Self;
    /// To f32, rounded if wider.
    fn to_f32(self) -> f32;
}
impl ViaF32 for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}
impl ViaF32 for f64 {
    #[inline(always)]
    fn from_f32(x: f32) -> f64 {
        x as f64
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self as f32
    }
}
