// Gated linear units: y = act(gate) up.
//
//   gate, up, y (n) T; arithmetic in f32, one rounding at the end
//
// SwiGLU with ACT 0, GeGLU with ACT 1 or 2 (act.cuh).
// Contract: everything is written (=). dgate and dup may be gate and up themselves.
// Bound by memory: two reads and a write forward, three and two backward.
//
// Macros: T, ACT.  Source: Shazeer, arXiv:2002.05202.
#include "act.cuh"

// Rung 0: an element a thread: 2 bytes a load for bf16, an eighth of what a thread can fetch at once.
extern "C" __global__ void glu_forward_naive(T* y, const T* gate, const T* up, u64 n) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = narrow<T>(act(widen(gate[i])).value * widen(up[i]));
}

// Rung 1: a pack of 8 a thread.
extern "C" __global__ void glu_forward(T* y, const T* gate, const T* up, u64 n) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    if (i >= n) return;
    f32 g[8], u[8];
    load8(g, gate + i, n - i);
    load8(u, up + i, n - i);
    for (int k = 0; k < 8; ++k) g[k] = act(g[k]).value * u[k];
    store8(y + i, g, n - i);
}

// dgate = dy up act'(gate), dup = dy act(gate).
extern "C" __global__ void glu_backward(T* dgate, T* dup, const T* dy, const T* gate, const T* up, u64 n) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    if (i >= n) return;
    f32 d[8], g[8], u[8];
    load8(d, dy + i, n - i);
    load8(g, gate + i, n - i);
    load8(u, up + i, n - i);
    for (int k = 0; k < 8; ++k) {
        const Act a = act(g[k]);
        g[k] = d[k] * u[k] * a.slope;
        u[k] = d[k] * a.value;
    }
    store8(dgate + i, g, n - i);
    store8(dup + i, u, n - i);
}
