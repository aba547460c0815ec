// Products of runs of rows, each with a matrix of its own: experts. For row r of run g: C_r = A_r B_g.
//
//   C (rows, n) O     A (rows, k) T     B_g (k, n) T
//
// The ring of matmul_hopper.cu over the tiles of all runs: short runs, which by themselves would leave most of a card without
// work, fill it together, and the host launches once. A tile of rows belongs to one run. Its boxes of A may go on into the rows of
// the next run: what those make is not stored. An element's sum has the order, and so the bits, of matmul_hopper.cu.
//
// maps: where each B_g is. tiles: of each tile of rows its run, its first row and where the run ends. Both are the host's.
// Contract: C is written (=), all rows of all runs. Bound by arithmetic, 2 rows n k; by reading all B if runs are short.
//
// Macros: those of matmul_hopper.cu, with A_T = 0, ADD = 0 and CLUSTER = 1.
// Source: PTX ISA 9.0, 9.7.9.27 (maps in global memory).
#include "ring.cuh"

struct RowTile {
    u32 run, row, end, unused;
};

struct OfRuns {
    const TensorMap* maps;
    const RowTile* tiles;
    u32 down, n;

    __device__ __forceinline__ u32 count() const { return down * ((n + BN - 1) / BN); }
    __device__ __forceinline__ Tile tile(u32 i, bool asks) const {
        u32 which, column;
        place(i, down, n, 1, which, column);
        const uint4 of = *(const uint4*)(tiles + which);
        const TensorMap* b = maps + of.x;
        if (asks) acquire_map(b);
        return Tile{of.y, column, of.z, b, b};
    }
};

extern "C" __global__ void __launch_bounds__(GROUP * (GROUPS + 1), 1) matmul_runs_hopper(
    O* c, const __grid_constant__ TensorMap a, const TensorMap* maps, const RowTile* tiles, u32 down, u32 n, u32 k) {
    extern __shared__ __align__(1024) u8 memory[];
    const OfRuns of = {maps, tiles, down, n};
    ring(of, c, &a, &a, nullptr, 1.0f, n, k, 0, n, 0, 0, shared_address(memory));
}
