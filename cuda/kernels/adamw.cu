// AdamW on f32 masters, with the gradient's scale (1 / count, times the clipping) fused.
//
//   p <- p (1 - lr lambda);  m <- m + (1 - b1)(g - m);  v <- b2 v + (1 - b2) g^2;
//   p <- p - lr / (1 - b1^t) m / (sqrt v / sqrt(1 - b2^t) + eps)
//
//   p, m, v, g (n) f32     weight (n) T: p rounded, what the model computes with; null if p is the weight itself
//
// One launch takes all parameters of a step: those of an adapter are hundreds of small ones, and a launch for each is mostly
// its start.
//
// The host rounds the coefficients to f32 once. The factor on the gradient is `grad_scale` times what `norm` allows:
// max_norm / (norm + 1e-6) if that is below 1, as torch clips; norm is on the device, so that nothing waits for it.
// Contract: p, m, v, weight are updated in place.
// Bound by memory: 16 bytes read and 12 written an element, 2 more for a bf16 weight.
//
// Macros: T.  Source: Loshchilov, Hutter, arXiv:1711.05101, algorithm 2; torch.optim.AdamW.
#include "pack.cuh"

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

// What is fused is said: left to the compiler it differs from kernel to kernel.
__device__ __forceinline__ void step(f32& p, f32& m, f32& v, f32 g, const Coefficients& c) {
    m = __fmaf_rn(c.lerp, g - m, m);
    v = __fmaf_rn(g, __fmul_rn(c.one_minus_beta2, g), __fmul_rn(v, c.beta2));
    p = __fmaf_rn(c.keep, p, __fdiv_rn(__fmul_rn(c.step_size, m), __fadd_rn(__fdiv_rn(__fsqrt_rn(v), c.root), c.eps)));
}

// Rung 0: an element a thread.
extern "C" __global__ void adamw_naive(
    f32* p, T* weight, f32* m, f32* v, const f32* g, const f64* squares, Coefficients c, u64 n) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    step(p[i], m[i], v[i], __fmul_rn(g[i], factor(c, squares)), c);
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
    for (int k = 0; k < 4; ++k) step(ps[k], ms[k], vs[k], __fmul_rn(gs[k], scale), c);
    store4(p + i, ps, n - i);
    store4(m + i, ms, n - i);
    store4(v + i, vs, n - i);
    if (weight) store4(weight + i, ps, n - i);
}

// Rung 1: four elements a thread; the coefficients are in memory: a recorded step has other ones each time.
extern "C" __global__ void adamw_recorded(
    f32* p, T* weight, f32* m, f32* v, const f32* g, const f64* squares, const Coefficients* c, u64 n) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i < n) step4(p, weight, m, v, g, factor(*c, squares), *c, i, n);
}

// A parameter among many, as the launcher writes it: 96 bytes.
struct Row {
    f32 *p;
    T* weight;
    f32 *m, *v;
    const f32* g;
    u64 n, first;  // elements; stretches of the parameters before
    Coefficients c;
};

const u32 STRETCH = 4096;

// Rung 2: a stretch a block, of one of many parameters; long enough that the search for it is little of the work.
extern "C" __global__ void adamw_of_all(const Row* rows, const f64* squares, u32 parameters) {
    // The last parameter whose first stretch is not behind this one.
    u32 low = 0, high = parameters;
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        if (rows[middle].first <= blockIdx.x) low = middle;
        else high = middle;
    }
    const Row row = rows[low];
    const f32 scale = factor(row.c, squares);
    const u64 begin = (blockIdx.x - row.first) * STRETCH, end = min(begin + STRETCH, row.n);
    for (u64 i = begin + 4 * threadIdx.x; i < end; i += 4 * blockDim.x)
        step4(row.p, row.weight, row.m, row.v, row.g, scale, row.c, i, row.n);
}

// State in 8 bits: m and v as a byte a number, the index of one of 256 sorted codes, and of each block of 256 numbers the
// largest magnitude in f32, which its codes are multiplied with. They are widened, updated and rounded to the nearest code
// again; of two as near, the lower.
//
//   m, v (n) u8     m_largest, v_largest (ceil(n / 256)) f32     codes (2, 256) f32: of m, with a sign, and of v
//
// Products and sums are fused, or not, as written, which is bit for bit what the processor does (`optim/rules.rs` of the
// training layer), and so bitsandbytes 0.50 on one.
// Bound by memory: 10 bytes read and 6 written an element, 2 more for a bf16 weight.
//
// Source: Dettmers et al., arXiv:2110.02861.
const u32 BLOCK8 = 256;

struct Coefficients8 {
    f32 grad_scale, keep, beta1, one_minus_beta1, beta2, one_minus_beta2, root, eps, step_size;
};

__device__ __forceinline__ void step8(f32& p, f32& m, f32& v, f32 g, const Coefficients8& c) {
    g = __fmul_rn(g, c.grad_scale);
    m = __fmaf_rn(g, c.one_minus_beta1, __fmul_rn(m, c.beta1));
    v = __fmaf_rn(__fmul_rn(c.one_minus_beta2, g), g, __fmul_rn(v, c.beta2));
    const f32 denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), c.root), c.eps);
    p = __fadd_rn(__fmul_rn(p, c.keep), __fdiv_rn(__fmul_rn(c.step_size, m), denominator));
}

// The index of the code that is nearest to x in [-1, 1].
__device__ __forceinline__ u8 nearest_code(const f32* codes, f32 x) {
    u32 above = 0;  // how many codes are below x, at most 255
#pragma unroll
    for (u32 half = 128; half > 0; half /= 2)
        if (codes[above + half - 1] < x) above += half;
    const u32 below = above > 0 ? above - 1 : 0;
    return (u8)(fabsf(codes[above] - x) < fabsf(x - codes[below]) ? above : below);
}

// Rung 0: a block of numbers a thread, which is gone through twice, for its largest and to round it.
extern "C" __global__ void adamw8_naive(
    f32* p, T* weight, u8* m, f32* m_largest, u8* v, f32* v_largest, const f32* g, const f32* codes, Coefficients8 c,
    u64 n) {
    const u64 block = (u64)blockIdx.x * blockDim.x + threadIdx.x, first = block * BLOCK8;
    if (first >= n) return;
    const u64 end = first + BLOCK8 < n ? first + BLOCK8 : n;
    const f32 old[2] = {m_largest[block], v_largest[block]};
    f32 largest[2] = {0.0f, 0.0f};
    for (int again = 0; again < 2; ++again) {
        for (u64 i = first; i < end; ++i) {
            f32 x = p[i], m1 = codes[m[i]] * old[0], v1 = codes[BLOCK8 + v[i]] * old[1];
            step8(x, m1, v1, g[i], c);
            if (!again) {
                largest[0] = fmaxf(largest[0], fabsf(m1));
                largest[1] = fmaxf(largest[1], fabsf(v1));
                continue;
            }
            p[i] = x;
            if (weight) weight[i] = narrow<T>(x);
            m[i] = nearest_code(codes, __fdiv_rn(m1, largest[0]));
            v[i] = nearest_code(codes + BLOCK8, __fdiv_rn(v1, largest[1]));
        }
        for (int k = 0; k < 2; ++k)
            if (largest[k] == 0.0f) largest[k] = 1.0f;
    }
    m_largest[block] = largest[0];
    v_largest[block] = largest[1];
}

// 8 bytes, or the first `count` of them and zeros.
template <bool WHOLE> __device__ __forceinline__ void fetch_bytes(u8 (&bytes)[8], const u8* from, i32 count) {
    uint2 words = make_uint2(0, 0);
    if (WHOLE && count > 0) words = *(const uint2*)from;
#pragma unroll
    for (i32 k = 0; k < 8; ++k) {
        if (WHOLE) bytes[k] = (u8)((k < 4 ? words.x : words.y) >> 8 * (k % 4));
        else bytes[k] = k < count ? from[k] : 0;
    }
}
template <bool WHOLE> __device__ __forceinline__ void put_bytes(u8* to, const u8 (&bytes)[8], i32 count) {
    if (WHOLE && count > 0) {
        u32 words[2] = {0, 0};
#pragma unroll
        for (i32 k = 0; k < 8; ++k) words[k / 4] |= (u32)bytes[k] << 8 * (k % 4);
        *(uint2*)to = make_uint2(words[0], words[1]);
    }
    if (!WHOLE)
#pragma unroll
        for (i32 k = 0; k < 8; ++k)
            if (k < count) to[k] = bytes[k];
}

// The blocks of numbers of a warp, a block at a time, 8 numbers a lane: the largest needs no other warp, and 8 lookups are on
// their way at a time.
template <bool WHOLE> __device__ __forceinline__ void warp8(
    f32* p, T* weight, u8* m, f32* m_largest, u8* v, f32* v_largest, const f32* g, const f32* table, const Coefficients8& c,
    u64 n) {
    const u32 warps = blockDim.x / 32, lane = threadIdx.x % 32;
    const u64 blocks = (n + BLOCK8 - 1) / BLOCK8;
    for (u64 block = (u64)blockIdx.x * warps + threadIdx.x / 32; block < blocks; block += (u64)gridDim.x * warps) {
        const u64 i = block * BLOCK8 + 8 * lane;
        const i32 count = i < n ? (i32)min(n - i, (u64)8) : 0;
        const Pack<f32> gradient = fetch<WHOLE>(g + i, count);
        Pack<f32> master = fetch<WHOLE>(p + i, count);
        u8 code_m[8], code_v[8];
        fetch_bytes<WHOLE>(code_m, m + i, count);
        fetch_bytes<WHOLE>(code_v, v + i, count);
        f32 largest[2] = {m_largest[block], v_largest[block]}, m1[8], v1[8], most[2] = {0.0f, 0.0f};
#pragma unroll
        for (i32 k = 0; k < 8; ++k) {
            m1[k] = table[code_m[k]] * largest[0];
            v1[k] = table[BLOCK8 + code_v[k]] * largest[1];
            step8(master.at[k], m1[k], v1[k], gradient.at[k], c);
            if (k >= count) continue;
            most[0] = fmaxf(most[0], fabsf(m1[k]));
            most[1] = fmaxf(most[1], fabsf(v1[k]));
        }
        // All lanes have read the old largest by then.
#pragma unroll
        for (i32 k = 0; k < 2; ++k) {
            largest[k] = warp_max(most[k]);
            if (largest[k] == 0.0f) largest[k] = 1.0f;
        }
        if (lane == 0) {
            m_largest[block] = largest[0];
            v_largest[block] = largest[1];
        }
#pragma unroll
        for (i32 k = 0; k < 8; ++k) {
            code_m[k] = nearest_code(table, __fdiv_rn(m1[k], largest[0]));
            code_v[k] = nearest_code(table + BLOCK8, __fdiv_rn(v1[k], largest[1]));
        }
        put<WHOLE>(p + i, master, count);
        if (weight) put<WHOLE>(weight + i, rounded<T>(master.at), count);
        put_bytes<WHOLE>(m + i, code_m, count);
        put_bytes<WHOLE>(v + i, code_v, count);
    }
}

// Rung 1: a block of numbers a warp, with the codes in shared memory for as many blocks as come.
extern "C" __global__ void __launch_bounds__(256) adamw8(
    f32* p, T* weight, u8* m, f32* m_largest, u8* v, f32* v_largest, const f32* g, const f32* codes, Coefficients8 c,
    u64 n) {
    __shared__ f32 table[2 * BLOCK8];
    for (u32 t = threadIdx.x; t < 2 * BLOCK8; t += blockDim.x) table[t] = codes[t];
    __syncthreads();
    const bool aligned = (((u64)p | (u64)weight | (u64)g | (u64)m << 1 | (u64)v << 1) & 15) == 0;
    if (aligned && n % PACK == 0) warp8<true>(p, weight, m, m_largest, v, v_largest, g, table, c, n);
    else warp8<false>(p, weight, m, m_largest, v, v_largest, g, table, c, n);
}
