// Tensor cores the way Ampere has them: cp.async brings tiles to shared memory, ldmatrix takes fragments out of them,
// mma.sync multiplies 16 x 16 by 16 x 8 and adds in f32.
//
// A tile is rows of COLS 16-bit elements in shared memory, in chunks of 8 elements (16 bytes). ldmatrix reads the same
// chunk of 8 consecutive rows at once; in a plain layout with rows of 64 elements or more these lie in the same banks,
// and the read takes 8 turns. So chunk c of row r lies at c xor (r mod 8) (for shorter rows, of which several share a
// line of 128 bytes, fewer bits): then the 8 chunks cover all 32 banks.
#pragma once
#include "common.cuh"

template <int COLS> __device__ __forceinline__ u32 tile_at(u32 row, u32 chunk) {
    const u32 chunks = COLS / 8, lines = COLS >= 64 ? 1 : 64 / COLS;
    const u32 mask = chunks < 8 ? chunks - 1 : 7;
    return (row * chunks + (chunk ^ (row / lines & mask))) * 16;
}

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes to shared memory without passing through registers; zeros if not `valid`.
__device__ __forceinline__ void copy16(u32 to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's groups are on their way.
template <int N> __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8 x 8 matrices; lane l gives the address of row l mod 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// The fragment of A for rows m.. and depth k..: of a tile that is stored [m][k], or [k][m].
template <int COLS, bool TRANSPOSED> __device__ __forceinline__ void fragment_a(u32 (&r)[4], u32 tile, u32 m, u32 k) {
    const u32 l = threadIdx.x % 32;
    if (!TRANSPOSED)
        load_matrices(r, tile + tile_at<COLS>(m + l % 16, k / 8 + l / 16));
    else
        load_matrices_transposed(r, tile + tile_at<COLS>(k + l % 8 + l / 16 * 8, m / 8 + l / 8 % 2));
}

// The fragments of B for columns n..n + 16 (r[0], r[1]: the first 8; r[2], r[3]: the others) and depth k..: of a tile
// that is stored [n][k], or [k][n].
template <int COLS, bool TRANSPOSED> __device__ __forceinline__ void fragment_b(u32 (&r)[4], u32 tile, u32 n, u32 k) {
    const u32 l = threadIdx.x % 32;
    if (!TRANSPOSED)
        load_matrices(r, tile + tile_at<COLS>(n + l % 8 + l / 16 * 8, k / 8 + l / 8 % 2));
    else
        load_matrices_transposed(r, tile + tile_at<COLS>(k + l % 8 + l / 8 % 2 * 8, n / 8 + l / 16));
}

// d += a b. Lane l holds of d: rows l / 4 (d[0], d[1]) and l / 4 + 8 (d[2], d[3]), columns l % 4 * 2 and the next.
// Of the 16 products of an element the hardware knows the order; it is the same for every row and column.
__device__ __forceinline__ void multiply(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, f16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two singles to a word of two halves, the first in the lower half.
template <class Half> __device__ __forceinline__ u32 pair(f32 low, f32 high) {
    return (u32)narrow<Half>(low).bits | (u32)narrow<Half>(high).bits << 16;
}
