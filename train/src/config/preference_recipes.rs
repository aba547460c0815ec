//! The settings of the recipes that learn from preferences, and what must agree in them.

use super::error::ConfigError;
use super::groups::{EvalSettings, LoraSettings, ModelSettings, OptimSettings, PeftType, RunSettings, TruncationMode};
use super::preference::{
    CpoSettings, DpoLossType, DpoSettings, FDivergence, KtoLossType, KtoSettings, OrpoSettings, PreferenceDataSettings,
    ReferenceSettings, RewardSettings, SimpoSettings, StepSettings,
};
use super::recipes::{Recipe, check_base, check_data, check_eval, check_run, conflict};
use super::router::RouterSettings;
use super::setting::rules::SWITCH;
use super::table::{recipe_settings, settings};

settings! {
    /// Dropout.
    pub struct DropoutSettings ("Training") {
        /// No dropout while training, as the reference has none.
        disable_dropout: bool = true, SWITCH;
    }
}

settings! {
    /// How pairs are computed.
    pub struct PairSettings ("Training") {
        /// Compute the tokens that both sides of a pair begin with once; changes gradients by rounding only. Without effect where dropout or noise must differ between the sides, and on a device.
        share_prompts: bool = true, SWITCH;
    }
}

/// The blocks that every recipe on preferences has.
pub struct PreferenceBlocks<'a> {
    /// The model to start from.
    pub model: &'a ModelSettings,
    /// The examples.
    pub data: &'a mut PreferenceDataSettings,
    /// Batches and the optimizer.
    pub optim: &'a mut OptimSettings,
    /// Dropout.
    pub dropout: &'a DropoutSettings,
    /// Adapters.
    pub lora: &'a LoraSettings,
    /// Evaluation.
    pub eval: &'a EvalSettings,
    /// The run directory and the machine.
    pub run: &'a RunSettings,
}

/// A configuration of a recipe on preferences.
pub trait PreferenceRecipe: Recipe + Clone {
    /// Its common blocks.
    fn blocks(&mut self) -> PreferenceBlocks<'_>;
}

/// A recipe on preferences: its own block, and for those that have one the reference.
macro_rules! preference_recipe {
    ($(#[$meta:meta])* $name:ident, $command:literal, $(($field:ident : $block:ty, $doc:literal)),+; $defaults:expr; $check:expr) => {
        recipe_settings! {
            $(#[$meta])*
            pub struct $name {
                /// The model to start from.
                model: ModelSettings,
                /// The examples.
                data: PreferenceDataSettings,
                $( #[doc = $doc] $field: $block, )+
                /// Batches and the optimizer.
                optim: OptimSettings,
                /// Dropout.
                dropout: DropoutSettings,
                /// Low-rank adapters.
                lora: LoraSettings,
                /// Evaluation.
                eval: EvalSettings,
                /// The run directory and the machine.
                run: RunSettings,
            }
        }

        impl Default for $name {
            /// The shared defaults, but for TRL's own of this recipe.
            fn default() -> Self {
                let mut config = $name {
                    model: ModelSettings::default(),
                    data: PreferenceDataSettings::default(),
                    $( $field: <$block>::default(), )+
                    optim: OptimSettings { learning_rate: 1e-6, ..OptimSettings::default() },
                    dropout: DropoutSettings::default(),
                    lora: LoraSettings::default(),
                    eval: EvalSettings::default(),
                    run: RunSettings::default(),
                };
                let own: fn(&mut $name) = $defaults;
                own(&mut config);
                config
            }
        }

        impl PreferenceRecipe for $name {
            fn blocks(&mut self) -> PreferenceBlocks<'_> {
                PreferenceBlocks {
                    model: &self.model,
                    data: &mut self.data,
                    optim: &mut self.optim,
                    dropout: &self.dropout,
                    lora: &self.lora,
                    eval: &self.eval,
                    run: &self.run,
                }
            }
        }

        impl Recipe for $name {
            const NAME: &'static str = $command;

            fn check_together(&self) -> Result<(), ConfigError> {
                if self.model.model.is_empty() {
                    return Err(ConfigError::Missing { key: "model" });
                }
                check_base(&self.model, &self.lora)?;
                let data = self.data.general();
                check_data(&data)?;
                check_run(&self.optim, &self.run)?;
                check_eval(&data, &self.eval, &self.run)?;
                let check: fn(&$name) -> Result<(), ConfigError> = $check;
                check(self)
            }
        }
    };
}
pub(super) use preference_recipe;

preference_recipe! {
    /// Direct preference optimization and its family (`planish dpo`).
    DpoConfig, "dpo",
    (dpo: DpoSettings, "The loss."),
    (router: RouterSettings, "Losses of a router."),
    (pairs: PairSettings, "How pairs are computed."),
    (reference: ReferenceSettings, "What it compares with.");
    |_| {};
    |c| {
        check_dpo(&c.dpo)?;
        check_reference(&c.reference, c.lora.use_peft || c.model.adapter.is_some())
    }
}

preference_recipe! {
    /// Learning from completions that are each good or bad (`planish kto`).
    KtoConfig, "kto",
    (kto: KtoSettings, "The loss."),
    (router: RouterSettings, "Losses of a router."),
    (reference: ReferenceSettings, "What it compares with.");
    |_| {};
    |c| {
        if c.reference.precompute_ref_log_probs {
            return conflict(
                "precompute_ref_log_probs",
                "cannot be used with kto: its estimate of the KL divergence pairs prompts with other rows' completions, anew in every micro-batch",
            );
        }
        check_kto(&c.kto, c.optim.per_device_train_batch_size)?;
        check_reference(&c.reference, c.lora.use_peft || c.model.adapter.is_some())
    }
}

preference_recipe! {
    /// Cross-entropy and the odds ratio of pairs (`planish orpo`).
    OrpoConfig, "orpo",
    (orpo: OrpoSettings, "The loss."),
    (router: RouterSettings, "Losses of a router."),
    (pairs: PairSettings, "How pairs are computed.");
    |_| {};
    |_| Ok(())
}

preference_recipe! {
    /// Contrastive preference optimization (`planish cpo`).
    CpoConfig, "cpo",
    (cpo: CpoSettings, "The loss."),
    (router: RouterSettings, "Losses of a router."),
    (pairs: PairSettings, "How pairs are computed.");
    |_| {};
    |_| Ok(())
}

preference_recipe! {
    /// SimPO (`planish simpo`).
    SimpoConfig, "simpo",
    (simpo: SimpoSettings, "The loss."),
    (router: RouterSettings, "Losses of a router."),
    (pairs: PairSettings, "How pairs are computed.");
    |_| {};
    |_| Ok(())
}

preference_recipe! {
    /// Reward models (`planish reward`).
    RewardConfig, "reward",
    (reward: RewardSettings, "The loss of pairs."),
    (steps: StepSettings, "Answers in steps."),
    (pairs: PairSettings, "How pairs are computed.");
    |c| {
        c.optim.learning_rate = 1e-4;
        c.data.truncation_mode = TruncationMode::Drop;
    };
    |c| match c.lora.use_peft && c.lora.peft_type == PeftType::PrefixTuning {
        true => conflict(
            "peft_type",
            "cannot be PREFIX_TUNING for reward models: PEFT has none, as transformers' classifiers take no keys and values",
        ),
        false => Ok(()),
    }
}

pub(super) fn check_dpo(dpo: &DpoSettings) -> Result<(), ConfigError> {
    use DpoLossType::*;
    let has = |kinds: &[DpoLossType]| dpo.loss_type.iter().any(|l| kinds.contains(l));
    if dpo.loss_type.is_empty() {
        return Err(ConfigError::Missing { key: "loss_type" });
    }
    if !dpo.loss_weights.is_empty() && dpo.loss_weights.len() != dpo.loss_type.len() {
        return conflict("loss_weights", "must have one number for each `loss_type`");
    }
    if has(&[ExoPair]) && dpo.label_smoothing == 0.0 {
        return conflict("label_smoothing", "must be above 0 for the loss exo_pair; its paper takes 0.001");
    }
    if dpo.f_divergence_type != FDivergence::ReverseKl
        && has(&[NcaPair, BcoPair, SppoHard, Aot, AotUnpaired, ApoZero, ApoDown, Nca, InfoNca])
    {
        return conflict(
            "f_divergence_type",
            "other than reverse_kl works only for losses of the difference between the sides: sigmoid, sigmoid_norm, hinge, ipo, exo_pair, robust, discopop and sft",
        );
    }
    if dpo.use_weighting && has(&[Aot, AotUnpaired]) {
        return conflict("use_weighting", "weighs pairs, which aot and aot_unpaired take apart; leave one of the two");
    }
    if dpo.use_weighting && (has(&[Sft]) || dpo.rpo_alpha.is_some_and(|a| a > 0.0)) {
        return conflict(
            "use_weighting",
            "weighs pairs, and cross-entropy (`sft`, `rpo_alpha`) is a mean over tokens; leave one of the two",
        );
    }
    Ok(())
}

pub(super) fn check_kto(kto: &KtoSettings, batch: usize) -> Result<(), ConfigError> {
    if kto.loss_type == KtoLossType::Kto && batch < 2 {
        return conflict(
            "per_device_train_batch_size",
            "must be at least 2 for the loss kto: the KL divergence is estimated from prompts with each other's completions",
        );
    }
    Ok(())
}

pub(super) fn check_reference(reference: &ReferenceSettings, lora: bool) -> Result<(), ConfigError> {
    if reference.reference_free {
        if reference.ref_model.is_some() {
            return conflict("reference_free", "compares with no model and `ref_model` names one; keep one of the two");
        }
        if reference.precompute_ref_log_probs || reference.sync_ref_model {
            let key = if reference.sync_ref_model { "sync_ref_model" } else { "precompute_ref_log_probs" };
            return conflict(key, "needs a reference; leave out `reference_free`");
        }
    }
    if reference.sync_ref_model && reference.precompute_ref_log_probs {
        return conflict(
            "sync_ref_model",
            "changes the reference during the run, which `precompute_ref_log_probs` takes for fixed; keep one of the two",
        );
    }
    if reference.sync_ref_model && lora {
        return conflict(
            "sync_ref_model",
            "needs a reference of its own weights: train all weights, without `use_peft` and `adapter`",
        );
    }
    Ok(())
}
