//! embedding, gather, scatter_add, reduction, choose.

use planish_cuda::driver::Arg;
use planish_cuda::kernels::{EMBEDDING, REDUCTION};
use planish_cuda::memory::DeviceBuffer;
use planish_cuda::ops::combine::{self, Choices};
use planish_cuda::ops::{Runs, choose, embedding, gather, reduction};
use planish_cuda::{DType, Shape};

use crate::shapes;
use crate::support::*;

fn ptr(buffer: &DeviceBuffer) -> Arg<'static> {
    Arg::Ptr(buffer.ptr())
}

fn ids(n: usize, below: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i * 7 + 3 * i) % below) as u32).collect()
}

shapes! {
    fn embedding_takes_and_adds_rows(queue; tokens in 0usize..40, vocabulary in 1usize..9, size in 1usize..150, types in 0usize..3; 12 cases) {
        let t = TYPES[types];
        let ids = ids(tokens, vocabulary);
        let (table, dout) = (random(vocabulary * size, t, 1), random(tokens * size, t, 2));
        let (w, i, d) = (put(queue, &table, t), queue.upload("a test", &ids).unwrap(), put(queue, &dout, t));
        let want: Vec<f64> = ids.iter().flat_map(|&id| table[id as usize * size..][..size].to_vec()).collect();
        let mut out = room(queue, tokens * size, t);
        embedding::forward(queue, out.slice_mut(t), w.slice(t), i.slice(DType::U32), size).unwrap();
        assert_eq!(get(&out, t), want);
        // Widened where the activations are f32.
        let mut wide = room(queue, tokens * size, DType::F32);
        embedding::forward(queue, wide.slice_mut(DType::F32), w.slice(t), i.slice(DType::U32), size).unwrap();
        assert_eq!(get(&wide, DType::F32), want);
        let d1 = defines(&[("T", t.name()), ("W", t.name())]);
        let n = tokens * size;
        let naive = room(queue, n, t);
        let args = [ptr(&naive), ptr(&w), ptr(&i), Arg::U64(n as u64), Arg::U32(size as u32)];
        queue.launch(&EMBEDDING, "embedding_forward_naive", &d1, Shape::line(n.div_ceil(256), 256), &args).unwrap();
        assert_eq!(get(&naive, t), want);

        let before = random(vocabulary * size, DType::F32, 3);
        // In order of the tokens, in f32: the same bits as a loop.
        let mut sums: Vec<f32> = before.iter().map(|&x| x as f32).collect();
        for (token, &id) in ids.iter().enumerate() {
            for c in 0..size {
                sums[id as usize * size + c] += dout[token * size + c] as f32;
            }
        }
        let want: Vec<f64> = sums.into_iter().map(f64::from).collect();
        let runs = Runs::new(queue, &ids).unwrap();
        let mut dtable = put(queue, &before, DType::F32);
        embedding::backward(queue, dtable.slice_mut(DType::F32), d.slice(t), &runs, size).unwrap();
        assert_eq!(get(&dtable, DType::F32), want);
        let naive = put(queue, &before, DType::F32);
        let args = [ptr(&naive), ptr(&d), ptr(&i), Arg::U32(tokens as u32), Arg::U32(size as u32)];
        queue.launch(&EMBEDDING, "embedding_backward_naive", &d1, Shape::line(size.div_ceil(64), 64), &args).unwrap();
        assert_eq!(get(&naive, DType::F32), want);
        // The same of rows by index.
        let mut y = put(queue, &before, DType::F32);
        gather::scatter_add(queue, y.slice_mut(DType::F32), d.slice(t), &runs, size).unwrap();
        assert_eq!(get(&y, DType::F32), want);
        let mut taken = room(queue, n, t);
        gather::rows_by_index(queue, taken.slice_mut(t), w.slice(t), i.slice(DType::U32), size).unwrap();
        assert_eq!(get(&taken, t), get(&out, t));
    }
}

shapes! {
    fn choices_are_weighed_and_added_up(queue; tokens in 1usize..20, k in 1usize..9, size in 1usize..300, types in 0usize..3; 12 cases) {
        let (t, rows) = (TYPES[types], tokens * k);
        // Each row once: 7 and 11 are prime to their number.
        let step = [7, 11, 13].into_iter().find(|step| rows % step != 0).unwrap();
        let places: Vec<u32> = (0..rows).map(|c| ((c * step + 3) % rows) as u32).collect();
        let (parts, weights) = (random(rows * size, t, 1), random(rows, DType::F32, 2));
        let dy = random(tokens * size, t, 3);
        let part = |c: usize| &parts[places[c] as usize * size..][..size];
        let (p, w, d) = (put(queue, &parts, t), put(queue, &weights, DType::F32), put(queue, &dy, t));
        let i = queue.upload("a test", &places).unwrap();
        let of = Choices { weights: w.slice(DType::F32), places: i.slice(DType::U32), of_token: k };
        let mut y = room(queue, tokens * size, t);
        combine::forward(queue, y.slice_mut(t), p.slice(t), of).unwrap();
        let mut want = vec![0.0; tokens * size];
        for c in 0..rows {
            for (y, p) in want[c / k * size..][..size].iter_mut().zip(part(c)) {
                *y += weights[c] * p;
            }
        }
        let allowed = |n: usize, t| tolerance(t) + 2f64.powi(-23) * (n as f64).sqrt();
        close("y", &get(&y, t), &want, allowed(k, t));
        let (mut dparts, mut dw) = (room(queue, rows * size, t), room(queue, rows, DType::F32));
        let given = || d.slice(t);
        combine::backward(queue, Some(dparts.slice_mut(t)), dw.slice_mut(DType::F32), given(), p.slice(t), of).unwrap();
        let (mut want_parts, mut want_w) = (vec![0.0; rows * size], vec![0.0; rows]);
        for c in 0..rows {
            let dy = &dy[c / k * size..][..size];
            want_parts[places[c] as usize * size..][..size].iter_mut().zip(dy).for_each(|(to, d)| *to = weights[c] * d);
            want_w[c] = part(c).iter().zip(dy).map(|(p, d)| p * d).sum();
        }
        close("dparts", &get(&dparts, t), &want_parts, allowed(1, t));
        close("dw", &get(&dw, DType::F32), &want_w, allowed(size, DType::F32));
        // The same without the parts' gradient.
        let mut alone = room(queue, rows, DType::F32);
        combine::backward(queue, None, alone.slice_mut(DType::F32), given(), p.slice(t), of).unwrap();
        assert_eq!(get(&alone, DType::F32), get(&dw, DType::F32));
    }
}

shapes! {
    fn gather_picks_from_its_own_row(queue; rows in 0usize..6, width in 1usize..70, picks in 0usize..5, types in 0usize..3; 10 cases) {
        let t = TYPES[types];
        let index = ids(rows * picks, width);
        let (x, dy) = (random(rows * width, t, 1), random(rows * picks, t, 2));
        let (xs, i, d) = (put(queue, &x, t), queue.upload("a test", &index).unwrap(), put(queue, &dy, t));
        let mut y = room(queue, rows * picks, t);
        gather::forward(queue, y.slice_mut(t), xs.slice(t), i.slice(DType::U32), width).unwrap();
        let at = |k: usize| k / picks * width + index[k] as usize;
        assert_eq!(get(&y, t), (0..rows * picks).map(|k| x[at(k)]).collect::<Vec<_>>());
        let mut dx = queue.zeros("a test", rows * width, DType::F32).unwrap();
        gather::backward(queue, dx.slice_mut(DType::F32), d.slice(t), i.slice(DType::U32), width).unwrap();
        let mut want = vec![0.0f32; rows * width];
        (0..rows * picks).for_each(|k| want[at(k)] += dy[k] as f32);
        assert_eq!(get(&dx, DType::F32), want.into_iter().map(f64::from).collect::<Vec<_>>());
    }
}

shapes! {
    fn sums_and_maxima_of_rows(queue; rows in 0usize..5, width in 1usize..600, types in 0usize..3; 10 cases) {
        let t = TYPES[types];
        let mut x = random(rows * width, t, 1);
        // Equals, of which the first counts; a NaN, which is largest.
        if rows > 1 {
            x[..width].iter_mut().skip(width / 3).for_each(|x| *x = 9.0);
            x[width..2 * width].iter_mut().skip(width / 2).step_by(2).for_each(|x| *x = f64::NAN);
        }
        let clean: Vec<f64> = x.iter().map(|&x| if x.is_nan() { 0.0 } else { x }).collect();
        let (xs, cs) = (put(queue, &x, t), put(queue, &clean, t));
        let mut sums = room(queue, rows, DType::F32);
        reduction::sum_rows(queue, sums.slice_mut(DType::F32), cs.slice(t), width).unwrap();
        let want: Vec<f64> = clean.chunks(width).map(|row| row.iter().sum()).collect();
        close("sums", &get(&sums, DType::F32), &want, 1e-5);
        let args = [ptr(&sums), ptr(&cs), Arg::U32(rows as u32), Arg::U32(width as u32)];
        queue.launch(&REDUCTION, "reduction_rows_naive", &defines(&[("T", t.name())]), Shape::line(rows.div_ceil(64), 64), &args).unwrap();
        close("naive sums", &get(&sums, DType::F32), &want, 1e-5);
        let (mut best, mut index) = (room(queue, rows, DType::F32), room(queue, rows, DType::U32));
        reduction::max_rows(queue, best.slice_mut(DType::F32), index.slice_mut(DType::U32), xs.slice(t), width).unwrap();
        let (best, index) = (get(&best, DType::F32), index.download::<u32>().unwrap());
        for (r, row) in x.chunks(width).enumerate() {
            let nan = row.iter().position(|x| x.is_nan());
            let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let first = nan.unwrap_or_else(|| row.iter().position(|&x| x == top).unwrap());
            assert_eq!(index[r] as usize, first, "row {r}");
            assert!(nan.is_some() && best[r].is_nan() || best[r] == top);
        }
    }
}

#[test]
fn everything_and_columns_add_up() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    for n in [0, 1, 4096, 4097, 20_000] {
        let x = random(n, DType::F32, 1);
        let xs = put(queue, &x, DType::F32);
        let mut sum = room(queue, 1, DType::F32);
        reduction::sum(queue, sum.slice_mut(DType::F32), xs.slice(DType::F32)).unwrap();
        let size = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        assert!((get(&sum, DType::F32)[0] - x.iter().sum::<f64>()).abs() <= 1e-5 * size, "{n} elements");
    }
    for (rows, width) in [(0, 3), (1, 130), (257, 5), (300, 64), (41, 2056), (9000, 9)] {
        let (x, before) = (random(rows * width, DType::BF16, 2), random(width, DType::F32, 3));
        let (xs, mut out) = (put(queue, &x, DType::BF16), put(queue, &before, DType::F32));
        reduction::add_columns(queue, out.slice_mut(DType::F32), xs.slice(DType::BF16)).unwrap();
        let want: Vec<f64> = (0..width).map(|c| before[c] + (0..rows).map(|r| x[r * width + c]).sum::<f64>()).collect();
        close("columns", &get(&out, DType::F32), &want, 2e-6);
    }
}

shapes! {
    /// Many scores are alike, some are no numbers or infinite.
    fn the_largest_are_chosen_in_order(queue; rows in 0usize..20, experts in 1usize..=choose::MOST, k in 1usize..20, values in 1usize..400, biased in proptest::bool::ANY; 24 cases) {
        let k = k.min(experts);
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0];
        let score = |i: usize| match i * 2654435761 % 4294967291 {
            n if n % 97 < 4 => odd[n % 97],
            n => (n % values) as f64 / 7.0 - 3.0,
        };
        let scores: Vec<f64> = (0..rows * experts).map(|i| round(score(i), DType::F32)).collect();
        let bias: Vec<f64> = (0..experts).map(|i| if biased { round((i % 5) as f64 * 0.3, DType::F32) } else { 0.0 }).collect();
        let (s, b, mut chosen) = (put(queue, &scores, DType::F32), put(queue, &bias, DType::F32), room(queue, rows * k, DType::U32));
        let given = biased.then(|| b.slice(DType::F32));
        choose::choose(queue, chosen.slice_mut(DType::U32), s.slice(DType::F32), given, experts, k).unwrap();
        let want: Vec<u32> = scores
            .chunks_exact(experts)
            .flat_map(|row| {
                let sum = |e: u32| row[e as usize] + bias[e as usize];
                let mut order: Vec<u32> = (0..experts as u32).collect();
                order.sort_by(|&a, &b| sum(b).total_cmp(&sum(a)).then(a.cmp(&b)));
                order.truncate(k);
                order.sort_unstable();
                order
            })
            .collect();
        assert_eq!(chosen.download::<u32>().unwrap(), want);
        let error = |e, k| choose::choose(queue, room(queue, rows * k, DType::U32).slice_mut(DType::U32), s.slice(DType::F32), None, e, k).is_err();
        assert!(error(experts, experts + 1) && error(experts, 0) && error(choose::MOST + 1, 1) && error(0, 1));
    }
}
