"""What the peer benchmarks share: process start, peak memory, model and rows."""

import json
import os
import resource
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The comparison is on the CPU, whatever the machine has.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def process_start() -> float:
    """When this process started, seconds since the epoch: imports count."""
    import psutil

    return psutil.Process().create_time()


def peak_rss() -> int:
    """Largest resident set so far, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def emit(**values) -> None:
    """Prints one JSON line."""
    print(json.dumps(values), flush=True)


def rows(path: str, n: int) -> list[dict]:
    """The first `n` objects of a jsonl file."""
    out = []
    with open(path, encoding="utf-8") as f:
        for line in f:
            if len(out) == n:
                break
            out.append(json.loads(line))
    return out


def load(path: str, dtype: str, attention: str = "sdpa"):
    """(tokenizer, model) of a directory or a GGUF file, silently."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    p = Path(path)
    where, extra = (p.parent, {"gguf_file": p.name}) if p.suffix == ".gguf" else (p, {})
    tokenizer = AutoTokenizer.from_pretrained(where, **extra)
    model = AutoModelForCausalLM.from_pretrained(
        where, dtype=getattr(torch, dtype), attn_implementation=attention, **extra
    )
    # The weights are plain f32 by now, but a model that came from GGUF still
    # calls itself quantised, and the trainer refuses those.
    if extra:
        model.config.__dict__.pop("quantization_config", None)
        model.hf_quantizer, model.is_quantized = None, False
    return tokenizer, model


def now() -> float:
    """Monotonic seconds."""
    return time.perf_counter()
