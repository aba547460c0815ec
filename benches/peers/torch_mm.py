"""torch.mm in f32 (MKL where torch has it): a JSON line a shape, GFLOP/s.

The same shapes, repetitions and layouts as `benches/examples/gemm_shapes.rs`: y = x W^T with x of
(m, k) and W of (n, k), as a linear layer computes it; the best and the median of the repetitions.
"""

import argparse
import statistics

from common import emit, now

# (m, k, n), as in benches/src/lib.rs.
SHAPES = [(1024, 1024, 1024), (2048, 576, 1536), (2048, 1536, 576), (512, 576, 49152)]


def main() -> None:
    """Runs and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="at least this long a shape")
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    for m, k, n in SHAPES:
        x, w = torch.randn(m, k), torch.randn(n, k)
        out = torch.empty(m, n)
        torch.mm(x, w.t(), out=out)
        times: list[float] = []
        began = now()
        while len(times) < 3 or now() - began < args.seconds:
            start = now()
            torch.mm(x, w.t(), out=out)
            times.append(now() - start)
        work = 2e-9 * m * k * n
        emit(
            library="torch",
            shape=f"{m}x{k}x{n}",
            threads=args.threads,
            best=work / min(times),
            median=work / statistics.median(times),
            repetitions=len(times),
            mkl=torch.backends.mkl.is_available(),
        )


if __name__ == "__main__":
    main()
