//! The tokenizer of the builtin model, trained on its own corpus.

use super::generate::conversation;
use serde_json::json;
use std::collections::HashSet;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Model, PreTokenizerWrapper, TokenizerBuilder};

/// Size of the vocabulary: every word of the world is one token, and whatever is not in it falls
/// apart into pieces or bytes, so that any text can be encoded.
pub const VOCAB_SIZE: usize = 1408;

/// Conversations that the tokenizer is trained on: enough for every word to occur often.
const N_CONVERSATIONS: u64 = 20_000;

/// Special tokens, with the ids 0, 1, …: end of text and padding, start and end of a turn.
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Turns are framed as in ChatML.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Trains the tokenizer and returns its `tokenizer.json`: byte-level BPE, digits one by one.
///
/// # Errors
/// Whatever the `tokenizers` crate refuses; nothing that depends on a user's input.
pub fn train_tokenizer(seed: u64) -> tokenizers::Result<String> {
    let special: Vec<AddedToken> = SPECIAL.iter().map(|token| AddedToken::from(*token, true)).collect();
    let alphabet: HashSet<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(VOCAB_SIZE)
        .min_frequency(2)
        .special_tokens(special.clone())
        .initial_alphabet(alphabet)
        .show_progress(false)
        .build();
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer =
        TokenizerBuilder::<BPE, tokenizers::NormalizerWrapper, _, tokenizers::PostProcessorWrapper, _>::new()
            .with_model(BPE::default())
            .with_pre_tokenizer(Some(Sequence::new(vec![
                PreTokenizerWrapper::Digits(Digits::new(true)),
                PreTokenizerWrapper::ByteLevel(byte_level),
            ])))
            .with_decoder(Some(byte_level))
            .build()?;
    let texts = (0..N_CONVERSATIONS).flat_map(|index| conversation(seed, index)).flat_map(|(user, assistant)| {
        // The frame of a turn is text as well.
        [format!("user\n{user}"), format!("assistant\n{assistant}")]
    });
    tokenizer.train(&mut trainer, texts)?;
    debug_assert!(tokenizer.get_model().get_vocab_size() <= VOCAB_SIZE);
    tokenizer.to_string(true)
}

/// The other text files of the model directory by name: config, tokenizer config, chat template
/// and generation config.
pub fn companions() -> [(&'static str, String); 4] {
    let pretty = |value: serde_json::Value| format!("{value:#}\n");
    [
        (
            "config.json",
            pretty(json!({
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "vocab_size": VOCAB_SIZE,
                "hidden_size": 128,
                "intermediate_size": 384,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 32,
                "hidden_act": "silu",
                "max_position_embeddings": 512,
                "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0,
                "attention_bias": false,
                "mlp_bias": false,
                "tie_word_embeddings": true,
                "initializer_range": 0.06,
                "bos_token_id": 0,
                "eos_token_id": 2,
                "pad_token_id": 0,
                "torch_dtype": "bfloat16",
            })),
        ),
        (
            "tokenizer_config.json",
            pretty(json!({
                "tokenizer_class": "PreTrainedTokenizerFast",
                "add_bos_token": false,
                "add_prefix_space": false,
                "bos_token": SPECIAL[0],
                "eos_token": SPECIAL[2],
                "pad_token": SPECIAL[0],
                "clean_up_tokenization_spaces": false,
                "model_max_length": 512,
                "chat_template": CHAT_TEMPLATE,
            })),
        ),
        ("chat_template.jinja", CHAT_TEMPLATE.to_string()),
        (
            "generation_config.json",
            pretty(json!({"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "do_sample": false})),
        ),
    ]
}
