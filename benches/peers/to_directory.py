"""Writes a model as a Hugging Face directory in f32: weights, config and tokenizer.

    python benches/peers/to_directory.py MODEL.gguf DIRECTORY

So that both sides of a comparison start from the same files, and none spends its time dequantising.
"""

import argparse

from common import load


def main() -> None:
    """Converts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    args = parser.parse_args()
    tokenizer, model = load(args.source, "float32")
    model.save_pretrained(args.target)
    tokenizer.save_pretrained(args.target)


if __name__ == "__main__":
    main()
