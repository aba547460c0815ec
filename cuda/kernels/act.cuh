// Nonlinearities and their slopes, in f32. Macro ACT: 0 SiLU, 1 GELU, 2 GELU by tanh, 3 ReLU.
#pragma once
#include "common.cuh"

struct Act {
    f32 value, slope;
};

__device__ __forceinline__ Act act(f32 x) {
#if ACT == 0
    // For x so low that expf overflows s is 0, and x s is 0 as it should be.
    const f32 s = 1.0f / (1.0f + expf(-x));
    return {x * s, s + x * s * (1.0f - s)};
#elif ACT == 1
    const f32 cdf = 0.5f * (1.0f + erff(x * 0.70710678f));
    return {x * cdf, cdf + x * expf(-0.5f * x * x) * 0.39894228f};
#elif ACT == 2
    const f32 t = tanhf(0.79788456f * (x + 0.044715f * x * x * x));
    const f32 inner = 0.79788456f * (1.0f + 0.134145f * x * x);
    return {0.5f * x * (1.0f + t), 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner};
#elif ACT == 3
    // A NaN passes through: it is not under 0.
    return x <= 0.0f ? Act{0.0f, 0.0f} : Act{x, 1.0f};
#else
#error "ACT must be 0, 1, 2 or 3"
#endif
}
