use super::*;
use crate::rng::{Purpose, Stream};

const STREAM: Stream = Stream::new(8, Purpose::Data, 0);

const CODES: [f32; 16] =
    [-1.0, -0.7, -0.53, -0.4, -0.28, -0.18, -0.09, 0.0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1.0];

/// Every way to store elements.
fn all() -> Vec<Stored> {
    use Stored::*;
    vec![F32, Bf16, F16, Bytes, BytesHalf, Bytes16, BytesAbove, Nibbles(-8), NibblesAbove(0), Codes(Table::new(&CODES))]
}

fn normals(n: usize, from: u64) -> Vec<f32> {
    (0..n as u64).map(|i| STREAM.normal(from + i) as f32).collect()
}

/// Panels that are `distance` bytes apart, and the elements (depths, columns) that they hold.
fn panels(stored: Stored, cols: usize, depths: usize, distance: usize) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut values) = (vec![0u8; cols.div_ceil(WIDTH) * distance], vec![0f32; depths * cols]);
    let (depth, unit_bytes) = stored.unit();
    for j in 0..cols {
        let (lane, panel) = (j % WIDTH, &mut bytes[j / WIDTH * distance..]);
        if depth == 1 {
            for (p, x) in normals(depths, 1000 * j as u64).into_iter().enumerate() {
                let (value, element) = match stored {
                    Stored::F32 => (x, x.to_ne_bytes().to_vec()),
                    Stored::Bf16 => (bf16::from_f32(x).to_f32(), bf16::from_f32(x).to_ne_bytes().to_vec()),
                    _ => (f16::from_f32(x).to_f32(), f16::from_f32(x).to_ne_bytes().to_vec()),
                };
                values[p * cols + j] = value;
                panel[(p * WIDTH + lane) * element.len()..][..element.len()].copy_from_slice(&element);
            }
            continue;
        }
        let run = DEPTH / depth * unit_bytes;
        for (u, to) in panel.chunks_exact_mut(run).take(depths / DEPTH).enumerate() {
            let at = (j * 100 + u) as u64 * 64;
            let [mut a, b, offset] = std::array::from_fn(|i| STREAM.normal(at + i as u64) as f32);
            if stored == Stored::BytesHalf {
                a = f16::from_f32(a).to_f32();
            }
            let (first, n) = match stored {
                Stored::Nibbles(first) | Stored::NibblesAbove(first) => (first as i64, 16),
                Stored::Codes(_) => (0, 16),
                _ => (-128, 256),
            };
            let q = std::array::from_fn(|i| (first + STREAM.below(at + i as u64, n) as i64) as i8);
            stored.put(lane, &Unit { q, scale: [a, b], offset }, to);
            for (i, &q) in q.iter().enumerate() {
                values[(u * DEPTH + i) * cols + j] = match stored {
                    Stored::Codes(_) => CODES[q as usize] * a,
                    Stored::BytesAbove | Stored::NibblesAbove(_) => f32::from(q) * a + offset,
                    Stored::Bytes16 if i >= 16 => f32::from(q) * b,
                    _ => f32::from(q) * a,
                };
            }
        }
    }
    (bytes, values)
}

#[test]
fn every_output_is_one_chain() {
    for stored in all() {
        let (depth, unit) = stored.unit();
        let depths: &[usize] = if depth == 1 { &[1, 7, 16, 33, 77] } else { &[32, 96] };
        for (rows, &kc) in (1..=17).chain([27, 31]).flat_map(|rows| depths.iter().map(move |kc| (rows, kc))) {
            for cols in [1usize, 16, 31, 4 * 16, 5 * 16 + 3] {
                let (a_row, b_panel, c_row) = (kc + 1, (kc / depth + 2) * unit, cols + 8);
                let a = normals(rows * a_row, 0);
                let (b, values) = panels(stored, cols, kc, b_panel);
                let old = normals(rows * c_row, 2_000_000);
                let width = rows.next_multiple_of(WIDTH);
                let at = |i: usize| if i % width < rows { a[i % width * a_row + i / width] } else { f32::NAN };
                let packed: Vec<f32> = (0..kc * width).map(at).collect();
                for (mode, portable) in [(Mode::Set, false), (Mode::Add, false), (Mode::Set, true)] {
                    let mut c = old.clone();
                    let (b, c_at) = (b.as_ptr(), c.as_mut_ptr());
                    let (a_at, row) =
                        if packs(rows) && !portable { (packed.as_ptr(), width) } else { (a.as_ptr(), a_row) };
                    let job = FewRows { rows, cols, kc, a: a_at, a_row: row, stored, b, b_panel, c: c_at, c_row, mode };
                    // SAFETY: every buffer holds what the job speaks of.
                    unsafe {
                        if portable {
                            with_source!(stored, s => super::plain(&job, s));
                        } else {
                            job.run();
                        }
                    }
                    for (at, (&got, &before)) in c.iter().zip(&old).enumerate() {
                        let (r, j) = (at / c_row, at % c_row);
                        let chain = || (0..kc).fold(0f32, |s, p| a[r * a_row + p].mul_add(values[p * cols + j], s));
                        let want = match mode {
                            _ if j >= cols => before,
                            Mode::Add => before + chain(),
                            _ => chain(),
                        };
                        assert_eq!(
                            got.to_bits(),
                            want.to_bits(),
                            "{stored:?}: {rows} rows, depth {kc}, {cols} columns, {at}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn elements_are_read_alone_and_by_lines() {
    let (cols, depths) = (21, 96);
    for stored in all() {
        let (depth, unit) = stored.unit();
        let distance = depths / depth * unit;
        let (bytes, values) = panels(stored, cols, depths, distance);
        for j in 0..cols {
            let (mut column, panel) = ([0f32; 70], &bytes[j / WIDTH * distance..]);
            stored.read(panel, j % WIDTH, 19, &mut column);
            for (p, x) in (19..).zip(column) {
                assert_eq!(x.to_bits(), values[p * cols + j].to_bits(), "{stored:?}: depth {p} of column {j}");
            }
        }
        let mut lines = vec![0f32; 70 * (WIDTH + 3)];
        for live in [WIDTH, 5] {
            lines.fill(7.0);
            write_lines(stored, &bytes[..distance], 19..19 + 70, live, &mut lines, WIDTH + 3, 2..WIDTH + 2);
            for (p, line) in (19..).zip(lines.chunks(WIDTH + 3)) {
                let want = (0..WIDTH).map(|j| if j < live { values[p * cols + j] } else { 0.0 });
                assert!(line[2..WIDTH + 2].iter().copied().eq(want), "{stored:?}: depth {p}");
                assert_eq!((line[..2].to_vec(), line[WIDTH + 2]), (vec![7.0; 2], 7.0));
            }
        }
    }
}
