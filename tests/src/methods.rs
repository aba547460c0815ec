//! Every way to put an adapter on a model, as settings.

/// Name of a run, and the settings that choose the method.
pub const METHODS: [(&str, &[(&str, &str)]); 20] = [
    ("plain", &[("bias", "none"), ("rank_pattern", "down_proj=1"), ("alpha_pattern", "q_proj=3")]),
    ("dora", &[("use_dora", "true"), ("lora_dropout", "0.2")]),
    ("loraplus", &[("loraplus_lr_ratio", "8")]),
    ("pissa", &[("init_lora_weights", "pissa"), ("lora_target_modules", "q_proj,down_proj")]),
    ("olora", &[("init_lora_weights", "olora"), ("layers_to_transform", "1")]),
    ("loftq", &[("init_lora_weights", "loftq"), ("loftq_iter", "2")]),
    ("orthogonal", &[("init_lora_weights", "orthogonal"), ("exclude_modules", "k_proj")]),
    ("ends", &[("lora_target_modules", "embed_tokens,lm_head,v_proj"), ("lora_dropout", "0.2")]),
    ("saved", &[("lora_modules_to_save", "lm_head"), ("init_lora_weights", "gaussian")]),
    ("ia3", &[("peft_type", "IA3"), ("lora_target_modules", "k_proj,v_proj,down_proj")]),
    ("norms", &[("peft_type", "LN_TUNING"), ("lora_target_modules", "input_layernorm,norm")]),
    ("vera", &[("peft_type", "VERA"), ("vera_r", "8")]),
    ("oft", &[("peft_type", "OFT"), ("oft_block_size", "4")]),
    ("boft", &[("peft_type", "BOFT")]),
    ("prompt", &[("peft_type", "PROMPT_TUNING"), ("num_virtual_tokens", "3")]),
    (
        "text",
        &[
            ("peft_type", "PROMPT_TUNING"),
            ("num_virtual_tokens", "9"),
            ("prompt_tuning_init", "TEXT"),
            ("prompt_tuning_init_text", "say it again"),
        ],
    ),
    ("prefix", &[("peft_type", "PREFIX_TUNING"), ("num_virtual_tokens", "3"), ("prefix_projection", "true")]),
    ("encoder", &[("peft_type", "P_TUNING"), ("num_virtual_tokens", "3"), ("encoder_hidden_size", "7")]),
    (
        "recurrent",
        &[
            ("peft_type", "P_TUNING"),
            ("num_virtual_tokens", "3"),
            ("encoder_hidden_size", "5"),
            ("encoder_reparameterization_type", "LSTM"),
        ],
    ),
    ("ranks", &[("peft_type", "ADALORA"), ("init_r", "4"), ("target_r", "2"), ("tinit", "2"), ("tfinal", "2")]),
];

/// All settings of a method: small ranks, dropout and every linear module, as far as it has them and says nothing else.
pub fn flags(method: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let own = |key: &str| method.iter().any(|(k, _)| *k == key);
    let common =
        [("use_peft", "true"), ("lora_r", "2"), ("lora_dropout", "0.1"), ("lora_target_modules", "all-linear")];
    let kind = method.iter().find(|(k, _)| *k == "peft_type").map_or("LORA", |(_, kind)| kind);
    let without = |key: &str| {
        let has = match key {
            "lora_r" => kind == "LORA",
            "lora_dropout" => matches!(kind, "LORA" | "ADALORA" | "VERA"),
            // Virtual tokens are of no module.
            "lora_target_modules" => !own("num_virtual_tokens"),
            _ => true,
        };
        own(key) || !has
    };
    common.into_iter().filter(|(key, _)| !without(key)).chain(method.iter().copied()).collect()
}
