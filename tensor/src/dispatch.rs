//! From a run-time dtype to a type parameter.

/// Runs the expression with `$T` bound to the Rust type of the dtype.
#[macro_export]
macro_rules! dispatch {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::BF16 => {
                type $T = $crate::bf16;
                $body
            }
            $crate::DType::F16 => {
                type $T = $crate::f16;
                $body
            }
            $crate::DType::I64 => {
                type $T = i64;
                $body
            }
            $crate::DType::I32 => {
                type $T = i32;
                $body
            }
            $crate::DType::U32 => {
                type $T = u32;
                $body
            }
            // A packed tensor's elements are no bytes: what asks for them gets a mismatch of dtypes.
            $crate::DType::U8 | $crate::DType::Packed => {
                type $T = u8;
                $body
            }
            $crate::DType::I8 => {
                type $T = i8;
                $body
            }
            $crate::DType::Bool => {
                type $T = $crate::Bool;
                $body
            }
        }
    };
}

/// As `dispatch!` over the compute dtypes f32 and f64; any other is an
/// [`Error::UnsupportedDType`](crate::Error::UnsupportedDType) of `$op`.
#[macro_export]
macro_rules! dispatch_real {
    ($op:expr, $dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            dtype => return Err($crate::Error::UnsupportedDType { op: $op, dtype }),
        }
    };
}

/// As `dispatch!` over the floating-point dtypes; any other is an
/// [`Error::UnsupportedDType`](crate::Error::UnsupportedDType) of `$op`.
#[macro_export]
macro_rules! dispatch_float {
    ($op:expr, $dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::BF16 => {
                type $T = $crate::bf16;
                $body
            }
            $crate::DType::F16 => {
                type $T = $crate::f16;
                $body
            }
            dtype => return Err($crate::Error::UnsupportedDType { op: $op, dtype }),
        }
    };
}
