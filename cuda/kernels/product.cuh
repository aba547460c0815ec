// What becomes of the sums of a matrix product. Macros: T, O, ADD, as in matmul.cu.
#pragma once
#include "common.cuh"

// The new value of *c.
__device__ __forceinline__ f32 finished(const O* c, f32 sum, u32 column, const T* bias, f32 alpha) {
    f32 v = alpha * sum;
    if (bias) v += widen(bias[column]);
    if (ADD) v += widen(*c);
    return v;
}

// Two neighbours of a row, in one store where they may be; n is the number of columns of C.
__device__ __forceinline__ void finish2(O* c, f32 low, f32 high, u32 column, u32 n, const T* bias, f32 alpha) {
    low = finished(c, low, column, bias, alpha);
    if (column + 1 == n) {
        *c = narrow<O>(low);
        return;
    }
    store2(c, low, finished(c + 1, high, column + 1, bias, alpha));
}
