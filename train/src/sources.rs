//! Cross-entropy on text of several sources, each with a perplexity of its own in evaluation.

use std::path::Path;
use std::sync::Arc;

use planish_nn::Ctx;
use planish_nn::decoder::Model;

use crate::Result;
use crate::config::OptimSettings;
use crate::data::{Cursor, Sampler, Step};
use crate::losses::{LossSum, RouterTerms, Want, token_scores};
use crate::run::report::LossUnit;
use crate::trainer::{CrossEntropy, Objective, Sums, packed};

/// [`CrossEntropy`], whose evaluation also measures `perplexity`, e to the mean loss of a token, and, of several
/// files, `perplexity/NAME` of each.
pub(crate) struct BySource(CrossEntropy);

impl BySource {
    /// With these weights of the losses of routers.
    pub(crate) fn new(router: RouterTerms) -> BySource {
        BySource(CrossEntropy::new(false, router))
    }
}

/// A file's name without its extension, with a number behind it where another has the same.
fn names(paths: &[String]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (i, path) in paths.iter().enumerate() {
        let stem = Path::new(path).file_stem().map_or_else(|| path.clone(), |s| s.to_string_lossy().into_owned());
        names.push(if names.contains(&stem) { format!("{stem}-{}", i + 1) } else { stem });
    }
    names
}

impl Objective for BySource {
    fn accumulate(&mut self, model: &Model, optim: &OptimSettings, step: &Step, done: u64) -> Result<Sums> {
        self.0.accumulate(model, optim, step, done)
    }

    fn advice(&mut self, sums: &Sums) -> Vec<String> {
        self.0.advice(sums)
    }

    fn unit(&self) -> LossUnit {
        self.0.unit()
    }

    fn evaluate(&mut self, model: &Model, _optim: &OptimSettings, sampler: &Arc<Sampler>) -> Result<Sums> {
        let files = sampler.view().data().files();
        let names = names(&files.iter().map(|f| f.path.clone()).collect::<Vec<_>>());
        // Where the rows of each file end.
        let ends: Vec<u64> = files
            .iter()
            .scan(0, |end, f| {
                *end += f.rows;
                Some(*end)
            })
            .collect();
        let mut found = vec![LossSum::default(); files.len()];
        for step in sampler.steps(Cursor::default())?.epochs(1) {
            for batch in &step?.micro_batches {
                let scores = token_scores(model, &Ctx::inference(), &packed(batch), &batch.mask, Want::default())?;
                for (s, &example) in batch.example_indices.iter().enumerate() {
                    let file = ends.partition_point(|end| *end <= example as u64);
                    let of = scores.of(s);
                    found[file] += LossSum {
                        loss: -scores.logprobs[of.clone()].iter().sum::<f64>(),
                        count: of.len() as u64,
                        correct: scores.correct[of.clone()].iter().filter(|c| **c).count() as u64,
                        entropy: scores.entropy[of].iter().sum(),
                    };
                }
            }
        }
        let mut all = LossSum::default();
        found.iter().for_each(|sum| all += *sum);
        let mut sums = Sums::from(all);
        sums.measure("perplexity", all.mean().exp(), 1.0);
        if found.len() > 1 {
            for (name, sum) in names.iter().zip(&found).filter(|(_, sum)| sum.count > 0) {
                sums.measure(&format!("perplexity/{name}"), sum.mean().exp(), 1.0);
            }
        }
        Ok(sums)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn files_of_one_name_are_told_apart() {
        let paths = ["a/wiki.jsonl", "code.txt", "b/wiki.jsonl"].map(str::to_owned);
        assert_eq!(super::names(&paths), ["wiki", "code", "wiki-3"]);
    }
}
