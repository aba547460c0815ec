// Dropout with a counter-based mask: y_i = x_i / (1 - p) with probability 1 - p, else 0.
//
//   x, y (rows, columns) T     keys (rows) u64, one for each token, for good (tensor/src/rng.rs)
//
// Whether an element is kept is a function of the stream, its row's key and its column: Philox makes two words of the
// key, a mixer of 32 bits makes a word for each column, and the element is kept if that is at least p 2^32. So the
// backward pass draws the mask again, and a token keeps its mask in whatever batch it comes.
// Contract: y is written (=) and may be x. Bound by memory; the mask costs 12 integer operations an element.
//
// Macros: T.  Source: Srivastava et al., JMLR 15 (2014), inverted; the mixer's constants are C. Wellons's.
#include "philox.cuh"

struct Mask {
    u64 seed, step;
    u32 purpose, threshold;
    f32 scale;
};

__device__ __forceinline__ u32 mixed(u32 a, u32 b, u32 column) {
    u32 h = column * 0x9E3779B9u + a;
    h = (h ^ h >> 16) * 0x21f0aaadu ^ b;
    h = (h ^ h >> 15) * 0xd35a2d97u;
    return h ^ h >> 15;
}

// Rung 0: an element a thread, each with a Philox of its own.
extern "C" __global__ void dropout_naive(T* y, const T* x, const u64* keys, Mask m, u64 rows, u32 columns) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows * columns) return;
    const Words w = random_block(m.seed, m.purpose, m.step, keys[i / columns]);
    const bool kept = mixed(w.v[0], w.v[1], i % columns) >= m.threshold;
    y[i] = narrow<T>(kept ? widen(x[i]) * m.scale : 0.0f);
}

// Rung 1: a block a row, packs of 8, one Philox a thread.
extern "C" __global__ void dropout(T* y, const T* x, const u64* keys, Mask m, u32 columns) {
    const i64 row = (i64)blockIdx.x * columns;
    const Words w = random_block(m.seed, m.purpose, m.step, keys[blockIdx.x]);
    for (u32 i = PACK * threadIdx.x; i < columns; i += PACK * blockDim.x) {
        f32 v[8];
        load8(v, x + row + i, columns - i);
        for (u32 k = 0; k < 8; ++k) v[k] = mixed(w.v[0], w.v[1], i + k) >= m.threshold ? v[k] * m.scale : 0.0f;
        store8(y + row + i, v, columns - i);
    }
}
