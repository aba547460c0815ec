// Sums and maxima.
//
//   rows:    out[r] = sum over c of x[r][c], or the largest and where it is     x (rows, width) T, out (rows) f32
//   columns: out[c] += sum over r of x[r][c], in blocks of `each` rows (columns.cuh)
//
// Sums in f32 in the order of common.cuh. A sum over everything is two sums of rows: stretches of 4096 elements, then
// the row of their sums. No atomics.
// Contract: sums and maxima of rows are written (=), those of columns added to (+=). Bound by memory.
//
// Macros: T.
#include "columns.cuh"
#include "pack.cuh"

// Rung 0: a thread a row.
extern "C" __global__ void reduction_rows_naive(f32* out, const T* x, u32 rows, u32 width) {
    const u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    f32 sum = 0.0f;
    for (u32 i = 0; i < width; ++i) sum += widen(x[(i64)row * width + i]);
    out[row] = sum;
}

// Rung 1: a block a row. `total` elements in all: the last row may be shorter.
extern "C" __global__ void reduction_rows(f32* out, const T* x, u64 total, u32 width) {
    __shared__ f32 scratch[32];
    const u64 first = (u64)blockIdx.x * width;
    const u32 n = min((u64)width, total - first);
    f32 sum = 0.0f;
    for (u32 i = PACK * threadIdx.x; i < n; i += PACK * blockDim.x) {
        f32 v[8];
        load8(v, x + first + i, n - i);
        for (int k = 0; k < 8; ++k) sum += v[k];
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// The largest of a row and its index: the first of equals; a NaN is larger than any number, as in PyTorch.
extern "C" __global__ void reduction_max_rows(f32* best, u32* index, const T* x, u32 width) {
    __shared__ f32 values[32];
    __shared__ u32 places[32];
    const i64 row = (i64)blockIdx.x * width;
    f32 top = -INFINITY_F32;
    u32 at = 0xffffffffu;
    // Whether (v, i) comes before (top, at).
    auto better = [](f32 v, u32 i, f32 top, u32 at) {
        if (at == 0xffffffffu) return i != 0xffffffffu;
        if (i == 0xffffffffu) return false;
        const bool vn = v != v, tn = top != top;
        if (vn != tn) return vn;
        if (!vn && v != top) return v > top;
        return i < at;
    };
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const f32 v = widen(x[row + i]);
        if (better(v, i, top, at)) top = v, at = i;
    }
    for (int step = 16; step > 0; step /= 2) {
        const f32 v = __shfl_xor_sync(ALL_LANES, top, step);
        const u32 i = __shfl_xor_sync(ALL_LANES, at, step);
        if (better(v, i, top, at)) top = v, at = i;
    }
    if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = top, places[threadIdx.x / 32] = at;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (u32 w = 1; w < blockDim.x / 32; ++w)
        if (better(values[w], places[w], top, at)) top = values[w], at = places[w];
    best[blockIdx.x] = top;
    index[blockIdx.x] = at;
}

// partial[b][c] = sum over the rows of block b, `each` of them. A pack of columns a thread, of AHEAD rows before the first
// is added; `chunks` blocks of threads side by side.
const u32 AHEAD = 16 / sizeof(T);

template <bool WHOLE> __device__ __forceinline__ void columns(
    f32* partial, const T* x, u32 rows, u32 each, u32 size, u32 chunks) {
    const u32 i = (blockIdx.x % chunks * blockDim.x + threadIdx.x) * PACK, block = blockIdx.x / chunks;
    const u32 first = block * each, last = min(rows, first + each);
    if (i >= size) return;
    Eight sum = {};
    for (u32 row = first; row < last; row += AHEAD) {
        Pack<T> packs[AHEAD];
#pragma unroll
        for (u32 k = 0; k < AHEAD; ++k)
            packs[k] = fetch<WHOLE>(x + (i64)(row + k) * size + i, row + k < last ? (i32)(size - i) : 0);
#pragma unroll
        for (u32 k = 0; k < AHEAD; ++k) {
            const Eight v = wide(packs[k]);
#pragma unroll
            for (int e = 0; e < 8; ++e) sum.at[e] += v.at[e];
        }
    }
    put<WHOLE>(partial + (i64)block * size + i, rounded<f32>(sum.at), (i32)(size - i));
}

extern "C" __global__ __launch_bounds__(128) void reduction_columns(
    f32* partial, const T* x, u32 rows, u32 each, u32 size, u32 chunks) {
    if (whole(size, partial, x, 0, 0)) columns<true>(partial, x, rows, each, size, chunks);
    else columns<false>(partial, x, rows, each, size, chunks);
}

extern "C" __global__ void reduction_columns_add(f32* out, const f32* partial, u32 blocks, u32 size, u32 each) {
    fold_partials(out, partial, blocks, size, each);
}
