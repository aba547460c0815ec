// What a token's experts made of it, weighed and added up: y[t] = sum over j of w[t][j] parts[places[t k + j]].
//
//   parts (tokens k, size) T     w (tokens, k) f32     places (tokens k) u32, each row of parts once     y, dy (tokens, size) T
//   dparts like parts     dw like w
//
// Sums in f32 in order of j; those of dw as common.cuh adds a block's. A row of parts is one token's, so nothing is added up
// across blocks.
// Contract: y, dparts and dw are written (=); dparts may be null.
// Bound by memory: parts read once and y written; backward dy read k times (from a cache), parts read and dparts written.
//
// Macros: T.
#include "pack.cuh"

// A block a token.
extern "C" __global__ void combine_forward(T* y, const T* parts, const f32* w, const u32* places, u32 k, u32 size) {
    const i64 t = blockIdx.x;
    for (u32 i = PACK * threadIdx.x; i < size; i += PACK * blockDim.x) {
        f32 sum[8] = {};
        for (u32 j = 0; j < k; ++j) {
            const f32 by = w[t * k + j];
            f32 v[8];
            load8(v, parts + (i64)places[t * k + j] * size + i, size - i);
            for (int e = 0; e < 8; ++e) sum[e] += by * v[e];
        }
        store8(y + t * size + i, sum, size - i);
    }
}

// A block a choice of a token: dparts = w dy, dw = parts dy.
extern "C" __global__ void combine_backward(
    T* dparts, f32* dw, const T* dy, const T* parts, const f32* w, const u32* places, u32 k, u32 size) {
    __shared__ f32 scratch[32];
    const i64 choice = blockIdx.x, place = places[choice];
    const T *from = dy + choice / k * size, *part = parts + place * size;
    const f32 by = w[choice];
    f32 sum = 0.0f;
    for (u32 i = PACK * threadIdx.x; i < size; i += PACK * blockDim.x) {
        f32 d[8], v[8];
        load8(d, from + i, size - i);
        load8(v, part + i, size - i);
        for (int e = 0; e < 8; ++e) {
            sum += d[e] * v[e];
            d[e] *= by;
        }
        if (dparts) store8(dparts + place * size + i, d, size - i);
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) dw[choice] = sum;
}
