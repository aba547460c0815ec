use super::*;
use crate::{Bool, bf16, f16};
use proptest::prelude::*;

fn iota(shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    let n = shape.checked_numel().unwrap();
    Tensor::from_vec((0..n).map(|i| i as f32).collect(), shape).unwrap()
}

#[test]
fn views_share_and_reorder() {
    let x = iota([2, 3, 4]);
    let t = x.transpose(0, 2).unwrap();
    assert!(t.shares_storage(&x) && !t.is_contiguous());
    assert_eq!(t.dims(), [4, 3, 2]);
    assert_eq!(t.to_vec::<f32>().unwrap()[..4], [0.0, 12.0, 4.0, 16.0]);
    let n = x.narrow(1, 1, 2).unwrap();
    assert_eq!(n.to_vec::<f32>().unwrap()[..5], [4.0, 5.0, 6.0, 7.0, 8.0]);
    let b = iota([3, 1]).broadcast_to([2, 3, 2]).unwrap();
    assert_eq!(b.to_vec::<f32>().unwrap(), [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0]);
    assert_eq!(x.reshape([6, 4]).unwrap().narrow(0, 5, 1).unwrap().to_vec::<f32>().unwrap(), [20.0, 21.0, 22.0, 23.0]);
    assert_eq!(iota(()).item::<f32>().unwrap(), 0.0);
    assert_eq!(x.unsqueeze(3).unwrap().dims(), [2, 3, 4, 1]);
}

#[test]
fn writes_are_not_seen_through_other_handles() {
    let mut x = iota([4]);
    let view = x.narrow(0, 1, 2).unwrap();
    x.as_slice_mut::<f32>().unwrap()[1] = 9.0;
    assert_eq!(view.to_vec::<f32>().unwrap(), [1.0, 2.0]);
    let mut view = x.narrow(0, 1, 2).unwrap();
    view.as_slice_mut::<f32>().unwrap()[0] = 7.0;
    assert_eq!(x.to_vec::<f32>().unwrap(), [0.0, 9.0, 2.0, 3.0]);
    drop(view);
    let before = x.as_slice::<f32>().unwrap().as_ptr();
    assert_eq!(x.as_slice_mut::<f32>().unwrap().as_ptr(), before, "an unshared tensor is written in place");
}

#[test]
fn sizes_are_checked() {
    assert!(matches!(Tensor::zeros([usize::MAX, 2], DType::F32), Err(Error::TooLarge { .. })));
    assert!(matches!(Tensor::zeros([1 << 62, 4], DType::U8), Err(Error::TooLarge { .. })));
    assert_eq!(Tensor::zeros([usize::MAX, 0, 7], DType::F32).unwrap().numel(), 0);
    assert_eq!(Tensor::zeros([1 << 40, 1 << 40, 0], DType::F32).unwrap().copied().unwrap().numel(), 0);
    assert!(matches!(Tensor::from_vec(vec![1f32; 5], [2, 3]), Err(Error::Length { .. })));
    let x = iota([2, 3]);
    assert!(x.narrow(0, 1, 2).is_err());
    assert!(x.narrow(0, usize::MAX, 2).is_err());
    assert!(x.narrow(2, 0, 1).is_err());
    assert!(x.transpose(0, 2).is_err());
    assert!(x.reshape([7]).is_err());
    assert!(x.broadcast_to([3, 2]).is_err());
    assert!(x.broadcast_to([3]).is_err());
    assert!(iota([1]).broadcast_to([usize::MAX, 8]).is_err());
    assert!(x.as_slice::<f64>().is_err());
    assert!(x.transpose(0, 1).unwrap().as_slice::<f32>().is_err());
    assert!(x.item::<f32>().is_err());
    // Empty views at the very end are fine and read nothing.
    assert_eq!(x.narrow(0, 2, 0).unwrap().to_vec::<f32>().unwrap(), []);
    assert_eq!(x.narrow(0, 2, 0).unwrap().transpose(0, 1).unwrap().copied().unwrap().numel(), 0);
}

#[test]
fn mapped_tensors_are_bounded_and_realigned() {
    let mut file = tempfile();
    use std::io::Write;
    let mut bytes = vec![0u8; 3];
    bytes.extend(1.5f32.to_le_bytes());
    bytes.extend(2.5f32.to_le_bytes());
    file.write_all(&bytes).unwrap();
    // SAFETY: the file is this test's own and nothing truncates it.
    let map = Arc::new(unsafe { Mmap::map(&file).unwrap() });
    let x = Tensor::from_mapped(&map, 3, DType::F32, [2]).unwrap();
    assert_eq!(x.to_vec::<f32>().unwrap(), [1.5, 2.5]);
    assert!(!x.is_mapped(), "misaligned data is copied");
    let mut raw = Tensor::from_mapped(&map, 0, DType::U8, [11]).unwrap();
    assert!(raw.is_mapped());
    raw.as_slice_mut::<u8>().unwrap()[0] = 9;
    assert!(!raw.is_mapped() && map[0] == 0, "writing copies, the file is untouched");
    assert!(matches!(Tensor::from_mapped(&map, 4, DType::F32, [2]), Err(Error::Mapping { .. })));
    assert!(matches!(Tensor::from_mapped(&map, usize::MAX, DType::F32, [2]), Err(Error::Mapping { .. })));
    assert!(Tensor::from_mapped(&map, 0, DType::F32, [usize::MAX, usize::MAX]).is_err());
}

fn tempfile() -> std::fs::File {
    let path =
        std::env::temp_dir().join(format!("planish-tensor-{}-{:?}", std::process::id(), std::thread::current().id()));
    let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

#[test]
fn casts() {
    let x = Tensor::from_vec(vec![1.0f32, -2.7, 300.0, f32::NAN, 1.003_906_3], [5]).unwrap();
    assert_eq!(x.to_dtype(DType::I32).unwrap().to_vec::<i32>().unwrap(), [1, -2, 300, 0, 1]);
    assert_eq!(x.to_dtype(DType::U8).unwrap().to_vec::<u8>().unwrap(), [1, 0, 255, 0, 1]);
    let b = x.to_dtype(DType::BF16).unwrap().to_vec::<bf16>().unwrap();
    assert_eq!(b[4], bf16::from_f32(1.0), "a tie rounds to even");
    assert!(b[3].is_nan());
    assert_eq!(
        x.narrow(0, 0, 2).unwrap().to_dtype(DType::F16).unwrap().to_vec::<f16>().unwrap()[1],
        f16::from_f32(-2.7)
    );
    assert_eq!(x.to_dtype(DType::Bool).unwrap().to_vec::<Bool>().unwrap()[0], Bool::from(true));
}

proptest! {
    /// Widening and rounding through the compute type agree with the `half` crate, for all bits.
    #[test]
    fn bf16_rounding_matches_half(bits: u32) {
        let x = f32::from_bits(bits);
        let (got, want) = (<bf16 as crate::Float>::round(x), bf16::from_f32(x));
        prop_assert!(got == want || (got.is_nan() && want.is_nan()), "{x} {got} {want}");
        let wide: f32 = crate::Float::widen(got);
        prop_assert!(wide == got.to_f32() || got.is_nan());
    }

    /// Any chain of views reads what index arithmetic says it should.
    #[test]
    fn view_chains(a in 1usize..4, b in 1usize..4, c in 1usize..4, ops in prop::collection::vec((0u8..3, 0usize..3, 0usize..3), 0..6)) {
        let x = iota([a, b, c]);
        let mut view = x.clone();
        // The model: a list of values in row-major order and its shape.
        for (kind, i, j) in ops {
            let before = view.to_vec::<f32>().unwrap();
            let dims = view.dims().to_vec();
            let strides = view.shape().contiguous_strides();
            match kind {
                0 => {
                    view = view.transpose(i, j).unwrap();
                    let after = view.copied().unwrap();
                    for (n, &v) in after.as_slice::<f32>().unwrap().iter().enumerate() {
                        let s = view.shape().contiguous_strides();
                        let mut index: Vec<usize> = (0..3).map(|d| n / s[d] % view.dims()[d]).collect();
                        index.swap(i, j);
                        prop_assert_eq!(v, before[(0..3).map(|d| index[d] * strides[d]).sum::<usize>()]);
                    }
                }
                1 => {
                    let len = dims[i].max(1) - j.min(dims[i].max(1) - 1);
                    let start = dims[i].saturating_sub(len);
                    if start + len <= dims[i] {
                        view = view.narrow(i, start, len).unwrap();
                        prop_assert_eq!(view.numel(), dims.iter().product::<usize>() / dims[i] * len);
                        prop_assert_eq!(view.to_vec::<f32>().unwrap().last().copied(), before.last().copied());
                    }
                }
                _ => {
                    view = view.contiguous().unwrap();
                    prop_assert_eq!(view.to_vec::<f32>().unwrap(), before);
                }
            }
        }
    }
}
