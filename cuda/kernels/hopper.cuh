// Tensor cores the way Hopper has them: the copy engine brings boxes of a tensor to shared memory, an mbarrier says when
// they are there, and four warps together (a group, 128 threads) multiply what lies there, in the background.
//
// All boxes are 64 x 64 halves: rows of 128 bytes, of which the copy engine exchanges the 16-byte chunks as tile_at<64>
// does (swizzle of 128 bytes). A box must begin at a multiple of 1024 bytes, where the pattern of eight rows begins.
//
// Three things are in the background and must be waited for: a copy (barrier_wait), products (products_wait), and what
// stores wrote, which neither copies nor products see before fence_asynchronous.
#pragma once
#include "mma.cuh"

// What the host's tensor_map() made; a parameter of a kernel, by value and __grid_constant__, so that it has an address, or
// in global memory, from where a block may use it after acquire_map().
struct __align__(64) TensorMap {
    u64 words[16];
};

__device__ __forceinline__ void acquire_map(const TensorMap* map) {
    asm volatile("fence.proxy.tensormap::generic.acquire.sys [%0], 128;" ::"l"(map) : "memory");
}

const u32 BOX = 64 * 64 * 2;  // bytes
const u32 GROUP = 128;        // threads that multiply together

// An mbarrier is 8 bytes of shared memory. It counts arrivals, and bytes that were announced and have not come; when both
// are complete its phase ends and the next begins.
__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and announces bytes that copies will bring.
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Waits for the end of the phase of this parity: 0 for the first. The phase before the first has parity 1 and is over.
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    u32 over;
    do {
        asm volatile(
            "{\n.reg .pred over;\nmbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\nselp.u32 %0, 1, 0, over;\n}"
            : "=r"(over)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (!over);
}

// Blocks of a cluster run at the same time and reach into one another's shared memory: a copy may bring a box to several of
// them, and threads of one may arrive at mbarriers of another. All have begun, and their mbarriers are there, once all threads
// have met; none may end before the others have done with it.
__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ void cluster_meet() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// Barriers that this thread initialised are there for the copies of other blocks, once it has met them.
__device__ __forceinline__ void fence_barriers_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// The same place in shared memory of block `rank`, for the functions below.
__device__ __forceinline__ u32 in_block(u32 address, u32 rank) {
    u32 there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}
// Arrives at an mbarrier of any block: what products read before may be overwritten by copies of those that wait. For that no
// fence is needed, as for what threads load and store it would be; so this has no scope, and costs none.
__device__ __forceinline__ void barrier_arrive_in_cluster(u32 there) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
}

// What this thread stored to shared memory is seen by copies and products that come after a barrier from here.
__device__ __forceinline__ void fence_asynchronous() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A box from (x, y) on, x along stored rows, to shared memory; what lies outside of the tensor becomes zeros.
__device__ __forceinline__ void load_box(u32 to, const TensorMap* map, u32 barrier, u32 x, u32 y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
        "l"(map), "r"(barrier), "r"(x), "r"(y)
        : "memory");
}
// The same to each block of the cluster that `blocks` has a bit of, and told to its mbarrier: places are those of this block.
__device__ __forceinline__ void load_box_to(u32 to, const TensorMap* map, u32 barrier, u32 x, u32 y, u16 blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
        "l"(map), "r"(barrier), "r"(x), "r"(y), "h"(blocks)
        : "memory");
}
// A box of a tensor of three dimensions, as load_box().
__device__ __forceinline__ void load_box(u32 to, const TensorMap* map, u32 barrier, u32 x, u32 y, u32 z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
            to),
        "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
        : "memory");
}

// Rows of 64-row boxes from `row` on become zeros, by a warp: what a box brought from behind the end of what it was asked
// for. The boxes must have come; fence_asynchronous() lets products see it.
template <u32 COUNT> __device__ __forceinline__ void clear_rows(u32 boxes, u32 row) {
#pragma unroll
    for (u32 b = 0; b < COUNT; ++b)
        for (u32 i = row * 8 + threadIdx.x % 32; i < 512; i += 32)
            asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(boxes + b * BOX + 16 * i), "r"(0) : "memory");
}

// Threads of a group meet: barrier `number` of the block, from 1 on, as 0 is where all meet.
__device__ __forceinline__ void group_meet(u32 number) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "n"(GROUP) : "memory");
}

// Registers of the warps of a group: fewer for those that only ask for copies, more for those that multiply. Each warp of
// the group runs it once.
template <u32 N> __device__ __forceinline__ void release_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <u32 N> __device__ __forceinline__ void claim_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// Before products: their registers are what they are to be.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// The products asked for since the last commit are a batch.
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most N batches are on their way. Sums may not be touched before.
template <u32 N> __device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// Keeps the compiler from moving what is done with registers over a fence or a wait, neither of which names them.
template <u32 N> __device__ __forceinline__ void settle(f32 (&sums)[N][4]) {
#pragma unroll
    for (u32 i = 0; i < N; ++i)
#pragma unroll
        for (u32 e = 0; e < 4; ++e) asm volatile("" : "+f"(sums[i][e])::"memory");
}

template <u32 N> __device__ __forceinline__ void settle(u32 (&words)[N][4]) {
#pragma unroll
    for (u32 i = 0; i < N; ++i)
#pragma unroll
        for (u32 e = 0; e < 4; ++e) asm volatile("" : "+r"(words[i][e])::"memory");
}

// Where a factor of 64 rows and 16 steps of depth begins in a box, for the tensor cores: step `s` of 4. Of a box that is
// stored [row][depth], the steps are 32 bytes apart within the rows of 128, and eight rows are 1024 bytes; further boxes
// follow at once, so the rows just go on. Of one that is stored [depth][row], a step is 16 rows of the box; further rows
// are in the next box.
template <bool TRANSPOSED> __device__ __forceinline__ u64 factor(u32 box, u32 step) {
    const u32 start = box + step * (TRANSPOSED ? 2048 : 32), leading = TRANSPOSED ? BOX : 16, stride = 1024;
    return (u64)(start >> 4 & 0x3fff) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | 1ull << 62;
}

// The same of what lies `bytes` behind it: an addition, where factor() would be made anew for each product.
__device__ __forceinline__ u64 behind(u64 factor, u32 bytes) {
    return factor & 0xffffffff00000000ull | (u32)factor + (bytes >> 4);
}

// sums += a b, 64 rows and 8 * N columns, 16 steps of depth, in the background. Warp w of the group holds rows 16 w to
// 16 w + 15, each lane of them what `multiply` in mma.cuh says.
#define SUMS_4(i) "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
#define SUMS_32(i) \
    SUMS_4(i), SUMS_4(i + 1), SUMS_4(i + 2), SUMS_4(i + 3), SUMS_4(i + 4), SUMS_4(i + 5), SUMS_4(i + 6), SUMS_4(i + 7)
#define NAMES_32                                                                                                      \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                          \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64                                                                                                      \
    NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                     \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define NAMES_128                                                                                                     \
    NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                     \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                                \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "                    \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define PRODUCT(Half, half)                                                                                           \
    template <bool A_TRANSPOSED, bool B_TRANSPOSED> __device__ __forceinline__ void group_multiply(                   \
        f32 (&sums)[4][4], u64 a, u64 b, Half) {                                                                      \
        asm volatile(                                                                                                 \
            "{\n.reg .pred add;\nsetp.ne.u32 add, %18, 0;\n"                                                          \
            "wgmma.mma_async.sync.aligned.m64n32k16.f32." half "." half " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "  \
            "%10, %11, %12, %13, %14, %15}, %16, %17, add, 1, 1, %19, %20;\n}"                                        \
            : SUMS_4(0), SUMS_4(1), SUMS_4(2), SUMS_4(3)                                                              \
            : "l"(a), "l"(b), "r"(1), "n"((int)A_TRANSPOSED), "n"((int)B_TRANSPOSED));                                \
    }                                                                                                                 \
    template <bool A_TRANSPOSED, bool B_TRANSPOSED> __device__ __forceinline__ void group_multiply(                   \
        f32 (&sums)[8][4], u64 a, u64 b, Half) {                                                                      \
        asm volatile(                                                                                                 \
            "{\n.reg .pred add;\nsetp.ne.u32 add, %34, 0;\n"                                                          \
            "wgmma.mma_async.sync.aligned.m64n64k16.f32." half "." half " {" NAMES_32 "}, %32, %33, add, 1, 1, "      \
            "%35, %36;\n}"                                                                                            \
            : SUMS_32(0)                                                                                              \
            : "l"(a), "l"(b), "r"(1), "n"((int)A_TRANSPOSED), "n"((int)B_TRANSPOSED));                                \
    }                                                                                                                 \
    template <bool A_TRANSPOSED, bool B_TRANSPOSED> __device__ __forceinline__ void group_multiply(                   \
        f32 (&sums)[16][4], u64 a, u64 b, Half) {                                                                     \
        asm volatile(                                                                                                 \
            "{\n.reg .pred add;\nsetp.ne.u32 add, %66, 0;\n"                                                          \
            "wgmma.mma_async.sync.aligned.m64n128k16.f32." half "." half " {" NAMES_64 "}, %64, %65, add, 1, 1, "     \
            "%67, %68;\n}"                                                                                            \
            : SUMS_32(0), SUMS_32(8)                                                                                  \
            : "l"(a), "l"(b), "r"(1), "n"((int)A_TRANSPOSED), "n"((int)B_TRANSPOSED));                                \
    }                                                                                                                 \
    template <bool A_TRANSPOSED, bool B_TRANSPOSED> __device__ __forceinline__ void group_multiply(                   \
        f32 (&sums)[32][4], u64 a, u64 b, Half) {                                                                     \
        asm volatile(                                                                                                 \
            "{\n.reg .pred add;\nsetp.ne.u32 add, %130, 0;\n"                                                         \
            "wgmma.mma_async.sync.aligned.m64n256k16.f32." half "." half " {" NAMES_128 "}, %128, %129, add, 1, 1, "  \
            "%131, %132;\n}"                                                                                          \
            : SUMS_32(0), SUMS_32(8), SUMS_32(16), SUMS_32(24)                                                        \
            : "l"(a), "l"(b), "r"(1), "n"((int)A_TRANSPOSED), "n"((int)B_TRANSPOSED));                                \
    }                                                                                                                 \
    /* The same with a in registers, as the fragments of mma.cuh. */                                                  \
    template <bool B_TRANSPOSED> __device__ __forceinline__ void group_multiply(                                      \
        f32 (&sums)[8][4], const u32 (&a)[4], u64 b, Half) {                                                          \
        asm volatile(                                                                                                 \
            "{\n.reg .pred add;\nsetp.ne.u32 add, %37, 0;\n"                                                          \
            "wgmma.mma_async.sync.aligned.m64n64k16.f32." half "." half " {" NAMES_32 "}, {%32, %33, %34, %35}, "     \
            "%36, add, 1, 1, %38;\n}"                                                                                 \
            : SUMS_32(0)                                                                                              \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1), "n"((int)B_TRANSPOSED));                    \
    }                                                                                                                 \
    template <bool B_TRANSPOSED> __device__ __forceinline__ void group_multiply(                                      \
        f32 (&sums)[16][4], const u32 (&a)[4], u64 b, Half) {                                                         \
        asm volatile(                                                                                                 \
            "{\n.reg .pred add;\nsetp.ne.u32 add, %69, 0;\n"                                                          \
            "wgmma.mma_async.sync.aligned.m64n128k16.f32." half "." half " {" NAMES_64 "}, {%64, %65, %66, %67}, "    \
            "%68, add, 1, 1, %70;\n}"                                                                                 \
            : SUMS_32(0), SUMS_32(8)                                                                                  \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1), "n"((int)B_TRANSPOSED));                    \
    }                                                                                                                 \
    template <bool B_TRANSPOSED> __device__ __forceinline__ void group_multiply(                                      \
        f32 (&sums)[32][4], const u32 (&a)[4], u64 b, Half) {                                                         \
        asm volatile(                                                                                                 \
            "{\n.reg .pred add;\nsetp.ne.u32 add, %133, 0;\n"                                                         \
            "wgmma.mma_async.sync.aligned.m64n256k16.f32." half "." half " {" NAMES_128 "}, {%128, %129, %130, "      \
            "%131}, %132, add, 1, 1, %134;\n}"                                                                        \
            : SUMS_32(0), SUMS_32(8), SUMS_32(16), SUMS_32(24)                                                        \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1), "n"((int)B_TRANSPOSED));                    \
    }

PRODUCT(bf16, "bf16")
PRODUCT(f16, "f16")
