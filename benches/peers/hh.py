"""HH-RLHF's dialogues as conversations, for fine-tuning on the chosen side and for preferences.

    python benches/peers/hh.py hh_harmless.jsonl hh --held-out 200

writes into the directory `hh`: `pairs.jsonl` (columns `prompt`, `chosen`, `rejected`, each a list of messages),
`chosen.jsonl` (`prompt`, `completion`), and the same of the last `--held-out` pairs as `held_out_pairs.jsonl` and
`held_out_chosen.jsonl`. A pair is left out, and counted, if a dialogue does not alternate between a person and an assistant, if the
sides do not part at the last answer, or if an answer is empty.
"""

import argparse
import json
import re
from pathlib import Path

ROLES = {"Human": "user", "Assistant": "assistant"}


def messages(text: str) -> list[dict]:
    """The turns of a dialogue; none if they do not alternate or have no text."""
    parts = re.split(r"\n\n(Human|Assistant):", text)
    turns = [{"role": ROLES[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2])]
    alternate = all(turn["role"] == ("user", "assistant")[i % 2] for i, turn in enumerate(turns))
    whole = not parts[0].strip() and len(turns) % 2 == 0 and all(turn["content"] for turn in turns)
    return turns if alternate and whole else []


def main() -> None:
    """Reads and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dialogues", type=Path, help="a jsonl file with the columns chosen and rejected")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--held-out", type=int, default=200)
    args = parser.parse_args()
    pairs, left_out = [], 0
    for line in args.dialogues.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        chosen, rejected = messages(row["chosen"]), messages(row["rejected"])
        if chosen and rejected and chosen[:-1] == rejected[:-1] and chosen[-1] != rejected[-1]:
            pairs.append({"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]})
        else:
            left_out += 1
    if not 0 < args.held_out < len(pairs):
        parser.error(f"--held-out must be from 1 to {len(pairs) - 1}")
    args.directory.mkdir(parents=True, exist_ok=True)
    split = len(pairs) - args.held_out
    for begin, rows in (("", pairs[:split]), ("held_out_", pairs[split:])):
        answers = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
        for name, lines in (("pairs", rows), ("chosen", answers)):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines)
            (args.directory / f"{begin}{name}.jsonl").write_text(text, encoding="utf-8")
    print(f"{split} pairs, {args.held_out} held out, {left_out} left out")


if __name__ == "__main__":
    main()
