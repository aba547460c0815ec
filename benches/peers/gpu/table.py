"""One Markdown table of `planish doctor --bench --json` and the peers' lines, joined by name.

    python benches/peers/gpu/table.py ours.json peers.jsonl

A ratio is the peer's time over planish's: above 1 planish is faster. `~` marks a peer whose sizes or work are not quite
the same, which the note says. What failed is in the table with its reason.
"""

import argparse
import json
import sys
from pathlib import Path


def ours(paths: list[Path]) -> tuple[dict, dict]:
    """(card, rows by name) of the doctor's reports; a benchmark that several have is the last one's."""
    card, rows = {}, {}
    for path in paths:
        report = json.loads(path.read_text())["bench"]
        card = report["card"]
        # Each report has the card's limits; those that were asked for alone are not better than others.
        rows.update({row["name"]: row for row in report["rows"]})
    return card, rows


def peers(paths: list[Path]) -> dict:
    """Lists of lines by name."""
    found: dict[str, list] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            if line.startswith("{"):
                row = json.loads(line)
                found.setdefault(row["name"], []).append(row)
    return found


def digits(x: float) -> str:
    """Four digits, without an exponent."""
    return f"{x:.0f}" if x >= 1000 else f"{x:.4g}"


def seconds(s: float) -> str:
    """With a fitting unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if s >= size:
            return f"{digits(s / size)} {unit}"
    return f"{digits(s / 1e-6)} µs"


def gigabytes(row: dict) -> str:
    """Peak memory, if there is one."""
    return f"{row['peak_memory_bytes'] / 1e9:.1f} GB" if "peak_memory_bytes" in row else ""


def why(row: dict) -> str:
    """Why there are no figures."""
    if row["state"] == "too_large":
        needs = row.get("needs_bytes")
        return f"too large ({needs / 1e9:.0f} GB)" if needs else "too large"
    text = row.get("reason") or row.get("error") or row["state"].replace("_", " ")
    text = text.replace("|", "/").replace("\n", " ")
    return f"{row['state'].replace('_', ' ')}: {text}"[:120]


def line(name: str, row: dict | None, peer: dict | None, first: bool) -> str:
    """A line of the table: ours, and one peer's."""
    measured = row is not None and row["state"] == "measured"
    cells = [""] * 5
    if first:
        cells[0] = f"`{name}`"
        if measured:
            rate = f"{digits(row['rate'])} {row['unit']}"
            share = f"{100 * row['share']:.0f}%" if row.get("share") is not None else ""
            cells[1:] = [seconds(row["seconds"]), rate, share, gigabytes(row)]
        else:
            cells[1] = "not measured" if row is None else why(row)
    if peer is None:
        return "| " + " | ".join(cells + ["", "", "", "", ""]) + " |"
    notes = [peer["note"]] if peer.get("note") else []
    if row is not None and row["shape"] != peer["shape"]:
        notes.append(f"other sizes: {peer['shape']}")
    if peer["state"] != "measured":
        rest = [peer["library"], why(peer), "", "", "; ".join(notes)]
    else:
        ratio = f"{'~' if notes else ''}{peer['seconds'] / row['seconds']:.2f}" if measured else ""
        rest = [peer["library"], seconds(peer["seconds"]), gigabytes(peer), ratio, "; ".join(notes)]
    return "| " + " | ".join(cells + rest) + " |"


def table(card: dict, rows: dict, of_peers: dict) -> str:
    """The whole."""
    about = of_peers.pop("about", [])
    out = []
    if card:
        memory = card["memory_bytes"] / 1e9
        supports = card["driver_supports_cuda"]
        driver = f"driver {card['driver']} for CUDA {supports}, " if supports else ""
        out.append(
            f"planish on {card['name']}: sm_{card['compute_capability'].replace('.', '')}, "
            f"{card['multiprocessors']} multiprocessors, {memory:.1f} GB; {driver}NVRTC {card['nvrtc']}."
        )
    for row in about:
        version = f"torch {row.get('torch')}, CUDA {row.get('cuda')}"
        same = not card or card["name"] == row["shape"]
        warning = "" if same else " **Another card: ratios mean nothing.**"
        out.append(f"Peers: {version}, on {row['shape']}.{warning}")
    if card.get("emulated"):
        out.append("**Emulated: no time of planish means anything.**")
    out += ["", "| benchmark | planish | rate | share | memory | peer | time | memory | ratio | note |"]
    out.append("| --- | --: | --: | --: | --: | --- | --: | --: | --: | --- |")
    for name in [*rows, *(name for name in of_peers if name not in rows)]:
        found = of_peers.get(name) or [None]
        out += [line(name, rows.get(name), peer, i == 0) for i, peer in enumerate(found)]
    return "\n".join(out) + "\n"


def main() -> None:
    """Joins."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help=".json of the doctor, .jsonl of the peers")
    args = parser.parse_args()
    card, rows = ours([p for p in args.files if p.suffix == ".json"])
    sys.stdout.write(table(card, rows, peers([p for p in args.files if p.suffix == ".jsonl"])))


if __name__ == "__main__":
    main()
