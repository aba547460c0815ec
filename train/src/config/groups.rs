//! The rows of the table, in blocks that recipes share. Names and defaults are those of TRL 1.16
//! (`ModelConfig`, `SFTConfig`) and transformers 5 (`TrainingArguments`) unless the help says so.

// The doc comments of settings are also the program's help, where brackets hold a default.
#![allow(rustdoc::broken_intra_doc_links)]

use super::device::DeviceChoice;
use super::schedule::{Schedule, ScheduleArgs};
use super::setting::rules::*;
use super::table::{choices, settings};

choices! {
    /// The dtype in which weights are held.
    pub enum WeightDtype {
        /// 32-bit floats.
        Float32 = "float32" | "fp32" | "f32",
        /// bfloat16; full fine-tuning then keeps float32 masters.
        Bfloat16 = "bfloat16" | "bf16",
        /// As in the weight file.
        Auto = "auto",
    }
}

choices! {
    /// A 4-bit code, under bitsandbytes' names.
    pub enum FourBitType {
        /// 4-bit NormalFloat.
        Nf4 = "nf4",
        /// 4-bit float.
        Fp4 = "fp4",
    }
}

choices! {
    /// What happens to an example longer than `max_length`.
    pub enum TruncationMode {
        /// Its first `max_length` tokens are kept.
        KeepStart = "keep_start",
        /// Its last `max_length` tokens are kept.
        KeepEnd = "keep_end",
        /// It is left out.
        Drop = "drop",
    }
}

choices! {
    /// What is computed again in the backward pass, under Megatron's names.
    pub enum Granularity {
        /// Each layer: its input alone is kept.
        Full = "full",
        /// The two wide projections of each MLP.
        Selective = "selective",
    }
}

choices! {
    /// How examples are packed into rows of `max_length` tokens.
    pub enum PackingStrategy {
        /// Best-fit decreasing; no example is cut, none sees another.
        Bfd = "bfd",
        /// One stream of all examples, cut every `max_length` tokens: rows are full, examples are cut.
        Wrapped = "wrapped",
    }
}

choices! {
    /// What the columns of a file mean.
    pub enum RowType {
        /// `messages`: a conversation.
        Messages = "messages",
        /// `conversations`: a conversation, also in ShareGPT's words.
        Conversations = "conversations" | "sharegpt" | "share_gpt",
        /// `prompt` and `completion`.
        PromptCompletion = "prompt_completion" | "prompt+completion",
        /// `question` and `answer`.
        QuestionAnswer = "question_answer" | "question+answer",
        /// `instruction`, `output` and perhaps `input`.
        Alpaca = "alpaca" | "instruction_output" | "instruction+output",
        /// `text`.
        Text = "text",
        /// `input_ids`, with labels or a mask.
        Tokenized = "tokenized" | "input_ids",
    }
}

choices! {
    /// What a document is in a file of plain text, under the names of `datasets`.
    pub enum DocumentChoice {
        /// Lines up to a blank one.
        Paragraph = "paragraph",
        /// A line.
        Line = "line",
        /// The file.
        Document = "document",
    }
}

choices! {
    /// When something is done during a run.
    pub enum Interval {
        /// Never.
        No = "no" | "false" | "off",
        /// Every so many optimizer steps.
        Steps = "steps",
        /// At the end of every epoch.
        Epoch = "epoch",
    }
}

choices! {
    /// What is trained where no adapter is.
    pub enum FinetuningType {
        /// All weights.
        Full = "full",
        /// The biases.
        Bitfit = "bitfit",
        /// Some layers.
        Freeze = "freeze",
    }
}

choices! {
    /// What turns gradients into updates, under transformers' names.
    pub enum OptimizerChoice {
        /// AdamW.
        AdamW = "adamw_torch" | "adamw_torch_fused" | "adamw",
        /// Gradient descent.
        Sgd = "sgd",
        /// Lion.
        Lion = "lion_32bit" | "lion",
        /// Adafactor.
        Adafactor = "adafactor",
        /// Muon for matrices, AdamW for the rest.
        Muon = "muon",
        /// Schedule-free AdamW.
        ScheduleFree = "schedule_free_adamw" | "schedule_free_adamw_torch",
        /// AdamW with its state in 8 bits.
        AdamW8bit = "adamw_8bit" | "adamw_bnb_8bit",
        /// Lion with its state in 8 bits.
        Lion8bit = "lion_8bit",
        /// Gradient descent with its momentum in 8 bits.
        Sgd8bit = "sgd_8bit",
        /// AdamW with its state in a file.
        PagedAdamW = "paged_adamw_32bit" | "paged_adamw",
        /// AdamW with its state in 8 bits and in a file.
        PagedAdamW8bit = "paged_adamw_8bit",
        /// Lion with its state in a file.
        PagedLion = "paged_lion_32bit" | "paged_lion",
        /// Lion with its state in 8 bits and in a file.
        PagedLion8bit = "paged_lion_8bit",
        /// AdamW in low-rank subspaces of the gradients.
        GaLoreAdamW = "galore_adamw",
    }
}

choices! {
    /// A kind of adapter, under PEFT's names.
    pub enum PeftType {
        /// Low-rank updates.
        Lora = "LORA" | "lora",
        /// Low-rank updates whose ranks go where they matter.
        AdaLora = "ADALORA" | "adalora",
        /// Trained scales of activations.
        Ia3 = "IA3" | "ia3",
        /// Norms.
        LnTuning = "LN_TUNING" | "ln_tuning",
        /// Trained scales of random low-rank updates.
        Vera = "VERA" | "vera",
        /// Rotations of inputs.
        Oft = "OFT" | "oft",
        /// Rotations of inputs, and scales of outputs.
        Boft = "BOFT" | "boft",
        /// Embeddings of virtual tokens.
        PromptTuning = "PROMPT_TUNING" | "prompt_tuning",
        /// Keys and values of virtual tokens.
        PrefixTuning = "PREFIX_TUNING" | "prefix_tuning",
        /// Embeddings of virtual tokens, made by an encoder.
        PTuning = "P_TUNING" | "p_tuning",
    }
}

choices! {
    /// What makes the embeddings of p-tuning, under PEFT's names.
    pub enum EncoderChoice {
        /// Three linear layers.
        Mlp = "MLP" | "mlp",
        /// A bidirectional LSTM and two linear layers.
        Lstm = "LSTM" | "lstm",
    }
}

choices! {
    /// Which biases are trained with a LoRA adapter.
    pub enum BiasChoice {
        /// None.
        None = "none",
        /// All of the model.
        All = "all",
        /// Those of adapted modules.
        LoraOnly = "lora_only",
    }
}

choices! {
    /// What prompt tuning begins with.
    pub enum PromptInitChoice {
        /// Random numbers.
        Random = "RANDOM" | "random",
        /// Embeddings of random tokens.
        SampleVocab = "SAMPLE_VOCAB" | "sample_vocab",
        /// Embeddings of a text.
        Text = "TEXT" | "text",
    }
}

settings! {
    /// The model to start from.
    pub struct ModelSettings ("Model") {
        /// Model: a Hugging Face directory, a .gguf file, a hub id, or `builtin`.
        model: String = "", MAYBE_TEXT;
        /// Branch, tag or commit of a hub model.
        model_revision: String = "main", TEXT;
        /// Adapter in PEFT's format to start from.
        adapter: Option<String> = None, TEXT;
        /// Dtype of the weights in memory.
        dtype: WeightDtype = WeightDtype::Float32, WeightDtype::RULE;
        /// Quantise the linear modules of the layers to 4 bits, to train an adapter on them (QLoRA, arXiv 2305.14314).
        load_in_4bit: bool = false, SWITCH;
        /// Quantise them to 8 bits.
        load_in_8bit: bool = false, SWITCH;
        /// Code of the 4 bits: nf4 or fp4.
        bnb_4bit_quant_type: FourBitType = FourBitType::Nf4, FourBitType::RULE;
        /// Quantise the scales of the 4-bit blocks too.
        use_bnb_nested_quant: bool = false, SWITCH;
        /// Jinja file, or directory of a tokenizer, whose chat template replaces the model's.
        chat_template_path: Option<String> = None, TEXT;
        /// Token that ends a sequence, in place of the tokenizer's.
        eos_token: Option<String> = None, TEXT;
    }
}

settings! {
    /// A model to make from nothing.
    pub struct ArchitectureSettings ("Model") {
        /// Architecture of the new model: a config.json, or a directory that holds one.
        config_name: Option<String> = None, TEXT;
        /// Tokenizer of the new model: a tokenizer.json, or a directory that holds one.
        tokenizer_name: Option<String> = None, TEXT;
        /// Model to continue from instead: a directory, a .gguf file, a hub id, or `builtin`.
        model: Option<String> = None, TEXT;
        /// Branch, tag or commit of a hub model.
        model_revision: String = "main", TEXT;
        /// Dtype of the weights in memory.
        dtype: WeightDtype = WeightDtype::Float32, WeightDtype::RULE;
        /// Token that ends a sequence, in place of the tokenizer's.
        eos_token: Option<String> = None, TEXT;
    }
}

settings! {
    /// The examples and how they become token sequences.
    pub struct DataSettings ("Data") {
        /// Files of examples (.jsonl, .json, .csv, .parquet, .txt) or `builtin`; may be repeated.
        dataset: Vec<String> = Vec::new(), TEXT;
        /// How often each file is taken relative to the others, one number a file.
        dataset_weights: Vec<f64> = Vec::new(), POSITIVE;
        /// Files of held-out examples; may be repeated.
        eval_dataset: Vec<String> = Vec::new(), TEXT;
        /// Share of the examples held out for evaluation when there is no eval_dataset.
        validation_split: f64 = 0.0, BELOW_ONE;
        /// What the columns of all files mean [recognised by their names].
        dataset_type: Option<RowType> = None, RowType::RULE;
        /// Column of the text of plain examples [found by name].
        dataset_text_field: Option<String> = None, TEXT;
        /// Column of the prompt [found by name].
        prompt_column: Option<String> = None, TEXT;
        /// Column of the completion [found by name].
        completion_column: Option<String> = None, TEXT;
        /// Column of the messages [found by name].
        messages_column: Option<String> = None, TEXT;
        /// What a document is in .txt files: lines up to a blank one, each line, or the whole file.
        sample_by: DocumentChoice = DocumentChoice::Paragraph, DocumentChoice::RULE;
        /// Longest sequence in tokens, and the length of packed rows.
        max_length: Option<usize> = Some(1024), LENGTH;
        /// What to do with longer examples.
        truncation_mode: TruncationMode = TruncationMode::KeepStart, TruncationMode::RULE;
        /// Pack several examples into a row; they never see each other.
        packing: bool = false, SWITCH;
        /// How to pack: whole examples by best fit, or one stream of all, cut at every row's end.
        packing_strategy: PackingStrategy = PackingStrategy::Bfd, PackingStrategy::RULE;
        /// Train on the completion only [true for prompt/completion data].
        completion_only_loss: Option<bool> = None, SWITCH;
        /// Train on the assistant's turns only.
        assistant_only_loss: bool = false, SWITCH;
        /// Leave out, and count, examples without a supervised token instead of stopping.
        drop_unsupervised: bool = false, SWITCH;
        /// Leave out, and count by reason, every row that is wrong (malformed JSON, a value of another kind, and what drop_unsupervised leaves out) instead of stopping.
        drop_invalid: bool = false, SWITCH;
        /// Time that `strftime_now` in a chat template gives, seconds since 1970 UTC [the start of the run, kept when it is resumed].
        template_time: Option<u64> = None, TIME;
        /// Shuffle the examples, anew for every epoch.
        shuffle: bool = true, SWITCH;
    }
}

settings! {
    /// Batches, epochs and the optimizer.
    pub struct OptimSettings ("Training") {
        /// Optimizer.
        optim: OptimizerChoice = OptimizerChoice::AdamW, OptimizerChoice::RULE;
        /// Arguments of the optimizer: `rank=128, update_proj_gap=200, scale=0.25, proj_type=std` of galore_adamw, `rounding=nearest` of those in 8 bits.
        optim_args: Option<String> = None, TEXT;
        /// Linear layers that galore_adamw projects: parts of names, one regular expression, or `all-linear`.
        optim_target_modules: Vec<String> = Vec::new(), TEXT;
        /// Memory for the states of a paged optimizer, GiB; the others are in a file of output_dir [none in memory].
        optim_memory_budget: Option<f64> = None, NOT_NEGATIVE;
        /// Momentum of sgd.
        sgd_momentum: f64 = 0.0, BELOW_ONE;
        /// Peak learning rate.
        learning_rate: f64 = 2e-5, NOT_NEGATIVE;
        /// Examples in a micro-batch.
        per_device_train_batch_size: usize = 8usize, COUNT;
        /// Micro-batches in an optimizer step.
        gradient_accumulation_steps: usize = 1usize, COUNT;
        /// Passes over the data; may be a fraction.
        num_train_epochs: f64 = 3.0, POSITIVE;
        /// Optimizer steps in all; overrides num_train_epochs unless -1.
        max_steps: i64 = -1, STEPS_OR_ALL;
        /// Course of the learning rate.
        lr_scheduler_type: Schedule = Schedule::Linear, Schedule::RULE;
        /// Arguments of the schedule, such as `{min_lr_rate: 0.1}` or `min_lr_rate=0.1`.
        lr_scheduler_kwargs: ScheduleArgs = ScheduleArgs::default(), ScheduleArgs::RULE;
        /// Steps of linear warm-up; below 1, their share of all steps.
        warmup_steps: f64 = 0.0, NOT_NEGATIVE;
        /// Share of all steps that is warm-up, when warmup_steps is 0.
        warmup_ratio: f64 = 0.0, SHARE;
        /// Decoupled weight decay, not applied to norms and biases.
        weight_decay: f64 = 0.0, NOT_NEGATIVE;
        /// Decay of the mean of gradients (AdamW, Lion).
        adam_beta1: f64 = 0.9, BELOW_ONE;
        /// Decay of AdamW's mean of squared gradients, and of Lion's mean after the update.
        adam_beta2: f64 = 0.999, BELOW_ONE;
        /// Added to the root in AdamW's denominator.
        adam_epsilon: f64 = 1e-8, NOT_NEGATIVE;
        /// Norm to which the gradient is clipped; 0 for no clipping.
        max_grad_norm: f64 = 1.0, NOT_NEGATIVE;
        /// Magnitude of NEFTune's noise on the embeddings (arXiv 2310.05914).
        neftune_noise_alpha: Option<f64> = None, NOT_NEGATIVE;
        /// Tokens that are in memory at once: larger micro-batches go through the model in parts, cut between
        /// examples, which changes the gradient by rounding only; 0 for never [704; on a device 8192, or half of it and so on if memory is short].
        tokens_per_pass: Option<u64> = None, WHOLE;
        /// Memory that the run may take, GiB: passes are made shorter, then MLPs and then layers recomputed until the plan
        /// fits; the choice stands in the run's config.yaml, and a resumed run keeps it.
        memory_budget: Option<f64> = None, POSITIVE;
        /// Recompute activations in the backward pass: less memory, more time.
        gradient_checkpointing: bool = true, SWITCH;
        /// What gradient_checkpointing recomputes: all of each layer (full), or of its MLP what is wider than the stream (selective).
        recompute_granularity: Granularity = Granularity::Full, Granularity::RULE;
        /// Seed of the weights, dropout and noise.
        seed: u64 = 42u64, WHOLE;
        /// Seed of the order of the examples [that of seed].
        data_seed: Option<u64> = None, WHOLE;
    }
}

impl OptimSettings {
    /// Whether each layer is computed again in the backward pass.
    pub fn recomputes_layers(&self) -> bool {
        self.gradient_checkpointing && self.recompute_granularity == Granularity::Full
    }

    /// Whether of each MLP what is wider than the stream is.
    pub fn recomputes_mlps(&self) -> bool {
        self.gradient_checkpointing && self.recompute_granularity == Granularity::Selective
    }
}

settings! {
    /// What examples share.
    pub struct SharingSettings ("Training") {
        /// Compute what neighbouring examples begin with (a template's system prompt, say) once; changes gradients by rounding only. Without effect with dropout or noise, and on a device.
        share_prompts: bool = true, SWITCH;
    }
}

settings! {
    /// Adapters, and training a part of the weights.
    pub struct LoraSettings ("Adapters") {
        /// Train an adapter instead of all weights.
        use_peft: bool = false, SWITCH;
        /// Kind of adapter.
        peft_type: PeftType = PeftType::Lora, PeftType::RULE;
        /// Rank.
        lora_r: usize = 16usize, COUNT;
        /// Scale: the update is multiplied by lora_alpha / lora_r.
        lora_alpha: f64 = 32.0, POSITIVE;
        /// Dropout on the adapter's input (LORA, ADALORA, VERA).
        lora_dropout: f64 = 0.05, BELOW_ONE;
        /// Modules with an adapter: names, one regular expression, or `all-linear` [q_proj, v_proj; IA3: k_proj, v_proj, down_proj; LN_TUNING: the norms of layers and the last].
        lora_target_modules: Vec<String> = Vec::new(), TEXT;
        /// Parameters with an adapter that are fused in transformers 5: mlp.experts.gate_up_proj, mlp.experts.down_proj, mlp.gate.weight (LORA).
        lora_target_parameters: Vec<String> = Vec::new(), TEXT;
        /// Modules trained whole and saved with the adapter.
        lora_modules_to_save: Vec<String> = Vec::new(), TEXT;
        /// Modules, of the targets, without an adapter: names or one regular expression.
        exclude_modules: Vec<String> = Vec::new(), TEXT;
        /// Numbers of the layers with an adapter [all].
        layers_to_transform: Vec<u64> = Vec::new(), WHOLE;
        /// Ranks of single modules, each `NAME=RANK`; the name's end or a regular expression (LORA).
        rank_pattern: Vec<String> = Vec::new(), TEXT;
        /// lora_alpha of single modules, each `NAME=ALPHA` (LORA).
        alpha_pattern: Vec<String> = Vec::new(), TEXT;
        /// Scale by lora_alpha / sqrt(lora_r) (arXiv 2312.03732).
        use_rslora: bool = false, SWITCH;
        /// Train the lengths of the weight's rows too (DoRA, arXiv 2402.09353).
        use_dora: bool = false, SWITCH;
        /// How LoRA begins: true, false, gaussian, pissa, pissa_niter_N, olora, loftq or orthogonal.
        init_lora_weights: String = "true", TEXT;
        /// Bits that loftq quantises weights to: 4 (NF4) or 8.
        loftq_bits: usize = 4usize, COUNT;
        /// Turns in which loftq finds quantised weights and adapters.
        loftq_iter: usize = 1usize, COUNT;
        /// Biases trained with LoRA.
        bias: BiasChoice = BiasChoice::None, BiasChoice::RULE;
        /// Learning rate of LoRA's B over that of A (LoRA+, arXiv 2402.12354) [1].
        loraplus_lr_ratio: Option<f64> = None, POSITIVE;
        /// Learning rate of LoRA on the embedding, with loraplus_lr_ratio.
        loraplus_lr_embedding: f64 = 1e-6, NOT_NEGATIVE;
        /// Rank that AdaLoRA begins with.
        init_r: usize = 12usize, COUNT;
        /// Mean rank that AdaLoRA ends with.
        target_r: usize = 8usize, COUNT;
        /// Steps before AdaLoRA's ranks fall.
        tinit: u64 = 0u64, WHOLE;
        /// Steps after AdaLoRA's ranks have fallen.
        tfinal: u64 = 0u64, WHOLE;
        /// Steps between AdaLoRA's allocations (PEFT's deltaT).
        delta_t: u64 = 1u64, AT_LEAST_ONE;
        /// Weight of AdaLoRA's orthogonality penalty.
        orth_reg_weight: f64 = 0.5, NOT_NEGATIVE;
        /// Modules whose input IA3 scales, not their output.
        feedforward_modules: Vec<String> = vec!["down_proj".to_string()], TEXT;
        /// Rank of VeRA's shared pair.
        vera_r: usize = 256usize, COUNT;
        /// What VeRA's lambda_d begins with.
        vera_d_initial: f64 = 0.1, NOT_NEGATIVE;
        /// Blocks of OFT in a module; 0 if oft_block_size gives their size.
        oft_r: usize = 0usize, ANY_COUNT;
        /// Size of OFT's blocks; 0 if oft_r gives their number.
        oft_block_size: usize = 32usize, ANY_COUNT;
        /// Size of BOFT's blocks; 0 if boft_block_num gives their number.
        boft_block_size: usize = 4usize, ANY_COUNT;
        /// Blocks of BOFT in a module; 0 if boft_block_size gives their size.
        boft_block_num: usize = 0usize, ANY_COUNT;
        /// Use a series for OFT's rotations, not the exact transform.
        use_cayley_neumann: bool = true, SWITCH;
        /// Virtual tokens of prompt, prefix and p-tuning.
        num_virtual_tokens: usize = 20usize, COUNT;
        /// What prompt tuning begins with.
        prompt_tuning_init: PromptInitChoice = PromptInitChoice::Random, PromptInitChoice::RULE;
        /// The text, with prompt_tuning_init TEXT.
        prompt_tuning_init_text: Option<String> = None, TEXT;
        /// Let an MLP make prefix tuning's keys and values.
        prefix_projection: bool = false, SWITCH;
        /// Width of the encoder of p-tuning, or of prefix_projection [that of its output's rows].
        encoder_hidden_size: Option<usize> = None, COUNT;
        /// The encoder of p-tuning.
        encoder_reparameterization_type: EncoderChoice = EncoderChoice::Mlp, EncoderChoice::RULE;
        /// Layers of p-tuning's encoder, if it is an LSTM.
        encoder_num_layers: usize = 2usize, COUNT;
        /// What is trained without use_peft.
        finetuning_type: FinetuningType = FinetuningType::Full, FinetuningType::RULE;
        /// With finetuning_type freeze: how many layers are trained, the last ones; negative for the first ones.
        freeze_trainable_layers: i64 = 2i64, ANY_WHOLE;
        /// Of these, only modules with this in their path, such as mlp, experts.3 or a regular expression [all].
        freeze_trainable_modules: Vec<String> = Vec::new(), TEXT;
        /// Modules outside of the layers that are trained too, such as lm_head.
        freeze_extra_modules: Vec<String> = Vec::new(), TEXT;
    }
}

settings! {
    /// Evaluation on held-out examples.
    pub struct EvalSettings ("Evaluation") {
        /// When to evaluate.
        eval_strategy: Interval = Interval::No, Interval::RULE;
        /// Steps between evaluations [logging_steps].
        eval_steps: Option<u64> = None, AT_LEAST_ONE;
        /// Evaluate before the first step.
        eval_on_start: bool = false, SWITCH;
        /// Examples in a micro-batch of evaluation.
        per_device_eval_batch_size: usize = 8usize, COUNT;
        /// Finish with the best checkpoint instead of the last.
        load_best_model_at_end: bool = false, SWITCH;
        /// The metric that decides which checkpoint is best [eval_loss].
        metric_for_best_model: Option<String> = None, TEXT;
        /// Whether more of that metric is better [unless its name ends in `loss`].
        greater_is_better: Option<bool> = None, SWITCH;
        /// Stop after this many evaluations without an improvement.
        early_stopping_patience: Option<u64> = None, AT_LEAST_ONE;
        /// What counts as an improvement.
        early_stopping_threshold: f64 = 0.0, NOT_NEGATIVE;
    }
}

settings! {
    /// The run directory, checkpoints and the machine.
    pub struct RunSettings ("Run") {
        /// New directory for the checkpoints, the metrics, the report and the result.
        output_dir: String = "", MAYBE_TEXT;
        /// Use output_dir although something is in it: an earlier run there is removed.
        overwrite_output_dir: bool = false, SWITCH;
        /// Go on from a checkpoint: its path, or `latest` for the last one in output_dir.
        resume_from_checkpoint: Option<String> = None, TEXT;
        /// When to save a checkpoint.
        save_strategy: Interval = Interval::Steps, Interval::RULE;
        /// Steps between checkpoints.
        save_steps: u64 = 500u64, AT_LEAST_ONE;
        /// Checkpoints to keep; older ones are removed, the best one never.
        save_total_limit: Option<usize> = None, COUNT;
        /// Steps between lines of progress where there is no progress bar.
        logging_steps: u64 = 10u64, AT_LEAST_ONE;
        /// Where to compute: `auto` is a GPU if there is one that can do all of the run.
        device: DeviceChoice = DeviceChoice::On(planish_tensor::Device::Cpu), DeviceChoice::RULE;
        /// Activations and their gradients in bfloat16, for tensor cores; `dtype` is that of the weights [true on a GPU; the processor has float32 only].
        bf16: Option<bool> = None, SWITCH;
        /// Threads [the processor's cores].
        threads: Option<usize> = None, COUNT;
    }
}

/// Other names of settings, accepted everywhere.
pub(super) const ALIASES: &[(&str, &str)] = &[
    ("model_name_or_path", "model"),
    ("dataset_name", "dataset"),
    ("torch_dtype", "dtype"),
    ("shuffle_dataset", "shuffle"),
    ("text_column", "dataset_text_field"),
    ("chat_template", "chat_template_path"),
    ("lora_target", "lora_target_modules"),
    ("revision", "model_revision"),
    ("num_threads", "threads"),
    ("bnb_4bit_use_double_quant", "use_bnb_nested_quant"),
];

/// What other programs and people call settings, to be told the name here: these names are not accepted, as TRL does not.
pub(super) const MEANT: &[(&str, &str)] = &[
    ("lr", "learning_rate"),
    ("batch_size", "per_device_train_batch_size"),
    ("train_batch_size", "per_device_train_batch_size"),
    ("micro_batch_size", "per_device_train_batch_size"),
    ("eval_batch_size", "per_device_eval_batch_size"),
    ("epochs", "num_train_epochs"),
    ("num_epochs", "num_train_epochs"),
    ("steps", "max_steps"),
    ("max_seq_length", "max_length"),
    ("max_seq_len", "max_length"),
    ("cutoff_len", "max_length"),
    ("output", "output_dir"),
    ("grad_accum", "gradient_accumulation_steps"),
    ("accumulation_steps", "gradient_accumulation_steps"),
    ("warmup", "warmup_steps"),
    ("scheduler", "lr_scheduler_type"),
    ("optimizer", "optim"),
    ("target_modules", "lora_target_modules"),
    ("rank", "lora_r"),
    ("lora_rank", "lora_r"),
    ("resume", "resume_from_checkpoint"),
    ("data", "dataset"),
];

/// Settings of TRL and transformers that have no meaning here, and what to do instead.
pub(super) const NOT_OURS: &[(&str, &str)] = &[
    ("fp16", "half activations are bfloat16 (`bf16`), whose range needs no scaling of the loss; leave it out"),
    ("padding_free", "no batch is ever padded, so leave it out"),
    ("pad_to_multiple_of", "no batch is ever padded, so leave it out"),
    ("attn_implementation", "there is one attention, fused and for packed sequences; leave it out"),
    ("use_liger_kernel", "the loss never holds full logits, so leave it out"),
    ("report_to", "every run writes metrics.jsonl, TensorBoard events and report.html; leave it out"),
    ("logging_dir", "TensorBoard events are in output_dir; leave it out"),
    ("trust_remote_code", "no code of a model is ever run; leave it out"),
    ("bnb_4bit_compute_dtype", "the processor, which they are for, computes in float32; leave it out"),
    ("bnb_4bit_quant_storage", "4-bit weights are held as bytes; leave it out"),
    ("push_to_hub", "upload the result with the hub's own client"),
    ("precompute_ref_batch_size", "passes hold `tokens_per_pass` tokens; leave it out"),
    ("max_prompt_length", "prompt and completion together are cut to `max_length`; leave it out"),
    ("generate_during_eval", "evaluation computes losses; `planish generate` writes answers"),
    ("dataset_num_proc", "tokenisation uses all `threads`"),
];
