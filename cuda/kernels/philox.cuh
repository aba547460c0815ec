// Philox4x32-10, as on the CPU: four words from (seed, purpose, step, index).
// Source: Salmon, Moraes, Dror, Shaw, SC 2011.
#pragma once
#include "common.cuh"

struct Words {
    u32 v[4];
};

__device__ __forceinline__ Words philox(Words c, u32 k0, u32 k1) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u64 p0 = 0xD2511F53ull * c.v[0], p1 = 0xCD9E8D57ull * c.v[2];
        c = {{(u32)(p1 >> 32) ^ c.v[1] ^ k0, (u32)p1, (u32)(p0 >> 32) ^ c.v[3] ^ k1, (u32)p0}};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// Block i of a stream.
__device__ __forceinline__ Words random_block(u64 seed, u32 purpose, u64 step, u64 i) {
    return philox({{(u32)i, (u32)(i >> 32), (u32)step, (u32)(step >> 32) ^ purpose << 24}}, (u32)seed, (u32)(seed >> 32));
}

// Number i of a stream, uniform in [0, 1), a multiple of 2^-53.
__device__ __forceinline__ f64 random_uniform(u64 seed, u32 purpose, u64 step, u64 i) {
    const Words w = random_block(seed, purpose, step, i / 2);
    const u64 both = i % 2 ? (u64)w.v[2] << 32 | w.v[3] : (u64)w.v[0] << 32 | w.v[1];
    return (f64)(both >> 11) * (1.0 / 9007199254740992.0);
}
