// AdamW on f32 masters, with the gradient's scale (1 / count, times the clipping) fused.
//
//   p <- p (1 - lr lambda);  m <- m + (1 - b1)(g - m);  v <- b2 v + (1 - b2) g^2;
//   p <- p - lr / (1 - b1^t) m / (sqrt v / sqrt(1 - b2^t) + eps)
//
//   p, m, v, g (n) f32     weight (n) T: p rounded, what the model computes with; null if p is the weight itself
//
// The host rounds the coefficients to f32 once. The factor on the gradient is `grad_scale` times what `norm` allows:
// max_norm / (norm + 1e-6) if that is below 1, as torch clips; norm is on the device, so that nothing waits for it.
// Contract: p, m, v, weight are updated in place.
// Bound by memory: 16 bytes read and 12 written an element, 2 more for a bf16 weight.
//
// Macros: T.  Source: Loshchilov, Hutter, arXiv:1711.05101, algorithm 2; torch.optim.AdamW.
#include "common.cuh"

struct Coefficients {
    f32 grad_scale, keep, lerp, beta2, one_minus_beta2, root, eps, step_size;
    f32 max_norm;  // 0 for no clipping
};

__device__ __forceinline__ f32 factor(const Coefficients& c, const f64* squares) {
    if (c.max_norm == 0.0f) return c.grad_scale;
    const f64 norm = sqrt(*squares) * (f64)c.grad_scale;
    const f64 clip = (f64)c.max_norm / (norm + 1e-6);
    return clip < 1.0 ? (f32)((f64)c.grad_scale * clip) : c.grad_scale;
}

__device__ __forceinline__ void step(f32& p, f32& m, f32& v, f32 g, const Coefficients& c) {
    p *= c.keep;
    m += c.lerp * (g - m);
    v = v * c.beta2 + c.one_minus_beta2 * g * g;
    p += c.step_size * m / (sqrtf(v) / c.root + c.eps);
}

// Rung 0: an element a thread.
extern "C" __global__ void adamw_naive(
    f32* p, T* weight, f32* m, f32* v, const f32* g, const f64* squares, Coefficients c, u64 n) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    step(p[i], m[i], v[i], g[i] * factor(c, squares), c);
    if (weight) weight[i] = narrow<T>(p[i]);
}

// Four elements from i on: 16 bytes of each array.
__device__ __forceinline__ void step4(
    f32* p, T* weight, f32* m, f32* v, const f32* g, f32 scale, const Coefficients& c, u64 i, u64 n) {
    f32 ps[4], ms[4], vs[4], gs[4];
    load4(ps, p + i, n - i);
    load4(ms, m + i, n - i);
    load4(vs, v + i, n - i);
    load4(gs, g + i, n - i);
    for (int k = 0; k < 4; ++k) step(ps[k], ms[k], vs[k], gs[k] * scale, c);
    store4(p + i, ps, n - i);
    store4(m + i, ms, n - i);
    store4(v + i, vs, n - i);
    if (weight) store4(weight + i, ps, n - i);
}

// Rung 1: four elements a thread.
extern "C" __global__ void adamw(
    f32* p, T* weight, f32* m, f32* v, const f32* g, const f64* squares, Coefficients c, u64 n) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i < n) step4(p, weight, m, v, g, factor(c, squares), c, i, n);
}

// The same with the coefficients in memory: a recorded step has other ones each time.
extern "C" __global__ void adamw_recorded(
    f32* p, T* weight, f32* m, f32* v, const f32* g, const f64* squares, const Coefficients* c, u64 n) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i < n) step4(p, weight, m, v, g, factor(*c, squares), *c, i, n);
}
