//! Quantised weights: their values, as a product needs them.
//!
//! A weight keeps its blocks on the device. A product makes all its values in the type that it computes in, takes them as
//! it takes any weight, and gives their memory back: one weight at a time is there as numbers. Values are those of the
//! processor, bit for bit, and so a product has the bits of the product with these values.

use planish_cuda::memory::{Slice, SliceMut};
use planish_cuda::ops::matmul::Term;
use planish_cuda::ops::{dequantise, ggml, matmul_nf4, nf4};

use super::On;
use crate::quant::{FourBit, FourBitKind, GgmlKind, Layout, Nested, Quantized, Scales};
use crate::{DType, Error, Result, Tensor};

const OP: &str = "a dequantised weight";

impl From<GgmlKind> for ggml::Kind {
    fn from(kind: GgmlKind) -> ggml::Kind {
        ggml::Kind { name: kind.name(), block: kind.block_len(), bytes: kind.block_bytes() }
    }
}

/// The values of a view of `weight`, in f32, bf16 or f16, without gaps.
pub(crate) fn values(on: &On, view: &Tensor, weight: &Quantized, dtype: DType) -> Result<Tensor> {
    if !matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
        return Err(Error::UnsupportedDType { op: OP, dtype });
    }
    let shape = weight.shape();
    let mut whole = on.scratch(OP, shape, dtype)?;
    if whole.numel() > 0 {
        write(on, &mut whole, weight)?;
    }
    // A view of all of it is no copy.
    whole.viewed_as(view).contiguous()
}

fn write(on: &On, out: &mut Tensor, weight: &Quantized) -> Result<()> {
    let (queue, cols) = (on.queue(), weight.shape()[1]);
    match weight.layout() {
        Layout::FourBit(of) => {
            let (bytes, block) = (of.bytes().cells()?, of.block_size());
            match of.kind() {
                FourBitKind::Nf4 => nf4::dequantise(queue, out.cells_mut()?, bytes, scales_of(of)?, block)?,
                FourBitKind::Fp4 => {
                    dequantise::fp4(queue, out.cells_mut()?, bytes, absmax(on, of)?.cells()?, block)?;
                }
            }
        }
        Layout::Int8(of) => {
            dequantise::int8(queue, out.cells_mut()?, of.bytes().cells()?, of.scales().cells()?, cols)?;
        }
        Layout::Ggml(of) => ggml::dequantise(queue, out.cells_mut()?, of.bytes().cells()?, of.kind().into(), cols)?,
        Layout::Panels(_) => return Err(Error::UnsupportedDType { op: OP, dtype: DType::Packed }),
    }
    Ok(())
}

/// Each of these matrices without gaps in a half type: those of quantised weights are made by one launch, if all are NF4 of one kind.
pub(super) fn values_of_each(on: &On, views: &[Tensor], dtype: DType) -> Result<Vec<Tensor>> {
    match nf4_alike(views)? {
        Some((weights, block)) if views.len() > 1 => {
            let [rows, cols] = [0, 1].map(|axis| views[0].dims()[axis]);
            let mut all = on.scratch(OP, [views.len(), rows, cols], dtype)?;
            nf4::dequantise_each(on.queue(), all.cells_mut()?, &weights, block)?;
            (0..views.len()).map(|i| all.narrow(0, i, 1)?.reshape([rows, cols])).collect()
        }
        _ => views.iter().map(|view| view.rounded(dtype)).collect(),
    }
}

/// The weights that these views show all of, and their block, if they are in NF4, of one shape and one kind of scales.
fn nf4_alike(views: &[Tensor]) -> Result<Option<(Vec<nf4::Packed<'_>>, usize)>> {
    let mut all = Vec::with_capacity(views.len());
    let mut first = None;
    for view in views {
        let whole = view.quantized().filter(|weight| weight.shape() == view.dims() && view.is_contiguous());
        let Some(Layout::FourBit(of)) = whole.map(Quantized::layout) else { return Ok(None) };
        let nested = match of.scales() {
            Scales::Plain(_) => None,
            Scales::Nested(nested) => Some(nested.block),
        };
        let kind = (view.dims(), of.block_size(), nested);
        if of.kind() != FourBitKind::Nf4 || *first.get_or_insert(kind) != kind {
            return Ok(None);
        }
        all.push(nf4::Packed { packed: of.bytes().cells()?, scales: scales_of(of)? });
    }
    Ok(first.map(|(_, block, _)| (all, block)))
}

/// Scales as they are kept, which kernels for NF4 take.
fn scales_of(of: &FourBit) -> Result<nf4::Scales<'_>> {
    Ok(match of.scales() {
        Scales::Plain(absmax) => nf4::Scales::Plain(absmax.cells()?),
        Scales::Nested(nested) => nf4::Scales::Nested(nested_of(nested)?),
    })
}

/// A scale in f32 for each block.
fn absmax(on: &On, of: &FourBit) -> Result<Tensor> {
    let nested = match of.scales() {
        Scales::Plain(absmax) => return Ok(absmax.clone()),
        Scales::Nested(nested) => nested,
    };
    let mut absmax = on.scratch(OP, [nested.codes.numel()], DType::F32)?;
    dequantise::scales(on.queue(), absmax.cells_mut()?, nested_of(nested)?)?;
    Ok(absmax)
}

fn nested_of(of: &Nested) -> Result<dequantise::Nested<'_>> {
    let (codes, code, absmax) = (of.codes.cells()?, of.code.cells()?, of.absmax.cells()?);
    Ok(dequantise::Nested { codes, code, absmax, block: of.block, offset: of.offset })
}

/// C = A Wᵀ + the update with a dense W (n, k), if it is all of a weight in NF4 and the device makes its values within the
/// product, as it does for few rows: the bits are those of the product with the values. Whether it did.
pub(crate) fn few_rows(
    on: &On,
    [m, n, k]: [usize; 3],
    a: &Tensor,
    w: &Tensor,
    update: Option<&Term<'_>>,
    c: SliceMut<'_>,
) -> Result<bool> {
    let Some(Layout::FourBit(of)) = w.quantized().filter(|q| q.shape() == [n, k]).map(Quantized::layout) else {
        return Ok(false);
    };
    let weight = matmul_nf4::Weight { packed: of.bytes().cells()?, scales: scales_of(of)?, block: of.block_size() };
    let a = a.cells()?;
    if of.kind() != FourBitKind::Nf4 || !matmul_nf4::takes(a, [m, k], weight, update) {
        return Ok(false);
    }
    matmul_nf4::matmul(on.queue(), c, [m, n, k], a, weight, update)?;
    Ok(true)
}

/// Rows `ids` of a view of whole rows of a quantised table, in f32.
pub(crate) fn rows(on: &On, view: &Tensor, table: &Quantized, ids: Slice<'_>) -> Result<Tensor> {
    let width = table.shape()[1];
    let of = match table.layout() {
        Layout::Ggml(of) if view.is_contiguous() && view.dims() == table.shape() => of,
        // What no file has: embeddings in bitsandbytes' formats, parts of one.
        _ => return super::rows::take_at(on, &values(on, view, table, DType::F32)?, ids),
    };
    let mut out = on.scratch("embedding", [ids.len(), width], DType::F32)?;
    if out.numel() > 0 {
        ggml::take(on.queue(), out.cells_mut()?, of.bytes().cells()?, ids, of.kind().into(), width)?;
    }
    Ok(out)
}
