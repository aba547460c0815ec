//! One LoRA adapter out of several: a weighted sum in one of five forms.
//!
//! With t_i the task tensors, w_i the weights and s_i the adapters' scales:
//!
//! - `linear`: A = Σ ±√|w_i s_i| A_i, B = Σ √|w_i s_i| B_i. Cheap, and with cross terms: not the sum of the updates.
//! - `cat`: A = \[w_i s_i A_i\], B = \[B_i\]: the exact sum, of the sum of the ranks.
//! - `svd`: the best approximation of Σ w_i s_i B_i A_i of a given rank.
//! - TIES: of each t_i the largest entries are kept; at each place only those of the majority's sign count, and their
//!   weighted mean stands. DARE: random entries are kept, divided by their density. Both on A and B, or on the updates
//!   before `svd`.
//!
//! # Source
//! PEFT's `add_weighted_adapter`; Yadav et al., "TIES-Merging", arXiv:2306.01708; Yu et al., "DARE", arXiv:2311.03099.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Tensor};

use super::files::{CONFIG_FILE, WEIGHTS_FILE, write};
use super::linalg::{Matrix, svd};
use super::{AdapterError, LoraConfig, PREFIX, Targets};
use crate::Result;
use crate::pretrained::read_json;
use crate::weights::WeightsReader;

/// The form of the sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combination {
    /// Of A and of B.
    Linear,
    /// One beside the other.
    Cat,
    /// Of the updates, as the best of this rank; the largest of the adapters' if `None`.
    Svd(Option<usize>),
}

/// Which entries of each adapter count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Density {
    /// All.
    All,
    /// This share of them, the largest (TIES, magnitude pruning).
    Largest(f64),
    /// Each with this probability, divided by it (DARE).
    Random {
        /// The probability.
        share: f64,
        /// Of the random numbers.
        seed: u64,
    },
}

/// Whether adapters that disagree are heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signs {
    /// All are summed.
    Ignore,
    /// Those whose sign is that of the sum.
    Total,
    /// Those whose sign is that of most.
    Frequency,
}

/// One adapter, opened.
struct Part {
    dir: PathBuf,
    config: LoraConfig,
    weights: WeightsReader,
}

/// Combines the LoRA adapters of these PEFT directories, each with its weight, into one at `out`.
///
/// # Errors
/// [`AdapterError::Combine`]: an adapter that is no plain LoRA, of another shape or, where A and B are summed, of
/// another rank; files that are missing or wrong.
pub fn combine_adapters(
    adapters: &[(PathBuf, f64)],
    combination: Combination,
    density: Density,
    signs: Signs,
    out: &Path,
) -> Result<()> {
    let share = match density {
        Density::All => 1.0,
        Density::Largest(share) | Density::Random { share, .. } => share,
    };
    if !(share > 0.0 && share <= 1.0) {
        let (value, expected) = (share.to_string(), "above 0 and at most 1");
        return Err(AdapterError::Value { key: "density", value, expected }.into());
    }
    if combination == Combination::Cat && (density != Density::All || signs != Signs::Ignore) {
        let problem = "keeps every adapter whole; leave density and majority sign out, or use linear or svd".into();
        return Err(AdapterError::Conflict { key: "combination_type cat", problem }.into());
    }
    let parts: Vec<Part> = adapters.iter().map(|(dir, _)| open(dir)).collect::<Result<_>>()?;
    let Some(first) = parts.first() else {
        return Err(AdapterError::Value { key: "adapters", value: "empty".into(), expected: "at least one" }.into());
    };
    let weights: Vec<f64> = adapters.iter().map(|(_, w)| *w).collect();
    let mut modules: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, part) in parts.iter().enumerate() {
        for name in part.weights.names() {
            let bad = |problem: String| AdapterError::Combine { path: part.dir.clone(), problem };
            match name.strip_suffix(".lora_A.weight") {
                Some(module) => modules.entry(module.to_string()).or_default().push(i),
                None if name.ends_with(".lora_B.weight") => {}
                None => return Err(bad(format!("holds `{name}`, which has no weighted sum with others")).into()),
            }
        }
    }
    let mut tensors = Vec::new();
    let mut ranks = BTreeMap::new();
    for (module, members) in &modules {
        let (a, b) = combine(module, members, &parts, &weights, combination, density, signs)?;
        ranks.insert(module.strip_prefix(PREFIX).unwrap_or(module).to_string(), a.rows);
        for (end, m) in [("lora_A", a), ("lora_B", b)] {
            let tensor = Tensor::from_vec(m.data, [m.rows, m.cols])?.to_dtype(DType::F32)?;
            tensors.push((format!("{module}.{end}.weight"), tensor));
        }
    }
    // α = r of each module: the scale is in the numbers.
    let r = ranks.values().copied().max().unwrap_or(1);
    let config = LoraConfig {
        r,
        lora_alpha: r as f64,
        target_modules: Targets::Names(ranks.keys().cloned().collect()),
        rank_pattern: ranks.iter().filter(|(_, k)| **k != r).map(|(n, k)| (n.clone(), *k)).collect(),
        alpha_pattern: ranks.iter().filter(|(_, k)| **k != r).map(|(n, k)| (n.clone(), *k as f64)).collect(),
        base_model: first.config.base_model.clone(),
        ..LoraConfig::default()
    };
    write(&config, tensors, out)
}

fn open(dir: &Path) -> Result<Part> {
    let path = dir.join(CONFIG_FILE);
    let config = LoraConfig::from_json(&read_json(&path)?, &path)?;
    if !config.is_plain() {
        let problem =
            "is not plain LoRA (DoRA, PiSSA, OLoRA, LoftQ, biases and modules_to_save have no weighted sum)".into();
        return Err(AdapterError::Combine { path: dir.to_path_buf(), problem }.into());
    }
    Ok(Part { dir: dir.to_path_buf(), config, weights: WeightsReader::open(dir.join(WEIGHTS_FILE))? })
}

impl Part {
    fn matrix(&self, name: &str) -> Result<Matrix> {
        if !self.weights.contains(name) {
            return Err(AdapterError::Missing { name: name.into() }.into());
        }
        let tensor = self.weights.get(name)?;
        match tensor.dims() {
            &[rows, cols] => Ok(Matrix::new(rows, cols, tensor.to_dtype(DType::F64)?.to_vec::<f64>()?)),
            other => Err(AdapterError::Shape { name: name.into(), found: other.to_vec(), expected: vec![0, 0] }.into()),
        }
    }

    fn bad(&self, problem: String) -> AdapterError {
        AdapterError::Combine { path: self.dir.clone(), problem }
    }
}

/// (A, B) of one module.
fn combine(
    module: &str,
    members: &[usize],
    parts: &[Part],
    weights: &[f64],
    combination: Combination,
    density: Density,
    signs: Signs,
) -> Result<(Matrix, Matrix)> {
    let name = module.strip_prefix(PREFIX).unwrap_or(module);
    let (mut all_a, mut all_b, mut factors, mut scales) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for &i in members {
        let part = &parts[i];
        let a = part.matrix(&format!("{module}.lora_A.weight"))?;
        let b = part.matrix(&format!("{module}.lora_B.weight"))?;
        let (r, scale) = part.config.rank_and_scale(name)?;
        if a.rows != b.cols || a.rows != r {
            return Err(part.bad(format!("has rank {} and {} at {name}, and r {r}", a.rows, b.cols)).into());
        }
        let same = |m: &Matrix, all: &[Matrix], whole: bool| {
            all.first().is_none_or(|f| (m.cols == f.cols || !whole) && (m.rows == f.rows || whole))
        };
        if !same(&a, &all_a, true) || !same(&b, &all_b, false) {
            return Err(part.bad(format!("is of another shape than the others at {name}")).into());
        }
        if combination == Combination::Linear && all_a.first().is_some_and(|f: &Matrix| f.rows != a.rows) {
            let problem = format!("has rank {} at {name}, and another has {}; use cat or svd", a.rows, all_a[0].rows);
            return Err(part.bad(problem).into());
        }
        factors.push(weights[i] * scale);
        scales.push(scale);
        all_a.push(a);
        all_b.push(b);
    }
    let sum = |tasks: Vec<Matrix>, w: &[f64], which: &str| merge(tasks, w, density, signs, &format!("{name}.{which}"));
    Ok(match combination {
        Combination::Cat => {
            let (cols, out) = (all_a[0].cols, all_b[0].rows);
            let scaled = all_a.iter().zip(&factors).flat_map(|(a, f)| a.data.iter().map(move |x| x * f));
            let rank = all_a.iter().map(|a| a.rows).sum();
            let a = Matrix::new(rank, cols, scaled.collect());
            let row = |o: usize| all_b.iter().flat_map(move |b| b.data[o * b.cols..(o + 1) * b.cols].to_vec());
            (a, Matrix::new(out, rank, (0..out).flat_map(row).collect()))
        }
        Combination::Linear => {
            // The sign on one side only.
            let of_a: Vec<f64> = factors.iter().map(|f| f.abs().sqrt().copysign(*f)).collect();
            let of_b: Vec<f64> = factors.iter().map(|f| f.abs().sqrt()).collect();
            (sum(all_a, &of_a, "A"), sum(all_b, &of_b, "B"))
        }
        Combination::Svd(rank) => {
            let rank = rank.unwrap_or_else(|| all_a.iter().map(|a| a.rows).max().unwrap_or(1));
            let updates = all_a.iter().zip(&all_b).zip(&scales).map(|((a, b), s)| {
                let mut update = b.times(a);
                update.data.iter_mut().for_each(|x| *x *= s);
                update
            });
            let own: Vec<f64> = members.iter().map(|&i| weights[i]).collect();
            let update = sum(updates.collect(), &own, "update");
            let (mut u, s, vt) = svd(&update, rank);
            u.data.iter_mut().enumerate().for_each(|(i, x)| *x *= s[i % s.len()]);
            (vt, u)
        }
    })
}

/// The weighted sum of tasks of one shape, after pruning and the vote on signs.
fn merge(tasks: Vec<Matrix>, weights: &[f64], density: Density, signs: Signs, name: &str) -> Matrix {
    let (rows, cols) = (tasks[0].rows, tasks[0].cols);
    let tasks: Vec<Vec<f64>> = tasks.into_iter().enumerate().map(|(i, t)| prune(t.data, density, name, i)).collect();
    let entry = |e: usize| {
        let votes = |x: f64| match signs {
            Signs::Ignore | Signs::Total => x,
            Signs::Frequency => {
                if x == 0.0 {
                    0.0
                } else {
                    x.signum()
                }
            }
        };
        let positive = tasks.iter().map(|t| votes(t[e])).sum::<f64>() >= 0.0;
        let heard = |x: f64| signs == Signs::Ignore || (x != 0.0 && (x > 0.0) == positive);
        let sum: f64 = tasks.iter().zip(weights).filter(|(t, _)| heard(t[e])).map(|(t, w)| t[e] * w).sum();
        let count = tasks.iter().filter(|t| heard(t[e])).count();
        if signs == Signs::Ignore { sum } else { sum / count.max(1) as f64 }
    };
    Matrix::new(rows, cols, (0..rows * cols).map(entry).collect())
}

fn prune(mut task: Vec<f64>, density: Density, name: &str, number: usize) -> Vec<f64> {
    match density {
        Density::Largest(share) if share < 1.0 => {
            let keep = (share * task.len() as f64) as usize;
            let mut order: Vec<usize> = (0..task.len()).collect();
            order.sort_by(|&a, &b| task[b].abs().total_cmp(&task[a].abs()));
            order[keep..].iter().for_each(|&i| task[i] = 0.0);
        }
        Density::Random { share, seed } if share < 1.0 => {
            let salt = name.bytes().fold(number as u64, |h, b| h.wrapping_mul(0x0100_0000_01b3) ^ u64::from(b));
            let stream = Stream::new(seed, Purpose::Init, 1).substream(salt);
            for (i, x) in task.iter_mut().enumerate() {
                *x = if stream.uniform_f64(i as u64) < share { *x / share } else { 0.0 };
            }
        }
        _ => {}
    }
    task
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(values: &[f64]) -> Matrix {
        Matrix::new(1, values.len(), values.to_vec())
    }

    /// Of 20,000 numbers, each kept with probability 0.3 and divided by it: what is left has their mean, to 1 in 50 (the
    /// sum's deviation is √(0.7 / 0.3 / 20000) of it, 1.1%), and no number is anything else.
    #[test]
    fn dare_keeps_the_mean() {
        let task = vec![2.0; 20_000];
        for number in 0..2 {
            let left = prune(task.clone(), Density::Random { share: 0.3, seed: 7 }, "q_proj.A", number);
            assert!(left.iter().all(|&x| x == 0.0 || x == 2.0 / 0.3));
            let mean = left.iter().sum::<f64>() / left.len() as f64;
            assert!((mean - 2.0).abs() <= 2.0 / 50.0, "{mean}");
        }
        // Each adapter, and each matrix, has numbers of its own.
        let drawn = |name: &str, number| prune(vec![1.0; 64], Density::Random { share: 0.5, seed: 7 }, name, number);
        assert!(drawn("q.A", 0) != drawn("q.A", 1) && drawn("q.A", 0) != drawn("q.B", 0));
        assert_eq!(drawn("q.A", 0), drawn("q.A", 0));
    }

    /// At each place the sign of the sum, or of most, is heard; the others are not, nor counted.
    #[test]
    fn signs_are_voted_on() {
        let tasks =
            || vec![matrix(&[1.0, 5.0, 0.0, -1.0]), matrix(&[2.0, -1.0, 3.0, 1.0]), matrix(&[-6.0, -1.0, 0.0, 0.0])];
        let weights = [1.0, 0.5, 2.0];
        let voted = |signs| merge(tasks(), &weights, Density::All, signs, "q").data;
        assert_eq!(voted(Signs::Ignore), [-10.0, 2.5, 1.5, -0.5]);
        // The sums are -3, 3, 3 and 0, which counts as above 0.
        assert_eq!(voted(Signs::Total), [-12.0, 5.0, 1.5, 0.5]);
        // Most are above 0, below, above, and neither.
        assert_eq!(voted(Signs::Frequency), [1.0, -1.25, 1.5, 0.5]);
    }

    /// DARE, then the vote: one that was dropped is not heard, and one that is alone is heard as it was divided.
    #[test]
    fn dare_and_the_vote_go_together() {
        let (n, density) = (4000, Density::Random { share: 0.5, seed: 3 });
        let tasks = || vec![matrix(&vec![1.0; n]), matrix(&vec![-3.0; n])];
        let sum = merge(tasks(), &[1.0, 1.0], density, Signs::Total, "q").data;
        let of = |value: f64| sum.iter().filter(|&&x| x == value).count();
        // Both kept, or the second alone: -6. The first alone: 2. Neither: 0. A quarter and a half, to 5 deviations.
        assert_eq!(of(-6.0) + of(2.0) + of(0.0), n);
        assert!(of(2.0).abs_diff(n / 4) <= 140 && of(-6.0).abs_diff(n / 2) <= 160, "{} and {}", of(2.0), of(-6.0));
        let plain = merge(tasks(), &[1.0, 1.0], density, Signs::Ignore, "q").data;
        assert!(plain.iter().all(|x| [0.0, 2.0, -6.0, -4.0].contains(x)));
    }
}
