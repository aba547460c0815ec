"""transformers: greedy decoding of chat prompts, on the CPU.

For each batch size prints `prefill_seconds` (one token generated), `seconds`
for all of `--tokens`, and `tokens_per_second`: generated tokens of the whole
batch over the time after the prefill. The end of turn does not stop a
sequence, so that every run decodes the same number of tokens. Prompts are the
questions of the data set, padded on the left; the best of `--repeat` counts.
"""

import argparse

from common import emit, load, now, peak_rss, rows


def main() -> None:
    """Runs and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    tokenizer, model = load(args.model, args.dtype)
    tokenizer.padding_side = "left"
    model.eval()
    for batch in args.batch:
        chats = [[{"role": "user", "content": r["question"]}] for r in rows(args.dataset, batch)]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
        )

        def generate(n: int) -> float:
            began = now()
            with torch.inference_mode():
                out = model.generate(**inputs, min_new_tokens=n, max_new_tokens=n, do_sample=False)
            assert out.shape[1] == inputs["input_ids"].shape[1] + n
            return now() - began

        prefill = min(generate(1) for _ in range(args.repeat))
        seconds = min(generate(args.tokens) for _ in range(args.repeat))
        emit(
            batch=len(chats),
            dtype=args.dtype,
            prompt_tokens=int(inputs["attention_mask"].sum()),
            new_tokens=args.tokens * len(chats),
            prefill_seconds=prefill,
            seconds=seconds,
            tokens_per_second=(args.tokens - 1) * len(chats) / (seconds - prefill),
            peak_memory_bytes=peak_rss(),
            threads=args.threads,
        )


if __name__ == "__main__":
    main()
