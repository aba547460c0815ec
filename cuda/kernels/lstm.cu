// One step of one direction of an LSTM, forward and backward, for all of its units.
//
//   step:     z = gates[t] + W h[before], split in four: i, f, o = sigmoid(z), g = tanh(z), which gates[t] becomes;
//             c[t] = f c[before] + i g, h[t] = o tanh(c[t])
//   backward: dc += (dh[t] + next) o (1 - tanh(c[t])^2), dgates[t] from it, then dc *= f
//
//   gates, dgates (steps, 4 n), rows i, f, g, o; W (4 n, n), c, h, dh (steps, n), next, dc (n), all f32;
//   before = NONE at the first step, whose h and c are 0; next = W^T dgates of the step after, dc what came from it
//
// Forward a warp takes a unit: its sums are chains of a lane's columns, then of common.cuh's order. Bound by W, 16 n^2
// bytes a step, which the next step waits for; backward by nothing, a thread a unit.
// Contract: rows of step t are written (=), gates over what they were, and so is dc.
#include "common.cuh"

const u32 NONE = 0xffffffffu;

__device__ f32 sigmoid(f32 x) { return 1.0f / (1.0f + expf(-x)); }

extern "C" __global__ void lstm_step(f32* gates, f32* c, f32* h, const f32* w, u32 n, u32 t, u32 before) {
    const u32 j = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (j >= n) return;
    gates += (i64)t * 4 * n + j;
    f32 z[4] = {gates[0], gates[n], gates[2 * n], gates[3 * n]};
    if (before != NONE) {
        const f32* last = h + (i64)before * n;
#pragma unroll
        for (u32 k = 0; k < 4; ++k) {
            const f32* row = w + (i64)(k * n + j) * n;
            f32 sum = 0.0f;
            for (u32 i = lane; i < n; i += 32) sum = fmaf(row[i], last[i], sum);
            z[k] += warp_sum(sum);
        }
    }
    if (lane > 0) return;
    const f32 i = sigmoid(z[0]), f = sigmoid(z[1]), g = tanhf(z[2]), o = sigmoid(z[3]);
    const f32 cell = before == NONE ? i * g : fmaf(f, c[(i64)before * n + j], i * g);
    gates[0] = i, gates[n] = f, gates[2 * n] = g, gates[3 * n] = o;
    c[(i64)t * n + j] = cell;
    h[(i64)t * n + j] = o * tanhf(cell);
}

extern "C" __global__ void lstm_step_backward(
    f32* dgates, f32* dc, const f32* gates, const f32* c, const f32* dh, const f32* next, u32 n, u32 t, u32 before) {
    const u32 j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= n) return;
    gates += (i64)t * 4 * n + j, dgates += (i64)t * 4 * n + j;
    const f32 i = gates[0], f = gates[n], g = gates[2 * n], o = gates[3 * n];
    const f32 th = tanhf(c[(i64)t * n + j]), d = dh[(i64)t * n + j] + next[j];
    const f32 cell = dc[j] + d * o * (1.0f - th * th);
    const f32 last = before == NONE ? 0.0f : c[(i64)before * n + j];
    dgates[0] = cell * g * i * (1.0f - i);
    dgates[n] = cell * last * f * (1.0f - f);
    dgates[2 * n] = cell * i * (1.0f - g * g);
    dgates[3 * n] = d * th * o * (1.0f - o);
    dc[j] = cell * f;
}
