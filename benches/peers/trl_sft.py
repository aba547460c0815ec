"""TRL + PEFT: fine-tuning on question/answer rows, on the CPU in f32: LoRA, another `--method`, or all weights with `--full`.

Prints a line per optimizer step: `seconds`, `real_tokens` and `padded_tokens`
of its batches, `tokens_per_second` (real), `loss`, `peak_memory_bytes`, and on
the first `seconds_to_first_step`, from the start of the process to the end of
that step. The last line has the medians over all steps but the first. With
`--eval-dataset` a line before it has `trainable_parameters` and the `eval_loss`
after training: nats of an answer's token, a mean over the tokens of all rows.
"""

import statistics

import adapter_methods
from common import emit, load, peak_rss, process_start, rows
from trl_steps import arguments, train


def conversations(path: str, count: int) -> list[dict]:
    """Questions and answers, as TRL takes them."""
    return [
        {
            "prompt": [{"role": "user", "content": row["question"]}],
            "completion": [{"role": "assistant", "content": row["answer"]}],
        }
        for row in rows(path, count)
    ]


def held_out_loss(trainer) -> float:
    """Over the supervised tokens of the trainer's evaluation rows, each by itself, so that nothing is padded."""
    import torch

    total, tokens = 0.0, 0
    trainer.model.eval()
    for row in trainer.eval_dataset:
        batch = trainer.data_collator([row])
        labels = batch["labels"]
        with torch.no_grad():
            loss = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        supervised = int((labels[:, 1:] != -100).sum())
        total, tokens = total + float(loss) * supervised, tokens + supervised
    return total / tokens


def main() -> None:
    """Runs and reports."""
    parser = arguments(__doc__, batch=8, learning_rate=2e-4)
    parser.add_argument("--full", action="store_true", help="train all weights, without an adapter")
    parser.add_argument("--method", choices=adapter_methods.NAMES, default="lora", help="the adapter; not with --full")
    parser.add_argument("--eval-dataset")
    parser.add_argument("--eval-rows", type=int, default=100)
    args = parser.parse_args()
    start = process_start()

    import torch
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(args.threads)
    tokenizer, model = load(args.model, "float32")
    if args.method == "qlora":
        model = adapter_methods.quantised(args.model)
    data = conversations(args.dataset, args.steps * args.batch)
    held_out = conversations(args.eval_dataset, args.eval_rows) if args.eval_dataset else None
    adapter = None if args.full else adapter_methods.peft(args.method, args.model, args.lora_r)
    more = {"activation_checkpointing": args.checkpointing}
    measured, trainer = train(args, start, (SFTTrainer, SFTConfig), (data, held_out), (model, adapter), tokenizer, **more)

    if held_out:
        trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        emit(eval_loss=held_out_loss(trainer), trainable_parameters=trained)
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
