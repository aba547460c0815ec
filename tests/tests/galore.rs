//! What GaLore takes while it makes projections, as the heap counts it: a process of its own, whose other allocations are
//! few.

use planish_autograd::Param;
use planish_tensor::Tensor;
use planish_tensor::rng::{Purpose, Stream};
use planish_tests::heap::{Counting, peak_of};
use planish_train::config::{PretrainConfig, resolve};
use planish_train::optim::{Rates, Update, optimizer, state_size};

#[global_allocator]
static HEAP: Counting = Counting;

/// The plan says what a step takes beside the state: no less, and not half as much again as there is.
#[test]
fn the_plan_counts_what_projections_take() {
    // What threads keep for products, each from its first one on, is not of the projection: one thread, and a step before.
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(projections_take_what_is_planned);
}

fn projections_take_what_is_planned() {
    // Wide, high and square.
    for shape in [[96usize, 700], [700, 96], [300, 300]] {
        let name = "model.layers.0.mlp.up_proj.weight";
        let [rows, cols] = shape;
        let stream = Stream::new(1, Purpose::Data, 0);
        let values: Vec<f32> = (0..rows * cols).map(|i| stream.normal(i as u64) as f32).collect();
        let weight = Tensor::from_vec(values, shape).unwrap();
        let param = Param::trainable(name, weight.copied().unwrap());
        let flags = [
            ("config_name", "c"),
            ("tokenizer_name", "t"),
            ("dataset", "d"),
            ("output_dir", "o"),
            ("optim", "galore_adamw"),
            ("optim_target_modules", "all-linear"),
            ("optim_args", "rank=16"),
        ];
        let flags: Vec<_> = flags.iter().map(|(k, v)| (k.to_string(), vec![v.to_string()])).collect();
        let o = resolve::<PretrainConfig>(None, &flags).unwrap().config.optim;
        let params = [param];
        let planned = state_size(&params, &o).unwrap().step as usize;
        let dir = tempfile::tempdir().unwrap();
        let made = || optimizer(&params, &o, &Rates::default(), dir.path()).unwrap();
        params[0].set_grad(Some(weight.copied().unwrap()));
        made().step(Update { learning_rate: 0.0, grad_scale: 1.0 }).unwrap();
        let mut optimizer = made();
        let mut step = || {
            params[0].set_grad(Some(weight.copied().unwrap()));
            peak_of(|| optimizer.step(Update { learning_rate: 1e-3, grad_scale: 1.0 }).unwrap()).1
        };
        let first = step();
        assert!(first <= planned && 2 * planned <= 3 * first, "{shape:?}: {first} bytes taken, {planned} planned");
        // A step without a projection takes less.
        let second = step();
        assert!(second < first, "{shape:?}: {second} and {first}");
    }
}
