// The running softmax of attention on tensor cores: what becomes of a tile of scores. Macros: T, D.
#pragma once
#include "attention.cuh"
#include "mma.cuh"

// Scores are kept as the products give them where the scale alone stands between: a running maximum of the raw ones serves
// as well, and scale and ln 2 become one factor of the exponent. With a soft-cap (or a scale that turns the order round)
// they are capped first. Where CAP is defined it says which; without it this is found at run time.
__device__ __forceinline__ bool raw(const Options& o) {
#ifdef CAP
    return !CAP;
#else
    return o.softcap == 0.0f && o.scale > 0.0f;
#endif
}

// Scores of 8 N keys from key `first` on, in the layout of tensor cores: a lane has two rows (e / 2), and of each the
// keys 8 j + lane % 4 * 2 and the next. They are capped, if they are to be, and -inf where a row does not see the key.
template <u32 N> __device__ __forceinline__ void hide_scores(
    f32 (&scores)[N][4], const Span (&spans)[2], u32 first, const Options& o) {
    const u32 lane = threadIdx.x % 32;
    if (!raw(o))
#pragma unroll
        for (u32 j = 0; j < N; ++j)
#pragma unroll
            for (u32 e = 0; e < 4; ++e) scores[j][e] = capped(scores[j][e], o);
    if (!all_seen(spans, first, 8 * N))
#pragma unroll
        for (u32 j = 0; j < N; ++j)
#pragma unroll
            for (u32 e = 0; e < 4; ++e)
                if (!spans[e / 2].has(first + 8 * j + lane % 4 * 2 + e % 2)) scores[j][e] = -INFINITY_F32;
}

// top = the largest of `top` and the row's scores: the same in whatever pieces and order they come.
template <u32 N> __device__ __forceinline__ void raise(f32 (&top)[2], const f32 (&scores)[N][4]) {
#pragma unroll
    for (u32 j = 0; j < N; ++j)
#pragma unroll
        for (u32 e = 0; e < 4; ++e) top[e / 2] = fmaxf(top[e / 2], scores[j][e]);
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        top[e] = fmaxf(top[e], __shfl_xor_sync(ALL_LANES, top[e], 1));
        top[e] = fmaxf(top[e], __shfl_xor_sync(ALL_LANES, top[e], 2));
    }
}

// Scores become probabilities in place, relative to `next`, the largest of the row so far; `before` was it without them.
// `sum` is of them, `shrink` what is to be multiplied with all that was summed before.
template <u32 N> __device__ __forceinline__ void make_powers(
    f32 (&scores)[N][4], const f32 (&before)[2], const f32 (&next)[2], f32 (&shrink)[2], f32 (&sum)[2], const Options& o) {
    const f32 factor = raw(o) ? LOG2_E * o.scale : LOG2_E;
    f32 base[2];
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        // Nothing seen so far: any finite number does, every p is 0.
        base[e] = next[e] == -INFINITY_F32 ? 0.0f : next[e];
        shrink[e] = exp2_fast((before[e] - base[e]) * factor);
        base[e] *= factor;
        sum[e] = 0.0f;
    }
#pragma unroll
    for (u32 j = 0; j < N; ++j)
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            scores[j][e] = exp2_fast(fmaf(scores[j][e], factor, -base[e / 2]));
            sum[e / 2] += scores[j][e];
        }
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        sum[e] += __shfl_xor_sync(ALL_LANES, sum[e], 1);
        sum[e] += __shfl_xor_sync(ALL_LANES, sum[e], 2);
    }
}

// All three, one tile after another: `top` is the largest score so far, `total` the sum of probabilities so far.
template <u32 N> __device__ __forceinline__ void take_scores(
    f32 (&scores)[N][4], f32 (&top)[2], f32 (&total)[2], f32 (&shrink)[2], const Span (&spans)[2], u32 first,
    const Options& o) {
    hide_scores(scores, spans, first, o);
    f32 next[2] = {top[0], top[1]}, sum[2];
    raise(next, scores);
    make_powers(scores, top, next, shrink, sum, o);
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        top[e] = next[e];
        total[e] = fmaf(total[e], shrink[e], sum[e]);
    }
}

// Probabilities of 16 keys, rounded, as the left factor of a product: what a lane holds of them is what it must hold.
template <u32 N> __device__ __forceinline__ void rounded(u32 (&p)[4], const f32 (&scores)[N][4], u32 j) {
    p[0] = pair<T>(scores[2 * j][0], scores[2 * j][1]);
    p[1] = pair<T>(scores[2 * j][2], scores[2 * j][3]);
    p[2] = pair<T>(scores[2 * j + 1][0], scores[2 * j + 1][1]);
    p[3] = pair<T>(scores[2 * j + 1][2], scores[2 * j + 1][3]);
}

// A lane's share of 8 N columns of a row of the result, which begin at `out`: divided by the sum of the row's probabilities.
template <u32 N> __device__ __forceinline__ void finish_sums(T* out, const f32 (&sums)[N][4], u32 e, f32 total) {
    const u32 lane = threadIdx.x % 32;
    const f32 inverse = total > 0.0f ? 1.0f / total : 0.0f;
#pragma unroll
    for (u32 d = 0; d < N; ++d)
        *(u32*)(out + 8 * d + lane % 4 * 2) = pair<T>(sums[d][2 * e] * inverse, sums[d][2 * e + 1] * inverse);
}

// The row's log-sum-exp.
__device__ __forceinline__ void finish_lse(f32* lse, u64 at, f32 top, f32 total, const Options& o) {
    // Spelled out: whether a product and a sum become one is otherwise up to the compiler, in each kernel and variant.
    const f32 sum = fmaf(top, raw(o) ? o.scale : 1.0f, logf(total));
    if (threadIdx.x % 4 == 0) lse[at] = total > 0.0f ? sum : -INFINITY_F32;
}

__device__ __forceinline__ void finish_row(
    T* out, f32* lse, u64 at, const f32 (&sums)[D / 8][4], u32 e, f32 top, f32 total, const Options& o) {
    finish_sums(out + at * D, sums, e, total);
    finish_lse(lse, at, top, total, o);
}
