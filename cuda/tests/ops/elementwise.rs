//! glu, activation, unary, elementwise, cast, rope, nf4, dropout.

use planish_cuda::driver::{Arg, DevicePtr};
use planish_cuda::kernels::{ACTIVATION, CAST, DROPOUT, ELEMENTWISE, GLU, Kernel, NF4, ROPE, UNARY};
use planish_cuda::memory::DeviceBuffer;
use planish_cuda::ops::dequantise::{self, Nested};
use planish_cuda::ops::dropout::{self, Dropout};
use planish_cuda::ops::elementwise::{self, Binary};
use planish_cuda::ops::glu::{self, Act};
use planish_cuda::ops::nf4::{self, Packed, Scales};
use planish_cuda::ops::rope::{self, Heads};
use planish_cuda::ops::unary::{self, Unary};
use planish_cuda::ops::{activation, cast};
use planish_cuda::{DType, Queue, Shape};

use crate::shapes;
use crate::support::*;

/// Runs a naive kernel: y from other arguments, and the number of elements.
fn naive(
    queue: Queue<'_>,
    kernel: &Kernel,
    name: &'static str,
    of: &[(&str, &str)],
    n: usize,
    t: DType,
    args: &[Arg<'_>],
) -> Vec<f64> {
    let y = room(queue, n, t);
    let args = [&[Arg::Ptr(y.ptr())], args, &[Arg::U64(n as u64)]].concat();
    queue.launch(kernel, name, &defines(of), Shape::line(n.div_ceil(256), 256), &args).unwrap();
    get(&y, t)
}

fn ptr(buffer: &DeviceBuffer) -> Arg<'static> {
    Arg::Ptr(buffer.ptr())
}

const ACTS: [(Act, &str); 4] = [(Act::Silu, "0"), (Act::Gelu, "1"), (Act::GeluTanh, "2"), (Act::Relu, "3")];

/// act(x) and act'(x); Φ by numerical integration, which shares nothing with the kernel's erff.
fn act(act: Act, x: f64) -> (f64, f64) {
    let root = (2.0 / std::f64::consts::PI).sqrt();
    match act {
        Act::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            (x * s, s + x * s * (1.0 - s))
        }
        Act::Gelu => {
            let density = |t: f64| 0.5 * root * (-0.5 * t * t).exp();
            // Simpson's rule from 0 to x.
            let (n, mut sum) = (400, 0.0);
            let h = x / f64::from(n);
            for i in 0..n {
                let t = f64::from(i) * h;
                sum += h / 6.0 * (density(t) + 4.0 * density(t + h / 2.0) + density(t + h));
            }
            (x * (0.5 + sum), 0.5 + sum + x * density(x))
        }
        Act::GeluTanh => {
            let f = |x: f64| 0.5 * x * (1.0 + (root * (x + 0.044715 * x * x * x)).tanh());
            (f(x), (f(x + 1e-5) - f(x - 1e-5)) / 2e-5)
        }
        Act::Relu => (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
    }
}

shapes! {
    fn gated_units_and_activations(queue; n in 0usize..1100, which in 0usize..4, types in 0usize..3; 12 cases) {
        let (t, (a, number)) = (TYPES[types], ACTS[which]);
        let (gate, up, dy) = (random(n, t, 1), random(n, t, 2), random(n, t, 3));
        let gate: Vec<f64> = gate.iter().map(|x| round(2.0 * x, t)).collect();
        let (g, u, d) = (put(queue, &gate, t), put(queue, &up, t), put(queue, &dy, t));
        let mut y = room(queue, n, t);
        glu::forward(queue, a, y.slice_mut(t), g.slice(t), u.slice(t)).unwrap();
        let want: Vec<f64> = gate.iter().zip(&up).map(|(&g, u)| act(a, g).0 * u).collect();
        close("glu", &get(&y, t), &want, tolerance(t));
        let of = [("T", t.name()), ("ACT", number)];
        close("naive glu", &naive(queue, &GLU, "glu_forward_naive", &of, n, t, &[ptr(&g), ptr(&u)]), &want, tolerance(t));
        let (mut dg, mut du) = (room(queue, n, t), room(queue, n, t));
        glu::backward(queue, a, dg.slice_mut(t), du.slice_mut(t), d.slice(t), g.slice(t), u.slice(t)).unwrap();
        let want: Vec<f64> = (0..n).map(|i| dy[i] * up[i] * act(a, gate[i]).1).collect();
        close("dgate", &get(&dg, t), &want, 2.0 * tolerance(t));
        let want: Vec<f64> = (0..n).map(|i| dy[i] * act(a, gate[i]).0).collect();
        close("dup", &get(&du, t), &want, tolerance(t));

        activation::forward(queue, a, y.slice_mut(t), g.slice(t)).unwrap();
        let want: Vec<f64> = gate.iter().map(|&g| act(a, g).0).collect();
        close("activation", &get(&y, t), &want, tolerance(t));
        close("naive activation", &naive(queue, &ACTIVATION, "activation_forward_naive", &of, n, t, &[ptr(&g)]), &want, tolerance(t));
        activation::backward(queue, a, y.slice_mut(t), d.slice(t), g.slice(t)).unwrap();
        let want: Vec<f64> = (0..n).map(|i| dy[i] * act(a, gate[i]).1).collect();
        close("dx", &get(&y, t), &want, 2.0 * tolerance(t));
    }
}

shapes! {
    fn elementary_functions(queue; n in 0usize..700, which in 0usize..6, types in 0usize..3; 12 cases) {
        type Function = fn(f64) -> (f64, f64);
        let functions: [(Unary, Function); 6] = [
            (Unary::Exp, |x| (x.exp(), x.exp())),
            (Unary::Ln, |x| (x.ln(), 1.0 / x)),
            (Unary::Sqrt, |x| (x.sqrt(), 0.5 / x.sqrt())),
            (Unary::Tanh, |x| (x.tanh(), 1.0 - x.tanh().powi(2))),
            (Unary::Sigmoid, |x| (1.0 / (1.0 + (-x).exp()), 1.0 / ((1.0 + (-x).exp()) * (1.0 + x.exp())))),
            (Unary::Softcap(2.0), |x| (2.0 * (x / 2.0).tanh(), 1.0 - (x / 2.0).tanh().powi(2))),
        ];
        let (t, (f, want)) = (TYPES[types], functions[which]);
        let positive = matches!(f, Unary::Ln | Unary::Sqrt);
        let x: Vec<f64> = random(n, t, 1).iter().map(|&x| if positive { round(x.abs() + 0.5, t) } else { x }).collect();
        let dy = random(n, t, 2);
        let (xs, dys, mut y) = (put(queue, &x, t), put(queue, &dy, t), room(queue, n, t));
        unary::forward(queue, f, y.slice_mut(t), xs.slice(t)).unwrap();
        let values: Vec<f64> = x.iter().map(|&x| want(x).0).collect();
        close("y", &get(&y, t), &values, tolerance(t));
        let number = which.to_string();
        let of = [("T", t.name()), ("F", number.as_str())];
        close("naive y", &naive(queue, &UNARY, "unary_forward_naive", &of, n, t, &[ptr(&xs), Arg::F32(2.0)]), &values, tolerance(t));
        unary::backward(queue, f, y.slice_mut(t), dys.slice(t), xs.slice(t)).unwrap();
        let slopes: Vec<f64> = x.iter().zip(&dy).map(|(&x, d)| want(x).1 * d).collect();
        close("dx", &get(&y, t), &slopes, tolerance(t));
    }
}

shapes! {
    fn arithmetic(queue; n in 0usize..900, which in 0usize..4, types in 0usize..3; 8 cases) {
        let t = TYPES[types];
        type Function = fn(f64, f64) -> f64;
        let kinds: [(Binary, Function); 4] = [
            (Binary::Add, |a, b| a + b), (Binary::Sub, |a, b| a - b), (Binary::Mul, |a, b| a * b), (Binary::Div, |a, b| a / b),
        ];
        let (kind, f) = kinds[which];
        let (a, b) = (random(n, t, 1), random(n, t, 2));
        let b: Vec<f64> = b.iter().map(|x| round(x + 3.5, t)).collect();
        let (xs, ys, mut out) = (put(queue, &a, t), put(queue, &b, t), room(queue, n, t));
        elementwise::binary(queue, kind, out.slice_mut(t), xs.slice(t), ys.slice(t)).unwrap();
        let want: Vec<f64> = a.iter().zip(&b).map(|(&a, &b)| round(f(a, b), t)).collect();
        // One rounding of f32 before that to t may turn a tie over.
        close("binary", &get(&out, t), &want, if t == DType::F32 { 1e-7 } else { 1e-4 });
        let sums: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        let of = [("T", t.name())];
        close("naive", &naive(queue, &ELEMENTWISE, "elementwise_add_naive", &of, n, t, &[ptr(&xs), ptr(&ys)]), &sums, tolerance(t));
        // With a factor of 0 what is there is not read: nobody wrote it.
        let mut fresh = room(queue, n, t);
        elementwise::axpby(queue, fresh.slice_mut(t), xs.slice(t), 0.5, 0.0).unwrap();
        let mut both = put(queue, &b, t);
        elementwise::axpby(queue, both.slice_mut(t), xs.slice(t), 0.5, -2.0).unwrap();
        close("ax", &get(&fresh, t), &a.iter().map(|a| 0.5 * a).collect::<Vec<_>>(), tolerance(t));
        let want: Vec<f64> = a.iter().zip(&b).map(|(a, b)| 0.5 * a - 2.0 * b).collect();
        close("ax + by", &get(&both, t), &want, tolerance(t));
    }
}

shapes! {
    fn casts_round_to_nearest_even(queue; n in 0usize..600, from in 0usize..3, to in 0usize..3; 9 cases) {
        let (s, t) = (TYPES[from], TYPES[to]);
        let mut x = random(n, s, 1);
        // Ties, the largest numbers, infinities, a denormal.
        for (x, special) in x.iter_mut().zip([1.00390625, 1.01171875, -3.0e38, f64::INFINITY, -0.0, 1e-40, 65519.0, 65520.0]) {
            *x = round(special, s);
        }
        let (xs, mut y) = (put(queue, &x, s), room(queue, n, t));
        cast::cast(queue, y.slice_mut(t), xs.slice(s)).unwrap();
        let want: Vec<u64> = x.iter().map(|&x| round(x, t).to_bits()).collect();
        let bits = |values: Vec<f64>| values.into_iter().map(f64::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(get(&y, t)), want, "{s} to {t}");
        let of = [("S", s.name()), ("T", t.name())];
        assert_eq!(bits(naive(queue, &CAST, "cast_naive", &of, n, t, &[ptr(&xs)])), want);
    }
}

shapes! {
    fn rope_turns_pairs(queue; tokens in 0usize..5, heads in 1usize..12, half in 0usize..20, rest in 0usize..10, whole in proptest::bool::ANY, types in 0usize..3; 20 cases) {
        // Packs that are whole, or not.
        let (half, rest) = if whole { (half.next_multiple_of(8), rest / 5 * 8) } else { (half, rest) };
        let (t, size) = (TYPES[types], 2 * half + rest.max(usize::from(half == 0)));
        let n = tokens * heads * size;
        let x = random(n, t, 1);
        let angle = random(tokens * half, DType::F32, 2);
        let table = |f: fn(f64) -> f64| -> Vec<f64> { angle.iter().map(|&a| round(f(a), DType::F32)).collect() };
        let (cos, sin) = (table(f64::cos), table(f64::sin));
        let (xs, c, s) = (put(queue, &x, t), put(queue, &cos, DType::F32), put(queue, &sin, DType::F32));
        let of = Heads { heads, size, half };
        for (back, sign) in [(false, 1.0), (true, -1.0)] {
            let mut want = x.clone();
            for row in 0..tokens * heads {
                for i in 0..half {
                    let (at, k) = (row * size + i, row / heads * half + i);
                    want[at] = x[at] * cos[k] - x[at + half] * sign * sin[k];
                    want[at + half] = x[at + half] * cos[k] + x[at] * sign * sin[k];
                }
            }
            let mut y = room(queue, n, t);
            rope::turn(queue, y.slice_mut(t), xs.slice(t), c.slice(DType::F32), s.slice(DType::F32), of, back).unwrap();
            close("y", &get(&y, t), &want, tolerance(t));
            let mut over = put(queue, &x, t);
            rope::turn_in_place(queue, over.slice_mut(t), c.slice(DType::F32), s.slice(DType::F32), of, back).unwrap();
            assert_eq!(get(&over, t), get(&y, t));
            let naive = room(queue, n, t);
            let rows = tokens * heads;
            let args = [ptr(&naive), ptr(&xs), ptr(&c), ptr(&s), Arg::F32(sign as f32), Arg::U64(rows as u64), Arg::U32(heads as u32), Arg::U32(size as u32), Arg::U32(half as u32)];
            let shape = Shape::line((rows * (size - half)).div_ceil(256), 256);
            queue.launch(&ROPE, "rope_naive", &defines(&[("T", t.name())]), shape, &args).unwrap();
            close("naive y", &get(&naive, t), &want, tolerance(t));
        }
    }
}

shapes! {
    fn nf4_is_looked_up(queue; n in 0usize..20_000, any in 1usize..80, power in 0u32..9, block2 in 1usize..9, types in 0usize..3; 16 cases) {
        // Powers of two are found without a division.
        let block = if power < 6 { 4 << power } else { any };
        // The quantiles of a normal distribution, as bitsandbytes has them.
        let code = [
            -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
            -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
            0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
        ];
        let t = TYPES[types];
        let packed: Vec<u8> = (0..n.div_ceil(2)).map(|i| (i * 89 + 41) as u8).collect();
        let absmax: Vec<f64> = random(n.div_ceil(block), DType::F32, 1).iter().map(|x| x.abs()).collect();
        let want: Vec<f64> = (0..n)
            .map(|i| code[usize::from(if i % 2 == 0 { packed[i / 2] >> 4 } else { packed[i / 2] & 15 })] * absmax[i / block])
            .collect();
        let (p, a, mut y) = (queue.upload("a test", &packed).unwrap(), put(queue, &absmax, DType::F32), room(queue, n, t));
        nf4::dequantise(queue, y.slice_mut(t), p.slice(DType::U8), Scales::Plain(a.slice(DType::F32)), block).unwrap();
        close("y", &get(&y, t), &want, tolerance(t));
        let naive = room(queue, n, t);
        let launch_naive = |nested: &str, [codes, fine, coarse]: [Arg<'_>; 3], block2: u32| {
            let args = [ptr(&naive), ptr(&p), codes, fine, coarse, Arg::F32(0.3), Arg::U64(n as u64), Arg::U32(block as u32), Arg::U32(block2)];
            let defines = defines(&[("T", t.name()), ("NESTED", nested)]);
            queue.launch(&NF4, "nf4_naive", &defines, Shape::line(n.div_ceil(256), 256), &args).unwrap();
        };
        launch_naive("0", [Arg::Ptr(DevicePtr(0)), Arg::Ptr(DevicePtr(0)), ptr(&a)], 1);
        assert_eq!(get(&naive, t), get(&y, t));
        // Scales that are quantised: the bits of decoding them first.
        let (blocks, f32) = (n.div_ceil(block), DType::F32);
        let codes = queue.upload("a test", &(0..blocks).map(|i| (i * 57 + 13) as u8).collect::<Vec<_>>()).unwrap();
        let (fine, coarse) = (put(queue, &random(256, f32, 2), f32), put(queue, &random(blocks.div_ceil(block2), f32, 3), f32));
        let of = Nested { codes: codes.slice(DType::U8), code: fine.slice(f32), absmax: coarse.slice(f32), block: block2, offset: 0.3 };
        let mut decoded = room(queue, blocks, f32);
        dequantise::scales(queue, decoded.slice_mut(f32), of).unwrap();
        let mut want = room(queue, n, t);
        nf4::dequantise(queue, want.slice_mut(t), p.slice(DType::U8), Scales::Plain(decoded.slice(f32)), block).unwrap();
        nf4::dequantise(queue, y.slice_mut(t), p.slice(DType::U8), Scales::Nested(of), block).unwrap();
        assert_eq!(get(&y, t), get(&want, t));
        launch_naive("1", [ptr(&codes), ptr(&fine), ptr(&coarse)], block2 as u32);
        assert_eq!(get(&naive, t), get(&want, t));
        // Several at once, each of its own bytes and scales: the bits of each alone.
        let other = queue.upload("a test", &packed.iter().map(|x| x ^ 0x5a).collect::<Vec<_>>()).unwrap();
        let alike = [Packed { packed: p.slice(DType::U8), scales: Scales::Nested(of) }, Packed { packed: other.slice(DType::U8), scales: Scales::Nested(Nested { offset: -0.2, ..of }) }];
        let plain = [Packed { scales: Scales::Plain(a.slice(f32)), ..alike[1] }, Packed { scales: Scales::Plain(decoded.slice(f32)), ..alike[0] }, Packed { scales: Scales::Plain(a.slice(f32)), ..alike[0] }];
        for weights in [&alike[..], &plain] {
            let mut all = room(queue, weights.len() * n, t);
            nf4::dequantise_each(queue, all.slice_mut(t), weights, block).unwrap();
            let mut want = vec![];
            for weight in weights {
                nf4::dequantise(queue, y.slice_mut(t), weight.packed, weight.scales, block).unwrap();
                want.extend(get(&y, t));
            }
            assert_eq!(get(&all, t), want);
        }
        let mixed = nf4::dequantise_each(queue, room(queue, 2 * n, t).slice_mut(t), &[alike[0], plain[0]], block);
        assert!(mixed.is_err() || n == 0);
    }
}

shapes! {
    fn dropout_keeps_a_tokens_mask(queue; rows in 0usize..6, columns in 1usize..200, types in 0usize..3; 8 cases) {
        let t = TYPES[types];
        let x: Vec<f64> = random(rows * columns, t, 1).iter().map(|&x| if x == 0.0 { 1.0 } else { x }).collect();
        let keys: Vec<u64> = (0..rows as u64).map(|r| (r + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
        let mask = Dropout { seed: 7 << 33, purpose: 2, step: 5, p: 0.25 };
        let (xs, ks, mut y) = (put(queue, &x, t), queue.upload("a test", &keys).unwrap(), room(queue, rows * columns, t));
        dropout::dropout(queue, y.slice_mut(t), xs.slice(t), ks.slice(DType::U32), &mask, columns).unwrap();
        let got = get(&y, t);
        // What is kept is scaled, and both rungs keep the same.
        let want: Vec<f64> = got.iter().zip(&x).map(|(y, x)| if *y == 0.0 { 0.0 } else { x / 0.75 }).collect();
        close("y", &got, &want, tolerance(t));
        let (naive, bytes) = (room(queue, rows * columns, t), mask.bytes().unwrap());
        let args = [ptr(&naive), ptr(&xs), ptr(&ks), Arg::Bytes(&bytes), Arg::U64(rows as u64), Arg::U32(columns as u32)];
        let shape = Shape::line((rows * columns).div_ceil(256), 256);
        queue.launch(&DROPOUT, "dropout_naive", &defines(&[("T", t.name())]), shape, &args).unwrap();
        assert_eq!(get(&naive, t), got);
        // The last row alone has the mask that it has in company.
        if rows > 1 {
            let mut one = room(queue, columns, t);
            let (row, key) = (xs.slice(t).part((rows - 1) * columns, columns).unwrap(), ks.slice(DType::U32).part(2 * (rows - 1), 2).unwrap());
            dropout::dropout(queue, one.slice_mut(t), row, key, &mask, columns).unwrap();
            assert_eq!(get(&one, t), got[(rows - 1) * columns..]);
        }
        if rows * columns > 300 {
            let dropped = got.iter().filter(|y| **y == 0.0).count() as f64 / got.len() as f64;
            assert!((dropped - 0.25).abs() < 0.12, "{dropped} dropped");
        }
    }
}

#[test]
fn terms_are_added_from_left_to_right_and_rounded_once() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    for t in TYPES {
        let n = 77;
        let terms: Vec<Vec<f64>> = (0..4).map(|i| random(n, t, i + 1)).collect();
        let on: Vec<DeviceBuffer> = terms.iter().map(|x| put(queue, x, t)).collect();
        for count in 1..=4 {
            let mut y = room(queue, n, t);
            let slices: Vec<_> = on[..count].iter().map(|x| x.slice(t)).collect();
            elementwise::sum(queue, y.slice_mut(t), &slices).unwrap();
            let sum = |i: usize| terms[1..count].iter().fold(terms[0][i] as f32, |sum, x| sum + x[i] as f32);
            let want: Vec<f64> = (0..n).map(|i| round(f64::from(sum(i)), t)).collect();
            assert_eq!(get(&y, t), want, "{count} of {t}");
        }
    }
    let x = put(queue, &[1.0; 8], DType::F32);
    let mut y = room(queue, 8, DType::F32);
    let five = [x.slice(DType::F32); 5];
    let refused = elementwise::sum(queue, y.slice_mut(DType::F32), &five).unwrap_err().to_string();
    assert!(refused.contains("from 1 to 4"), "{refused}");
}

/// A row that is no multiple of a pack goes round within it; one shorter than a pack, several times.
#[test]
fn a_row_is_added_to_rows_of_any_width() {
    let Some(device) = device() else { return };
    let (queue, t) = (device.queue(), DType::BF16);
    for width in [1, 3, 8, 13, 64] {
        let (y0, row) = (random(7 * width, t, 1), random(width, DType::F32, 2));
        let (mut y, r) = (put(queue, &y0, t), put(queue, &row, DType::F32));
        elementwise::add_row(queue, y.slice_mut(t), r.slice(DType::F32)).unwrap();
        let want: Vec<f64> =
            y0.iter().enumerate().map(|(i, y)| round(f64::from(*y as f32 + row[i % width] as f32), t)).collect();
        assert_eq!(get(&y, t), want, "{width}");
    }
}
