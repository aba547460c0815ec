#!/usr/bin/env python3
"""The tables of the book's page on benchmarks, made from what `compare.py --json` wrote.

    python benches/peers/page.py --keep sft.json --as sft-avx2     figures of runs, less what no table shows, into measured/
    python benches/peers/page.py                                   writes the tables of docs/src/benchmarks.md again
    python benches/peers/page.py --check                           fails if one is not what its file says

In the page a table stands between `<!-- measured: NAME -->` and `<!-- end -->`; NAME is a file of `measured/` here.
"""

import argparse
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs/src/benchmarks.md"
MEASURED = HERE / "measured"

#: Key, heading, scale, digits.
COLUMNS = [
    ("tokens_per_second", "tokens/s", 1.0, 1),
    ("median", "GFLOP/s", 1.0, 0),
    ("start_seconds", "seconds", 1.0, 2),
    ("first_step_seconds", "to the end of the first step, s", 1.0, 1),
    ("peak_memory_bytes", "peak memory, GB", 1e9, 2),
]

BLOCK = re.compile(r"(<!-- measured: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def without_runs(results: list[dict]) -> list[dict]:
    """The figures of each comparison without those of single runs."""
    kept = []
    for result in results:
        sides = {name: {k: v for k, v in side.items() if k != "runs"} for name, side in result["sides"].items()}
        kept.append({**result, "sides": sides})
    return kept


def figure(side: dict, key: str, scale: float, digits: int) -> str:
    """The median, and in brackets the smallest and the largest where they differ in what is shown."""
    if key not in side:
        return ""
    shown = {name: f"{side[key][name] / scale:.{digits}f}" for name in ("median", "min", "max")}
    if shown["min"] == shown["max"]:
        return shown["median"]
    return f"{shown['median']} ({shown['min']} to {shown['max']})"


def table(result: dict) -> str:
    """One comparison in Markdown: a line a side, with its ratio to the peer in each pair."""
    sides = result["sides"]
    columns = [c for c in COLUMNS if any(c[0] in side for side in sides.values())]
    ratios = any("ratio" in side for side in sides.values())
    heads = [""] + [c[1] for c in columns] + ([f"times {result['against']}"] if ratios else [])
    lines = [f"{result['title']}:", "", "| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for name, side in sides.items():
        cells = [name] + [figure(side, *(key, scale, digits)) for key, _, scale, digits in columns]
        if ratios:
            ratio = side.get("ratio")
            pairs = ", ".join(f"{x:.2f}" for x in ratio["pairs"]) if ratio else ""
            many = ratio and len(ratio["pairs"]) > 1
            cells.append(f"{ratio['median']:.2f} ({pairs})" if many else pairs)
        lines.append("| " + " | ".join(cells) + " |")
    notes = result.get("notes", [])
    if notes:
        lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines)


def block(name: str) -> str:
    """All comparisons of a file, and what else the machine did."""
    results = json.loads((MEASURED / f"{name}.json").read_text())
    parts = [table(result) for result in results]
    others = [x for result in results for x in result["others_cores"]]
    if others:
        parts.append(f"Other programs took {max(others):.2f} cores at most while these ran.")
    return "\n" + "\n\n".join(parts) + "\n\n"


def main() -> None:
    """Keeps, writes or checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="a file that compare.py wrote")
    parser.add_argument("--as", dest="name", help="its name in measured/")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if bool(args.keep) != bool(args.name):
        parser.error("--keep and --as go together")
    if args.keep:
        MEASURED.mkdir(exist_ok=True)
        kept = without_runs(json.loads(args.keep.read_text()))
        (MEASURED / f"{args.name}.json").write_text(json.dumps(kept, indent=1) + "\n")
        return
    text = PAGE.read_text()
    shown = {match[1] for match in BLOCK.findall(text)}
    made = BLOCK.sub(lambda match: match[1] + block(match[2]) + match[4], text)
    if not args.check:
        PAGE.write_text(made)
        return
    there = {path.stem for path in MEASURED.glob("*.json")}
    if there != shown:
        sys.exit(f"measured/ and the page differ in {', '.join(sorted(there ^ shown))}")
    if made != text:
        sys.exit("docs/src/benchmarks.md is not what benches/peers/page.py makes of measured/: run it")


if __name__ == "__main__":
    main()
