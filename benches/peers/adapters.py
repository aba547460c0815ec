"""Adapter methods on GSM8K, planish and PEFT with the same settings: held-out loss, parameters, memory and speed.

    python benches/peers/adapters.py --planish target/release/planish --model MODEL --dataset gsm8k_train.jsonl \\
        --held-out gsm8k_test.jsonl --json adapters.json --svg docs/src/adapters.svg

Every run takes the same rows in the same order, in f32. The held-out loss is the mean over the tokens of the first
`--eval-rows` answers. `--json` keeps what was measured: what is in it is not run again, so `--methods` and `--sides` can
be done one at a time, and with none left to do only the table and the plot are made. Speed needs a quiet machine and few
steps, losses the other way round: `--speeds` names the `--json` of another run of this, whose speeds are then shown.
MODEL is a directory.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import adapter_methods
from common import rows
from sides import HERE, Failed, json_lines, median, run, steady
from svg import curves

SIDES = ("planish", "peft")


def parameters(adapter: Path) -> int:
    """Numbers in a safetensors file."""
    with adapter.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def planish(args, method: str, scratch: Path) -> dict:
    """One run of `planish sft`."""
    held_out, out = scratch / "held_out.jsonl", scratch / "run"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows(args.held_out, args.eval_rows)))
    command = [args.planish, "sft", "--model", args.model, "--dataset", args.dataset, "--output-dir", out]
    command += ["--eval-dataset", held_out, "--eval-strategy", "steps", "--eval-steps", args.steps, "--eval-on-start"]
    command += ["--no-shuffle", "--max-steps", args.steps, "--per-device-train-batch-size", args.batch]
    command += ["--max-length", args.max_length, "--learning-rate", adapter_methods.RATES[method], "--dtype", "float32"]
    command += ["--threads", args.threads, "--save-strategy", "no", "--no-gradient-checkpointing"]
    done = run(command + adapter_methods.planish(method, args.lora_r))
    lines = json_lines((out / "metrics.jsonl").read_text())
    steps = [line for line in lines if "loss" in line]
    evaluated = [line["eval_loss"] for line in lines if "eval_loss" in line]
    return {
        "before": evaluated[0],
        "held_out_loss": evaluated[-1],
        "losses": [line["loss"] for line in steps],
        "trainable_parameters": parameters(out / "final" / "adapter_model.safetensors"),
        "tokens_per_second": median([line["tokens_per_second"] for line in steady(steps)]),
        "peak_memory_bytes": done["peak_memory_bytes"],
        "seconds": done["seconds"],
    }


def peft(args, method: str, _scratch: Path) -> dict:
    """One run of TRL's trainer with PEFT's adapter."""
    command = [args.python, HERE / "trl_sft.py", args.model, args.dataset, "--steps", args.steps, "--batch", args.batch]
    command += ["--max-length", args.max_length, "--learning-rate", adapter_methods.RATES[method]]
    command += ["--lora-r", args.lora_r, "--method", method, "--threads", args.threads]
    command += ["--eval-dataset", args.held_out, "--eval-rows", args.eval_rows]
    done = run(command)
    lines = json_lines(done["stdout"])
    steps = [line for line in lines if "step" in line]
    evaluated = next(line for line in lines if "eval_loss" in line)
    return {
        "held_out_loss": evaluated["eval_loss"],
        "losses": [line["loss"] for line in steps],
        "trainable_parameters": evaluated["trainable_parameters"],
        "tokens_per_second": median([line["tokens_per_second"] for line in steady(steps)]),
        "peak_memory_bytes": done["peak_memory_bytes"],
        "seconds": done["seconds"],
    }


def means(losses: list[float], each: int) -> tuple[list[int], list[float]]:
    """The mean of every `each` steps, at the last of them."""
    parts = [losses[i : i + each] for i in range(0, len(losses), each)]
    return [min((i + 1) * each, len(losses)) for i in range(len(parts))], [sum(part) / len(part) for part in parts]


def report(args, measured: dict) -> None:
    """The table in Markdown, and the plot."""
    befores = [found["planish"]["before"] for found in measured.values() if "planish" in found]
    if befores:
        print(f"held-out loss before training {befores[0]:.4f}\n")
    print("| method | rate | trained | | held-out loss | tokens/s | peak memory |\n| --- | --- | --- | --- | --- | --- | --- |")
    quiet = json.loads(args.speeds.read_text()) if args.speeds else measured
    series = []
    for method in adapter_methods.NAMES:
        for side in SIDES:
            if (found := measured.get(method, {}).get(side)) is None:
                continue
            name = adapter_methods.NAMES[method]
            fast = quiet.get(method, {}).get(side)
            speed = f"{fast['tokens_per_second']:.1f}" if fast else ""
            print(
                f"| {name} | {adapter_methods.RATES[method]:g} | {found['trainable_parameters']:,} | {side} "
                f"| {found['held_out_loss']:.4f} | {speed} | {found['peak_memory_bytes'] / 1e9:.2f} GB |"
            )
            series.append((f"{name}, {side}", *means(found["losses"], args.each), side == "peft"))
    if args.svg and series:
        title = f"GSM8K, training loss, means of {args.each} steps"
        Path(args.svg).write_text(curves(title, "step", "nats a token", series))


def main() -> None:
    """Measures, prints and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planish", default="target/release/planish")
    parser.add_argument("--python", default=sys.executable, help="with the peers' packages")
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--methods", nargs="*", choices=adapter_methods.NAMES, default=list(adapter_methods.NAMES))
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=list(SIDES))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--eval-rows", type=int, default=100)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--lora-r", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--each", type=int, default=20, help="steps that a point of the plot is the mean of")
    parser.add_argument("--json", required=True, type=Path)
    parser.add_argument("--speeds", type=Path)
    parser.add_argument("--svg")
    args = parser.parse_args()
    measured = json.loads(args.json.read_text()) if args.json.exists() else {}
    for method in args.methods:
        for side in args.sides:
            if side in measured.get(method, {}):
                continue
            print(f"{method}, {side}", file=sys.stderr, flush=True)
            try:
                with tempfile.TemporaryDirectory() as scratch:
                    found = {"planish": planish, "peft": peft}[side](args, method, Path(scratch))
            except Failed as failed:
                print(f"error: {failed}", file=sys.stderr)
                continue
            measured.setdefault(method, {})[side] = found
            args.json.write_text(json.dumps(measured, indent=1) + "\n")
    report(args, measured)


if __name__ == "__main__":
    main()
