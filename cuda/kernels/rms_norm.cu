// RMSNorm: y = x r (w + offset), r = 1 / sqrt(mean x^2 + eps), over rows of `size`.
//
//   x, y (rows, size) T     w (size) W     r (rows) f32
//
// With a residual, x is first added to it and the sum is kept: sum = round(x + residual), y = norm(sum). The norm is of
// the rounded sum, which is what the backward pass finds.
//
// Sums: in f32, in the order of norm.cuh, which the row's size gives, so a row's result depends on the row alone. dweight:
// over rows in blocks of `each`, which the launcher makes of their number and size; within a block row after row, blocks
// as in columns.cuh.
// Contract: y, r, sum, dx are written (=); dweight is added to (+=).
// Bound by memory: forward a read and a write of x; backward a read of x and dy and a write of dx, with or without
// dweight, whose partial sums add 8 / each bytes an element.
//
// Macros: T (type of activations), W (type of the weight), LANES (threads that take a row),
// PACKS (packs of it that each keeps).
// Source: Zhang, Sennrich, arXiv:1910.07467.
#include "norm.cuh"

// Rung 0: a thread a row. 32 rows are read at once, each far from the next: every load is a transaction of its own.
extern "C" __global__ void rms_norm_forward_naive(
    T* y, f32* r, const T* x, const W* weight, f32 eps, f32 offset, u32 rows, u32 size) {
    const u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    x += (i64)row * size;
    y += (i64)row * size;
    f32 squares = 0.0f;
    for (u32 i = 0; i < size; ++i) squares += widen(x[i]) * widen(x[i]);
    const f32 scale = 1.0f / sqrtf(squares / (f32)size + eps);
    for (u32 i = 0; i < size; ++i) y[i] = narrow<T>(widen(x[i]) * scale * (widen(weight[i]) + offset));
    r[row] = scale;
}

// Rung 1: a row in the registers of its threads. residual and sum may be null.
template <bool WHOLE> __device__ __forceinline__ void forward(
    T* y, f32* r, T* sum, const T* x, const T* residual, const W* weight, f32 eps, f32 offset, u32 rows, u32 size,
    f32* scratch) {
    const u32 mine = blockIdx.x * (NORM_THREADS / LANES) + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    // Threads past the last row help with its sums and write nothing.
    const i64 row = (i64)min(mine, rows - 1) * size;
    const i32 n = mine < rows ? size : 0;
    const int KEPT = KEPT_OF<WHOLE>;
    Pack<T> kept[KEPT + 1], more[KEPT + 1];  // + 1: there are no arrays of nothing
#pragma unroll
    for (int k = 0; k < KEPT; ++k) {
        const u32 i = PACK * lane + k * STRIDE;
        kept[k] = fetch<WHOLE>(x + row + i, (i32)(size - i));
        if (residual) more[k] = fetch<WHOLE>(residual + row + i, (i32)(size - i));
    }
    f32 squares[1] = {0.0f};
    const auto add = [&](Pack<T>& pack, const Pack<T>& second, u32 i) {
        Eight v = wide(pack);
        if (residual) {
            const Eight u = wide(second);
#pragma unroll
            for (int e = 0; e < 8; ++e) v.at[e] += u.at[e];
            pack = rounded<T>(v.at);
            v = wide(pack);
            put<WHOLE>(sum + row + i, pack, n - (i32)i);
        }
#pragma unroll
        for (int e = 0; e < 8; ++e) squares[0] = fmaf(v.at[e], v.at[e], squares[0]);
    };
#pragma unroll
    for (int k = 0; k < KEPT; ++k) add(kept[k], more[k], PACK * lane + k * STRIDE);
#pragma unroll 1
    for (u32 i = PACK * lane + KEPT * STRIDE; i < size; i += STRIDE) {
        Pack<T> pack = fetch<WHOLE>(x + row + i, (i32)(size - i)), second = pack;
        if (residual) second = fetch<WHOLE>(residual + row + i, (i32)(size - i));
        add(pack, second, i);
    }
    row_sum(squares, scratch);
    const f32 scale = 1.0f / sqrtf(squares[0] / (f32)size + eps);
    const auto give = [&](const Pack<T>& pack, const Pack<W>& weights, u32 i) {
        Eight v = wide(pack);
        const Eight w = wide(weights);
#pragma unroll
        for (int e = 0; e < 8; ++e) v.at[e] = v.at[e] * scale * (w.at[e] + offset);
        put<WHOLE>(y + row + i, rounded<T>(v.at), n - (i32)i);
    };
#pragma unroll
    for (int k = 0; k < KEPT; ++k) {
        forget(kept[k]);
        const u32 i = PACK * lane + k * STRIDE;
        give(kept[k], fetch<WHOLE>(weight + i, (i32)(size - i)), i);
    }
    // A thread reads the packs of `sum` that it wrote itself; past the last row there are none.
    const T* from = residual && n > 0 ? sum : x;
#pragma unroll 1
    for (u32 i = PACK * lane + KEPT * STRIDE; i < size; i += STRIDE)
        give(fetch<WHOLE>(from + row + i, (i32)(size - i)), fetch<WHOLE>(weight + i, (i32)(size - i)), i);
    if (lane == 0 && n > 0) r[mine] = scale;
}

extern "C" __global__ __launch_bounds__(NORM_THREADS) void rms_norm_forward(
    T* y, f32* r, T* sum, const T* x, const T* residual, const W* weight, f32 eps, f32 offset, u32 rows, u32 size) {
    __shared__ f32 scratch[32];
    if (whole(size, y, x, weight, 0) && whole(size, sum, residual, 0, 0))
        forward<true>(y, r, sum, x, residual, weight, eps, offset, rows, size, scratch);
    else
        forward<false>(y, r, sum, x, residual, weight, eps, offset, rows, size, scratch);
}

// dx = r (g - n mean(g n)) with n = x r and g = dy (w + offset); plus dresidual, what reaches x past the norm, if given.
// TRAINED: partial[b][c] = sum over the rows of block b, `each` of them, of dy x r.
template <bool WHOLE, bool TRAINED> __device__ __forceinline__ void backward(
    T* dx, f32* partial, const T* dy, const T* x, const W* weight, const f32* r, const T* dresidual, f32 offset,
    u32 rows, u32 each, u32 size, f32* scratch) {
    const u32 block = blockIdx.x * (NORM_THREADS / LANES) + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    f32* part = partial + (i64)block * size;
    const int KEPT = KEPT_OF<WHOLE>;
    f32 sums[KEPT + 1][8];
    if (TRAINED) {
#pragma unroll
        for (int k = 0; k < KEPT; ++k)
#pragma unroll
            for (int e = 0; e < 8; ++e) sums[k][e] = 0.0f;
    }
    for (u32 count = 0; count < each; ++count) {
        const u32 mine = block * each + count;
        // Threads past the last row help with its sums, write nothing and add zeros.
        const bool live = mine < rows;
        const i64 row = (i64)min(mine, rows - 1) * size;
        const i32 n = live ? size : 0;
        Pack<T> xs[KEPT + 1], dys[KEPT + 1];
#pragma unroll
        for (int k = 0; k < KEPT; ++k) {
            const u32 i = PACK * lane + k * STRIDE;
            xs[k] = fetch<WHOLE>(x + row + i, (i32)(size - i));
            dys[k] = fetch<WHOLE>(dy + row + i, (i32)(size - i));
        }
        const f32 scale = r[min(mine, rows - 1)];
        f32 along[1] = {0.0f};
        const auto add = [&](const Pack<T>& of_x, const Pack<T>& of_dy, const Pack<W>& of_weight) {
            const Eight v = wide(of_x), g = wide(of_dy), w = wide(of_weight);
#pragma unroll
            for (int e = 0; e < 8; ++e) along[0] = fmaf(g.at[e] * (w.at[e] + offset), v.at[e], along[0]);
        };
#pragma unroll
        for (int k = 0; k < KEPT; ++k) {
            const u32 i = PACK * lane + k * STRIDE;
            add(xs[k], dys[k], fetch<WHOLE>(weight + i, (i32)(size - i)));
        }
#pragma unroll 1
        for (u32 i = PACK * lane + KEPT * STRIDE; i < size; i += STRIDE)
            add(fetch<WHOLE>(x + row + i, (i32)(size - i)), fetch<WHOLE>(dy + row + i, (i32)(size - i)),
                fetch<WHOLE>(weight + i, (i32)(size - i)));
        // The sums of two rows that follow each other lie in two places: one barrier a row.
        row_sum(along, scratch + count % 2 * 32);
        const f32 level = along[0] * scale / (f32)size * scale * scale;
        // dx = (dy r) (w + offset) - x level, and for dweight (dy r) x.
        const auto give = [&](const Eight& v, const Eight& g, const Pack<W>& of_weight, u32 i) {
            const Eight w = wide(of_weight);
            f32 d[8];
#pragma unroll
            for (int e = 0; e < 8; ++e) d[e] = fmaf(g.at[e], w.at[e] + offset, -__fmul_rn(v.at[e], level));
            if (dresidual) {
                const Eight past = wide(fetch<WHOLE>(dresidual + row + i, (i32)(size - i)));
#pragma unroll
                for (int e = 0; e < 8; ++e) d[e] = __fadd_rn(d[e], past.at[e]);
            }
            put<WHOLE>(dx + row + i, rounded<T>(d), n - (i32)i);
        };
        const auto scaled = [&](const Pack<T>& of_dy) {
            Eight g = wide(of_dy);
#pragma unroll
            for (int e = 0; e < 8; ++e) g.at[e] = __fmul_rn(g.at[e], scale);
            return g;
        };
#pragma unroll
        for (int k = 0; k < KEPT; ++k) {
            forget(xs[k]);
            forget(dys[k]);
            const u32 i = PACK * lane + k * STRIDE;
            const Eight v = wide(xs[k]), g = scaled(dys[k]);
            give(v, g, fetch<WHOLE>(weight + i, (i32)(size - i)), i);
            if (TRAINED && live) {
#pragma unroll
                for (int e = 0; e < 8; ++e) sums[k][e] = fmaf(g.at[e], v.at[e], sums[k][e]);
            }
        }
#pragma unroll 1
        for (u32 i = PACK * lane + KEPT * STRIDE; i < size; i += STRIDE) {
            const Eight v = wide(fetch<WHOLE>(x + row + i, (i32)(size - i)));
            const Eight g = scaled(fetch<WHOLE>(dy + row + i, (i32)(size - i)));
            give(v, g, fetch<WHOLE>(weight + i, (i32)(size - i)), i);
            if (!TRAINED || !live) continue;
            // Sums that find no registers are kept where they will be read.
#pragma unroll
            for (u32 e = 0; e < 8; ++e)
                if (i + e < size) part[i + e] = fmaf(g.at[e], v.at[e], count > 0 ? part[i + e] : 0.0f);
        }
    }
    if (!TRAINED || (i64)block * each >= rows) return;
#pragma unroll
    for (int k = 0; k < KEPT; ++k) {
        const u32 i = PACK * lane + k * STRIDE;
        put<WHOLE>(part + i, rounded<f32>(sums[k]), (i32)(size - i));
    }
}

extern "C" __global__ __launch_bounds__(NORM_THREADS) void rms_norm_backward(
    T* dx, const T* dy, const T* x, const W* weight, const f32* r, const T* dresidual, f32 offset, u32 rows, u32 size) {
    __shared__ f32 scratch[64];
    if (whole(size, dx, dy, x, weight) && whole(size, dresidual, 0, 0, 0))
        backward<true, false>(dx, 0, dy, x, weight, r, dresidual, offset, rows, 1, size, scratch);
    else
        backward<false, false>(dx, 0, dy, x, weight, r, dresidual, offset, rows, 1, size, scratch);
}

// 512 threads a multiprocessor: 64 KB on their way.
extern "C" __global__ __launch_bounds__(NORM_THREADS, 512 / NORM_THREADS) void rms_norm_backward_trained(
    T* dx, f32* partial, const T* dy, const T* x, const W* weight, const f32* r, const T* dresidual, f32 offset,
    u32 rows, u32 each, u32 size) {
    __shared__ f32 scratch[64];
    if (whole(size, dx, dy, x, weight) && whole(size, dresidual, partial, 0, 0))
        backward<true, true>(dx, partial, dy, x, weight, r, dresidual, offset, rows, each, size, scratch);
    else
        backward<false, true>(dx, partial, dy, x, weight, r, dresidual, offset, rows, each, size, scratch);
}

extern "C" __global__ void rms_norm_dweight_add(f32* dweight, const f32* partial, u32 blocks, u32 size, u32 each) {
    fold_partials(dweight, partial, blocks, size, each);
}
