"""TRL + PEFT: fine-tuning on question/answer rows, on the CPU in f32: LoRA, or all weights with `--full`.

Prints a line per optimizer step: `seconds`, `real_tokens` and `padded_tokens`
of its batches, `tokens_per_second` (real), `loss`, `peak_memory_bytes`, and on
the first `seconds_to_first_step`, from the start of the process to the end of
that step. The last line has the medians over all steps but the first.
"""

import statistics

from common import emit, load, peak_rss, process_start, rows
from trl_steps import arguments, train


def main() -> None:
    """Runs and reports."""
    parser = arguments(__doc__, batch=8, learning_rate=2e-4)
    parser.add_argument("--full", action="store_true", help="train all weights, without an adapter")
    args = parser.parse_args()
    start = process_start()

    import torch
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(args.threads)
    tokenizer, model = load(args.model, "float32")
    data = [
        {
            "prompt": [{"role": "user", "content": r["question"]}],
            "completion": [{"role": "assistant", "content": r["answer"]}],
        }
        for r in rows(args.dataset, args.steps * args.batch)
    ]
    more = {"activation_checkpointing": args.checkpointing}
    measured = train(args, start, SFTTrainer, SFTConfig, data, model, tokenizer, **more)

    rest = measured[1:] or measured
    emit(
        summary=True,
        steps=len(measured),
        median_tokens_per_second=statistics.median(m["tokens_per_second"] for m in rest),
        median_padded_tokens_per_second=statistics.median(m["padded_tokens"] / m["seconds"] for m in rest),
        seconds_to_first_step=measured[0]["seconds_to_first_step"],
        peak_memory_bytes=peak_rss(),
        threads=args.threads,
    )


if __name__ == "__main__":
    main()
