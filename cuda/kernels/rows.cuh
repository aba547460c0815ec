// Rows taken and added by index.
#pragma once
#include "common.cuh"

// out row t = table row ids[t]; a block a row.
template <class Out, class Table> __device__ __forceinline__ void take_row(
    Out* out, const Table* table, const u32* ids, u32 size) {
    const Table* from = table + (i64)ids[blockIdx.x] * size;
    Out* to = out + (i64)blockIdx.x * size;
    for (u32 i = PACK * threadIdx.x; i < size; i += PACK * blockDim.x) {
        f32 v[8];
        load8(v, from + i, size - i);
        store8(to + i, v, size - i);
    }
}

// target row rows[u] += the source rows order[starts[u]..starts[u + 1]], in that order. The host sorts the indices
// (stably), so each row of the target belongs to one block and no atomics are needed: the bits are those of a loop
// over the sources.
template <class Source> __device__ __forceinline__ void add_rows(
    f32* target, const Source* source, const u32* rows, const u32* starts, const u32* order, u32 size) {
    const u32 u = blockIdx.x, first = starts[u], last = starts[u + 1];
    f32* to = target + (i64)rows[u] * size;
    for (u32 i = PACK * threadIdx.x; i < size; i += PACK * blockDim.x) {
        f32 sum[8];
        load8(sum, to + i, size - i);
        for (u32 k = first; k < last; ++k) {
            f32 v[8];
            load8(v, source + (i64)order[k] * size + i, size - i);
            for (int e = 0; e < 8; ++e) sum[e] += v[e];
        }
        store8(to + i, sum, size - i);
    }
}
