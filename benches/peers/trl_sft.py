"""TRL + PEFT: fine-tuning on question/answer rows, on the CPU in f32: LoRA, all weights with `--full`, or another `--method`.

Prints a line per optimizer step: `seconds`, `real_tokens` and `padded_tokens`
of its batches, `tokens_per_second` (real), `loss`, `peak_memory_bytes`, and on
the first `seconds_to_first_step`, from the start of the process to the end of
that step. The last line has the medians over all steps but the first. With
`--eval-dataset` a line has the `eval_loss` after training: nats of an answer's
token, a mean over the tokens of all rows that fit.
"""

import argparse
import statistics
import tempfile
import time

import adapter_methods
from common import emit, load, now, peak_rss, process_start, rows


def conversation(row: dict) -> dict:
    """A question and its answer, as TRL takes them."""
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": row["answer"]}],
    }


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--lora-r", type=int, default=16)
    parser.add_argument("--full", action="store_true", help="train all weights, without an adapter")
    parser.add_argument("--method", choices=adapter_methods.NAMES, default="lora", help="the adapter; not with --full")
    parser.add_argument("--eval-dataset")
    parser.add_argument("--eval-rows", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing, TRL's default")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    start = process_start()

    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(args.threads)
    tokenizer, model = load(args.model, "float32")
    if args.method == "qlora":
        model = adapter_methods.quantised(args.model)
    data = Dataset.from_list([conversation(row) for row in rows(args.dataset, args.steps * args.batch)])
    held_out = args.eval_dataset and Dataset.from_list([conversation(row) for row in rows(args.eval_dataset, args.eval_rows)])
    measured: list[dict] = []

    class Trainer(SFTTrainer):
        """In file order, timing every step."""

        began = 0.0

        def _get_train_sampler(self, train_dataset=None):
            return SequentialSampler(self.train_dataset)

        def training_step(self, model, inputs, num_items_in_batch=None):
            real, padded = int(inputs["attention_mask"].sum()), inputs["attention_mask"].numel()
            self.began = now()
            loss = super().training_step(model, inputs, num_items_in_batch)
            self.pending = {"loss": float(loss), "real_tokens": real, "padded_tokens": padded}
            return loss

    class Report(TrainerCallback):
        """A line after every update."""

        def on_step_end(self, _args, state, control, **kwargs):
            seconds = now() - trainer.began
            line = {
                "step": state.global_step,
                "seconds": seconds,
                "tokens_per_second": trainer.pending["real_tokens"] / seconds,
                **trainer.pending,
                "peak_memory_bytes": peak_rss(),
            }
            if not measured:
                line["seconds_to_first_step"] = time.time() - start
            measured.append(line)
            emit(**line)

    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=SFTConfig(
                output_dir=scratch,
                per_device_train_batch_size=args.batch,
                max_steps=args.steps,
                max_length=args.max_length,
                learning_rate=args.learning_rate,
                activation_checkpointing=args.checkpointing,
                bf16=False,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                logging_steps=10**9,
                disable_tqdm=True,
            ),
            train_dataset=data,
            eval_dataset=held_out or None,
            processing_class=tokenizer,
            peft_config=None if args.full else adapter_methods.peft(args.method, args.model, args.lora_r),
            callbacks=[Report()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        if held_out:
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
