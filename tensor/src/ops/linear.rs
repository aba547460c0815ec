//! Linear maps: y = x Wᵀ + b.
//!
//! x: (…, in), W: (out, in), b: (out), y: (…, out). Sums in the dtype of x (f32 or f64), in the
//! order [`gemm`](crate::gemm) documents; W may be stored in any float dtype, or [quantised](crate::quant).

use super::left::{self, Map};
use crate::device::{self, ops::linear as on_device};
use crate::gemm::{FEW_ROWS, Mat, Store, gemm, gemm_grouped};
use crate::quant::PackedMat;
use crate::{DType, Error, Real, Result, Tensor, dispatch_real};

const OP: &str = "linear";

/// A (rows, cols) tensor of any strides as a matrix view of its elements.
pub(crate) fn matrix<T: crate::Float>(t: &Tensor) -> Mat<'_, T> {
    let (rows, cols) = (t.dims()[0], t.dims()[1]);
    if rows == 0 || cols == 0 {
        return Mat::strided(&[], rows, cols, 0, 0);
    }
    Mat::strided(&t.elements::<T>()[t.offset()..], rows, cols, t.strides()[0], t.strides()[1])
}

/// Runs the expression with `$b` bound to a two-dimensional weight as the right-hand matrix of a product: quantised, or
/// of any float dtype and stride.
macro_rules! with_right {
    ($op:expr, $weight:expr, $b:ident => $body:expr) => {
        match $crate::quant::PackedMat::of($weight) {
            Some($b) => $body,
            None => $crate::dispatch_float!($op, $weight.dtype(), W => {
                let $b = $crate::ops::linear::matrix::<W>($weight);
                $body
            }),
        }
    };
}
pub(crate) use with_right;

/// All dimensions but the last flattened; a view where the layout allows.
pub(crate) fn flat(t: &Tensor, op: &'static str) -> Result<Tensor> {
    let (rows, width) = t.rows(op)?;
    if t.rank() == 2 { Ok(t.clone()) } else { t.reshape([rows, width]) }
}

/// C = or += A B for two-dimensional tensors of any strides and float dtypes, in the dtype of C.
///
/// # Errors
/// Shapes that do not agree, a dtype that is no float, a C that is not f32 or f64.
pub fn matmul_into(a: &Tensor, b: &Tensor, c: &mut Tensor, store: Store) -> Result<()> {
    for t in [a, b, c] {
        if t.rank() != 2 {
            return Err(Error::Rank { op: "matmul", expected: 2, shape: t.dims().to_vec() });
        }
    }
    if a.dims()[1] != b.dims()[0] || c.dims() != [a.dims()[0], b.dims()[1]] {
        return Err(Error::ShapeMismatch {
            op: "matmul",
            what: "A and B",
            lhs: a.dims().to_vec(),
            rhs: b.dims().to_vec(),
        });
    }
    if let Some(on) = device::of("matmul", [a, b, &*c])? {
        return on_device::product(&on, (a, b), None, None, c, store);
    }
    // Only the weight's side comes in narrow dtypes where it matters; f64 is for gradient checks. An
    // instance of the product for every combination would be most of the program.
    let a = a.to_dtype(c.dtype())?;
    match c.dtype() {
        DType::F32 => with_right!("matmul", b, b => {
            gemm::<f32, _>(matrix(&a), b, c.as_slice_mut()?, store);
            Ok(())
        }),
        DType::F64 => {
            let b = b.to_dtype(DType::F64)?;
            gemm::<f64, _>(matrix(&a), matrix::<f64>(&b), c.as_slice_mut()?, store);
            Ok(())
        }
        dtype => Err(Error::UnsupportedDType { op: "matmul", dtype }),
    }
}

/// A B in `dtype` (f32 or f64), for two-dimensional tensors.
///
/// # Errors
/// As [`matmul_into`].
pub fn matmul(a: &Tensor, b: &Tensor, dtype: DType) -> Result<Tensor> {
    for t in [a, b] {
        if t.rank() != 2 {
            return Err(Error::Rank { op: "matmul", expected: 2, shape: t.dims().to_vec() });
        }
    }
    let mut c = a.scratch_beside("matmul", [a.dims()[0], b.dims()[1]], dtype)?;
    matmul_into(a, b, &mut c, Store::Set)?;
    Ok(c)
}

/// factor · A B in `dtype`: on a device of the sums, before they are rounded.
///
/// # Errors
/// As [`matmul_into`].
pub(crate) fn scaled_matmul(a: &Tensor, b: &Tensor, dtype: DType, factor: f64) -> Result<Tensor> {
    let Some(on) = device::of("matmul", [a, b])? else {
        if dtype == DType::F32 && b.rank() == 2 && left::takes(a) && a.dims()[1] == b.dims()[0] {
            let map = Map { factor: Some(factor), ..Map::plain(b, None) };
            return Ok(left::products("matmul", a, &[map])?.swap_remove(0));
        }
        return super::elementwise::scale(&matmul(a, b, dtype)?, factor);
    };
    let mut c = a.scratch_beside("matmul", [a.dims()[0], b.dims()[1]], dtype)?;
    on_device::scaled_product(&on, (a, b), factor, &mut c)?;
    Ok(c)
}

/// Checks flattened x (rows, in) against W (out, in) and b (out).
pub(crate) fn check(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    if weight.rank() != 2 {
        return Err(Error::Rank { op: OP, expected: 2, shape: weight.dims().to_vec() });
    }
    let mismatch = |what, lhs: &[usize], rhs: &[usize]| {
        Err(Error::ShapeMismatch { op: OP, what, lhs: lhs.to_vec(), rhs: rhs.to_vec() })
    };
    if x.dims()[1] != weight.dims()[1] {
        return mismatch("last size of x against weight (out, in)", x.dims(), weight.dims());
    }
    match bias {
        Some(bias) if bias.dims() != [weight.dims()[0]] => {
            mismatch("bias against weight (out, in)", bias.dims(), weight.dims())
        }
        _ => Ok(()),
    }
}

/// y += b for every row of y.
pub(crate) fn add_bias(y: &mut Tensor, bias: &Tensor) -> Result<()> {
    if let Some(on) = device::of(OP, [&*y, bias])? {
        return on_device::add_bias(&on, y, bias);
    }
    let bias = bias.to_dtype(y.dtype())?.contiguous()?;
    dispatch_real!(OP, y.dtype(), R => {
        let bias = bias.as_slice::<R>()?;
        crate::parallel::chunks(y.as_slice_mut::<R>()?, bias.len(), |_, rows| {
            for row in rows.chunks_exact_mut(bias.len()) {
                for (y, &b) in row.iter_mut().zip(bias) {
                    *y += b;
                }
            }
        });
    });
    Ok(())
}

/// y = x Wᵀ + b.
///
/// # Errors
/// Shapes that do not agree; x of a dtype other than f32 and f64.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let flat_x = flat(x, OP)?;
    check(&flat_x, weight, bias)?;
    let right = weight.transpose(0, 1)?;
    let y = match device::of(OP, [x, weight].into_iter().chain(bias))? {
        Some(on) => {
            let mut y = on.scratch(OP, [flat_x.dims()[0], weight.dims()[0]], x.dtype())?;
            on_device::product(&on, (&flat_x, &right), None, bias, &mut y, Store::Set)?;
            y
        }
        None if left::takes(&flat_x) => left::products(OP, &flat_x, &[Map::plain(&right, bias)])?.swap_remove(0),
        None => {
            let mut y = matmul(&flat_x, &right, x.dtype())?;
            bias.map_or(Ok(()), |bias| add_bias(&mut y, bias))?;
            y
        }
    };
    let mut dims = x.dims().to_vec();
    *dims.last_mut().expect("flat() refuses scalars") = weight.dims()[0];
    y.reshape(dims)
}

/// y_i = x W_iᵀ + b_i for several maps of one x, each with the bits of [`forward`]. Of few rows and quantised weights, or
/// weights in panels, on the processor it is one piece of work: threads wait for each other once.
///
/// # Errors
/// As [`forward`].
pub fn forward_together(x: &Tensor, maps: &[(&Tensor, Option<&Tensor>)]) -> Result<Vec<Tensor>> {
    let flat_x = flat(x, OP)?;
    let shaped = |y: Tensor| {
        let mut dims = x.dims().to_vec();
        *dims.last_mut().expect("flat() refuses scalars") = y.dims()[1];
        y.reshape(dims)
    };
    if left::takes(&flat_x) {
        let mut rights = Vec::with_capacity(maps.len());
        for (weight, bias) in maps {
            check(&flat_x, weight, *bias)?;
            rights.push(weight.transpose(0, 1)?);
        }
        let maps: Vec<Map> = rights.iter().zip(maps).map(|(right, (_, bias))| Map::plain(right, *bias)).collect();
        return left::products(OP, &flat_x, &maps)?.into_iter().map(shaped).collect();
    }
    let rows = flat_x.dims()[0];
    let packed = maps.iter().all(|(weight, _)| weight.quantized().is_some());
    if !packed || rows > FEW_ROWS || x.dtype() != DType::F32 || device::of(OP, [x])?.is_some() {
        return maps.iter().map(|(weight, bias)| forward(x, weight, *bias)).collect();
    }
    let (mut rights, mut outputs) = (Vec::with_capacity(maps.len()), Vec::with_capacity(maps.len()));
    for (weight, bias) in maps {
        check(&flat_x, weight, *bias)?;
        device::of(OP, [x, weight])?;
        rights.push(weight.transpose(0, 1)?);
        outputs.push(x.scratch_beside(OP, [rows, weight.dims()[0]], DType::F32)?);
    }
    let mut products = Vec::with_capacity(maps.len());
    for (right, y) in rights.iter().zip(&mut outputs) {
        let right = PackedMat::of(right).expect("quantised, as just seen");
        products.push((matrix::<f32>(&flat_x), right, y.as_slice_mut::<f32>()?));
    }
    gemm_grouped(products, Store::Set);
    let finish = |(mut y, (_, bias)): (Tensor, &(&Tensor, Option<&Tensor>))| {
        bias.map_or(Ok(()), |bias| add_bias(&mut y, bias))?;
        shaped(y)
    };
    outputs.into_iter().zip(maps).map(finish).collect()
}

/// dL/dx = dy W.
///
/// # Errors
/// As [`forward`].
pub fn backward_input(dy: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let dx = matmul(&flat(dy, OP)?, weight, dy.dtype())?;
    let mut dims = dy.dims().to_vec();
    *dims.last_mut().expect("flat() refuses scalars") = weight.dims()[1];
    dx.reshape(dims)
}

/// dW += dyᵀ x, into a buffer of W's shape in the compute dtype.
///
/// # Errors
/// As [`forward`].
pub fn backward_weight_add(dy: &Tensor, x: &Tensor, dweight: &mut Tensor) -> Result<()> {
    matmul_into(&flat(dy, OP)?.transpose(0, 1)?, &flat(x, OP)?, dweight, Store::Add)
}

/// db += the sum of dy over rows, in row order.
///
/// # Errors
/// As [`forward`].
pub fn backward_bias_add(dy: &Tensor, dbias: &mut Tensor) -> Result<()> {
    let dy = flat(dy, OP)?.contiguous()?;
    let width = dy.dims()[1];
    if dbias.dims() != [width] {
        return Err(Error::ShapeMismatch {
            op: OP,
            what: "gradient of bias",
            lhs: dbias.dims().to_vec(),
            rhs: vec![width],
        });
    }
    if let Some(on) = device::of(OP, [&dy, &*dbias])? {
        return device::ops::reduction::add_rows(&on, &dy, dbias);
    }
    dispatch_real!(OP, dy.dtype(), R => {
        add_rows::<R>(dy.as_slice::<R>()?, dbias.as_slice_mut::<R>()?);
        Ok(())
    })
}

/// sums[c] += sum over rows of rows[r][c], in row order.
pub(crate) fn add_rows<R: Real>(rows: &[R], sums: &mut [R]) {
    if !sums.is_empty() {
        for row in rows.chunks_exact(sums.len()) {
            for (s, &x) in sums.iter_mut().zip(row) {
                *s += x;
            }
        }
    }
}
