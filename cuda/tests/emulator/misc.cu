// Small kernels: divergence, atomics, half-precision arithmetic, local and constant memory, votes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// steps[i] = how many steps of the Collatz sequence lead from i + 1 to 1.
extern "C" __global__ void collatz(int *steps, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned long long v = i + 1;
    int count = 0;
    while (v != 1) {
        v = v % 2 ? 3 * v + 1 : v / 2;
        count++;
    }
    steps[i] = count;
}

// counts[bin] += how many x fall in it, through a histogram in shared memory; total += their sum; top = max.
extern "C" __global__ void histogram(const unsigned *x, unsigned *counts, float *total, int *top, int n) {
    __shared__ unsigned bins[16];
    if (threadIdx.x < 16) bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        atomicAdd(&bins[x[i] % 16], 1u);
        atomicAdd(total, (float)(x[i] % 16));
        atomicMax(top, (int)(x[i] & 0x7fffffff));
    }
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(&counts[threadIdx.x], bins[threadIdx.x]);
}

// out[0] = a*b+c, out[1] = a+b, out[2] = max(a, b), out[3] = a/b, per pair, in half and in bfloat16.
extern "C" __global__ void halves(const __half2 *a, const __half2 *b, const __half2 *c, __half2 *out, int n) {
    int i = threadIdx.x;
    if (i >= n) return;
    out[i] = __hfma2(a[i], b[i], c[i]);
    out[n + i] = __hadd2(a[i], b[i]);
    out[2 * n + i] = __hmax2(a[i], b[i]);
    out[3 * n + i] = __h2div(a[i], b[i]);
}
extern "C" __global__ void bfloats(const __nv_bfloat162 *a, const __nv_bfloat162 *b, const __nv_bfloat162 *c,
                                   __nv_bfloat162 *out, int n) {
    int i = threadIdx.x;
    if (i >= n) return;
    out[i] = __hfma2(a[i], b[i], c[i]);
    out[n + i] = __hadd2(a[i], b[i]);
    out[2 * n + i] = __hmax2(a[i], b[i]);
    out[3 * n + i] = __h2div(a[i], b[i]);
}

__constant__ int primes[8] = {2, 3, 5, 7, 11, 13, 17, 19};
__device__ int calls;

// out[i] = the i % 8 th of a list that is built in local memory from the constants, times how many lanes are odd.
extern "C" __global__ void indexed(int *out, int n) {
    int list[8];
    for (int i = 0; i < 8; i++) list[(i + n) % 8] = primes[i] + threadIdx.x;
    unsigned odd = __ballot_sync(0xffffffffu, threadIdx.x & 1);
    out[threadIdx.x] = list[threadIdx.x % 8] * __popc(odd);
    if (threadIdx.x == 0) atomicAdd(&calls, 1);
    out[blockDim.x + threadIdx.x] = __reduce_add_sync(0xffffffffu, threadIdx.x);
}

// Functions of one float, of the accurate and of the fast kind.
extern "C" __global__ void functions(const float *x, float *y, double *z, int n) {
    int i = threadIdx.x;
    if (i >= n) return;
    float v = x[i];
    y[i] = expf(v);
    y[n + i] = logf(fabsf(v));
    y[2 * n + i] = tanhf(v);
    y[3 * n + i] = sinf(v);
    y[4 * n + i] = sqrtf(fabsf(v));
    y[5 * n + i] = 1.f / v;
    y[6 * n + i] = erff(v);
    y[7 * n + i] = powf(fabsf(v), 1.3f);
    z[i] = exp((double)v);
    z[n + i] = 1.0 / (double)v;
    z[2 * n + i] = sqrt(fabs((double)v));
}
