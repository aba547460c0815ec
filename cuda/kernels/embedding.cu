// Rows of a table by token id, and the gradient of the table.
//
//   table (vocabulary, size) W     ids (tokens) u32     out, dout (tokens, size) T     dtable (vocabulary, size) f32
//
// Contract: out is written (=), dtable is added to (+=), for each row in order of the tokens.
// Bound by memory. Ids must be below the vocabulary: the caller, who made them, knows.
//
// Macros: T, W.
#include "rows.cuh"

// Rung 0: an element a thread.
extern "C" __global__ void embedding_forward_naive(T* out, const W* table, const u32* ids, u64 n, u32 size) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = narrow<T>(widen(table[(u64)ids[i / size] * size + i % size]));
}

// Rung 1: a block a token, packs of 8.
extern "C" __global__ void embedding_forward(T* out, const W* table, const u32* ids, u32 size) {
    take_row(out, table, ids, size);
}

// Rung 0: a thread a column, over all tokens of all rows: right, and as slow as it looks.
extern "C" __global__ void embedding_backward_naive(f32* dtable, const T* dout, const u32* ids, u32 tokens, u32 size) {
    const u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= size) return;
    for (u32 t = 0; t < tokens; ++t) dtable[(i64)ids[t] * size + c] += widen(dout[(i64)t * size + c]);
}

// Rung 1: a block a distinct id.
extern "C" __global__ void embedding_backward(
    f32* dtable, const T* dout, const u32* rows, const u32* starts, const u32* order, u32 size) {
    add_rows(dtable, dout, rows, starts, order, size);
}
