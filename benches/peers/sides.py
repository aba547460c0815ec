"""What runs: commands with their peak memory, planish and its peers as functions that measure once."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import rows

HERE = Path(__file__).resolve().parent


#: Cores that other programs took while each command ran, in order; empty where the system does not say.
OTHERS: list[float] = []


def busy_seconds() -> float | None:
    """Processor seconds that all programs together have used since the start of the system."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]
    except OSError:
        return None
    # user, nice, system, irq, softirq and steal; not idle and iowait.
    return sum(ticks[i] for i in (0, 1, 2, 5, 6, 7)) / os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A command that ended badly."""


def run(command: list, watch: Path | None = None, env: dict | None = None) -> dict:
    """Runs a command to its end.

    Returns `stdout`, `stderr`, `seconds`, `peak_memory_bytes` of the process (from the kernel, the
    same for every program) and, if a file to watch is named, `first_line_seconds`: from the start
    of the process until the file's first line is complete.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        busy = busy_seconds()
        began = time.perf_counter()
        words = [str(word) for word in command]
        process = subprocess.Popen(words, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})})
        first = None
        while True:
            waiting = watch is not None and first is None
            pid, status, usage = os.wait4(process.pid, os.WNOHANG if waiting else 0)
            if waiting and has_line(watch):
                first = time.perf_counter() - began
            if pid:
                break
            time.sleep(0.005)
        seconds = time.perf_counter() - began
        if busy is not None:
            OTHERS.append(max(0.0, busy_seconds() - busy - usage.ru_utime - usage.ru_stime) / seconds)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        stdout, stderr = out.read().decode(), err.read().decode()
    if process.returncode:
        raise Failed(f"exit code {process.returncode} of {' '.join(words)}\n{stderr[-3000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    peak = usage.ru_maxrss * unit
    return {
        "stdout": stdout,
        "stderr": stderr,
        "seconds": seconds,
        "peak_memory_bytes": peak,
        "first_line_seconds": first,
    }


def has_line(path: Path) -> bool:
    """Whether the file is there and holds a whole line."""
    try:
        return b"\n" in path.read_bytes()
    except FileNotFoundError:
        return False


def json_lines(text: str) -> list[dict]:
    """The lines that are JSON objects."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def median(values: list[float]) -> float:
    """Of a list that is not empty."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def steady(steps: list[dict]) -> list[dict]:
    """All steps but the first, which warms up; that one if there is no other."""
    return steps[1:] or steps


def planish_command(args, recipe: str, data: Path, out: Path) -> list:
    """`planish sft`, or another recipe, on the rows in their order."""
    command = [args.planish, recipe, "--model", args.model, "--dataset", data, "--output-dir", out]
    command += ["--no-shuffle", "--max-steps", args.steps, "--per-device-train-batch-size", args.batch]
    command += ["--max-length", args.max_length, "--learning-rate", args.learning_rate, "--dtype", "float32"]
    command += ["--threads", args.threads, "--save-strategy", "no"]
    return command + ["--gradient-checkpointing" if args.checkpointing else "--no-gradient-checkpointing"]


def planish_start(args, data: Path, extra: list) -> dict:
    """Seconds from the command until the first step begins, which planish says; the run is ended there."""
    with tempfile.TemporaryDirectory() as scratch:
        words = [str(word) for word in planish_command(args, "sft", data, Path(scratch) / "run") + extra]
        busy, began = busy_seconds(), time.perf_counter()
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("training "):
                seconds = time.perf_counter() - began
                process.kill()
                _, _, usage = os.wait4(process.pid, 0)
                if busy is not None:
                    OTHERS.append(max(0.0, busy_seconds() - busy - usage.ru_utime - usage.ru_stime) / seconds)
                return {"start_seconds": seconds}
        raise Failed(f"exit code {process.wait()} of {' '.join(words)}\n{''.join(said)[-3000:]}")


def planish_sft(args, data: Path, extra: list, recipe: str = "sft") -> dict:
    """One run of `planish sft`, or of another recipe: medians over its steps, and those of its first."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        done = run(planish_command(args, recipe, data, out) + extra, watch=out / "metrics.jsonl")
        steps = [m for m in json_lines((out / "metrics.jsonl").read_text()) if "loss" in m]
    totals = [0] + [m["num_tokens"] for m in steps]
    tokens = [b - a for a, b in zip(totals, totals[1:])]
    return {
        "tokens_per_second": median([m["tokens_per_second"] for m in steady(steps)]),
        "first_step_seconds": done["first_line_seconds"],
        "peak_memory_bytes": done["peak_memory_bytes"],
        "tokens": tokens,
        "losses": [m["loss"] for m in steps],
        "seconds": done["seconds"],
    }


def trl_sft(args, data: Path, extra: list, script: str = "trl_sft.py") -> dict:
    """One run of TRL's trainer, likewise."""
    command = [args.python, HERE / script, args.model, data, "--steps", args.steps, "--batch", args.batch]
    command += ["--max-length", args.max_length, "--learning-rate", args.learning_rate, "--threads", args.threads]
    command += ["--lora-r", args.lora_r] + (["--checkpointing"] if args.checkpointing else [])
    done = run(command + extra)
    steps = [line for line in json_lines(done["stdout"]) if "step" in line]
    return {
        "tokens_per_second": median([m["tokens_per_second"] for m in steady(steps)]),
        "first_step_seconds": steps[0]["seconds_to_first_step"],
        "peak_memory_bytes": done["peak_memory_bytes"],
        "tokens": [m["real_tokens"] for m in steps],
        "losses": [m["loss"] for m in steps],
        "seconds": done["seconds"],
    }


def planish_generate(args, batch: int, dtype: str, model=None) -> dict:
    """One run of `planish generate` on the first questions of the data set, greedily; of MODEL if no other is named."""
    command = [args.planish, "generate", "--model", model or args.model, "--dtype", dtype, "--threads", args.threads]
    command += ["--max-new-tokens", args.tokens, "--min-new-tokens", args.tokens, "--json", "--timing"]
    for row in rows(args.dataset, batch):
        command += ["--prompt", row["question"]]
    done = run(command)
    timing = json_lines(done["stderr"])[-1]
    answers = json.loads(done["stdout"])
    return {**timing, "peak_memory_bytes": done["peak_memory_bytes"], "ids": [a["ids"] for a in answers],
            "prompt_ids": [a["prompt_ids"] for a in answers]}


def transformers_generate(args, batch: int, dtype: str) -> dict:
    """One run of transformers' `generate`, likewise."""
    command = [args.python, HERE / "transformers_generate.py", args.model, args.dataset, "--batch", batch]
    command += ["--dtype", dtype, "--tokens", args.tokens, "--threads", args.threads, "--repeat", 1]
    done = run(command)
    return {**json_lines(done["stdout"])[-1], "peak_memory_bytes": done["peak_memory_bytes"]}


def llama_cpp_generate(args, gguf: str, prompts: list[list[int]]) -> dict:
    """One run of llama.cpp on the same ids."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(prompts, file)
        file.flush()
        command = [args.python, HERE / "llama_cpp_generate.py", gguf, file.name]
        done = run(command + ["--tokens", args.tokens, "--threads", args.threads])
    return {**json_lines(done["stdout"])[-1], "peak_memory_bytes": done["peak_memory_bytes"]}
