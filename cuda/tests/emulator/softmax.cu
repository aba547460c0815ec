// y[r, i] = exp(x[r, i] - max) / sum; f32 (rows, n). A warp a row, four rows a block.
extern "C" __global__ void softmax(const float *x, float *y, int rows, int n) {
    int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += (size_t)row * n;
    y += (size_t)row * n;
    float top = __int_as_float(0xff800000), sum = 0.f;
    for (int i = lane; i < n; i += 32) top = fmaxf(top, x[i]);
    for (int d = 16; d > 0; d /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    for (int i = lane; i < n; i += 32) sum += expf(x[i] - top);
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    for (int i = lane; i < n; i += 32) y[i] = __expf(x[i] - top) / sum;
}
