// Layer normalisation: y = x^ w + b, x^ = (x - mu) r, r = 1 / sqrt(mean (x - mu)^2 + eps), over rows of `size`.
//
//   x, y (rows, size) T     w, b (size) W, b may be null     stats (rows, 2) f32: mu, r
//
// The mean first, then the deviations from it: mean x^2 - mu^2 in one pass would cancel.
// Sums: in f32, in the order of norm.cuh, which the row's size gives. dweight and dbias: over rows in blocks of `each`,
// which the launcher makes of their number and size; within a block row after row, blocks as in columns.cuh.
// Contract: y, stats, dx are written (=); dweight and dbias are added to (+=).
// Bound by memory: forward a read and a write of x; backward a read of x and dy and a write of dx, with or without the
// gradients of weight and bias, whose partial sums add 16 / each bytes an element.
//
// Macros: T, W, LANES (threads that take a row),
// PACKS (packs of it that each keeps).  Source: Ba, Kiros, Hinton, arXiv:1607.06450.
#include "norm.cuh"

// Rung 0: a thread a row.
extern "C" __global__ void layer_norm_forward_naive(
    T* y, f32* stats, const T* x, const W* weight, const W* bias, f32 eps, u32 rows, u32 size) {
    const u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    x += (i64)row * size;
    y += (i64)row * size;
    f32 sum = 0.0f, squares = 0.0f;
    for (u32 i = 0; i < size; ++i) sum += widen(x[i]);
    const f32 mean = sum / (f32)size;
    for (u32 i = 0; i < size; ++i) squares += (widen(x[i]) - mean) * (widen(x[i]) - mean);
    const f32 r = 1.0f / sqrtf(squares / (f32)size + eps);
    for (u32 i = 0; i < size; ++i)
        y[i] = narrow<T>((widen(x[i]) - mean) * r * widen(weight[i]) + (bias ? widen(bias[i]) : 0.0f));
    stats[2 * row] = mean;
    stats[2 * row + 1] = r;
}

// Rung 1: a row in the registers of its threads.
template <bool WHOLE> __device__ __forceinline__ void forward(
    T* y, f32* stats, const T* x, const W* weight, const W* bias, f32 eps, u32 rows, u32 size, f32* scratch) {
    const u32 mine = blockIdx.x * (NORM_THREADS / LANES) + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    // Threads past the last row help with its sums and write nothing.
    const i64 row = (i64)min(mine, rows - 1) * size;
    const i32 n = mine < rows ? size : 0;
    const int KEPT = KEPT_OF<WHOLE>;
    Pack<T> kept[KEPT + 1];  // + 1: there are no arrays of nothing
#pragma unroll
    for (int k = 0; k < KEPT; ++k) {
        const u32 i = PACK * lane + k * STRIDE;
        kept[k] = fetch<WHOLE>(x + row + i, (i32)(size - i));
    }
    f32 sum[1] = {0.0f};
    const auto add = [&](const Pack<T>& pack) {
        const Eight v = wide(pack);
#pragma unroll
        for (int e = 0; e < 8; ++e) sum[0] += v.at[e];
    };
#pragma unroll
    for (int k = 0; k < KEPT; ++k) add(kept[k]);
#pragma unroll 1
    for (u32 i = PACK * lane + KEPT * STRIDE; i < size; i += STRIDE) add(fetch<WHOLE>(x + row + i, (i32)(size - i)));
    row_sum(sum, scratch);
    const f32 mean = sum[0] / (f32)size;
    f32 squares[1] = {0.0f};
    const auto spread = [&](const Pack<T>& pack, i32 n) {
        const Eight v = wide(pack);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            const f32 far = (WHOLE ? 0 : e) < n ? v.at[e] - mean : 0.0f;
            squares[0] = fmaf(far, far, squares[0]);
        }
    };
#pragma unroll
    for (int k = 0; k < KEPT; ++k) {
        forget(kept[k]);
        spread(kept[k], (i32)(size - (PACK * lane + k * STRIDE)));
    }
#pragma unroll 1
    for (u32 i = PACK * lane + KEPT * STRIDE; i < size; i += STRIDE)
        spread(fetch<WHOLE>(x + row + i, (i32)(size - i)), (i32)(size - i));
    row_sum(squares, scratch + 32);
    const f32 r = 1.0f / sqrtf(squares[0] / (f32)size + eps);
    const auto give = [&](const Pack<T>& pack, const Pack<W>& weights, u32 i) {
        Eight v = wide(pack);
        const Eight w = wide(weights), b = wide(fetch<WHOLE>(bias ? bias + i : weight, bias ? (i32)(size - i) : 0));
#pragma unroll
        for (int e = 0; e < 8; ++e) v.at[e] = fmaf(__fmul_rn(v.at[e] - mean, r), w.at[e], b.at[e]);
        put<WHOLE>(y + row + i, rounded<T>(v.at), n - (i32)i);
    };
#pragma unroll
    for (int k = 0; k < KEPT; ++k) {
        forget(kept[k]);
        const u32 i = PACK * lane + k * STRIDE;
        give(kept[k], fetch<WHOLE>(weight + i, (i32)(size - i)), i);
    }
#pragma unroll 1
    for (u32 i = PACK * lane + KEPT * STRIDE; i < size; i += STRIDE)
        give(fetch<WHOLE>(x + row + i, (i32)(size - i)), fetch<WHOLE>(weight + i, (i32)(size - i)), i);
    if (lane > 0 || n == 0) return;
    stats[2 * mine] = mean;
    stats[2 * mine + 1] = r;
}

extern "C" __global__ __launch_bounds__(NORM_THREADS) void layer_norm_forward(
    T* y, f32* stats, const T* x, const W* weight, const W* bias, f32 eps, u32 rows, u32 size) {
    __shared__ f32 scratch[64];
    if (whole(size, y, x, weight, bias)) forward<true>(y, stats, x, weight, bias, eps, rows, size, scratch);
    else forward<false>(y, stats, x, weight, bias, eps, rows, size, scratch);
}

// dx = r (g - mean g - x^ mean(g x^)), g = dy w.
// TRAINED: partial[b][0][c] = sum over the rows of block b, `each` of them, of dy x^, partial[b][1][c] = that of dy.
template <bool WHOLE, bool TRAINED> __device__ __forceinline__ void backward(
    T* dx, f32* partial, const T* dy, const T* x, const W* weight, const f32* stats, u32 rows, u32 each, u32 size,
    f32* scratch) {
    const u32 block = blockIdx.x * (NORM_THREADS / LANES) + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    f32 *dweight = partial + (i64)block * 2 * size, *dbias = dweight + size;
    const int KEPT = KEPT_OF<WHOLE>;
    f32 weights[KEPT + 1][8], biases[KEPT + 1][8];
    if (TRAINED) {
#pragma unroll
        for (int k = 0; k < KEPT; ++k)
#pragma unroll
            for (int e = 0; e < 8; ++e) weights[k][e] = biases[k][e] = 0.0f;
    }
    for (u32 count = 0; count < each; ++count) {
        const u32 mine = block * each + count;
        // Threads past the last row help with its sums, write nothing and add nothing.
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
        const f32 mean = stats[2 * min(mine, rows - 1)], r = stats[2 * min(mine, rows - 1) + 1];
        f32 sums[2] = {0.0f, 0.0f};  // of g and of g (x - mean)
        const auto add = [&](const Pack<T>& of_x, const Pack<T>& of_dy, const Pack<W>& of_weight) {
            const Eight v = wide(of_x), g = wide(of_dy), w = wide(of_weight);
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                const f32 along = __fmul_rn(g.at[e], w.at[e]);
                sums[0] = __fadd_rn(sums[0], along);
                sums[1] = fmaf(along, v.at[e] - mean, sums[1]);
            }
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
        row_sum(sums, scratch + count % 2 * 64);
        const f32 level = sums[0] / (f32)size, slope = sums[1] * r / (f32)size;
        // hat: x^.
        const auto give = [&](const Eight& hat, const Eight& g, const Pack<W>& of_weight, u32 i) {
            const Eight w = wide(of_weight);
            f32 d[8];
#pragma unroll
            for (int e = 0; e < 8; ++e) d[e] = fmaf(-hat.at[e], slope, fmaf(g.at[e], w.at[e], -level)) * r;
            put<WHOLE>(dx + row + i, rounded<T>(d), n - (i32)i);
        };
        const auto hat_of = [&](const Pack<T>& of_x) {
            Eight v = wide(of_x);
#pragma unroll
            for (int e = 0; e < 8; ++e) v.at[e] = __fmul_rn(v.at[e] - mean, r);
            return v;
        };
#pragma unroll
        for (int k = 0; k < KEPT; ++k) {
            forget(xs[k]);
            forget(dys[k]);
            const u32 i = PACK * lane + k * STRIDE;
            const Eight hat = hat_of(xs[k]), g = wide(dys[k]);
            give(hat, g, fetch<WHOLE>(weight + i, (i32)(size - i)), i);
            if (TRAINED && live) {
#pragma unroll
                for (int e = 0; e < 8; ++e) {
                    weights[k][e] = fmaf(g.at[e], hat.at[e], weights[k][e]);
                    biases[k][e] = __fadd_rn(biases[k][e], g.at[e]);
                }
            }
        }
#pragma unroll 1
        for (u32 i = PACK * lane + KEPT * STRIDE; i < size; i += STRIDE) {
            const Eight hat = hat_of(fetch<WHOLE>(x + row + i, (i32)(size - i)));
            const Eight g = wide(fetch<WHOLE>(dy + row + i, (i32)(size - i)));
            give(hat, g, fetch<WHOLE>(weight + i, (i32)(size - i)), i);
            if (!TRAINED || !live) continue;
            // Sums that find no registers are kept where they will be read.
#pragma unroll
            for (u32 e = 0; e < 8; ++e) {
                if (i + e >= size) continue;
                dweight[i + e] = fmaf(g.at[e], hat.at[e], count > 0 ? dweight[i + e] : 0.0f);
                dbias[i + e] = __fadd_rn(g.at[e], count > 0 ? dbias[i + e] : 0.0f);
            }
        }
    }
    if (!TRAINED || (i64)block * each >= rows) return;
#pragma unroll
    for (int k = 0; k < KEPT; ++k) {
        const u32 i = PACK * lane + k * STRIDE;
        put<WHOLE>(dweight + i, rounded<f32>(weights[k]), (i32)(size - i));
        put<WHOLE>(dbias + i, rounded<f32>(biases[k]), (i32)(size - i));
    }
}

extern "C" __global__ __launch_bounds__(NORM_THREADS) void layer_norm_backward(
    T* dx, const T* dy, const T* x, const W* weight, const f32* stats, u32 rows, u32 size) {
    __shared__ f32 scratch[128];
    if (whole(size, dx, dy, x, weight)) backward<true, false>(dx, 0, dy, x, weight, stats, rows, 1, size, scratch);
    else backward<false, false>(dx, 0, dy, x, weight, stats, rows, 1, size, scratch);
}

// 512 threads a multiprocessor, 32 KB on their way: the sums take the registers of more.
extern "C" __global__ __launch_bounds__(NORM_THREADS, 512 / NORM_THREADS) void layer_norm_backward_trained(
    T* dx, f32* partial, const T* dy, const T* x, const W* weight, const f32* stats, u32 rows, u32 each, u32 size) {
    __shared__ f32 scratch[128];
    if (whole(size, dx, dy, x, weight) && whole(size, partial, 0, 0, 0))
        backward<true, true>(dx, partial, dy, x, weight, stats, rows, each, size, scratch);
    else
        backward<false, true>(dx, partial, dy, x, weight, stats, rows, each, size, scratch);
}

// gradients: (2, size), dweight and then dbias.
extern "C" __global__ void layer_norm_dweight_add(f32* gradients, const f32* partial, u32 blocks, u32 size, u32 each) {
    fold_partials(gradients, partial, blocks, size, each);
}
