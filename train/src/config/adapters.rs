//! Which settings of adapters mean something, and when: what is given and would change nothing is refused.

use super::error::ConfigError;
use super::groups::{EncoderChoice, FinetuningType, LoraSettings, ModelSettings, PeftType, PromptInitChoice};
use super::recipes::conflict;
use super::table::Settings;
use PeftType::*;

/// Settings, the new adapters that they mean something for, and what is said of the others.
pub(crate) type Row = (&'static [&'static str], fn(&LoraSettings) -> bool, &'static str);

/// Every setting of an adapter but its kind, once.
pub(crate) const MEANT_FOR: &[Row] = &[
    (
        &[
            "lora_r",
            "use_rslora",
            "use_dora",
            "init_lora_weights",
            "bias",
            "rank_pattern",
            "alpha_pattern",
            "lora_target_parameters",
        ],
        |s| s.peft_type == Lora,
        "is for `peft_type` LORA, and this is another: leave it out",
    ),
    (
        &["lora_alpha", "loraplus_lr_ratio"],
        |s| matches!(s.peft_type, Lora | AdaLora),
        "is for `peft_type` LORA and ADALORA, and this is another: leave it out",
    ),
    (
        &["loraplus_lr_embedding"],
        |s| matches!(s.peft_type, Lora | AdaLora) && s.loraplus_lr_ratio.is_some(),
        "is a rate of LoRA+: set `loraplus_lr_ratio` too, or leave it out",
    ),
    (
        &["lora_dropout"],
        |s| matches!(s.peft_type, Lora | AdaLora | Vera),
        "is for `peft_type` LORA, ADALORA and VERA, and this is another: leave it out",
    ),
    (
        &["loftq_bits", "loftq_iter"],
        |s| s.peft_type == Lora && s.init_lora_weights == "loftq",
        "is for `init_lora_weights` loftq, and this is another: leave it out",
    ),
    (
        &["lora_target_modules", "lora_modules_to_save", "exclude_modules"],
        |s| !is_of_tokens(s),
        "is for adapters of modules, and this `peft_type` has virtual tokens only",
    ),
    (
        &["layers_to_transform"],
        |s| !is_of_tokens(s) && !matches!(s.peft_type, Ia3 | LnTuning),
        "is none that PEFT has for this `peft_type`; to choose layers give `lora_target_modules` a regular expression, \
         such as `model\\.layers\\.[01]\\..*`",
    ),
    (
        &["init_r", "target_r", "tinit", "tfinal", "delta_t", "orth_reg_weight"],
        |s| s.peft_type == AdaLora,
        "is for `peft_type` ADALORA, and this is another: leave it out",
    ),
    (&["feedforward_modules"], |s| s.peft_type == Ia3, "is for `peft_type` IA3, and this is another: leave it out"),
    (
        &["vera_r", "vera_d_initial"],
        |s| s.peft_type == Vera,
        "is for `peft_type` VERA, and this is another: leave it out",
    ),
    (
        &["oft_r", "oft_block_size", "use_cayley_neumann"],
        |s| s.peft_type == Oft,
        "is for `peft_type` OFT, and this is another: leave it out",
    ),
    (
        &["boft_block_size", "boft_block_num"],
        |s| s.peft_type == Boft,
        "is for `peft_type` BOFT, and this is another: leave it out",
    ),
    (
        &["num_virtual_tokens"],
        is_of_tokens,
        "is for `peft_type` PROMPT_TUNING, PREFIX_TUNING and P_TUNING, and this is another: leave it out",
    ),
    (
        &["prompt_tuning_init"],
        |s| s.peft_type == PromptTuning,
        "is for `peft_type` PROMPT_TUNING, and this is another: leave it out",
    ),
    (
        &["prompt_tuning_init_text"],
        |s| s.peft_type == PromptTuning && s.prompt_tuning_init == PromptInitChoice::Text,
        "is what `peft_type` PROMPT_TUNING with `prompt_tuning_init` TEXT begins with: set these, or leave it out",
    ),
    (
        &["prefix_projection"],
        |s| s.peft_type == PrefixTuning,
        "is for `peft_type` PREFIX_TUNING, and this is another: leave it out",
    ),
    (
        &["encoder_hidden_size"],
        |s| s.peft_type == PTuning || s.peft_type == PrefixTuning && s.prefix_projection,
        "is for `peft_type` P_TUNING, and for PREFIX_TUNING with `prefix_projection`: leave it out",
    ),
    (
        &["encoder_reparameterization_type"],
        |s| s.peft_type == PTuning,
        "is for `peft_type` P_TUNING, and this is another: leave it out",
    ),
    (
        &["encoder_num_layers"],
        |s| s.peft_type == PTuning && s.encoder_reparameterization_type == EncoderChoice::Lstm,
        "is for `peft_type` P_TUNING with `encoder_reparameterization_type` LSTM: leave it out",
    ),
];

/// What means something beside an adapter that is there already, too.
const OF_TRAINING: [&str; 2] = ["loraplus_lr_ratio", "loraplus_lr_embedding"];

/// What is trained without an adapter.
const WITHOUT: [&str; 4] =
    ["finetuning_type", "freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules"];

fn is_of_tokens(s: &LoraSettings) -> bool {
    matches!(s.peft_type, PromptTuning | PrefixTuning | PTuning)
}

/// Refuses settings that another one leaves without a meaning: what they ask for would not be done. One that is given
/// with its default's value asks for nothing.
pub(super) fn check(model: &ModelSettings, lora: &LoraSettings) -> Result<(), ConfigError> {
    let default = LoraSettings::default().to_json();
    let given: Vec<&'static str> = {
        let all = lora.keys().into_iter();
        all.filter(|key| default.get(key.name) != Some(&key.default)).map(|key| key.name).collect()
    };
    let (new, adapter) = (lora.use_peft, model.adapter.is_some());
    let freezes = lora.finetuning_type == FinetuningType::Freeze;
    for key in given {
        match key {
            "use_peft" => {}
            "finetuning_type" if lora.use_peft || adapter => {
                return conflict(key, "says what is trained without an adapter: leave it out, or the adapter");
            }
            "finetuning_type" => {}
            key if WITHOUT.contains(&key) && !freezes => {
                let problem = "chooses what is trained with `finetuning_type` freeze, without an adapter: set that";
                return conflict(key, problem);
            }
            key if adapter && !OF_TRAINING.contains(&key) => {
                let problem = "is of a new adapter, and `adapter` names one whose own settings say it: leave it out";
                return conflict(key, problem);
            }
            // Without any adapter the program says in a note that they have no effect.
            key if new || adapter => {
                let row = MEANT_FOR.iter().find(|(keys, _, _)| keys.contains(&key));
                if let Some((_, means, problem)) = row
                    && !means(lora)
                {
                    return conflict(key, problem);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapt::{adapter_config, rates};
    use crate::config::OptimSettings;
    use crate::config::raw::Raw;

    type Pairs = &'static [(&'static str, &'static str)];

    /// A value that is not the default, and what must be set for it to be heard.
    const VALUES: &[(&str, &str, Pairs)] = &[
        ("lora_r", "3", &[]),
        ("use_rslora", "true", &[]),
        ("use_dora", "true", &[]),
        ("init_lora_weights", "pissa", &[]),
        ("bias", "all", &[]),
        ("rank_pattern", "q_proj=3", &[]),
        ("alpha_pattern", "q_proj=3", &[]),
        ("lora_target_parameters", "mlp.gate.weight", &[]),
        ("lora_alpha", "5", &[]),
        ("loraplus_lr_ratio", "8", &[]),
        ("loraplus_lr_embedding", "0.1", &[("loraplus_lr_ratio", "8")]),
        ("lora_dropout", "0.5", &[]),
        ("loftq_bits", "8", &[("init_lora_weights", "loftq")]),
        ("loftq_iter", "3", &[("init_lora_weights", "loftq")]),
        ("lora_target_modules", "o_proj", &[]),
        ("lora_modules_to_save", "lm_head", &[]),
        ("exclude_modules", "q_proj", &[]),
        ("layers_to_transform", "1", &[]),
        ("init_r", "13", &[]),
        ("target_r", "3", &[]),
        ("tinit", "3", &[]),
        ("tfinal", "3", &[]),
        ("delta_t", "3", &[]),
        ("orth_reg_weight", "0.1", &[]),
        ("feedforward_modules", "up_proj", &[]),
        ("vera_r", "3", &[]),
        ("vera_d_initial", "0.3", &[]),
        ("oft_r", "3", &[]),
        ("oft_block_size", "3", &[]),
        ("use_cayley_neumann", "false", &[]),
        ("boft_block_size", "3", &[]),
        ("boft_block_num", "3", &[]),
        ("num_virtual_tokens", "3", &[]),
        ("prompt_tuning_init", "SAMPLE_VOCAB", &[]),
        ("prompt_tuning_init_text", "say it", &[("prompt_tuning_init", "TEXT")]),
        ("prefix_projection", "true", &[]),
        ("encoder_hidden_size", "7", &[("prefix_projection", "true")]),
        ("encoder_reparameterization_type", "LSTM", &[]),
        ("encoder_num_layers", "3", &[("encoder_reparameterization_type", "LSTM")]),
    ];

    fn settings(peft_type: PeftType, pairs: &[(&str, &str)]) -> LoraSettings {
        let mut all = LoraSettings { use_peft: true, peft_type, ..LoraSettings::default() };
        for (key, value) in pairs {
            assert!(all.set(key, &Raw::flag("--x", *value)).unwrap(), "{key}");
        }
        all
    }

    /// All that comes of the settings: the adapter's own, and learning rates.
    fn effect(s: &LoraSettings) -> (serde_json::Value, crate::optim::Rates) {
        (adapter_config(s, "base", 100).unwrap().to_json(), rates(s, &OptimSettings::default()))
    }

    #[test]
    fn every_setting_is_in_the_table_once() {
        let keys = LoraSettings::default().keys();
        let own = ["use_peft", "peft_type"];
        for key in keys.iter().map(|key| key.name).filter(|key| !own.contains(key) && !WITHOUT.contains(key)) {
            assert_eq!(MEANT_FOR.iter().filter(|(keys, _, _)| keys.contains(&key)).count(), 1, "{key}");
            assert_eq!(VALUES.iter().filter(|(name, _, _)| *name == key).count(), 1, "{key}");
        }
        assert_eq!(MEANT_FOR.iter().map(|(keys, _, _)| keys.len()).sum::<usize>(), VALUES.len());
    }

    /// The table says of each kind of adapter which settings change it, and these are those that do.
    #[test]
    fn what_is_refused_is_what_would_change_nothing() {
        let model = ModelSettings { model: "base".into(), ..ModelSettings::default() };
        let adapted = ModelSettings { adapter: Some("dir".into()), ..model.clone() };
        let refused = |model: &ModelSettings, s: &LoraSettings| check(model, s).err().map(|e| e.to_string());
        for &(key, value, with) in VALUES {
            let (_, means, problem) = MEANT_FOR.iter().find(|(keys, _, _)| keys.contains(&key)).unwrap();
            for &kind in PeftType::ALL {
                let (before, after) = (settings(kind, with), settings(kind, &[with, &[(key, value)][..]].concat()));
                // Rates are by the names of parameters, of which other methods may have some of LoRA's.
                if !key.starts_with("loraplus") {
                    assert_eq!(effect(&before) != effect(&after), means(&after), "{key} with {kind}");
                }
                let said = refused(&model, &settings(kind, &[(key, value)]));
                let alone = means(&settings(kind, &[(key, value)]));
                assert_eq!(said, (!alone).then(|| format!("`{key}` {problem}")), "{key} with {kind}");
            }
            let beside = refused(&adapted, &settings(Lora, &[(key, value)]));
            match key {
                "loraplus_lr_ratio" => assert_eq!(beside, None),
                "loraplus_lr_embedding" => assert!(beside.unwrap().contains("set `loraplus_lr_ratio`")),
                _ => assert!(beside.unwrap().starts_with(&format!("`{key}` is of a new adapter"))),
            }
            // Without any adapter the program has a note for it.
            let none = LoraSettings { use_peft: false, ..settings(Lora, &[(key, value)]) };
            assert_eq!(refused(&model, &none), None, "{key}");
        }
        let kind = LoraSettings { peft_type: Ia3, ..LoraSettings::default() };
        assert!(refused(&adapted, &kind).unwrap().starts_with("`peft_type` is of a new adapter"));
        for (key, value) in WITHOUT.into_iter().zip(["bitfit", "1", "mlp", "lm_head"]) {
            assert!(refused(&model, &settings(Lora, &[(key, value)])).unwrap().starts_with(&format!("`{key}` ")));
        }
    }
}
