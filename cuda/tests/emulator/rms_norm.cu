// y[r, i] = x[r, i] / sqrt(mean_i x[r, i]^2 + eps) * w[i]; x, y: bf16 (rows, n), w: f32 (n). A block a row.
#include <cuda_bf16.h>

extern "C" __global__ void rms_norm(const __nv_bfloat16 *x, const float *w, __nv_bfloat16 *y, int n, float eps) {
    __shared__ float partial[32];
    const __nv_bfloat16 *row = x + (size_t)blockIdx.x * n;
    float sum = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float v = __bfloat162float(row[i]);
        sum += v * v;
    }
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0.f;
    for (int i = 0; i < blockDim.x / 32; i++) sum += partial[i];
    float scale = rsqrtf(sum / n + eps);
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        y[(size_t)blockIdx.x * n + i] = __float2bfloat16(__bfloat162float(row[i]) * scale * w[i]);
    }
}
