"""llama.cpp: greedy decoding of one prompt at a time, on the CPU, through llama-cpp-python.

Reads the prompts' token ids (a JSON list of lists) from a file, so that the tokens are those of the
other side. Prints `prefill_seconds` (until the first new token), `decode_seconds` for the rest and
`tokens_per_second` of these. The end of turn does not stop it.
"""

import argparse
import json

from common import emit, now, peak_rss


def main() -> None:
    """Runs and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf")
    parser.add_argument("ids", help="file with the prompts' ids")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    from llama_cpp import Llama

    with open(args.ids, encoding="utf-8") as file:
        prompts = json.load(file)
    longest = max(map(len, prompts))
    llama = Llama(
        args.gguf, n_ctx=longest + args.tokens, n_threads=args.threads, n_threads_batch=args.threads, verbose=False
    )
    prefill = decode = 0.0
    for ids in prompts:
        llama.reset()
        began = now()
        llama.eval(ids)
        token = llama.sample(temp=0.0)
        first = now()
        for _ in range(args.tokens - 1):
            llama.eval([token])
            token = llama.sample(temp=0.0)
        prefill += first - began
        decode += now() - first
    emit(
        batch=len(prompts),
        prompt_tokens=sum(map(len, prompts)),
        prefill_seconds=prefill,
        decode_seconds=decode,
        tokens_per_second=(args.tokens - 1) * len(prompts) / decode,
        peak_memory_bytes=peak_rss(),
        threads=args.threads,
    )


if __name__ == "__main__":
    main()
