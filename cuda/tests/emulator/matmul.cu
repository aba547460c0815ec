// c[i, j] = sum_k a[i, k] b[j, k]; a: bf16 (m, k), b: bf16 (n, k), c: f32 (m, n). m, n multiples of 64, k of 32.
// A block makes a tile of 64 x 64 with four warps; cp.async into two stages, ldmatrix, mma.m16n8k16.
#include <cuda_bf16.h>

constexpr int TILE = 64, DEPTH = 32, PITCH = DEPTH + 8;

__device__ unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ void load_tile(__nv_bfloat16 (*to)[PITCH], const __nv_bfloat16 *from, int k) {
    for (int i = threadIdx.x; i < TILE * DEPTH / 8; i += 128) {
        int row = i / (DEPTH / 8), column = i % (DEPTH / 8) * 8;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&to[row][column])),
                     "l"(from + (size_t)row * k + column));
    }
}

extern "C" __global__ void matmul(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c, int n, int k) {
    __shared__ __align__(16) __nv_bfloat16 at[2][TILE][PITCH], bt[2][TILE][PITCH];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    a += (size_t)blockIdx.y * TILE * k;
    b += (size_t)blockIdx.x * TILE * k;
    float acc[8][4] = {};
    load_tile(at[0], a, k);
    load_tile(bt[0], b, k);
    asm volatile("cp.async.commit_group;");
    for (int step = 0; step < k / DEPTH; step++) {
        int now = step % 2;
        if (step + 1 < k / DEPTH) {
            load_tile(at[now ^ 1], a + (step + 1) * DEPTH, k);
            load_tile(bt[now ^ 1], b + (step + 1) * DEPTH, k);
        }
        asm volatile("cp.async.commit_group;");
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        for (int kk = 0; kk < DEPTH; kk += 16) {
            unsigned af[4];
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(af[0]), "=r"(af[1]), "=r"(af[2]), "=r"(af[3])
                         : "r"(shared_address(&at[now][warp * 16 + lane % 16][kk + lane / 16 * 8])));
            for (int j = 0; j < 8; j++) {
                unsigned bf[2];
                asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                             : "=r"(bf[0]), "=r"(bf[1])
                             : "r"(shared_address(&bt[now][j * 8 + lane % 8][kk + lane / 8 % 2 * 8])));
                asm volatile(
                    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                    "{%0,%1,%2,%3};"
                    : "+f"(acc[j][0]), "+f"(acc[j][1]), "+f"(acc[j][2]), "+f"(acc[j][3])
                    : "r"(af[0]), "r"(af[1]), "r"(af[2]), "r"(af[3]), "r"(bf[0]), "r"(bf[1]));
            }
        }
        __syncthreads();
    }
    int row = blockIdx.y * TILE + warp * 16 + lane / 4;
    for (int j = 0; j < 8; j++) {
        int column = blockIdx.x * TILE + j * 8 + lane % 4 * 2;
        *(float2 *)&c[(size_t)row * n + column] = make_float2(acc[j][0], acc[j][1]);
        *(float2 *)&c[(size_t)(row + 8) * n + column] = make_float2(acc[j][2], acc[j][3]);
    }
}
