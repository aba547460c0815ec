"""How planish's speed and memory grow with the length of a sequence, the batch and the LoRA rank.

    python benches/peers/growth.py --planish target/release/planish --model MODEL --svg docs/src/growth.svg

Each point is a run of `planish sft` on sequences of exactly that many tokens, random ids of which all
are supervised: tokens/s is the median of the steps after the first, memory the peak of the process.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from sides import Failed, planish_sft
from svg import plot

LORA = ["--use-peft", "--lora-target-modules", "all-linear", "--lora-dropout", 0]


def data(scratch: str, count: int, length: int, vocabulary: int) -> Path:
    """A file of tokenised rows, the same in every run."""
    draw = random.Random(0)
    path = Path(scratch) / f"rows-{count}-{length}.jsonl"
    with path.open("w") as file:
        for _ in range(count):
            ids = [draw.randrange(vocabulary) for _ in range(length)]
            file.write(json.dumps({"input_ids": ids, "completion_mask": [1] * length}) + "\n")
    return path


def main() -> None:
    """Measures and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planish", default="target/release/planish")
    parser.add_argument("--model", required=True)
    parser.add_argument("--vocabulary", type=int, default=49152, help="ids are drawn below it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="*", default=[256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--ranks", type=int, nargs="*", default=[4, 8, 16, 32, 64, 128])
    parser.add_argument("--length", type=int, default=512, help="tokens where batch or rank vary")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--json", type=Path, help="all points are written here; those that are there are not run again")
    parser.add_argument("--svg", help="the plot is written here")
    args = parser.parse_args()
    args.learning_rate = 2e-4

    def point(length: int, batch: int, rank: int) -> dict:
        print(f"{batch} x {length} tokens, rank {rank}", file=sys.stderr, flush=True)
        args.batch, args.max_length = batch, length
        with tempfile.TemporaryDirectory() as scratch:
            rows = data(scratch, args.steps * batch, length, args.vocabulary)
            found = planish_sft(args, rows, LORA + ["--lora-r", rank, "--lora-alpha", 2 * rank])
        return {
            "length": length,
            "batch": batch,
            "rank": rank,
            "tokens_per_second": found["tokens_per_second"],
            "peak_memory_bytes": found["peak_memory_bytes"],
        }

    sweeps = {
        "length": ("tokens of a sequence", [(n, 1, 16) for n in args.lengths]),
        "batch": (f"sequences of {args.length} tokens", [(args.length, n, 16) for n in args.batches]),
        "rank": (f"LoRA rank, {args.length} tokens", [(args.length, 1, n) for n in args.ranks]),
    }
    measured = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    panels = []
    try:
        for name, (label, settings) in sweeps.items():
            found = {(p["length"], p["batch"], p["rank"]): p for p in measured.get(name, [])}
            points = measured[name] = [found.get(setting) or point(*setting) for setting in settings]
            print(f"\n{label:>28}{'tokens/s':>12}{'peak GB':>10}")
            for p in points:
                print(f"{p[name]:>28}{p['tokens_per_second']:>12.1f}{p['peak_memory_bytes'] / 1e9:>10.2f}")
            x = [p[name] for p in points]
            panels.append((label, "tokens/s", x, [p["tokens_per_second"] for p in points]))
            panels.append((label, "peak memory, GB", x, [p["peak_memory_bytes"] / 1e9 for p in points]))
    except Failed as failed:
        sys.exit(f"error: {failed}")
    finally:
        if args.json:
            args.json.write_text(json.dumps(measured, indent=1) + "\n")
    if args.svg:
        title = f"planish sft, LoRA on all linear modules, {args.threads} threads"
        Path(args.svg).write_text(plot(title, [p for p in panels if p[2]]))


if __name__ == "__main__":
    main()
