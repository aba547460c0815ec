"""What the TRL benchmarks share: their arguments, and a run in file order that prints a line after every step."""

import argparse
import tempfile
import time

from common import emit, now, peak_rss


def arguments(doc: str, batch: int, learning_rate: float) -> argparse.ArgumentParser:
    """Those of every one, with these defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=batch, help="rows a step")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--lora-r", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def train(args, start: float, classes: tuple, data: tuple, adapted: tuple, tokenizer, **more) -> tuple:
    """The lines that were printed, and the trainer.

    `start` is that of the process; `classes` are the trainer and its configuration, which `more` goes to; `data` rows to
    train on and rows to hold out, if any; `adapted` a model and the configuration of its adapter, if any.
    """
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, TrainerCallback

    trainer_class, config_class = classes
    train_rows, held_out = data
    model, adapter = adapted
    measured: list[dict] = []

    class Trainer(trainer_class):
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
            args=config_class(
                output_dir=scratch,
                per_device_train_batch_size=args.batch,
                max_steps=args.steps,
                max_length=args.max_length,
                learning_rate=args.learning_rate,
                bf16=False,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                logging_steps=10**9,
                disable_tqdm=True,
                **more,
            ),
            train_dataset=Dataset.from_list(train_rows),
            eval_dataset=Dataset.from_list(held_out) if held_out else None,
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[Report()],
        )
        trainer.remove_callback(PrinterCallback)
        # TRL makes the adapter of a quantised base bf16, in which small updates are lost; all others are f32 as they are.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        trainer.train()
    return measured, trainer
