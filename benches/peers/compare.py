"""planish and its peers, side by side: the same rows in the same order, alternately.

    python benches/peers/compare.py sft --planish target/release/planish --model MODEL --dataset DATASET.jsonl

One pair is a run of each side, one after the other, so that what else the machine does hits both;
a ratio is taken within a pair. Every figure is printed as median, smallest and largest of the pairs.
`README.md` has the commands, what each needs, and how long it takes.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from common import rows
from sides import (
    HERE,
    OTHERS,
    Failed,
    json_lines,
    llama_cpp_generate,
    median,
    planish_generate,
    planish_sft,
    planish_start,
    run,
    transformers_generate,
    trl_sft,
)

LORA = ["--use-peft", "--lora-target-modules", "all-linear", "--lora-dropout", 0]


def alternate(pairs: int, sides: dict) -> dict:
    """Runs every side `pairs` times: first, second, …, first, second, …"""
    results = {name: [] for name in sides}
    for i in range(pairs):
        for name, measure in sides.items():
            print(f"pair {i + 1} of {pairs}: {name}", file=sys.stderr, flush=True)
            results[name].append(measure())
    return results


def spread(values: list) -> dict:
    """Median, smallest and largest."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def summary(title: str, results: dict, against: str, rate: str) -> dict:
    """The figures of one comparison, and the ratio of each side to `against` within each pair."""
    sides = {}
    for name, runs in results.items():
        keys = [rate] + [k for k in ("prefill_seconds", "first_step_seconds", "peak_memory_bytes") if k in runs[0]]
        sides[name] = {key: spread([r[key] for r in runs]) for key in keys}
        sides[name]["runs"] = runs
        if name != against:
            ratios = [a[rate] / b[rate] for a, b in zip(runs, results[against])]
            sides[name]["ratio"] = {**spread(ratios), "pairs": ratios}
    return {"title": title, "rate": rate, "against": against, "sides": sides}


def show(result: dict) -> None:
    """The figures as a table."""
    units = {
        "tokens_per_second": ("tokens/s", 1.0, "{:.1f}"),
        "median": ("GFLOP/s", 1.0, "{:.1f}"),
        "first_step_seconds": ("first step, s", 1.0, "{:.2f}"),
        "start_seconds": ("s", 1.0, "{:.2f}"),
        "prefill_seconds": ("prompts read, s", 1.0, "{:.2f}"),
        "peak_memory_bytes": ("peak memory, GB", 1e9, "{:.2f}"),
    }
    print(f"\n{result['title']}")
    print(f"  {'':<26}{'':<18}{'median':>10}{'min':>10}{'max':>10}")
    for name, side in result["sides"].items():
        shown = name
        for key, (unit, scale, form) in units.items():
            if key in side:
                cells = "".join(f"{form.format(side[key][c] / scale):>10}" for c in ("median", "min", "max"))
                print(f"  {shown:<26}{unit:<18}{cells}")
                shown = ""
        if "ratio" in side:
            ratio = side["ratio"]
            cells = "".join(f"{ratio[c]:>10.2f}" for c in ("median", "min", "max"))
            pairs = " ".join(f"{x:.2f}" for x in ratio["pairs"])
            print(f"  {'':<26}{'times ' + result['against']:<18}{cells}   pairs: {pairs}")
    for note in result.get("notes", []):
        print(f"  {note}")


def same_work(results: dict, a: str, b: str) -> list[str]:
    """Whether both sides trained on as many tokens with the same loss, as sentences."""
    one, other = results[a][0], results[b][0]
    tokens = "the same tokens each step" if one["tokens"] == other["tokens"] else (
        f"NOT the same tokens each step: {one['tokens']} and {other['tokens']}"
    )
    first = abs(one["losses"][0] - other["losses"][0])
    return [f"{a} and {b}: {tokens}; first loss {one['losses'][0]:.6f} and {other['losses'][0]:.6f} ({first:.1e} apart)"]


def first_rows(args, scratch: str, count: int) -> Path:
    """A file with the first rows of the data set, so that both sides read no more than they train on."""
    path = Path(scratch) / f"first-{count}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(args.dataset, count)))
    return path


def sft(args) -> list[dict]:
    """LoRA: planish unpacked and packed, TRL with PEFT unpacked."""
    lora = LORA + ["--lora-r", args.lora_r, "--lora-alpha", 2 * args.lora_r]
    with tempfile.TemporaryDirectory() as scratch:
        data = first_rows(args, scratch, args.steps * args.batch)
        # A packed row holds several examples.
        more = first_rows(args, scratch, args.steps * args.batch * 6)
        results = alternate(args.pairs, {
            "planish": lambda: planish_sft(args, data, lora),
            "TRL and PEFT": lambda: trl_sft(args, data, []),
            "planish, packed": lambda: planish_sft(args, more, lora + ["--packing"]),
        })
    title = f"LoRA r={args.lora_r}, all linear modules, f32, {args.batch} examples a step of at most {args.max_length} tokens"
    result = summary(title, results, "TRL and PEFT", "tokens_per_second")
    result["notes"] = same_work(results, "planish", "TRL and PEFT")
    return [result]


def full(args) -> list[dict]:
    """All weights."""
    with tempfile.TemporaryDirectory() as scratch:
        data = first_rows(args, scratch, args.steps * args.batch)
        results = alternate(args.pairs, {
            "planish": lambda: planish_sft(args, data, []),
            "TRL": lambda: trl_sft(args, data, ["--full"]),
        })
    title = f"full fine-tuning, f32, {args.batch} examples a step of at most {args.max_length} tokens"
    result = summary(title, results, "TRL", "tokens_per_second")
    result["notes"] = same_work(results, "planish", "TRL")
    return [result]


def start(args) -> list[dict]:
    """planish alone: from the command until the first step begins, with the whole data set."""
    lora = LORA + ["--lora-r", args.lora_r, "--lora-alpha", 2 * args.lora_r]
    results = alternate(args.pairs, {"planish": lambda: planish_start(args, args.dataset, lora)})
    title = f"from the command until the first step begins, {sum(1 for _ in open(args.dataset))} rows"
    return [summary(title, results, "planish", "start_seconds")]


def pairs_of(args, scratch: str) -> Path:
    """A file with the first pairs that differ, are not empty, and fit `max_length` by a wide margin."""
    fit = lambda text: 0 < len(text) <= 3 * args.max_length  # noqa: E731
    path, kept = Path(scratch) / "pairs.jsonl", []
    for row in rows(args.dataset, 10**9):
        common = len(os.path.commonprefix([row["chosen"], row["rejected"]]))
        if all(fit(row[side]) and len(row[side].strip()) > common + 1 for side in ("chosen", "rejected")):
            kept.append({side: row[side] for side in ("chosen", "rejected")})
        if len(kept) == args.steps * args.batch:
            break
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return path


def dpo(args) -> list[dict]:
    """DPO of LoRA: planish with and without shared prompts, TRL with PEFT."""
    lora = LORA + ["--lora-r", args.lora_r, "--lora-alpha", 2 * args.lora_r]
    with tempfile.TemporaryDirectory() as scratch:
        data = pairs_of(args, scratch)
        results = alternate(args.pairs, {
            "planish": lambda: planish_sft(args, data, lora, "dpo"),
            "planish, prompts apart": lambda: planish_sft(args, data, lora + ["--share-prompts", "false"], "dpo"),
            "TRL and PEFT": lambda: trl_sft(args, data, [], "trl_dpo.py"),
        })
    title = f"DPO, LoRA r={args.lora_r}, all linear modules, f32, {args.batch} pairs a step of at most {args.max_length} tokens"
    result = summary(title, results, "TRL and PEFT", "tokens_per_second")
    result["notes"] = same_work(results, "planish", "TRL and PEFT")
    return [result]


def decode(args) -> list[dict]:
    """Greedy decoding against transformers."""
    out = []
    for dtype in args.dtype:
        for batch in args.sequences:
            results = alternate(args.pairs, {
                "planish": lambda: planish_generate(args, batch, dtype),
                "transformers": lambda: transformers_generate(args, batch, dtype),
            })
            title = f"greedy decoding, {dtype}, {batch} sequences, {args.tokens} new tokens each"
            result = summary(title, results, "transformers", "tokens_per_second")
            prompts = [results[side][0]["prompt_tokens"] for side in results]
            result["notes"] = [f"prompt tokens: {prompts[0]} and {prompts[1]}"]
            out.append(result)
    return out


def llama(args) -> list[dict]:
    """Greedy decoding of one sequence against llama.cpp: planish on MODEL in bf16, and on llama.cpp's file as it is."""
    out = []
    for gguf in args.gguf:
        prompts = planish_generate(args, 1, "bfloat16")["prompt_ids"]
        results = alternate(args.pairs, {
            "planish, bfloat16": lambda: planish_generate(args, 1, "bfloat16"),
            "planish, the same file": lambda: planish_generate(args, 1, "auto", gguf),
            "llama.cpp": lambda: llama_cpp_generate(args, gguf, prompts),
        })
        title = f"greedy decoding of one sequence, {args.tokens} new tokens, {Path(gguf).name}"
        out.append(summary(title, results, "llama.cpp", "tokens_per_second"))
    return out


def gemm(args) -> list[dict]:
    """Matrix products against torch (MKL) and the `gemm` crate, shape by shape."""
    flags = ["--threads", args.threads, "--seconds", args.seconds]
    ours = [args.gemm_shapes, *flags]
    torch = [args.python, HERE / "torch_mm.py", *flags]
    rounds = alternate(args.pairs, {
        "planish": lambda: json_lines(run(ours + ["--library", "planish"])["stdout"]),
        "torch": lambda: json_lines(run(torch)["stdout"]),
        "gemm crate": lambda: json_lines(run(ours + ["--library", "gemm"])["stdout"]),
        "planish, bf16 weights": lambda: json_lines(run(ours + ["--weights", "bfloat16"])["stdout"]),
    })
    peaks = [line["peak"] for lines in rounds["planish"] for line in lines if "peak" in line]
    out = []
    for shape in [line["shape"] for line in rounds["torch"][0]]:
        of = {name: [next(l for l in r if l.get("shape") == shape) for r in runs] for name, runs in rounds.items()}
        result = summary(f"f32 product {shape} (m x k x n), {args.threads} threads", of, "torch", "median")
        share = result["sides"]["planish"]["median"]["median"] / median(peaks)
        narrow = median([a["median"] / b["median"] for a, b in zip(of["planish, bf16 weights"], of["planish"])])
        result["notes"] = [
            f"multiply-adds in registers: {median(peaks):.0f} GFLOP/s; planish reaches {share:.0%}",
            f"with bf16 weights {narrow:.2f} times that with f32",
        ]
        out.append(result)
    return out


def company() -> str:
    """What other programs did meanwhile, as a sentence."""
    if not OTHERS:
        return "this system does not say what other programs did meanwhile"
    cores = f"other programs took {median(OTHERS):.2f} cores (at most {max(OTHERS):.2f}) while these ran"
    if max(OTHERS) < 0.1:
        return cores
    # The peers' threads lose more than their share to a neighbour: see README.md.
    return f"{cores}: these figures are worth nothing, and the ratios flatter planish"


MODES = {"sft": sft, "full": full, "start": start, "dpo": dpo, "decode": decode, "gemm": gemm, "llama": llama}


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES, nargs="+")
    parser.add_argument("--planish", default="target/release/planish", help="the program")
    parser.add_argument("--model", help="a Hugging Face directory, or a .gguf file")
    parser.add_argument("--dataset", help="jsonl with the columns question and answer; for dpo chosen and rejected")
    parser.add_argument("--python", default=sys.executable, help="an interpreter with the peers installed")
    parser.add_argument("--gemm-shapes", default="target/release/examples/gemm_shapes")
    parser.add_argument("--gguf", nargs="+", default=[], help="files for llama.cpp")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps a run; the first does not count")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--lora-r", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing on both sides")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of a sequence")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=1.0, help="least time of a matrix shape")
    parser.add_argument("--json", help="all figures of all runs are written here")
    args = parser.parse_args()
    if set(args.mode) - {"gemm"} and not (args.model and args.dataset):
        parser.error("--model and --dataset are needed")
    if "llama" in args.mode and not args.gguf:
        parser.error("llama needs --gguf")
    if set(args.mode) - {"gemm"} and not shutil.which(args.planish):
        parser.error(f"{args.planish} is no program: cargo build --release")
    if "gemm" in args.mode and not shutil.which(args.gemm_shapes):
        parser.error(f"{args.gemm_shapes} is no program: README.md says how it is built")

    results = []
    try:
        for mode in args.mode:
            OTHERS.clear()
            found = MODES[mode](args)
            for result in found:
                show(result)
                results.append({"mode": mode, "others_cores": list(OTHERS), **result})
            print("\n" + company(), flush=True)
    except Failed as failed:
        sys.exit(f"error: {failed}")
    finally:
        if args.json and results:
            Path(args.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
