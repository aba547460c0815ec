"""The adapter methods that `adapters.py` compares, as planish's flags and as PEFT's configurations."""

#: Rates found in the papers or PEFT's examples: what trains few numbers needs a higher one.
RATES = {"lora": 2e-4, "dora": 2e-4, "qlora": 2e-4, "ia3": 5e-3, "prompt_tuning": 1e-2}

NAMES = {"lora": "LoRA", "dora": "DoRA", "qlora": "QLoRA (NF4)", "ia3": "(IA)³", "prompt_tuning": "prompt tuning"}

#: What prompt tuning begins with, repeated or cut to 20 tokens by both sides.
TEXT = "Solve the problem step by step and write the number that answers it after four hash signs."


def planish(method: str, rank: int) -> list:
    """Flags of `planish sft`."""
    lora = ["--use-peft", "--lora-target-modules", "all-linear", "--lora-r", rank, "--lora-alpha", 2 * rank, "--lora-dropout", 0]
    return {
        "lora": lora,
        "dora": [*lora, "--use-dora"],
        "qlora": [*lora, "--load-in-4bit"],
        "ia3": ["--use-peft", "--peft-type", "IA3"],
        "prompt_tuning": ["--use-peft", "--peft-type", "PROMPT_TUNING", "--num-virtual-tokens", 20,
                          "--prompt-tuning-init", "TEXT", "--prompt-tuning-init-text", TEXT],
    }[method]


def peft(method: str, tokenizer: str, rank: int):
    """PEFT's configuration."""
    from peft import IA3Config, LoraConfig, PromptTuningConfig, PromptTuningInit

    if method in ("lora", "dora", "qlora"):
        return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", use_dora=method == "dora",
                          task_type="CAUSAL_LM")
    if method == "ia3":
        return IA3Config(task_type="CAUSAL_LM")
    return PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=20, prompt_tuning_init=PromptTuningInit.TEXT,
        prompt_tuning_init_text=TEXT, tokenizer_name_or_path=tokenizer,
    )


def quantised(path: str):
    """The model with its linear modules in NF4, computed in f32, on the processor."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}, attn_implementation="sdpa"
    )
