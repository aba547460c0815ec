// Sum of squares of gradients, in f64 and in a fixed order: squares[0] += sum g^2.
//
//   g (n) T     partial (blocks) f64
//
// A block takes 16384 elements; one thread then adds the blocks in order to what earlier tensors left. Over all
// tensors of a model this is |g|^2. No atomics: the clipping that follows must not depend on the order of blocks.
// Contract: added to (+=). Bound by memory.
//
// Macros: T.
#include "common.cuh"

const u32 STRETCH = 16384;

// Rung 0: one thread.
extern "C" __global__ void grad_norm_naive(f64* squares, const T* g, u64 n) {
    f64 sum = 0.0;
    for (u64 i = 0; i < n; ++i) sum += (f64)widen(g[i]) * (f64)widen(g[i]);
    *squares += sum;
}

// The sum of stretch `part` of one tensor, by a block.
__device__ __forceinline__ void stretch(f64* to, const T* g, u64 n, u64 part) {
    __shared__ f64 scratch[32];
    const u64 first = part * STRETCH;
    const u32 count = min((u64)STRETCH, n - first);
    f64 sum = 0.0;
    for (u32 i = PACK * threadIdx.x; i < count; i += PACK * blockDim.x) {
        f32 v[8];
        load8(v, g + first + i, count - i);
        for (int k = 0; k < 8; ++k) sum += (f64)v[k] * (f64)v[k];
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) *to = sum;
}

// Rung 1: a block a stretch.
extern "C" __global__ void grad_norm_partial(f64* partial, const T* g, u64 n) {
    stretch(partial + blockIdx.x, g, n, blockIdx.x);
}

// Many tensors at once: `table` has for each its address, its size and the number of stretches before it.
extern "C" __global__ void grad_norm_partial_of_all(f64* partial, const u64* table, u32 tensors) {
    // The last tensor whose first stretch is not behind this one.
    u32 low = 0, high = tensors;
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        if (table[3 * middle + 2] <= blockIdx.x) low = middle;
        else high = middle;
    }
    const u64* row = table + 3 * low;
    stretch(partial + blockIdx.x, (const T*)row[0], row[1], blockIdx.x - row[2]);
}

// One block: blocks are dealt to threads, and the threads' sums added as in every block.
extern "C" __global__ void grad_norm_add(f64* squares, const f64* partial, u32 blocks) {
    __shared__ f64 scratch[32];
    f64 sum = 0.0;
    for (u32 b = threadIdx.x; b < blocks; b += blockDim.x) sum += partial[b];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) *squares += sum;
}
