// Caches of sequences that are decoded: each a piece of memory of its own, found by a table on the device.
//
// A cache is rows of (kv_heads, size) T. Of layer l, the keys are `capacity` rows from row 2 l capacity on, key j in row j of
// them, and the values as many rows behind them. What rows no key was written to hold are numbers, though any.
#pragma once
#include "common.cuh"

// An entry of the table, which the host writes.
struct __align__(128) Cache {
    u64 map[16];  // on Hopper, a tensor map of all rows
    void* rows;
    u64 capacity;
    u64 rest[14];
};

// Row of the first key of a layer.
__device__ __forceinline__ u64 first_key(const Cache& cache, u32 layer) { return 2 * cache.capacity * layer; }
