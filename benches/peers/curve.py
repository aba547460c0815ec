"""The curves of a run, as a picture for the book.

    python benches/peers/curve.py runs/gsm8k --svg docs/src/gsm8k.svg

Reads the run's metrics.jsonl: the training loss, a point for the mean of every `--each` steps, and the loss on held-out
examples wherever it was measured.
"""

import argparse
import json
from pathlib import Path

from svg import plot


def main() -> None:
    """Reads and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's directory")
    parser.add_argument("--each", type=int, default=10, help="steps that a point of the training loss is the mean of")
    parser.add_argument("--svg", type=Path, required=True)
    args = parser.parse_args()
    lines = [json.loads(line) for line in (args.run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    parts = [losses[i : i + args.each] for i in range(0, len(losses), args.each)]
    means = [sum(part) / len(part) for part in parts]
    # 0 begins the axis.
    ends = [min((i + 1) * args.each, len(losses)) for i in range(len(parts))]
    held_out = [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]
    panels = [(f"step (means of {args.each})", "training loss, nats a token", [0, *ends], [losses[0], *means])]
    if held_out:
        panels.append(("step", "held-out loss, nats a token", *map(list, zip(*held_out))))
    args.svg.write_text(plot(f"{args.run.name}: loss", panels))
    for name, values in (("training", zip(ends, means)), ("held out", held_out)):
        print(name, " ".join(f"{step}: {loss:.3f}" for step, loss in values))


if __name__ == "__main__":
    main()
