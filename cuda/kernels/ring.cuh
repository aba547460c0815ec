// A ring of tiles: the way of a product on Hopper, for kernels that differ in which tiles there are and what they are made of.
//
// Macros and the meaning of their values: matmul_hopper.cu.
#pragma once
#include "hopper.cuh"
#include "product.cuh"

const u32 BK = 64;  // depth of a box
const u32 COLUMNS = BN / 8;
const u32 BYTES_B = BN * 128;
const u32 BOXES_B = BN < 64 ? 1 : BN / 64;  // one of fewer rows, if there are no 64

// Boxes of COUNT * 64 rows (or columns, of B) and 64 steps of depth.
template <bool TRANSPOSED, u32 COUNT> __device__ __forceinline__ void fetch(
    u32 to, const TensorMap* map, u32 barrier, u32 row, u32 depth) {
#pragma unroll
    for (u32 i = 0; i < COUNT; ++i) {
        if (TRANSPOSED) load_box(to + i * BOX, map, barrier, row + 64 * i, depth);
        else load_box(to + i * BOX, map, barrier, depth, row + 64 * i);
    }
}

// Of the boxes of B that the blocks of a cluster share, this one's part, to all of them.
template <bool TRANSPOSED, u32 COUNT> __device__ __forceinline__ void fetch_shared(
    u32 to, const TensorMap* map, u32 barrier, u32 row, u32 depth, u32 rank) {
    const u32 part = COUNT / CLUSTER;
#pragma unroll
    for (u32 i = 0; i < part; ++i) {
        const u32 box = rank * part + i;
        const u32 x = TRANSPOSED ? row + 64 * box : depth, y = TRANSPOSED ? depth : row + 64 * box;
        load_box_to(to + box * BOX, map, barrier, x, y, (1 << CLUSTER) - 1);
    }
}

// The products of a tile: 4 steps of 16.
__device__ __forceinline__ void multiply_tile(f32 (&sums)[COLUMNS][4], u32 a, u32 b) {
    settle(sums);
    products_begin();
#pragma unroll
    for (u32 s = 0; s < BK / 16; ++s) group_multiply<A_T, B_T>(sums, factor<A_T>(a, s), factor<B_T>(b, s), T());
    products_commit();
}

// Word w of lane l of each four lanes becomes word l of lane w.
__device__ __forceinline__ void transpose_quad(u32 (&words)[4]) {
    const u32 lane = threadIdx.x % 4;
#pragma unroll
    for (u32 bit = 1; bit < 4; bit *= 2)
#pragma unroll
        for (u32 w = 0; w < 4; ++w) {
            if (w & bit) continue;
            const bool upper = lane & bit;
            const u32 got = __shfl_xor_sync(ALL_LANES, upper ? words[w] : words[w | bit], bit);
            if (upper) words[w] = got;
            else words[w | bit] = got;
        }
}

// The sums of a tile that lies wholly within C, whose rows are whole words of 16 bytes, without a bias: no place is looked at
// by itself. Of halves four lanes have 32 columns of a row, 2 of each 8; they exchange them so that each stores 8 in a row, and
// all four whole sectors. The first addend is rounded once with the product, as the compiler does it in finish2().
template <class Half> __device__ __forceinline__ void finish_whole(
    Half* c, const f32 (&sums)[COLUMNS][4], u32 e, f32 alpha) {
    Half* to = c + threadIdx.x % 4 * 8;
#pragma unroll
    for (u32 j = 0; j < COLUMNS; j += 4) {
        u32 words[4];
#pragma unroll
        for (u32 w = 0; w < 4; ++w) {
            const Half low = narrow<Half>(alpha * sums[j + w][e]), high = narrow<Half>(alpha * sums[j + w][e + 1]);
            words[w] = (u32)low.bits | (u32)high.bits << 16;
        }
        transpose_quad(words);
        *(uint4*)(to + 8 * j) = make_uint4(words[0], words[1], words[2], words[3]);
    }
}
__device__ __forceinline__ void finish_whole(f32* c, const f32 (&sums)[COLUMNS][4], u32 e, f32 alpha) {
    float2* to = (float2*)c + threadIdx.x % 4;
#pragma unroll
    for (u32 j = 0; j < COLUMNS; ++j) {
        const f32 low = sums[j][e], high = sums[j][e + 1];
        if (ADD) {
            const float2 before = to[4 * j];
            to[4 * j] = make_float2(__fmaf_rn(alpha, low, before.x), __fmaf_rn(alpha, high, before.y));
        } else {
            to[4 * j] = make_float2(alpha * low, alpha * high);
        }
    }
}

// The sums of a group of four warps to rows from `row` on and columns from `column` on.
__device__ __forceinline__ void finish(
    O* c, const f32 (&sums)[COLUMNS][4], u32 row, u32 column, u32 m, u32 n, u32 ldc, const T* bias, f32 alpha) {
    const u32 warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const bool within = row + 64 <= m && column + BN <= n && n % 8 == 0 && aligned(c) && !bias;
    if (within && (sizeof(O) == 4 || !ADD)) {
        c += (u64)(row + warp * 16 + lane / 4) * ldc + column;
        finish_whole(c, sums, 0, alpha);
        finish_whole(c + (u64)8 * ldc, sums, 2, alpha);
        return;
    }
#pragma unroll
    for (u32 j = 0; j < COLUMNS; ++j)
#pragma unroll
        for (u32 e = 0; e < 4; e += 2) {
            const u32 r = row + warp * 16 + lane / 4 + e / 2 * 8, q = column + 8 * j + lane % 4 * 2;
            if (r < m && q < n) finish2(c + (u64)r * ldc + q, sums[j][e], sums[j][e + 1], q, n, bias, alpha);
        }
}

// Asks for what is to be added to, 64 rows by a group, while the products are made.
__device__ __forceinline__ void fetch_ahead(const O* c, u32 row, u32 column, u32 m, u32 n, u32 ldc) {
    const u32 line = 128 / sizeof(O), lines = BN / line;
    for (u32 i = threadIdx.x % GROUP; i < 64 * lines; i += GROUP) {
        const u32 r = row + i / lines, q = column + i % lines * line;
        if (r < m && q < n) asm volatile("prefetch.global.L2 [%0];" ::"l"(c + (u64)r * ldc + q));
    }
}

// Tiles of C of so many rows, and the first row and column of one. Blocks that run at the same time should share tiles of A and B: bands of 8
// tiles of rows, columns within.
__device__ __forceinline__ u32 tiles_of(u32 m, u32 n, u32 rows) { return (m + rows - 1) / rows * ((n + BN - 1) / BN); }
__device__ __forceinline__ void place(u32 tile, u32 m, u32 n, u32 rows, u32& row, u32& column) {
    const u32 down = (m + rows - 1) / rows, across = (n + BN - 1) / BN, band = tile / (8 * across);
    const u32 height = min(8, down - band * 8), within = tile - band * 8 * across;
    row = (band * 8 + within % height) * rows;
    column = within / height * BN;
}

// What a tile is: its first row and column, where its rows end, and B's maps.
struct Tile {
    u32 row, column, end;
    const TensorMap *b, *b2;
};

// A stage is free: told to this block, or to the one of the cluster that the address is of.
__device__ __forceinline__ void release(u32 empty) {
    if (CLUSTER > 1) barrier_arrive_in_cluster(empty);
    else barrier_arrive(empty);
}

// A ring of STAGES tiles of A and B in shared memory. The last group is the producer, of which one thread works: it fills each
// stage as soon as nobody multiplies what was there. The others multiply: two groups of 64 rows with the same tile of B between
// them. The products of a stage run while the next one's are asked for; when they are done the stage is free. A block takes every
// gridDim.x-th of the `count` tiles that `tile(i)` gives: while one is written, the factors of the next come.
// The blocks of a cluster have one tile of all their rows between them, and share B. The sums are over the steps from `begin` on,
// `part` of them or, if it is 0, all; then over those of the second term. `shared` are STAGES tiles, and 16 bytes for each.
template <class Tiles> __device__ __forceinline__ void ring(
    const Tiles& tiles, O* c, const TensorMap* a, const TensorMap* a2, const T* bias, f32 alpha, u32 n, u32 k, u32 k2, u32 ldc,
    u32 begin, u32 part, u32 shared) {
    const u32 bytes_a = GROUPS * BOX, bytes = bytes_a + BYTES_B;
    const u32 full = shared + STAGES * bytes, empty = full + 8 * STAGES;
    if (threadIdx.x == 0) {
        for (u32 s = 0; s < STAGES; ++s) {
            barrier_init(full + 8 * s, 1);                       // the producer arrives, and then the bytes
            barrier_init(empty + 8 * s, 4 * GROUPS * CLUSTER);   // each warp that multiplies, of all blocks
        }
        fence_asynchronous();
        if (CLUSTER > 1) fence_barriers_made();
    }
    if (CLUSTER > 1) cluster_meet();
    else __syncthreads();
    // Steps of this part; all of them, if there is but one.
    const u32 all = (k + BK - 1) / BK, first = part ? min(part, all - begin) : all;
    const u32 steps = first + (k2 + BK - 1) / BK, group = threadIdx.x / GROUP;
    // Blocks of a cluster take tiles one under the other: here they count as one.
    const u32 rank = CLUSTER > 1 ? cluster_rank() : 0, own = rank * 64 * GROUPS;
    const u32 count = tiles.count();
    u32 taken = 0;  // stages, of all tiles
    if (group == GROUPS) {
        if (GROUPS == 2) release_registers<40>();
        if (threadIdx.x == GROUP * GROUPS)
            for (u32 i = blockIdx.x / CLUSTER; i < count; i += gridDim.x / CLUSTER) {
                const Tile tile = tiles.tile(i, true);
                for (u32 step = 0; step < steps; ++step, ++taken) {
                    const u32 s = taken % STAGES, to = shared + s * bytes;
                    const bool main = step < first;
                    const u32 depth = (main ? begin + step : step - first) * BK;
                    barrier_wait(empty + 8 * s, taken / STAGES & 1 ^ 1);  // at first at once
                    barrier_expect(full + 8 * s, bytes);
                    fetch<A_T, GROUPS>(to, main ? a : a2, full + 8 * s, tile.row + own, depth);
                    const TensorMap* b = main ? tile.b : tile.b2;
                    if (CLUSTER > 1) fetch_shared<B_T, BOXES_B>(to + bytes_a, b, full + 8 * s, tile.column, depth, rank);
                    else fetch<B_T, BOXES_B>(to + bytes_a, b, full + 8 * s, tile.column, depth);
                }
            }
    } else {
        if (GROUPS == 2) claim_registers<232>();
        // Lane r tells block r of the cluster that a stage is free.
        const u32 lane = threadIdx.x % 32, freed = CLUSTER > 1 ? in_block(empty, lane % CLUSTER) : empty;
        for (u32 i = blockIdx.x / CLUSTER; i < count; i += gridDim.x / CLUSTER) {
            const Tile tile = tiles.tile(i, false);
            const u32 row = tile.row + own + group * 64;
            if (ADD) fetch_ahead(c, row, tile.column, tile.end, n, ldc);
            f32 sums[COLUMNS][4] = {};
            // There is a step. A loop that might have none would leave a path from the zeros above to the wait below, and the
            // assembler would then let no two products overlap.
            u32 step = 0;
            do {
                const u32 s = taken % STAGES, from = shared + s * bytes;
                barrier_wait(full + 8 * s, taken / STAGES & 1);
                multiply_tile(sums, from + group * BOX, from + bytes_a);
                products_wait<1>();  // those of the step before
                if (step > 0 && lane < CLUSTER) release(freed + 8 * ((taken - 1) % STAGES));
                ++taken;
            } while (++step < steps);
            products_wait<0>();
            settle(sums);
            if (lane < CLUSTER) release(freed + 8 * ((taken - 1) % STAGES));
            finish(c, sums, row, tile.column, tile.end, n, ldc, bias, alpha);
        }
    }
    if (CLUSTER > 1) cluster_meet();  // the other block may still arrive here
}
