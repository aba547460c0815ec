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

// A stage is free: told to this block, or to the one of the cluster that the address is of.
__device__ __forceinline__ void release(u32 empty) {
    if (CLUSTER > 1) barrier_arrive_in_cluster(empty);
    else barrier_arrive(empty);
}

// Rung 1: a ring of STAGES tiles. The last group is the producer, of which one thread works: it fills each stage as soon as
// nobody multiplies what was there. The others multiply: two groups of 64 rows with the same tile of B between them.
// The products of a stage run while the next one's are asked for; when they are done the stage is free. A block takes every
// gridDim.x-th tile of C: while one is written, the factors of the next come.
// Rung 2: CLUSTER blocks with tiles one under the other need the same columns of B. Each fetches its part of them for all: B is
// read from the second-level cache once a cluster. So a stage is free when all blocks have multiplied what was there. Of an odd
// number of tiles of rows the last one's neighbour lies outside of the matrix: zeros come, and nothing is written.
// Shared memory: STAGES tiles, and 16 bytes for each.
extern "C" __global__ void __launch_bounds__(GROUP * (GROUPS + 1), 1) matmul_hopper(
    O* c, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap a2,
    const __grid_constant__ TensorMap b2, const T* bias, f32 alpha, u32 m, u32 n, u32 k, u32 k2, u32 ldc, u32 part) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 bytes_a = GROUPS * BOX, bytes = bytes_a + BYTES_B;
    const u32 shared = shared_address(memory), full = shared + STAGES * bytes, empty = full + 8 * STAGES;
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
    // Steps of this part; all of them, if there is but one. A part that is not the first has a C of its own.
    const u32 begin = blockIdx.y * part, all = (k + BK - 1) / BK, first = part ? min(part, all - begin) : all;
    const u32 steps = first + (k2 + BK - 1) / BK, group = threadIdx.x / GROUP;
    c += (u64)blockIdx.y * m * ldc;
    // Blocks of a cluster take tiles one under the other: here they count as one.
    const u32 rank = CLUSTER > 1 ? cluster_rank() : 0, own = rank * 64 * GROUPS, rows = 64 * GROUPS * CLUSTER;
    const u32 tiles = tiles_of(m, n, rows);
    u32 taken = 0, row, column;  // stages, of all tiles
    if (group == GROUPS) {
        if (GROUPS == 2) release_registers<40>();
        if (threadIdx.x == GROUP * GROUPS)
            for (u32 tile = blockIdx.x / CLUSTER; tile < tiles; tile += gridDim.x / CLUSTER) {
                place(tile, m, n, rows, row, column);
                for (u32 step = 0; step < steps; ++step, ++taken) {
                    const u32 s = taken % STAGES, to = shared + s * bytes;
                    const bool main = step < first;
                    const u32 depth = (main ? begin + step : step - first) * BK;
                    barrier_wait(empty + 8 * s, taken / STAGES & 1 ^ 1);  // at first at once
                    barrier_expect(full + 8 * s, bytes);
                    fetch<A_T, GROUPS>(to, main ? &a : &a2, full + 8 * s, row + own, depth);
                    const TensorMap* of_b = main ? &b : &b2;
                    if (CLUSTER > 1) fetch_shared<B_T, BOXES_B>(to + bytes_a, of_b, full + 8 * s, column, depth, rank);
                    else fetch<B_T, BOXES_B>(to + bytes_a, of_b, full + 8 * s, column, depth);
                }
            }
    } else {
        if (GROUPS == 2) claim_registers<232>();
        // Lane r tells block r of the cluster that a stage is free.
        const u32 lane = threadIdx.x % 32, freed = CLUSTER > 1 ? in_block(empty, lane % CLUSTER) : empty;
        for (u32 tile = blockIdx.x / CLUSTER; tile < tiles; tile += gridDim.x / CLUSTER) {
            place(tile, m, n, rows, row, column);
            row += own;
            if (ADD) fetch_ahead(c, row + group * 64, column, m, n, ldc);
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
            finish(c, sums, row + group * 64, column, m, n, ldc, bias, alpha);
        }
    }
    if (CLUSTER > 1) cluster_meet();  // the other block may still arrive here
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
