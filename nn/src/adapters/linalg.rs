//! Decompositions of a weight, in f64: what initialisations and merges of adapters need. Small and plain: they
//! run once a module, not once a step.

/// A row-major matrix in f64.
#[derive(Debug, Clone)]
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) data: Vec<f64>,
}

impl Matrix {
    pub(super) fn new(rows: usize, cols: usize, data: Vec<f64>) -> Matrix {
        debug_assert_eq!(data.len(), rows * cols);
        Matrix { rows, cols, data }
    }

    pub(super) fn zeros(rows: usize, cols: usize) -> Matrix {
        Matrix::new(rows, cols, vec![0.0; rows * cols])
    }

    pub(super) fn at(&self, i: usize, j: usize) -> f64 {
        self.data[i * self.cols + j]
    }

    pub(super) fn t(&self) -> Matrix {
        let data = (0..self.rows * self.cols).map(|i| self.at(i % self.rows, i / self.rows)).collect();
        Matrix::new(self.cols, self.rows, data)
    }

    /// self · other.
    pub(super) fn times(&self, other: &Matrix) -> Matrix {
        let mut c = Matrix::zeros(self.rows, other.cols);
        for i in 0..self.rows {
            let row = &mut c.data[i * other.cols..(i + 1) * other.cols];
            for k in 0..self.cols {
                let a = self.at(i, k);
                for (c, b) in row.iter_mut().zip(&other.data[k * other.cols..(k + 1) * other.cols]) {
                    *c += a * b;
                }
            }
        }
        c
    }
}

/// Eigenvalues, falling, and eigenvectors, as rows, of a symmetric matrix.
///
/// Householder's reduction to three diagonals and implicit QL steps on them: about 4 n³ operations.
///
/// # Source
/// Golub and Van Loan, "Matrix Computations", sections 8.3.1 and 8.3.3.
pub(super) fn symmetric_eigen(a: &Matrix) -> (Vec<f64>, Matrix) {
    let n = a.rows;
    let mut m = a.clone();
    // q accumulates the reflections; its rows end as eigenvectors.
    let mut q = Matrix::zeros(n, n);
    (0..n).for_each(|i| q.data[i * n + i] = 1.0);
    let (mut d, mut e) = (vec![0.0; n], vec![0.0; n]);
    for k in 0..n.saturating_sub(2) {
        let mut v: Vec<f64> = (k + 1..n).map(|i| m.at(i, k)).collect();
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm == 0.0 {
            continue;
        }
        let alpha = if v[0] > 0.0 { -norm } else { norm };
        v[0] -= alpha;
        let vv = v.iter().map(|x| x * x).sum::<f64>();
        if vv == 0.0 {
            continue;
        }
        let beta = 2.0 / vv;
        let size = v.len();
        // M' = H M H on the trailing block, with p = β M v and w = p - (β/2)(pᵀv) v.
        let p: Vec<f64> = (0..size)
            .map(|i| {
                let row = &m.data[(k + 1 + i) * n + k + 1..(k + 2 + i) * n];
                beta * row.iter().zip(&v).map(|(a, b)| a * b).sum::<f64>()
            })
            .collect();
        let half = beta / 2.0 * p.iter().zip(&v).map(|(a, b)| a * b).sum::<f64>();
        let w: Vec<f64> = p.iter().zip(&v).map(|(p, v)| p - half * v).collect();
        for i in 0..size {
            let row = &mut m.data[(k + 1 + i) * n + k + 1..(k + 2 + i) * n];
            for (j, x) in row.iter_mut().enumerate() {
                *x -= v[i] * w[j] + w[i] * v[j];
            }
        }
        m.data[(k + 1) * n + k] = alpha;
        for i in k + 2..n {
            m.data[i * n + k] = 0.0;
        }
        // Rows of q: q ← H q.
        let mut sums = vec![0.0; n];
        for (i, v) in v.iter().enumerate() {
            let row = &q.data[(k + 1 + i) * n..(k + 2 + i) * n];
            sums.iter_mut().zip(row).for_each(|(s, x)| *s += v * x);
        }
        for (i, v) in v.iter().enumerate() {
            let row = &mut q.data[(k + 1 + i) * n..(k + 2 + i) * n];
            row.iter_mut().zip(&sums).for_each(|(x, s)| *x -= beta * v * s);
        }
    }
    for i in 0..n {
        d[i] = m.at(i, i);
        if i + 1 < n {
            e[i] = m.at(i + 1, i);
        }
    }
    ql(&mut d, &mut e, &mut q);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| d[b].total_cmp(&d[a]));
    let vectors = order.iter().flat_map(|&i| q.data[i * n..(i + 1) * n].iter().copied()).collect();
    (order.iter().map(|&i| d[i]).collect(), Matrix::new(n, n, vectors))
}

/// Implicit QL on the diagonal `d` and what stands beside it, `e`; the rows of `q` turn along.
fn ql(d: &mut [f64], e: &mut [f64], q: &mut Matrix) {
    let n = d.len();
    for l in 0..n {
        // 60 steps an eigenvalue are many times what it takes; a matrix of NaNs must end too.
        for _ in 0..60 {
            let small = |i: usize| e[i].abs() <= f64::EPSILON * (d[i].abs() + d[i + 1].abs());
            let m = (l..n - 1).find(|&i| small(i)).unwrap_or(n - 1);
            if m == l {
                break;
            }
            let g = (d[l + 1] - d[l]) / (2.0 * e[l]);
            let r = g.hypot(1.0);
            let mut g = d[m] - d[l] + e[l] / (g + r.copysign(g));
            let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
            let mut split = false;
            for i in (l..m).rev() {
                let (f, b) = (s * e[i], c * e[i]);
                let r = f.hypot(g);
                e[i + 1] = r;
                if r == 0.0 {
                    d[i + 1] -= p;
                    e[m] = 0.0;
                    split = true;
                    break;
                }
                (s, c) = (f / r, g / r);
                let g2 = d[i + 1] - p;
                let r = (d[i] - g2) * s + 2.0 * c * b;
                p = s * r;
                d[i + 1] = g2 + p;
                g = c * r - b;
                let width = q.cols;
                let (low, high) = q.data.split_at_mut((i + 1) * width);
                let (a, b) = (&mut low[i * width..], &mut high[..width]);
                for (a, b) in a.iter_mut().zip(b) {
                    let f = *b;
                    *b = s * *a + c * f;
                    *a = c * *a - s * f;
                }
            }
            if !split {
                d[l] -= p;
                e[l] = g;
                e[m] = 0.0;
            }
        }
    }
}

/// The largest `r` singular values of W with their vectors: (U (rows, r), σ, Vᵀ (r, cols)).
///
/// By the eigenvectors of the smaller of W Wᵀ and Wᵀ W. A singular value below 1e-7 of the largest is lost in the
/// square, and is taken for 0.
pub(super) fn svd(w: &Matrix, r: usize) -> (Matrix, Vec<f64>, Matrix) {
    if w.rows < w.cols {
        let (u, s, vt) = svd(&w.t(), r);
        return (vt.t(), s, u.t());
    }
    let wt = w.t();
    let (values, vectors) = symmetric_eigen(&wt.times(w));
    let r = r.min(w.cols);
    let top = values.first().copied().unwrap_or(0.0).max(0.0).sqrt();
    let vt = Matrix::new(r, w.cols, vectors.data[..r * w.cols].to_vec());
    let wv = w.times(&vt.t());
    let mut u = Matrix::zeros(w.rows, r);
    let mut sigma = vec![0.0; r];
    for (j, sigma) in sigma.iter_mut().enumerate() {
        let length = (0..w.rows).map(|i| wv.at(i, j) * wv.at(i, j)).sum::<f64>().sqrt();
        if length > 1e-7 * top {
            *sigma = length;
            (0..w.rows).for_each(|i| u.data[i * r + j] = wv.at(i, j) / length);
        }
    }
    (u, sigma, vt)
}

/// The first `r` right singular vectors of W (rows, cols) as rows, (r, cols), or its left ones as columns, (rows, r), in
/// row-major order. Each vector's number of the largest magnitude is above 0.
pub fn singular_vectors(rows: usize, cols: usize, w: Vec<f64>, r: usize, right: bool) -> Vec<f64> {
    let w = Matrix::new(rows, cols, w);
    let (u, _, vt) = svd(&w, r);
    let mut vectors = if right { vt } else { u.t() };
    for v in vectors.data.chunks_exact_mut(vectors.cols.max(1)) {
        let largest = v.iter().copied().fold(0.0f64, |m, x| if x.abs() > m.abs() { x } else { m });
        if largest < 0.0 {
            v.iter_mut().for_each(|x| *x = -*x);
        }
    }
    if right { vectors.data } else { vectors.t().data }
}

/// The first `r` columns of Q and rows of R with W = Q R, Q's columns orthonormal: Gram-Schmidt, twice over.
pub(super) fn qr(w: &Matrix, r: usize) -> (Matrix, Matrix) {
    let r = r.min(w.rows).min(w.cols);
    let mut columns: Vec<Vec<f64>> = Vec::with_capacity(r);
    for j in 0..r {
        let mut v: Vec<f64> = (0..w.rows).map(|i| w.at(i, j)).collect();
        let before = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        for _ in 0..2 {
            for c in &columns {
                let along: f64 = c.iter().zip(&v).map(|(a, b)| a * b).sum();
                v.iter_mut().zip(c).for_each(|(v, c)| *v -= along * c);
            }
        }
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        // A column that the others span adds none.
        let keep = norm > 1e-12 * before;
        v.iter_mut().for_each(|x| *x = if keep { *x / norm } else { 0.0 });
        columns.push(v);
    }
    let q = Matrix::new(r, w.rows, columns.concat());
    let upper = q.times(w);
    (q.t(), upper)
}

#[cfg(test)]
mod tests {
    use super::*;
    use planish_tensor::rng::{Purpose, Stream};

    fn random(rows: usize, cols: usize, salt: u64) -> Matrix {
        let s = Stream::new(1, Purpose::Data, salt);
        Matrix::new(rows, cols, (0..rows * cols).map(|i| s.normal(i as u64)).collect())
    }

    fn close(a: &Matrix, b: &Matrix, tolerance: f64) {
        assert_eq!((a.rows, a.cols), (b.rows, b.cols));
        for (a, b) in a.data.iter().zip(&b.data) {
            assert!((a - b).abs() <= tolerance, "{a} is not {b}");
        }
    }

    #[test]
    fn all_singular_triples_make_the_matrix() {
        for (rows, cols) in [(1, 1), (5, 5), (9, 4), (4, 13), (40, 33), (1, 6)] {
            let w = random(rows, cols, 7);
            let k = rows.min(cols);
            let (u, s, vt) = svd(&w, k);
            assert!(s.windows(2).all(|p| p[0] >= p[1] - 1e-12), "{s:?}");
            let scaled = Matrix::new(rows, k, (0..rows * k).map(|i| u.data[i] * s[i % k]).collect());
            close(&scaled.times(&vt), &w, 1e-10);
            close(&u.t().times(&u), &random_identity(k), 1e-10);
            close(&vt.times(&vt.t()), &random_identity(k), 1e-10);
        }
    }

    fn random_identity(n: usize) -> Matrix {
        Matrix::new(n, n, (0..n * n).map(|i| if i % n == i / n { 1.0 } else { 0.0 }).collect())
    }

    #[test]
    fn a_matrix_of_rank_one_and_one_of_zeros() {
        let w = random(6, 1, 3).times(&random(1, 4, 4));
        let (u, s, vt) = svd(&w, 3);
        assert!(s[0] > 0.0 && s[1] == 0.0 && s[2] == 0.0, "{s:?}");
        let scaled = Matrix::new(6, 3, (0..18).map(|i| u.data[i] * s[i % 3]).collect());
        close(&scaled.times(&vt), &w, 1e-10);
        assert_eq!(svd(&Matrix::zeros(3, 2), 2).1, [0.0, 0.0]);
    }

    #[test]
    fn qr_spans_the_first_columns() {
        for (rows, cols, r) in [(7, 5, 5), (5, 9, 3), (6, 6, 1)] {
            let w = random(rows, cols, 9);
            let (q, upper) = qr(&w, r);
            close(&q.t().times(&q), &random_identity(r), 1e-12);
            let again = q.times(&upper);
            for i in 0..rows {
                for j in 0..r {
                    assert!((again.at(i, j) - w.at(i, j)).abs() <= 1e-12);
                }
            }
        }
    }
}
