//! copy, and what elementwise adds of numbers and rows.

use planish_cuda::DType;
use planish_cuda::ops::copy::{self, Dim};
use planish_cuda::ops::elementwise;

use crate::shapes;
use crate::support::*;

shapes! {
    fn layouts_are_exchanged(queue; a in 0usize..5, b in 1usize..40, c in 1usize..9, t in 0usize..3; 8 cases) {
        // x (a, b, c) to y (c, a, b), and x with its middle repeated.
        let t = TYPES[t];
        let x = random(a * b * c, t, 1);
        let xs = put(queue, &x, t);
        let dims = [
            Dim { size: c, x: 1, y: a * b },
            Dim { size: a, x: b * c, y: b },
            Dim { size: b, x: c, y: 1 },
        ];
        let mut y = room(queue, x.len(), t);
        copy::strided(queue, y.slice_mut(t), xs.slice(t), &dims).unwrap();
        let at = |k: usize, i: usize, j: usize| x[(i * b + j) * c + k];
        let want: Vec<f64> = (0..c).flat_map(|k| (0..a).flat_map(move |i| (0..b).map(move |j| (k, i, j)))).map(|(k, i, j)| at(k, i, j)).collect();
        assert_eq!(get(&y, t), want);

        let before = random(x.len(), DType::F32, 2);
        let mut sum = put(queue, &before, DType::F32);
        copy::add(queue, sum.slice_mut(DType::F32), xs.slice(t), &dims).unwrap();
        let want: Vec<f64> = before.iter().zip(&want).map(|(a, b)| f64::from(*a as f32 + *b as f32)).collect();
        assert_eq!(get(&sum, DType::F32), want);
    }
}

#[test]
fn values_repeat_and_fill() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let x = queue.upload("a test", &[7u32, 9]).unwrap();
    let mut y = queue.alloc("a test", 6, DType::U32).unwrap();
    let dims = [Dim { size: 2, x: 1, y: 3 }, Dim { size: 3, x: 0, y: 1 }];
    copy::strided(queue, y.slice_mut(DType::U32), x.slice(DType::U32), &dims).unwrap();
    assert_eq!(y.download::<u32>().unwrap(), [7, 7, 7, 9, 9, 9]);
    let too_far = copy::strided(queue, y.slice_mut(DType::U32), x.slice(DType::U32), &[Dim { size: 3, x: 1, y: 1 }]);
    assert_eq!(too_far.unwrap_err().to_string(), "copy: x should have 3 elements, not 2");
    let mut bytes = queue.alloc("a test", 5, DType::U8).unwrap();
    copy::fill(queue, bytes.slice_mut(DType::U8), 0xab).unwrap();
    assert_eq!(bytes.download::<u8>().unwrap(), [0xab; 5]);
    let mut ones = queue.alloc("a test", 300, DType::F32).unwrap();
    copy::fill(queue, ones.slice_mut(DType::F32), u64::from(1.0f32.to_bits())).unwrap();
    assert_eq!(ones.download::<f32>().unwrap(), [1.0; 300]);
}

shapes! {
    fn numbers_and_rows_are_added(queue; rows in 0usize..5, width in 1usize..19, t in 0usize..3; 6 cases) {
        let t = TYPES[t];
        let (x, row) = (random(rows * width, t, 1), random(width, DType::F32, 2));
        let (xs, mut y) = (put(queue, &x, t), room(queue, rows * width, t));
        elementwise::add_scalar(queue, y.slice_mut(t), xs.slice(t), 0.25).unwrap();
        let want: Vec<f64> = x.iter().map(|x| round(x + 0.25, t)).collect();
        assert_eq!(get(&y, t), want);
        let mut y = put(queue, &x, t);
        elementwise::add_row(queue, y.slice_mut(t), put(queue, &row, DType::F32).slice(DType::F32)).unwrap();
        let want: Vec<f64> = x.iter().enumerate().map(|(i, x)| round(f64::from((x + row[i % width]) as f32), t)).collect();
        assert_eq!(get(&y, t), want);
    }
}
