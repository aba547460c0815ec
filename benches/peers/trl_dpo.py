"""TRL + PEFT: DPO of LoRA on pairs, on the CPU in f32; the reference is the base under the adapter switched off.

Prints a line per optimizer step: `seconds`, `real_tokens` and `padded_tokens`
of its batches (both sides), `tokens_per_second` (real), `loss`,
`peak_memory_bytes`, and on the first `seconds_to_first_step`, from the start
of the process to the end of that step.
"""

import adapter_methods
from common import load, process_start, rows
from trl_steps import arguments, train


def main() -> None:
    """Runs and reports."""
    args = arguments(__doc__, batch=4, learning_rate=1e-4).parse_args()
    start = process_start()

    import torch
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(args.threads)
    tokenizer, model = load(args.model, "float32")
    pairs = [{k: r[k] for k in ("chosen", "rejected")} for r in rows(args.dataset, args.steps * args.batch)]
    more = {"gradient_checkpointing": args.checkpointing}
    adapter = adapter_methods.peft("lora", args.model, args.lora_r)
    train(args, start, (DPOTrainer, DPOConfig), (pairs, None), (model, adapter), tokenizer, **more)


if __name__ == "__main__":
    main()
