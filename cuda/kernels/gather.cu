// Elements of each row by index: y[r][j] = x[r][index[r][j]]; and rows by index, added up.
//
//   x (rows, width) T     index (rows, picks) u32     y, dy (rows, picks) T     dx (rows, width) f32
//
// Contract: y is written (=); dx is added to (+=), in order of j.
// Bound by memory: scattered reads of a sector of 32 bytes each.
//
// Macros: T.
#include "rows.cuh"

extern "C" __global__ void gather_forward(T* y, const T* x, const u32* index, u64 n, u32 picks, u32 width) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i / picks * width + index[i]];
}

// A thread a row: picks are few, and two of them may be the same element.
extern "C" __global__ void gather_backward(f32* dx, const T* dy, const u32* index, u32 rows, u32 picks, u32 width) {
    const u32 r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    for (u32 j = 0; j < picks; ++j) {
        const i64 i = (i64)r * picks + j;
        dx[(i64)r * width + index[i]] += widen(dy[i]);
    }
}

// y row i = x row index[i]; a block a row.
extern "C" __global__ void gather_rows(T* y, const T* x, const u32* index, u32 size) { take_row(y, x, index, size); }

// y row rows[u] += source rows order[starts[u]..starts[u + 1]].
extern "C" __global__ void scatter_add_rows(
    f32* y, const T* source, const u32* rows, const u32* starts, const u32* order, u32 size) {
    add_rows(y, source, rows, starts, order, size);
}

// y row index[i] = x row i; a block a row, and no two of the indices alike. So new keys go to their places in a cache.
extern "C" __global__ void place_rows(T* y, const T* x, const u32* index, u32 size) {
    const T* from = x + (i64)blockIdx.x * size;
    T* to = y + (i64)index[blockIdx.x] * size;
    for (u32 i = PACK * threadIdx.x; i < size; i += PACK * blockDim.x) {
        f32 v[8];
        load8(v, from + i, size - i);
        store8(to + i, v, size - i);
    }
}
