//! softmax, log_softmax, logsumexp.

use planish_cuda::driver::Arg;
use planish_cuda::kernels::SOFTMAX;
use planish_cuda::ops::softmax::{self, Kind};
use planish_cuda::{DType, Shape};

use crate::shapes;
use crate::support::*;

shapes! {
    fn softmax_and_its_gradients(queue; rows in 0usize..5, width in 1usize..500, types in 0usize..3; 12 cases) {
        let t = TYPES[types];
        let x: Vec<f64> = random(rows * width, t, 1).iter().map(|x| round(3.0 * x, t)).collect();
        let dy = random(rows * width, t, 2);
        let lse: Vec<f64> = x.chunks(width).map(|row| row.iter().map(|x| x.exp()).sum::<f64>().ln()).collect();
        let each = |f: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
            (0..rows * width).map(|i| f(i, i / width)).collect()
        };
        let p = each(&|i, r| (x[i] - lse[r]).exp());
        let (xs, dys) = (put(queue, &x, t), put(queue, &dy, t));
        let (mut y, mut dx) = (room(queue, rows * width, t), room(queue, rows * width, t));
        let f32 = DType::F32;

        softmax::forward(queue, Kind::Softmax, y.slice_mut(t), xs.slice(t), width).unwrap();
        close("softmax", &get(&y, t), &p, tolerance(t));
        let args = [Arg::Ptr(dx.ptr()), Arg::Ptr(xs.ptr()), Arg::U32(rows as u32), Arg::U32(width as u32)];
        queue.launch(&SOFTMAX, "softmax_forward_naive", &defines(&[("T", t.name())]), Shape::line(rows.div_ceil(64), 64), &args).unwrap();
        close("naive softmax", &get(&dx, t), &p, tolerance(t));
        // From the y that was saved, as it was rounded.
        let saved = get(&y, t);
        let dot: Vec<f64> = (0..rows).map(|r| (r * width..(r + 1) * width).map(|i| dy[i] * saved[i]).sum()).collect();
        softmax::backward(queue, Kind::Softmax, dx.slice_mut(t), dys.slice(t), y.slice(t), width).unwrap();
        if width > 1 {
            close("dx", &get(&dx, t), &each(&|i, r| saved[i] * (dy[i] - dot[r])), 2.0 * tolerance(t));
        }

        softmax::forward(queue, Kind::LogSoftmax, y.slice_mut(t), xs.slice(t), width).unwrap();
        if width > 1 {
            close("log_softmax", &get(&y, t), &each(&|i, r| x[i] - lse[r]), tolerance(t));
        }
        let saved = get(&y, t);
        let sum: Vec<f64> = dy.chunks(width).map(|row| row.iter().sum()).collect();
        softmax::backward(queue, Kind::LogSoftmax, dx.slice_mut(t), dys.slice(t), y.slice(t), width).unwrap();
        if width > 1 {
            close("dx", &get(&dx, t), &each(&|i, r| dy[i] - saved[i].exp() * sum[r]), 2.0 * tolerance(t));
        }

        let mut l = room(queue, rows, f32);
        softmax::logsumexp(queue, l.slice_mut(f32), xs.slice(t), width).unwrap();
        close("lse", &get(&l, f32), &lse, 1e-6);
        let d = random(rows, f32, 3);
        let ds = put(queue, &d, f32);
        softmax::logsumexp_backward(queue, dx.slice_mut(t), ds.slice(f32), xs.slice(t), l.slice(f32), width).unwrap();
        close("dx", &get(&dx, t), &each(&|i, r| d[r] * p[i]), 2.0 * tolerance(t));
    }
}

#[test]
fn infinite_rows() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let inf = f64::INFINITY;
    let x = [-inf, -inf, -inf, 1.0, -inf, 2.0, inf, 0.0, 1.0];
    let (xs, mut y, mut l) = (put(queue, &x, DType::F32), room(queue, 9, DType::F32), room(queue, 3, DType::F32));
    softmax::forward(queue, Kind::Softmax, y.slice_mut(DType::F32), xs.slice(DType::F32), 3).unwrap();
    let y = get(&y, DType::F32);
    assert!(y[..3].iter().all(|y| y.is_nan()), "{y:?}");
    assert!((y[3] + y[5] - 1.0).abs() < 1e-6 && y[4] == 0.0, "{y:?}");
    softmax::logsumexp(queue, l.slice_mut(DType::F32), xs.slice(DType::F32), 3).unwrap();
    let l = get(&l, DType::F32);
    assert!(l[0] == -inf && l[2] == inf, "{l:?}");
}
