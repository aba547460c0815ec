//! The rows of the table for learning from preferences. Names and defaults are those of TRL 1.16 (`DPOConfig`,
//! `KTOConfig`, `ORPOConfig`, `CPOConfig`) unless the help says so.

// The doc comments of settings are also the program's help, where brackets hold a default.
#![allow(rustdoc::broken_intra_doc_links)]

use super::groups::{DataSettings, TruncationMode};
use super::setting::rules::*;
use super::table::{choices, settings};
use crate::data::StepOptions;

choices! {
    /// A loss of preference pairs with a reference; formulas at [`crate::losses::Dpo`].
    pub enum DpoLossType {
        /// DPO, with label smoothing cDPO.
        Sigmoid = "sigmoid",
        /// SLiC's hinge.
        Hinge = "hinge",
        /// IPO, by the token.
        Ipo = "ipo",
        /// EXO.
        ExoPair = "exo_pair",
        /// NCA.
        NcaPair = "nca_pair",
        /// Robust DPO.
        Robust = "robust",
        /// BCO.
        BcoPair = "bco_pair",
        /// SPPO with hard preferences.
        SppoHard = "sppo_hard",
        /// Optimal transport between sorted log-ratios of pairs.
        Aot = "aot",
        /// Optimal transport between sorted log-ratios of each side.
        AotUnpaired = "aot_unpaired",
        /// APO for chosen answers better than the model's.
        ApoZero = "apo_zero",
        /// APO for chosen answers worse than the model's.
        ApoDown = "apo_down",
        /// DiscoPOP.
        Discopop = "discopop",
        /// Cross-entropy of the chosen answers.
        Sft = "sft",
        /// DPO by the token.
        SigmoidNorm = "sigmoid_norm",
    }
}

choices! {
    /// What keeps the model near the reference.
    pub enum FDivergence {
        /// KL(π ‖ π_ref).
        ReverseKl = "reverse_kl",
        /// KL(π_ref ‖ π).
        ForwardKl = "forward_kl",
        /// Jensen-Shannon.
        JsDivergence = "js_divergence",
        /// The α-divergence.
        AlphaDivergence = "alpha_divergence",
    }
}

choices! {
    /// A loss of labelled completions; formulas at [`crate::losses::Kto`].
    pub enum KtoLossType {
        /// KTO.
        Kto = "kto",
        /// APO's loss without pairs.
        ApoZeroUnpaired = "apo_zero_unpaired",
    }
}

choices! {
    /// A loss of preference pairs without a reference; formulas at [`crate::losses::Cpo`].
    pub enum CpoLossType {
        /// CPO.
        Sigmoid = "sigmoid",
        /// SLiC's hinge.
        Hinge = "hinge",
        /// IPO, by the token.
        Ipo = "ipo",
        /// SimPO.
        Simpo = "simpo",
        /// RRHF, by the token.
        Rrhf = "rrhf",
    }
}

settings! {
    /// Preference data and how it becomes token sequences.
    pub struct PreferenceDataSettings ("Data") {
        /// Files of examples (.jsonl, .json, .csv, .parquet); may be repeated.
        dataset: Vec<String> = Vec::new(), TEXT;
        /// How often each file is taken relative to the others, one number a file.
        dataset_weights: Vec<f64> = Vec::new(), POSITIVE;
        /// Files of held-out examples; may be repeated.
        eval_dataset: Vec<String> = Vec::new(), TEXT;
        /// Share of the examples held out for evaluation when there is no eval_dataset.
        validation_split: f64 = 0.0, BELOW_ONE;
        /// Column of the prompt [found by name].
        prompt_column: Option<String> = None, TEXT;
        /// Longest prompt with its completion, in tokens.
        max_length: Option<usize> = Some(1024), LENGTH;
        /// What to do with longer ones.
        truncation_mode: TruncationMode = TruncationMode::KeepStart, TruncationMode::RULE;
        /// Leave out, and count, rows that teach nothing (an empty completion, equal sides, a prompt that fills max_length) instead of stopping.
        drop_unsupervised: bool = false, SWITCH;
        /// Time that `strftime_now` in a chat template gives, seconds since 1970 UTC [the start of the run, kept when it is resumed].
        template_time: Option<u64> = None, TIME;
        /// Shuffle the examples, anew for every epoch.
        shuffle: bool = true, SWITCH;
    }
}

impl PreferenceDataSettings {
    /// The same as the settings of data in general.
    pub fn general(&self) -> DataSettings {
        DataSettings {
            dataset: self.dataset.clone(),
            dataset_weights: self.dataset_weights.clone(),
            eval_dataset: self.eval_dataset.clone(),
            validation_split: self.validation_split,
            prompt_column: self.prompt_column.clone(),
            max_length: self.max_length,
            truncation_mode: self.truncation_mode,
            drop_unsupervised: self.drop_unsupervised,
            template_time: self.template_time,
            shuffle: self.shuffle,
            ..DataSettings::default()
        }
    }
}

settings! {
    /// DPO's loss.
    pub struct DpoSettings ("DPO") {
        /// Losses; several are added up.
        loss_type: Vec<DpoLossType> = vec![DpoLossType::Sigmoid], DpoLossType::RULE;
        /// Weights of the losses, one number each [1 each].
        loss_weights: Vec<f64> = Vec::new(), NOT_NEGATIVE;
        /// How strongly the model is held to the reference.
        beta: f64 = 0.1, POSITIVE;
        /// Share of pairs taken to be the wrong way round (sigmoid, exo_pair, robust, aot, aot_unpaired).
        label_smoothing: f64 = 0.0, BELOW_HALF;
        /// What holds the model to the reference.
        f_divergence_type: FDivergence = FDivergence::ReverseKl, FDivergence::RULE;
        /// α of alpha_divergence.
        f_alpha_divergence_coef: f64 = 0.5, NOT_NEGATIVE;
        /// Weight of the tokens beyond the length of the shorter side (LD-DPO, arXiv 2409.06411) [1].
        ld_alpha: Option<f64> = None, SHARE;
        /// Weigh each pair by how likely the model finds its sides (WPO, arXiv 2406.11827).
        use_weighting: bool = false, SWITCH;
        /// τ of discopop.
        discopop_tau: f64 = 0.05, POSITIVE;
        /// Weight of cross-entropy on the chosen completions besides the losses (RPO, arXiv 2404.19733): `sft` as one more loss_type.
        rpo_alpha: Option<f64> = None, NOT_NEGATIVE;
    }
}

settings! {
    /// The model that a preference loss compares with.
    pub struct ReferenceSettings ("Reference") {
        /// Model to compare with: a directory, a .gguf file, a hub id, or `builtin` [the model that the run starts from].
        ref_model: Option<String> = None, TEXT;
        /// Branch, tag or commit of a hub model.
        ref_model_revision: String = "main", TEXT;
        /// Compare with no model: every completion has probability 1 under it.
        reference_free: bool = false, SWITCH;
        /// Compute the reference's log-probabilities once before training, so that it need not be kept; they are kept in ref_cache_dir.
        precompute_ref_log_probs: bool = false, SWITCH;
        /// Directory of precomputed log-probabilities, by the content of model, data and settings [reference-cache beside output_dir].
        ref_cache_dir: Option<String> = None, TEXT;
        /// Let the reference follow the model (TR-DPO, arXiv 2404.09656).
        sync_ref_model: bool = false, SWITCH;
        /// Share of the model in the new reference.
        ref_model_mixup_alpha: f64 = 0.6, SHARE;
        /// Optimizer steps between new references.
        ref_model_sync_steps: u64 = 512u64, AT_LEAST_ONE;
    }
}

settings! {
    /// KTO's loss.
    pub struct KtoSettings ("KTO") {
        /// Loss.
        loss_type: KtoLossType = KtoLossType::Kto, KtoLossType::RULE;
        /// How strongly the model is held to the reference.
        beta: f64 = 0.1, POSITIVE;
        /// Weight of completions labelled true.
        desirable_weight: f64 = 1.0, NOT_NEGATIVE;
        /// Weight of completions labelled false.
        undesirable_weight: f64 = 1.0, NOT_NEGATIVE;
    }
}

settings! {
    /// ORPO's loss.
    pub struct OrpoSettings ("ORPO") {
        /// Weight of the odds ratio beside cross-entropy; λ in the paper.
        beta: f64 = 0.1, POSITIVE;
    }
}

settings! {
    /// CPO's loss.
    pub struct CpoSettings ("CPO") {
        /// Loss; rrhf also takes rows of `prompt`, `responses` and `scores`.
        loss_type: CpoLossType = CpoLossType::Sigmoid, CpoLossType::RULE;
        /// Steepness of the loss.
        beta: f64 = 0.1, POSITIVE;
        /// Share of pairs taken to be the wrong way round (sigmoid, simpo).
        label_smoothing: f64 = 0.0, BELOW_HALF;
        /// Weight of cross-entropy on the chosen completions.
        cpo_alpha: f64 = 1.0, NOT_NEGATIVE;
        /// Margin of simpo.
        simpo_gamma: f64 = 0.5, NOT_NEGATIVE;
        /// Shape of the reward (AlphaPO, arXiv 2501.03884); 0 is the log-probability.
        alpha: f64 = 0.0, FINITE;
    }
}

settings! {
    /// SimPO's loss.
    pub struct SimpoSettings ("SimPO") {
        /// Steepness of the loss; the paper's 2, TRL has 0.1.
        beta: f64 = 2.0, POSITIVE;
        /// Margin between the sides, in units of the loss: the paper's γ, half of beta; TRL has 0.5.
        simpo_gamma: f64 = 1.0, NOT_NEGATIVE;
        /// Share of pairs taken to be the wrong way round.
        label_smoothing: f64 = 0.0, BELOW_HALF;
        /// Weight of cross-entropy on the chosen completions.
        cpo_alpha: f64 = 0.0, NOT_NEGATIVE;
        /// Shape of the reward (AlphaPO, arXiv 2501.03884); 0 is the log-probability.
        alpha: f64 = 0.0, FINITE;
    }
}

settings! {
    /// Data of reward models that judge steps. Names and defaults are those of `PRMConfig` of TRL 0.2x.
    pub struct StepSettings ("Steps") {
        /// For answers in steps: what follows each step; its last token has the step's label.
        step_separator: String = "\n", TEXT;
        /// For answers in steps: train on the label of the last step only.
        train_on_last_step_only: bool = false, SWITCH;
        /// For answers in steps: most tokens of a prompt, whose beginning is cut off.
        max_prompt_length: Option<usize> = Some(512), COUNT;
        /// For answers in steps: most tokens of the steps together, whose end is cut off [no limit].
        max_completion_length: Option<usize> = None, COUNT;
    }
}

impl StepSettings {
    /// The same as options of the encoder.
    pub fn options(&self) -> StepOptions {
        StepOptions {
            step_separator: self.step_separator.clone(),
            max_prompt_length: self.max_prompt_length,
            max_completion_length: self.max_completion_length,
            train_on_last_step_only: self.train_on_last_step_only,
            labelled: true,
        }
    }
}

settings! {
    /// The reward model's loss.
    pub struct RewardSettings ("Reward") {
        /// For pairs: weight of (sum of both rewards)², which keeps rewards around 0 (arXiv 2312.09244); TRL suggests 0.01.
        center_rewards_coefficient: Option<f64> = None, NOT_NEGATIVE;
    }
}
