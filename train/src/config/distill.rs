//! The settings of distillation.

// The doc comments of settings are also the program's help, where brackets hold a default.
#![allow(rustdoc::broken_intra_doc_links)]

use super::error::ConfigError;
use super::groups::{
    DataSettings, EvalSettings, LoraSettings, ModelSettings, OptimSettings, PackingStrategy, RunSettings,
};
use super::recipes::{Recipe, check_data, check_eval, check_run, conflict};
use super::router::RouterSettings;
use super::setting::rules::*;
use super::table::{recipe_settings, settings};

settings! {
    /// The teacher, and what is learnt from it. Names are those of TRL's `GKDConfig`.
    pub struct DistillSettings ("Distillation") {
        /// Model to learn from: a directory, a .gguf file, a hub id, or `builtin`; of the student's vocabulary.
        teacher_model: Option<String> = None, TEXT;
        /// Branch, tag or commit of a hub model.
        teacher_model_revision: String = "main", TEXT;
        /// Adapter of the teacher, in PEFT's format.
        teacher_adapter: Option<String> = None, TEXT;
        /// The teacher's predictions for the data set instead of the teacher: a file that `planish score --top-k` wrote.
        teacher_scores: Option<String> = None, TEXT;
        /// Divergence: 0 is forward KL (teacher to student), 1 reverse KL, between them Jensen-Shannon.
        beta: f64 = 0.5, SHARE;
        /// What the logits of both are divided by.
        temperature: f64 = 1.0, POSITIVE;
        /// Weight of cross-entropy on the data's own tokens besides the divergence.
        hard_weight: f64 = 0.0, NOT_NEGATIVE;
        /// Layers whose output is to become the teacher's, through a projection that is learnt along: each STUDENT=TEACHER, numbers from 0.
        feature_layers: Vec<String> = Vec::new(), TEXT;
        /// Weight of their squared distance, a mean over tokens and the teacher's hidden size.
        feature_weight: f64 = 1.0, NOT_NEGATIVE;
        /// Share of steps on the student's own answers: only 0, the data's answers, is there (TRL has 0.5).
        lmbda: f64 = 0.0, SHARE;
    }
}

recipe_settings! {
    /// Distillation (`planish distill`).
    #[derive(Default)]
    pub struct DistillConfig {
        /// The student.
        model: ModelSettings,
        /// The teacher and the loss.
        distill: DistillSettings,
        /// The examples.
        data: DataSettings,
        /// Batches and the optimizer.
        optim: OptimSettings,
        /// Losses of the student's routers.
        router: RouterSettings,
        /// Adapters of the student.
        lora: LoraSettings,
        /// Evaluation.
        eval: EvalSettings,
        /// The run directory and the machine.
        run: RunSettings,
    }
}

impl Recipe for DistillConfig {
    const NAME: &'static str = "distill";

    fn check_together(&self) -> Result<(), ConfigError> {
        if self.model.model.is_empty() {
            return Err(ConfigError::Missing { key: "model" });
        }
        check_data(&self.data)?;
        check_run(&self.optim, &self.run)?;
        check_eval(&self.data, &self.eval, &self.run)?;
        let d = &self.distill;
        match (&d.teacher_model, &d.teacher_scores) {
            (None, None) => return Err(ConfigError::Missing { key: "teacher_model" }),
            (Some(_), Some(_)) => {
                return conflict(
                    "teacher_scores",
                    "are a teacher's predictions and `teacher_model` a teacher; keep one",
                );
            }
            _ => {}
        }
        if d.lmbda != 0.0 {
            return conflict("lmbda", "must be 0: the student's own answers are not trained on yet");
        }
        if d.teacher_scores.is_none() {
            return Ok(());
        }
        if !d.feature_layers.is_empty() {
            return conflict("feature_layers", "need the teacher itself; `teacher_scores` are its predictions only");
        }
        if d.teacher_adapter.is_some() {
            return conflict("teacher_adapter", "goes with `teacher_model`; `teacher_scores` have it in them already");
        }
        if self.data.packing && self.data.packing_strategy == PackingStrategy::Wrapped {
            return conflict(
                "packing_strategy",
                "wrapped cuts examples, which `teacher_scores` know as a whole; use bfd",
            );
        }
        if !self.data.eval_dataset.is_empty() {
            return conflict(
                "eval_dataset",
                "is not in `teacher_scores`; hold examples out of the data set with `validation_split`",
            );
        }
        Ok(())
    }
}
