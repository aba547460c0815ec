"""Training steps and decoding of `planish doctor --bench` in transformers and PEFT: a JSON line for each, under the
same name.

    python benches/peers/gpu/steps.py --device cuda --only step/1.5b,decode

Models of the same shapes with random weights (`models.json` of the doctor); rows of the same lengths, all tokens
supervised, no recomputation, AdamW, clipping. LoRA and QLoRA are PEFT's on all linear modules, r = 16, over bf16
weights under autocast. Full fine-tuning is measured twice: f32 weights under autocast (TRL's `bf16`), and bf16
weights alone, whose AdamW has no f32 masters. With `--compile` training is by torch.compile, with `--liger` by Liger
Kernel's modules.
"""

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from clock import Clock, guarded, summary

MODELS = Path(__file__).resolve().parents[3] / "cli/src/doctor/bench/models.json"
RANK = 16


def models(tiny: bool) -> list[dict]:
    """The shapes: the tiny ones, or all others."""
    return [m for m in json.loads(MODELS.read_text()) if m["name"].startswith("tiny") == tiny]


def build(listed: dict, dtype: torch.dtype, device: torch.device, liger: bool = False):
    """A model with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(listed["config"])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields, attn_implementation="sdpa")
    config.use_cache = False
    if liger:
        from liger_kernel.transformers import _apply_liger_kernel

        _apply_liger_kernel(config.model_type)
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def quantise(model, device: torch.device) -> None:
    """Puts bitsandbytes' NF4 in place of the linear modules of the layers."""
    import bitsandbytes as bnb

    for name, module in list(model.model.layers.named_modules()):
        if type(module) is not torch.nn.Linear:
            continue
        bias = module.bias is not None
        new = bnb.nn.Linear4bit(
            module.in_features, module.out_features, bias=bias, compute_dtype=torch.bfloat16,
            compress_statistics=True, quant_type="nf4",
        )
        new.weight = bnb.nn.Params4bit(
            module.weight.data.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        new.bias = module.bias
        parent, _, last = name.rpartition(".")
        setattr(model.model.layers.get_submodule(parent), last, new.to(device))
    model.is_loaded_in_4bit = True


def adapted(model):
    """With PEFT's LoRA on all linear modules: where there are experts, on those of attention."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def step(clock: Clock, listed: dict, training: str, length: int, dtype: torch.dtype, extra: str) -> dict:
    """Seconds of a training step."""
    device, tokens = clock.device, listed["tokens"]
    before = clock.peak_begin()
    model = build(listed, dtype, device, extra == "liger")
    if training == "qlora":
        quantise(model, device)
    if training != "full":
        model = adapted(model)
    model.train()
    run = torch.compile(model) if extra == "compile" else model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=True)
    mixed = training != "full" or dtype == torch.float32
    vocabulary, loss = listed["config"]["vocab_size"], None

    def once() -> float:
        ids = torch.randint(0, vocabulary, (tokens // length, length), device=device)
        clock.wait()
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16) if mixed else contextlib.nullcontext():
            found = run(input_ids=ids, labels=ids).loss
        found.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        nonlocal loss
        loss = found.item()
        clock.wait()
        return time.perf_counter() - began

    # torch.compile compiles in the first, and again where a shape changes.
    for _ in range(0 if clock.tiny else 2):
        once()
    samples, began = [], time.perf_counter()
    most, patience = (2, 0.0) if clock.tiny else (10, 3.0)
    while len(samples) < most and (len(samples) < 3 or time.perf_counter() - began < patience):
        samples.append(once())
    figures = summary(samples, 1)
    rate = tokens / figures["seconds"]
    return {**figures, **clock.peak(before), "unit": "tokens/s", "rate": rate, "loss": loss}


def decode(clock: Clock, listed: dict, sequences: int, prompt: int, new: int) -> dict:
    """Seconds of a step of greedy decoding, by `generate`."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Watch(StoppingCriteria):
        """Notes when each token was there."""

        def __init__(self):
            self.seen = []

        def __call__(self, input_ids, scores, **kwargs):
            clock.wait()
            self.seen.append(time.perf_counter())
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    before = clock.peak_begin()
    model = build(listed, torch.bfloat16, clock.device).eval()
    model.config.use_cache = True
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    ids = torch.randint(0, listed["config"]["vocab_size"], (sequences, prompt), device=clock.device)

    def run(count: int) -> list:
        watch = Watch()
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False,
            stopping_criteria=StoppingCriteriaList([watch]),
        )
        return watch.seen

    with torch.inference_mode():
        run(2)
        seen = run(new)
    figures = summary([b - a for a, b in zip(seen, seen[1:])], 1)
    return {**figures, **clock.peak(before), "unit": "tokens/s", "rate": sequences / figures["seconds"]}


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="", help="beginnings of names, with commas between")
    parser.add_argument("--tiny", action="store_true", help="the emulator's model and lengths")
    parser.add_argument("--compile", action="store_true", help="training by torch.compile only")
    parser.add_argument("--liger", action="store_true", help="training with Liger Kernel only")
    args = parser.parse_args()
    only = [prefix for prefix in args.only.split(",") if prefix]
    clock = Clock(args.device, args.tiny)

    def item(library: str, name: str, shape: str, measure) -> None:
        if only and not any(name.startswith(prefix) for prefix in only):
            return
        guarded(library, name, shape, measure)
        gc.collect()
        if clock.cuda:
            torch.cuda.empty_cache()

    bnb = importlib.util.find_spec("bitsandbytes") is not None
    # Liger Kernel changes transformers for the whole process.
    extras = ["liger"] if args.liger else ["compile"] if args.compile else [""]
    for listed in models(args.tiny):
        for training in ["lora", "full"] + ["qlora"] * bnb:
            dtypes = {"transformers": torch.bfloat16}
            if training == "full":
                dtypes = {"transformers, autocast": torch.float32, "transformers, bf16": torch.bfloat16}
            for length in [16] if args.tiny else [1024, 4096]:
                name = f"step/{listed['name']}/{training}/{length}"
                shape = f"{listed['tokens'] // length} x {length} tokens, {training}, bf16"
                for library, dtype in dtypes.items():
                    for extra in extras:
                        item(
                            ", ".join(filter(None, [library, extra])), name, shape,
                            lambda d=dtype, e=extra, n=length, t=training: step(clock, listed, t, n, d, e),
                        )
        counts, prompt, new = ([1, 2], 5, 3) if args.tiny else ([1, 64], 128, 64)
        for sequences in counts:
            if extras != [""]:
                continue
            shape = f"{sequences} x {new} tokens after {prompt}, greedy, bf16"
            name = f"decode/{listed['name']}/{sequences}"
            item("transformers", name, shape, lambda n=sequences: decode(clock, listed, n, prompt, new))


if __name__ == "__main__":
    main()
