// Elements moved from one layout to another: y[at] = x[at'] or y[at] += x[at'], over up to 8 dimensions with strides of
// their own on both sides; and a value everywhere.
//
// What makes views contiguous, stretches, joins and cuts tensors, and brings the gradient of a cut back to its place.
// Contract: copy and fill write (=), add adds to (+=) f32. No element of y may be reached twice.
// Bound by memory; where the last stride is not 1 a sector of 32 bytes is moved for each element.
//
// Macros: T (type of x; copies move its bytes), ADDS (T can be added).
#include "common.cuh"

struct Layout {
    u32 rank, n;  // dimensions; elements
    u32 size[8];
    u64 x[8], y[8];  // strides, elements
};

struct Places {
    u64 x, y;
};

__device__ __forceinline__ Places place(const Layout& l, u32 i) {
    Places at = {0, 0};
    for (u32 d = l.rank; d-- > 0;) {
        const u32 next = i / l.size[d], here = i - next * l.size[d];
        at.x += here * l.x[d];
        at.y += here * l.y[d];
        i = next;
    }
    return at;
}

// Rung 0: an element a thread. Nothing faster is needed where layouts agree: that is a copy of the driver's.
extern "C" __global__ void copy_strided(T* y, const T* x, Layout l) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= l.n) return;
    const Places at = place(l, i);
    y[at.y] = x[at.x];
}

// `bits`: the value, in its lowest bytes.
extern "C" __global__ void copy_fill(T* y, u64 bits, u64 n) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = *(const T*)&bits;
}

#ifdef ADDS
extern "C" __global__ void copy_add(f32* y, const T* x, Layout l) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= l.n) return;
    const Places at = place(l, i);
    y[at.y] += widen(x[at.x]);
}
#endif
