//! One update of 28 million weights in eight tensors: AdamW with its state in memory, half of it in a file, all of it in a
//! file, and in 8 bits. What paging adds to a training step is the difference, beside the step's forward and backward.
//! The file is in the system's directory for temporary files.

use criterion::{Criterion, Throughput};
use planish_autograd::Param;
use planish_benches::{normal_in, smollm2::*};
use planish_tensor::DType;
use planish_train::optim::{AdamWSettings, Blockwise, Keep, Optimizer, Rates, Rounding, Rule, Update};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("optimizer_states");
    group.sample_size(10);
    let dims = [VOCABULARY / 8, HIDDEN];
    let numbers = dims[0] * dims[1] * 8;
    let rule = Rule::AdamW(AdamWSettings { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 });
    let dir = std::env::temp_dir();
    let all = (numbers * 8) as u64;
    group.throughput(Throughput::Elements(numbers as u64));
    for (name, eight_bits, budget) in [
        ("memory", false, None),
        ("half in a file", false, Some(all / 2)),
        ("in a file", false, Some(0)),
        ("8 bits", true, None),
    ] {
        let one =
            |i: u64| Ok::<_, planish_tensor::Error>(Param::trainable(format!("{i}"), normal_in(DType::F32, i, &dims)?));
        let params = (0..8).map(one).collect::<Result<Vec<_>, _>>()?;
        let grad = normal_in(DType::F32, 9, &dims)?;
        let paged = budget.map(|bytes| (bytes, dir.as_path()));
        let keep = Keep { eight_bits, rounding: Rounding::Nearest, paged };
        let mut optimizer = Blockwise::new(&params, rule, keep, &Rates::default())?;
        group.bench_function(name, |b| {
            b.iter(|| {
                params.iter().for_each(|p| p.set_grad(Some(grad.clone())));
                optimizer.step(Update { learning_rate: 1e-4, grad_scale: 1.0 }).expect("the shapes agree")
            });
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
