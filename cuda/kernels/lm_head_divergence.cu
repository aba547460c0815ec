// How far a student's predictions are from a teacher's, and the gradient, tile after tile of the vocabulary.
//
//   s, t = z - lse of student and teacher, z = cap(scale W h);  P = e^s, Q = e^t;  nats
//
//   beta 0: D = sum Q (t - s) - Q + P              g = -Q            forward KL
//   beta 1: D = sum P (s - t) - P + Q              g = P (s - t)     reverse KL
//   else:   D = sum beta Q (t - m) + (1 - beta) P (s - m), m = ln(beta Q + (1 - beta) P),  g = (1 - beta) P (s - m)
//   dz = d (g - P sum g) cap'(z) scale             (for beta 0 the sum is -1, not what rounding made of it)
//
// Q - P and P - Q sum to 0: with them under the sum the rounding of lse enters in second order only.
// Of a teacher who is known by k tokens, the k logits of the student are set aside and all others summed up:
//   dz = d factor P cap'(z) scale of the others, d slope_j cap'(z) scale of the k, where the host knows factor and slopes
//
//   zs, zt (rows, width) f32, raw: tokens first..first + width     lse, d, factor, sums (rows) f32     ids (rows, k) u32
//   kept (rows, k) f32: capped logits of the k     rest (rows, 2) f32: of all others, maximum and sum of e^(z - maximum)
//
// All are plain: a block a row, which depends on itself alone, so there is no second version of any.
// Order: tiles of the vocabulary in order; within a tile the sums of common.cuh.
// Contract: sums and rest are added to, begun anew where first is 0; kept and dz are written (=).
// Bound by memory here (one or two reads of the logits, that L2 holds); the whole op by the matrix products.
//
// Macros: T (type of dz).
// Source: Agarwal et al., GKD, arXiv:2306.13649, equation 1; beta as in TRL's generalized_jsd_loss.
#include "common.cuh"

struct Cap {
    f32 scale, softcap;  // softcap 0: none
};

__device__ __forceinline__ f32 capped(f32 z, const Cap& c) {
    z *= c.scale;
    return c.softcap == 0.0f ? z : c.softcap * tanhf(z / c.softcap);
}

// The derivative of `capped` by the raw logit, from the capped one.
__device__ __forceinline__ f32 slope(f32 z, const Cap& c) {
    const f32 t = c.softcap == 0.0f ? 0.0f : z / c.softcap;
    return c.scale * (1.0f - t * t);
}

// ln(beta e^t + (1 - beta) e^s)
__device__ __forceinline__ f32 mixture(f32 s, f32 t, f32 beta) {
    const f32 a = s + logf(1.0f - beta), b = t + logf(beta), top = fmaxf(a, b);
    return top + log1pf(expf(a + b - top - top));
}

__device__ __forceinline__ f32 divergence(f32 s, f32 t, f32 beta) {
    const f32 p = expf(s), q = expf(t);
    if (beta == 0.0f) return q * (t - s) - q + p;
    if (beta == 1.0f) return p * (s - t) - p + q;
    const f32 m = mixture(s, t, beta);
    return beta * q * (t - m) + (1.0f - beta) * p * (s - m);
}

__device__ __forceinline__ f32 pull(f32 s, f32 t, f32 beta) {
    if (beta == 0.0f) return -expf(t);
    if (beta == 1.0f) return expf(s) * (s - t);
    return (1.0f - beta) * expf(s) * (s - mixture(s, t, beta));
}

// D and sum g of a tile, added to those of the tiles before.
extern "C" __global__ void lm_head_divergence_take(
    f32* sums, f32* centres, const f32* zs, const f32* zt, const f32* lse_s, const f32* lse_t, u32 first, u32 width,
    f32 beta, Cap student, Cap teacher) {
    __shared__ f32 scratch[32];
    const u32 r = blockIdx.x;
    const f32 a = lse_s[r], b = lse_t[r];
    f32 d = 0.0f, g = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const f32 s = capped(zs[(u64)r * width + i], student) - a, t = capped(zt[(u64)r * width + i], teacher) - b;
        d += divergence(s, t, beta);
        g += pull(s, t, beta);
    }
    d = block_sum(d, scratch);
    g = block_sum(g, scratch);
    if (threadIdx.x > 0) return;
    sums[r] = first == 0 ? d : sums[r] + d;
    centres[r] = first == 0 ? g : centres[r] + g;
}

extern "C" __global__ void lm_head_divergence_gradient(
    T* dz, const f32* zs, const f32* zt, const f32* lse_s, const f32* lse_t, const f32* centres, const f32* ds, u32 width,
    f32 beta, Cap student, Cap teacher) {
    const u32 r = blockIdx.x;
    const f32 a = lse_s[r], b = lse_t[r], centre = beta == 0.0f ? -1.0f : centres[r], d = ds[r];
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const u64 at = (u64)r * width + i;
        const f32 z = capped(zs[at], student), s = z - a, t = capped(zt[at], teacher) - b;
        dz[at] = narrow<T>(d * (pull(s, t, beta) - expf(s) * centre) * slope(z, student));
    }
}

const u32 MOST_WORDS = 8192 / 32;  // of a tile, a bit a token

// The k logits that are in this tile, and all others of it.
extern "C" __global__ void lm_head_divergence_rest(
    f32* rest, f32* kept, const f32* zs, const u32* ids, u32 k, u32 first, u32 width, Cap student) {
    __shared__ u32 known[MOST_WORDS];
    __shared__ f32 scratch[32];
    const u32 r = blockIdx.x;
    const f32* row = zs + (u64)r * width;
    for (u32 w = threadIdx.x; w < MOST_WORDS; w += blockDim.x) known[w] = 0;
    __syncthreads();
    for (u32 j = threadIdx.x; j < k; j += blockDim.x) {
        const u32 at = ids[(u64)r * k + j] - first;  // before this tile it is beyond every width
        if (at >= width) continue;
        kept[(u64)r * k + j] = capped(row[at], student);
        atomicOr(&known[at / 32], 1u << at % 32);
    }
    __syncthreads();
    const auto counts = [&](u32 i) { return (known[i / 32] >> i % 32 & 1) == 0; };
    f32 top = -INFINITY_F32, sum = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x)
        if (counts(i)) top = fmaxf(top, capped(row[i], student));
    top = block_max(top, scratch);
    const f32 before = first == 0 ? -INFINITY_F32 : rest[2 * r], next = fmaxf(before, top);
    if (next != -INFINITY_F32)
        for (u32 i = threadIdx.x; i < width; i += blockDim.x)
            if (counts(i)) sum += expf(capped(row[i], student) - next);
    sum = block_sum(sum, scratch);
    if (threadIdx.x > 0) return;
    const f32 old = before == -INFINITY_F32 ? 0.0f : rest[2 * r + 1] * expf(before - next);
    rest[2 * r] = next;
    rest[2 * r + 1] = old + sum;
}

extern "C" __global__ void lm_head_divergence_gradient_top(
    T* dz, const f32* zs, const u32* ids, const f32* slopes, const f32* lse, const f32* factors, const f32* ds, u32 k,
    u32 first, u32 width, Cap student) {
    const u32 r = blockIdx.x;
    const f32* row = zs + (u64)r * width;
    T* to = dz + (u64)r * width;
    const f32 shift = lse[r], d = ds[r], factor = factors[r] * d;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const f32 z = capped(row[i], student);
        to[i] = narrow<T>(factor * expf(z - shift) * slope(z, student));
    }
    __syncthreads();
    for (u32 j = threadIdx.x; j < k; j += blockDim.x) {
        const u32 at = ids[(u64)r * k + j] - first;
        if (at < width) to[at] = narrow<T>(d * slopes[(u64)r * k + j] * slope(capped(row[at], student), student));
    }
}
