// Matrix product on Hopper: C = alpha (A B + A2 B2) + bias, or C += that.
//
//   C (m, n) O     A (m, k) T     B (k, n) T     A2 (m, k2), B2 (k2, n) T     bias (n) T, may be null
//
// The product of matmul.cu, its layouts (A_T, B_T) and its second term, the way Hopper's tensor cores are fast: they read
// both factors from shared memory, four warps at a time, and run in the background. So nothing passes through
// registers but the sums, and the warps that multiply need not move data: a warp of its own asks the copy engine for boxes
// of 64 x 64, as many as there is room for, and each box says by an mbarrier that it has come. Edges need no code
// either: what a box has outside of its matrix is zero, and adding 0 changes no sum.
//
// Accumulation in f32. Order: k in steps of 16, one wgmma after another onto one accumulator, then k2 likewise. No
// split-k, and the tile only says how many such chains run at a time: an element's bits depend neither on m, n nor the
// tile. On Hopper all products of these types go here, however few rows they have: mma.sync may add 16 products otherwise.
// But the gradient of a weight, whose depth is the tokens of a batch, is made in parts of PART tokens where it has few tiles:
// the parts are matrices of their own, added up in order by matmul_hopper_join. Whether it is depends on m, n and k alone.
// Contract: C is written (=), or added to (+=) with ADD = 1.
// Bound by arithmetic, 2 m n k, if m and n are hundreds; by reading B if m is small (decoding): hence several tiles.
//
// Macros: T (bf16 or f16), O (type of C), A_T, B_T, ADD; GROUPS of four warps that multiply, each 64 rows; BN columns of a
// block (64, 128 or 256; 32 too where B is not transposed, as a row of a box is 128 bytes), STAGES tiles in the ring, CLUSTER
// blocks that share B (1; 2 of 128 columns or more). Rows of A, B, A2 and B2 are multiples of 8 elements, all begin at multiples
// of 16 bytes, and k is not 0.
// Source: PTX ISA 9.0, 9.7.15 (wgmma), 9.7.9.25 (bulk copies), 9.7.13.15 (mbarrier).
#include "ring.cuh"

// Rung 0: one group does all by turns. It asks for a tile, waits for it, multiplies it and waits again.
// Shared memory: a box of A, BN rows of B, and 8 bytes.
extern "C" __global__ void __launch_bounds__(128) matmul_hopper_by_turns(
    O* c, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap a2,
    const __grid_constant__ TensorMap b2, const T* bias, f32 alpha, u32 m, u32 n, u32 k, u32 k2, u32 ldc) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 ta = shared_address(memory), tb = ta + BOX, arrived = tb + BYTES_B;
    u32 row, column;
    place(blockIdx.x, m, n, 64, row, column);
    if (threadIdx.x == 0) {
        barrier_init(arrived, 1);
        fence_asynchronous();
    }
    f32 sums[COLUMNS][4] = {};
    const u32 first = (k + BK - 1) / BK, steps = first + (k2 + BK - 1) / BK;
    for (u32 step = 0; step < steps; ++step) {
        __syncthreads();  // the barrier is there, and all are done with the tile before
        if (threadIdx.x == 0) {
            const bool main = step < first;
            const u32 depth = (main ? step : step - first) * BK;
            barrier_expect(arrived, BOX + BYTES_B);
            fetch<A_T, 1>(ta, main ? &a : &a2, arrived, row, depth);
            fetch<B_T, BOXES_B>(tb, main ? &b : &b2, arrived, column, depth);
        }
        barrier_wait(arrived, step & 1);
        multiply_tile(sums, ta, tb);
        products_wait<0>();
    }
    settle(sums);
    finish(c, sums, row, column, m, n, ldc, bias, alpha);
}

// The tiles of one product.
struct OfAll {
    const TensorMap *b, *b2;
    u32 m, n;

    static const u32 ROWS = 64 * GROUPS * CLUSTER;

    __device__ __forceinline__ u32 count() const { return tiles_of(m, n, ROWS); }
    __device__ __forceinline__ Tile tile(u32 i, bool) const {
        Tile tile = {0, 0, m, b, b2};
        place(i, m, n, ROWS, tile.row, tile.column);
        return tile;
    }
};

// Rung 1: the ring of ring.cuh.
// Rung 2: CLUSTER blocks with tiles one under the other need the same columns of B. Each fetches its part of them for all: B is
// read from the second-level cache once a cluster. So a stage is free when all blocks have multiplied what was there. Of an odd
// number of tiles of rows the last one's neighbour lies outside of the matrix: zeros come, and nothing is written.
// A part that is not the first has a C of its own. Shared memory: STAGES tiles, and 16 bytes for each.
extern "C" __global__ void __launch_bounds__(GROUP * (GROUPS + 1), 1) matmul_hopper(
    O* c, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap a2,
    const __grid_constant__ TensorMap b2, const T* bias, f32 alpha, u32 m, u32 n, u32 k, u32 k2, u32 ldc, u32 part) {
    extern __shared__ __align__(1024) u8 memory[];
    const OfAll tiles = {&b, &b2, m, n};
    c += (u64)blockIdx.y * m * ldc;
    ring(tiles, c, &a, &a2, bias, alpha, n, k, k2, ldc, blockIdx.y * part, part, shared_address(memory));
}

// C = or += alpha (the sum of parts) + bias; parts (count, m n) f32. An element a thread, parts in order.
extern "C" __global__ void matmul_hopper_join(
    O* c, const f32* parts, const T* bias, f32 alpha, u64 size, u32 n, u32 count) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    f32 sum = parts[i];
    for (u32 p = 1; p < count; ++p) sum += parts[i + p * size];
    c[i] = narrow<O>(finished(c + i, sum, (u32)(i % n), bias, alpha));
}
