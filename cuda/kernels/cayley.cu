// Orthogonal matrices from free numbers, by Cayley's transform or by its series, forward and backward.
//
//   forward:  R = (I - Q)(I + Q)^-1, or the sum over k of c[k] Q^k for `terms` > 0
//   backward: dq[i][j] = dQ[i][j] - dQ[j][i] for i < j, with dQ from dR
//
//   q, dq (blocks, n (n - 1) / 2): what is above the diagonal of skew-symmetric Q, row by row
//   R, dR (blocks, n, n), scratch (blocks, MATRICES, n, n), all f32
//
// A block a matrix, its threads the elements. A product's element is a chain in the order of its sum; a system is solved
// by elimination with row pivots, in the order of columns. Plain: n is a few dozen, and n^3 operations of each of some
// products are bound by the cache that the scratch lies in.
// Contract: results are written (=).
#include "common.cuh"

// Matrices of scratch for each block: forward takes three of them.
const u32 MATRICES = 5;

#define ELEMENTS(e, n) for (u32 e = threadIdx.x; e < (n) * (n); e += blockDim.x)

// m = sign Q + diagonal I.
__device__ void skew(f32* m, const f32* q, u32 n, f32 sign, f32 diagonal) {
    ELEMENTS(e, n) {
        const u32 i = e / n, j = e % n, low = min(i, j), high = max(i, j);
        if (i == j) m[e] = diagonal;
        else m[e] = (i < j ? sign : -sign) * q[low * n - low * (low + 1) / 2 + high - low - 1];
    }
    __syncthreads();
}

// c = a b.
__device__ void product(f32* c, const f32* a, const f32* b, u32 n) {
    ELEMENTS(e, n) {
        const u32 i = e / n, j = e % n;
        f32 sum = 0.0f;
        for (u32 k = 0; k < n; ++k) sum = fmaf(a[i * n + k], b[k * n + j], sum);
        c[e] = sum;
    }
    __syncthreads();
}

__device__ void transpose(f32* to, const f32* from, u32 n) {
    ELEMENTS(e, n) to[e] = from[e % n * n + e / n];
    __syncthreads();
}

__device__ void swap(f32*& a, f32*& b) {
    f32* c = a;
    a = b;
    b = c;
}

// b = the X with m X = b. Leaves what is left of column k in m once it is done with: nobody reads it again.
__device__ void solve(f32* m, f32* b, u32 n) {
    __shared__ u32 pivot;
    for (u32 k = 0; k < n; ++k) {
        if (threadIdx.x == 0) {
            pivot = k;
            for (u32 i = k + 1; i < n; ++i)
                if (fabsf(m[i * n + k]) > fabsf(m[pivot * n + k])) pivot = i;
        }
        __syncthreads();
        if (pivot != k)
            for (u32 j = threadIdx.x; j < n; j += blockDim.x) {
                const f32 x = m[k * n + j], y = b[k * n + j];
                m[k * n + j] = m[pivot * n + j], b[k * n + j] = b[pivot * n + j];
                m[pivot * n + j] = x, b[pivot * n + j] = y;
            }
        __syncthreads();
        ELEMENTS(e, n) {
            const u32 i = e / n, j = e % n;
            if (i == k) continue;
            const f32 f = m[i * n + k] / m[k * n + k];
            if (j > k) m[e] = fmaf(-f, m[k * n + j], m[e]);
            b[e] = fmaf(-f, b[k * n + j], b[e]);
        }
        __syncthreads();
    }
    ELEMENTS(e, n) b[e] /= m[e / n * n + e / n];
    __syncthreads();
}

// The highest power of a series of `terms`, and c[k]: PEFT's.
__device__ u32 degree(u32 terms) { return terms > 2 ? max(terms - 1, 3) : terms - 1; }
__device__ f32 coefficient(u32 k, u32 terms) { return k == 0 || (terms > 2 && k == degree(terms)) ? 1.0f : 2.0f; }

extern "C" __global__ void cayley_forward(f32* r, const f32* q, f32* scratch, u32 n, u32 terms) {
    const u64 block = blockIdx.x, size = (u64)n * n;
    q += block * (n * (n - 1) / 2), r += block * size, scratch += block * MATRICES * size;
    f32 *m = scratch, *power = m + size, *next = power + size;
    if (terms == 0) {
        // (I - Q)^-1 (I + Q) is R transposed.
        skew(m, q, n, -1.0f, 1.0f);
        skew(power, q, n, 1.0f, 1.0f);
        solve(m, power, n);
        transpose(r, power, n);
        return;
    }
    skew(m, q, n, 1.0f, 0.0f);
    ELEMENTS(e, n) r[e] = power[e] = e / n == e % n ? 1.0f : 0.0f;
    __syncthreads();
    for (u32 k = 1; k <= degree(terms); ++k) {
        product(next, power, m, n);
        swap(power, next);
        ELEMENTS(e, n) r[e] = fmaf(coefficient(k, terms), power[e], r[e]);
    }
}

extern "C" __global__ void cayley_backward(f32* dq, const f32* dr, const f32* q, f32* scratch, u32 n, u32 terms) {
    const u64 block = blockIdx.x, size = (u64)n * n, entries = n * (n - 1) / 2;
    q += block * entries, dq += block * entries, dr += block * size, scratch += block * MATRICES * size;
    f32 *m = scratch, *a = m + size, *b = a + size, *spare = b + size, *total = spare + size;
    f32 sign = 1.0f;
    if (terms == 0) {
        // dR = -(I + R) dQ (I + Q)^-1, so dQ = -(I + R^T) H with (I + Q) H^T = dR^T.
        skew(m, q, n, 1.0f, 1.0f);
        transpose(a, dr, n);
        solve(m, a, n);
        transpose(b, a, n);
        skew(m, q, n, -1.0f, 1.0f);
        skew(a, q, n, 1.0f, 1.0f);
        solve(m, a, n);
        for (u32 i = threadIdx.x; i < n; i += blockDim.x) a[i * n + i] += 1.0f;
        __syncthreads();
        product(total, a, b, n);
        sign = -1.0f;
    } else {
        // The sum over k of c[k] S[k], with S[k] = Q^T S[k-1] + dR (Q^T)^(k-1).
        skew(m, q, n, -1.0f, 0.0f);
        ELEMENTS(e, n) a[e] = dr[e], b[e] = total[e] = 0.0f;
        __syncthreads();
        for (u32 k = 1; k <= degree(terms); ++k) {
            if (k > 1) {
                product(spare, a, m, n);
                swap(a, spare);
                product(spare, m, b, n);
                swap(b, spare);
            }
            ELEMENTS(e, n) {
                b[e] += a[e];
                total[e] = fmaf(coefficient(k, terms), b[e], total[e]);
            }
            __syncthreads();
        }
    }
    ELEMENTS(e, n) {
        const u32 i = e / n, j = e % n;
        if (i < j) dq[i * n - i * (i + 1) / 2 + j - i - 1] = sign * (total[e] - total[j * n + i]);
    }
}
