"""Everything about a card in one command: planish and its peers, group by group, and one table.

    python benches/peers/gpu/measure.py --planish target/release/planish --out results --seconds 540

Each group is a process of its own with a time limit, so that a kernel that hangs or takes the device with it costs one
group. What is most wanted comes first; groups for which no time is left are named. After each group `table.md` is
written anew: what was measured is there, however the run ends.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from table import ours, peers, table

HERE = Path(__file__).resolve().parent
#: (names, seconds at most), the most wanted first.
KERNELS = [
    ("card", 30), ("attention", 60), ("gemm", 60), ("lm_head,sampling", 60), ("swiglu,rms_norm", 40),
    ("lora_linear,nf4,adamw,grad_norm", 40), ("rope,embedding,cast,add", 40),
]
STEPS = [("step/smollm2", 40), ("step/0.5b", 60), ("step/1.5b", 60), ("step/8b", 90), ("step/olmoe", 60), ("decode", 90)]
EMULATED_STEPS = [("step/tiny", 60), ("decode/tiny", 60)]


class Run:
    """A measurement under way."""

    def __init__(self, args) -> None:
        self.args, self.began, self.out = args, time.monotonic(), args.out
        self.notes: list[str] = []
        #: Calls that were killed at their limit.
        self.killed: list = []
        self.out.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds."""
        return self.args.seconds - (time.monotonic() - self.began)

    def one(self, label: str, command: list, limit: float, to: Path) -> bool:
        """Runs a command into a file; says what went wrong."""
        limit = min(limit, self.left())
        if limit < 5:
            self.notes.append(f"{label}: no time left")
            return False
        print(f"{label}", file=sys.stderr, flush=True)
        began, errors = time.monotonic(), to.with_suffix(".stderr")
        with to.open("w") as stdout, errors.open("w") as stderr:
            child = subprocess.Popen([str(word) for word in command], stdout=stdout, stderr=stderr)
            try:
                code = child.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                code = f"killed after {limit:.0f} s"
        if code == 0:
            return True
        said = errors.read_text(errors="replace").strip().splitlines() or [""]
        note = f"{label}: exit {code} after {time.monotonic() - began:.0f} s: {said[-1].strip()}"
        print(f"  {note}", file=sys.stderr, flush=True)
        if isinstance(code, str):
            self.killed.append((label, command, limit, to))
            # No JSON came of it; what was measured before stands there in words.
            note += "".join(f"\n      {line}" for line in ["", *said[-40:]])
        self.notes.append(note)
        return False

    def checks(self) -> None:
        """Every op against f64."""
        to = self.out / "checks.json"
        self.one("checks", [self.args.planish, "doctor", "--device", self.args.device, "--json"], 120, to)
        try:
            report = json.loads(to.read_text())
        except ValueError:
            return
        wrong = [row for row in report["ops"] if row.get("passed") is False or "failed" in row]
        failed = [f"{row['op']} {row['variant']}{' bf16' * row['bf16']}" for row in wrong]
        self.notes.append(f"checks: {'all passed' if report['passed'] else 'FAILED: ' + ', '.join(failed)}")

    def planish(self, names: str, limit: float) -> None:
        """A group of ours."""
        to = self.out / f"planish-{label(names)}.json"
        command = [self.args.planish, "doctor", "--device", self.args.device, "--json"]
        self.one(f"planish {names}", [*command, "--bench", "--bench-only", names], limit, to)

    def peer(self, script: str, names: str, limit: float, extra: list) -> None:
        """The same group of the peers'."""
        suffix = "".join(flag.lstrip("-") for flag in extra)
        to = self.out / f"peer-{script}-{label(names)}{suffix}.jsonl"
        command = [self.args.python, HERE / f"{script}.py", "--device", self.args.peer_device, "--only", names, *extra]
        self.one(f"peers {names} {suffix}", command + ["--tiny"] * self.args.tiny, limit, to)

    def write(self) -> None:
        """What there is by now, as a table."""
        whole = []
        for path in sorted(self.out.glob("planish-*.json"), key=lambda p: p.stat().st_mtime):
            try:
                json.loads(path.read_text())["bench"]
                whole.append(path)
            except (ValueError, KeyError):
                pass
        card, rows = ours(whole)
        text = table(card, rows, peers(sorted(self.out.glob("peer-*.jsonl"), key=lambda p: p.stat().st_mtime)))
        text += "".join(f"\n- {note}" for note in self.notes) + "\n"
        (self.out / "table.md").write_text(text)


def label(names: str) -> str:
    """As part of a file's name."""
    return names.replace("/", "-").replace(",", "+")


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planish", default="target/release/planish", help="the program")
    parser.add_argument("--device", default="cuda", help="planish's device")
    parser.add_argument("--python", default=sys.executable, help="an interpreter with the peers installed")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="a folder for everything")
    parser.add_argument("--seconds", type=float, default=540, help="for all of it")
    parser.add_argument("--without", nargs="*", default=[], choices=["checks", "planish", "peers"])
    parser.add_argument("--compile", action="store_true", help="torch.compile too, after all others")
    parser.add_argument("--liger", action="store_true", help="training steps with Liger Kernel too, after all others")
    args = parser.parse_args()
    args.tiny = args.device == "emulator"
    args.peer_device = "cpu" if args.tiny else args.device
    run, steps = Run(args), EMULATED_STEPS if args.device == "emulator" else STEPS
    if "checks" not in args.without:
        run.checks()
    for ours_of in (True, False):
        if ("planish" if ours_of else "peers") in args.without:
            continue
        for names, limit in [*KERNELS, *steps]:
            if ours_of:
                run.planish(names, limit)
            else:
                run.peer("kernels" if (names, limit) in KERNELS else "steps", names, limit, [])
            run.write()
    if "peers" not in args.without:
        for flag in ["--compile"] * args.compile + ["--liger"] * args.liger:
            for names, limit in ([] if flag == "--liger" else KERNELS) + steps:
                script = "kernels" if (names, limit) in KERNELS else "steps"
                run.peer(script, names, 2 * limit, [flag])
                run.write()
    # Once more: what took too long may have been the compiling of kernels, which are kept.
    again, run.killed = run.killed, []
    for title, command, limit, to in again:
        run.one(f"{title} again", command, limit, to)
        run.write()
    run.write()
    print(run.out / "table.md")


if __name__ == "__main__":
    main()
