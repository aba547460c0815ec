"""TRL + PEFT: DPO of LoRA on pairs, on the CPU in f32; the reference is the base under the adapter switched off.

Prints a line per optimizer step: `seconds`, `real_tokens` and `padded_tokens`
of its batches (both sides), `tokens_per_second` (real), `loss`,
`peak_memory_bytes`, and on the first `seconds_to_first_step`, from the start
of the process to the end of that step.
"""

import argparse
import tempfile
import time

from common import emit, load, now, peak_rss, process_start, rows


def main() -> None:
    """Runs and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4, help="pairs a step")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--lora-r", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    start = process_start()

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(args.threads)
    tokenizer, model = load(args.model, "float32")
    kept = [{k: r[k] for k in ("chosen", "rejected")} for r in rows(args.dataset, args.steps * args.batch)]
    measured: list[dict] = []

    class Trainer(DPOTrainer):
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
            args=DPOConfig(
                output_dir=scratch,
                per_device_train_batch_size=args.batch,
                max_steps=args.steps,
                max_length=args.max_length,
                learning_rate=args.learning_rate,
                gradient_checkpointing=args.checkpointing,
                bf16=False,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                logging_steps=10**9,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(kept),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=args.lora_r, lora_alpha=2 * args.lora_r, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[Report()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


if __name__ == "__main__":
    main()
