//! Adapters of every method against PEFT, and their training against TRL.

use std::path::PathBuf;

use planish_autograd::Tape;
use planish_nn::Ctx;
use planish_nn::adapters::{
    Combination, Density, Signs, adapter_params, combine_adapters, load_adapter, load_adapter_as, merge_adapter,
    resume_adapter, save_adapter, save_training,
};
use planish_nn::decoder::{LoadOptions, Model, Packed};
use planish_nn::generate::{Generator, SamplingParams};
use planish_nn::pretrained::{Pretrained, read_json};
use planish_nn::weights::{WeightsReader, save_safetensors};
use planish_tensor::{DType, Tensor};
use planish_train::adapt;
use planish_train::config::{LoraSettings, ModelSettings, OptimSettings, PeftType, PromptInitChoice};
use planish_train::losses::cross_entropy;
use planish_train::models::Opened;
use planish_train::optim::{AdamW, AdamWSettings, Rates, Update, grad_norm};

use crate::sft::rows;
use crate::{difference, fixture, floats, ids, packed_logits};

/// As for the models themselves.
const LOGITS: f32 = 1e-4;

pub(crate) fn adapters() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(fixture("adapters")).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|p| p.is_dir());
    all.sort();
    assert!(all.len() >= 38);
    all
}

fn base_of(adapter: &std::path::Path) -> Model {
    let config = read_json(&adapter.join("adapter_config.json")).unwrap();
    let base = fixture(config["base_model_name_or_path"].as_str().unwrap());
    Pretrained::open(&base).unwrap().load(LoadOptions::default()).unwrap()
}

/// With the adapter on, off, merged, and written and read again: the logits are PEFT's.
#[test]
fn adapters_of_peft_give_their_logits() {
    for dir in adapters() {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let mut model = base_of(&dir);
        let expected = WeightsReader::open(dir.join("expected.safetensors")).unwrap();
        let sequences: Vec<Vec<u32>> = (0..)
            .map_while(|i| expected.contains(&format!("ids.{i}")).then(|| ids(&expected, &format!("ids.{i}"))))
            .collect();
        let on = Ctx::inference();
        let check = |model: &Model, key: &str, what: &str| {
            for (i, got) in packed_logits(model, &on, &sequences).iter().enumerate() {
                let worst = difference(got, &floats(&expected, &format!("{key}.{i}")));
                assert!(worst <= LOGITS, "{name} {what}, sequence {i}: {worst}");
            }
        };
        let plain = packed_logits(&model, &on, &sequences);
        let config = load_adapter(&mut model, &dir).unwrap();
        check(&model, "logits", "loaded");
        let off = packed_logits(&model, &Ctx::inference().without_adapters(), &sequences);
        assert_eq!(off, plain, "{name}: switched off, the adapter changes no bit");
        let out = tempfile::tempdir().unwrap();
        save_adapter(&model, &*config, out.path()).unwrap();
        let mut again = base_of(&dir);
        load_adapter(&mut again, out.path()).unwrap();
        assert_eq!(packed_logits(&again, &on, &sequences), packed_logits(&model, &on, &sequences), "{name}: saved");
        if !config.is_mergeable() {
            let error = merge_adapter(&mut model).unwrap_err().to_string();
            assert!(error.contains("cannot be merged"), "{error}");
            continue;
        }
        merge_adapter(&mut model).unwrap();
        let merged = if expected.contains("merged.0") { "merged" } else { "logits" };
        check(&model, merged, "merged");
        // Merged, saved as a model and opened as one.
        let out = tempfile::tempdir().unwrap();
        model.save(out.path()).unwrap();
        let opened = Pretrained::open(out.path()).unwrap().load(LoadOptions::default()).unwrap();
        check(&opened, merged, "merged, saved and opened");
    }
}

/// What PEFT wrote, read and written again, is the same: every key of the settings, and every tensor by
/// name, shape and bits.
#[test]
fn an_adapter_of_peft_saved_again_is_what_it_was() {
    let mut compared = 0;
    for dir in adapters() {
        let mut model = base_of(&dir);
        let config = load_adapter(&mut model, &dir).unwrap();
        let out = tempfile::tempdir().unwrap();
        save_adapter(&model, &*config, out.path()).unwrap();
        let json = |dir: &std::path::Path| read_json(&dir.join("adapter_config.json")).unwrap();
        assert_eq!(json(out.path()), json(&dir), "{}", dir.display());
        let read = |dir: &std::path::Path| WeightsReader::open(dir.join("adapter_model.safetensors")).unwrap();
        let (ours, theirs) = (read(out.path()), read(&dir));
        let sorted = |reader: &WeightsReader| {
            let mut names = reader.names().to_vec();
            names.sort();
            names
        };
        assert_eq!(sorted(&ours), sorted(&theirs), "{}", dir.display());
        for name in theirs.names() {
            let (got, want) = (ours.get(name).unwrap(), theirs.get(name).unwrap());
            // Narrower adapters are held, and saved, in f32, as PEFT does with one that it has read: every
            // value is exact there.
            let want = if want.dtype() == DType::BF16 { want.to_dtype(DType::F32).unwrap() } else { want };
            assert_eq!((got.dtype(), got.dims()), (want.dtype(), want.dims()), "{name}");
            let bits = |t: &Tensor| t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(&got), bits(&want), "{}: {name}", dir.display());
            compared += 1;
        }
    }
    assert!(compared > 100, "{compared} tensors");
}

/// Six steps from the adapter: loss and gradient norm are TRL's.
#[test]
fn trajectories_of_every_method_are_those_of_trl() {
    let mut runs = 0;
    for dir in adapters().iter().filter(|d| d.join("steps.json").exists()) {
        let steps = read_json(&dir.join("steps.json")).unwrap();
        let settings = &steps["settings"];
        let number = |key: &str| settings[key].as_f64().unwrap();
        let mut model = base_of(dir);
        let config = resume_adapter(&mut model, dir).unwrap();
        let adam = AdamWSettings {
            beta1: number("adam_beta1"),
            beta2: number("adam_beta2"),
            eps: number("adam_epsilon"),
            weight_decay: number("weight_decay"),
        };
        let rates = match steps["loraplus"]["loraplus_lr_ratio"].as_f64() {
            Some(ratio) => {
                let embedding = steps["loraplus"]["loraplus_lr_embedding"].as_f64().unwrap_or(1e-6);
                Rates::loraplus(ratio, embedding, number("learning_rate"))
            }
            None => Rates::default(),
        };
        let mut optimizer = AdamW::with_rates(&model.params(), adam, &rates).unwrap();
        let own = adapter_params(&model, 0);
        let mut rows = rows();
        // After virtual tokens PEFT also predicts a first token that is supervised; here nothing does.
        rows.retain(|r| !r.mask[0]);
        for (s, step) in steps["steps"].as_array().unwrap().iter().enumerate() {
            let rows = &rows[8 * s..8 * (s + 1)];
            let batch = Packed::new(&rows.iter().map(|r| &r.ids).collect::<Vec<_>>());
            let mask: Vec<bool> = rows.iter().flat_map(|r| r.mask.iter().copied()).collect();
            // Recomputed layers must hand on what prefixes learn.
            let ctx = Ctx::training(&Tape::new(), None);
            let sum = cross_entropy(&model, &ctx, &batch, &mask, s % 2 == 1).unwrap();
            assert_eq!(sum.count, step["tokens"].as_u64().unwrap());
            let loss = sum.mean() + config.penalise(&own, sum.count as f64).unwrap();
            let scale = 1.0 / sum.count as f64;
            let norm = grad_norm(optimizer.params(), scale).unwrap();
            for (what, got) in [("loss", loss), ("grad_norm", norm)] {
                let want = step[what].as_f64().unwrap();
                // Trajectories in f32 part slowly: the sums of both sides are in different orders.
                assert!(
                    (got - want).abs() <= 1e-3 * want,
                    "{} step {}: {what} {got}, TRL {want}",
                    dir.display(),
                    s + 1
                );
            }
            let clip = (number("max_grad_norm") / (norm + 1e-6)).min(1.0);
            let learning_rate = step["learning_rate"].as_f64().unwrap();
            let gradients: Vec<_> = own.iter().map(|p| p.grad()).collect();
            optimizer.step(Update { learning_rate, grad_scale: scale * clip }).unwrap();
            config.stepped(&own, &gradients, scale * clip, s as u64 + 1).unwrap();
        }
        // The ranks that PEFT chose, and what it kept of them.
        if config.peft_type() == "ADALORA" {
            let out = tempfile::tempdir().unwrap();
            save_adapter(&model, &*config, out.path()).unwrap();
            let pruned = fixture("adapters/smollm2_adalora_pruned");
            let ranks =
                |dir: &std::path::Path| read_json(&dir.join("adapter_config.json")).unwrap()["rank_pattern"].clone();
            assert_eq!(ranks(out.path()), ranks(&pruned));
            let read = |dir: &std::path::Path| WeightsReader::open(dir.join("adapter_model.safetensors")).unwrap();
            let (ours, theirs) = (read(out.path()), read(&pruned));
            for name in theirs.names() {
                let worst = difference(&floats(&ours, name), &floats(&theirs, name));
                assert!(worst <= 1e-3, "{name}: {worst}");
            }
        }
        runs += 1;
    }
    assert!(runs >= 25, "{runs} runs");
}

/// Prompt tuning by a text begins with the embeddings with which PEFT begins, bit for bit.
#[test]
fn texts_of_prompts_begin_as_in_peft() {
    let expected = WeightsReader::open(fixture("prompt_text.safetensors")).unwrap();
    assert_eq!(expected.metadata().len(), 2);
    for (name, text) in expected.metadata() {
        let settings = ModelSettings { model: "builtin".into(), ..ModelSettings::default() };
        let opened = Opened::by(&settings, &mut |_| ()).unwrap();
        let lora = LoraSettings {
            use_peft: true,
            peft_type: PeftType::PromptTuning,
            num_virtual_tokens: 9,
            prompt_tuning_init: PromptInitChoice::Text,
            prompt_tuning_init_text: Some(text.clone()),
            ..LoraSettings::default()
        };
        let (model, _) = adapt::build(&opened, &settings, &lora, &OptimSettings::default(), 1, None).unwrap();
        let [prompt] = &adapter_params(&model, 0)[..] else { panic!("{name}") };
        let value = prompt.value();
        assert_eq!(value.dims(), expected.get(name).unwrap().dims());
        let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(value.to_vec().unwrap()), bits(floats(&expected, name)), "{name}");
    }
}

/// What goes on with training begins where it stopped, bit for bit, also where PEFT's file holds less.
#[test]
fn training_state_is_kept() {
    for name in ["llama3_p_tuning", "llama3_p_tuning_lstm", "smollm2_prefix_mlp", "smollm2_adalora"] {
        let dir = fixture(&format!("adapters/{name}"));
        let mut model = base_of(&dir);
        let config = resume_adapter(&mut model, &dir).unwrap();
        let out = tempfile::tempdir().unwrap();
        save_adapter(&model, &*config, out.path()).unwrap();
        save_training(&model, &*config, out.path()).unwrap();
        let mut again = base_of(&dir);
        resume_adapter(&mut again, out.path()).unwrap();
        let bits = |model: &Model| -> Vec<(String, Vec<u32>)> {
            let bits = |t: Tensor| t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
            adapter_params(model, 0).iter().map(|p| (p.name().to_string(), bits(p.value()))).collect()
        };
        assert_eq!(bits(&again), bits(&model), "{name}");
        assert!(bits(&model).len() > 1, "{name}");
    }
}

/// Several adapters on one model: each by its number, none, and the first again, to the bit.
#[test]
fn several_adapters_share_a_model() {
    let names = ["smollm2_regex", "smollm2_pissa", "smollm2_head", "smollm2_saved_embed", "smollm2_prefix_mlp"];
    let sequences: Vec<Vec<u32>> = vec![(0..9).collect(), (20..50).collect()];
    let dirs: Vec<PathBuf> = names.iter().map(|n| fixture(&format!("adapters/{n}"))).collect();
    let alone = |dir: &PathBuf| {
        let mut model = base_of(dir);
        load_adapter(&mut model, dir).unwrap();
        packed_logits(&model, &Ctx::inference(), &sequences)
    };
    let mut all = base_of(&dirs[0]);
    let plain = packed_logits(&all, &Ctx::inference(), &sequences);
    for (slot, dir) in dirs.iter().enumerate() {
        load_adapter_as(&mut all, dir, slot, slot == 0).unwrap();
    }
    for (slot, dir) in dirs.iter().enumerate() {
        let got = packed_logits(&all, &Ctx::inference().with_adapter(slot), &sequences);
        assert_eq!(got, alone(dir), "{}", names[slot]);
    }
    assert_eq!(packed_logits(&all, &Ctx::inference().without_adapters(), &sequences), plain);
    let trained = all.params().into_iter().filter(|p| p.is_trainable()).count();
    assert_eq!(trained, 2 * 6, "only those of the first learn");
    requests_of_several_adapters_share_a_batch(&all, names.len());
}

/// What a request gets, tokens and bits, is what its adapter gives it alone, whoever else is in the batch.
fn requests_of_several_adapters_share_a_batch(model: &Model, adapters: usize) {
    let prompts: Vec<Vec<u32>> = (0..2 * adapters as u32 + 2).map(|p| (p % 2..6 + p % 2).collect()).collect();
    let slot = |prompt: usize| Some(prompt / 2).filter(|slot| *slot < adapters);
    let params = SamplingParams { max_new_tokens: 7, n: 2, temperature: 1.0, seed: 3, ..SamplingParams::default() };
    let together = |max_batch, tokens| {
        let generator = Generator::new(model).max_batch(max_batch).tokens_per_pass(tokens).adapter_of(slot);
        generator.generate(&prompts, &params, &mut |_| true).unwrap()
    };
    let want: Vec<_> = prompts
        .iter()
        .enumerate()
        .map(|(i, prompt)| {
            let ctx = slot(i).map_or(Ctx::inference().without_adapters(), |slot| Ctx::inference().with_adapter(slot));
            let generator = Generator::new(model).ctx(&ctx).first_prompt(i as u64);
            generator.generate(&[prompt], &params, &mut |_| true).unwrap().remove(0)
        })
        .collect();
    for (max_batch, tokens) in [(32, 512), (3, 5)] {
        assert_eq!(together(max_batch, tokens), want, "{max_batch} sequences, {tokens} tokens a pass");
    }
    // Their prompts are two: without the adapters half of all would be equal.
    let greedy = SamplingParams { n: 1, temperature: 0.0, ..params };
    let all = Generator::new(model).adapter_of(slot).generate(&prompts, &greedy, &mut |_| true).unwrap();
    let distinct: std::collections::BTreeSet<Vec<u64>> =
        all.iter().map(|c| c[0].logprobs.iter().map(|p| p.to_bits()).collect()).collect();
    assert_eq!(distinct.len(), prompts.len());
}

/// One adapter out of two: the updates are PEFT's, in every form that does not draw random numbers.
#[test]
fn combined_adapters_are_those_of_peft() {
    let place = fixture("combined");
    let expected = WeightsReader::open(place.join("combined.safetensors")).unwrap();
    let parts = [(place.join("one"), 0.7), (place.join("two"), -0.4)];
    let forms = [
        ("linear", Combination::Linear, Density::All, Signs::Ignore),
        ("cat", Combination::Cat, Density::All, Signs::Ignore),
        ("svd", Combination::Svd(Some(3)), Density::All, Signs::Ignore),
        ("ties", Combination::Linear, Density::Largest(0.4), Signs::Total),
        ("ties_frequency", Combination::Linear, Density::Largest(0.6), Signs::Frequency),
        ("ties_svd", Combination::Svd(Some(4)), Density::Largest(0.5), Signs::Total),
        ("magnitude_prune", Combination::Linear, Density::Largest(0.3), Signs::Ignore),
    ];
    for (name, combination, density, signs) in forms {
        let out = tempfile::tempdir().unwrap();
        combine_adapters(&parts, combination, density, signs, out.path()).unwrap();
        let mut model = Pretrained::open(&fixture("models/smollm2")).unwrap().load(LoadOptions::default()).unwrap();
        let weights = |model: &Model| -> Vec<(String, Vec<f32>)> {
            model.base_params().iter().map(|p| (p.name().to_string(), p.value().to_vec().unwrap())).collect()
        };
        let before = weights(&model);
        load_adapter(&mut model, out.path()).unwrap();
        merge_adapter(&mut model).unwrap();
        let mut compared = 0;
        for ((module, before), (_, after)) in before.into_iter().zip(weights(&model)) {
            let key = format!("{name}.{}", module.trim_end_matches(".weight"));
            if !expected.contains(&key) {
                assert_eq!(before, after, "{name}: {module}");
                continue;
            }
            let update: Vec<f32> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
            // The weight is added and taken away again, in f32.
            let worst = difference(&update, &floats(&expected, &key));
            assert!(worst <= 2e-6, "{name}: {module} off by {worst}");
            compared += 1;
        }
        assert_eq!(compared, 6, "{name}");
    }
    // DARE keeps about the share it is told, divided by it; the seed decides which.
    let dare = |seed: u64| {
        let out = tempfile::tempdir().unwrap();
        let density = Density::Random { share: 0.5, seed };
        combine_adapters(&[(place.join("one"), 1.0)], Combination::Linear, density, Signs::Ignore, out.path()).unwrap();
        let reader = WeightsReader::open(out.path().join("adapter_model.safetensors")).unwrap();
        let mut all = Vec::new();
        reader.names().iter().for_each(|n| all.extend(floats(&reader, n)));
        all
    };
    let kept = dare(1).iter().filter(|x| **x != 0.0).count() as f64 / dare(1).len() as f64;
    assert!((kept - 0.5).abs() < 0.08, "{kept} kept");
    assert_eq!(dare(1), dare(1));
    assert_ne!(dare(1), dare(2));
    // What cannot be combined is refused with the adapter's path.
    let out = tempfile::tempdir().unwrap();
    let refuse = |other: PathBuf, combination, words: &str| {
        let parts = [(place.join("one"), 1.0), (other, 1.0)];
        let error =
            combine_adapters(&parts, combination, Density::All, Signs::Ignore, out.path()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refuse(fixture("adapters/qwen2_dora"), Combination::Cat, "is not plain LoRA");
    refuse(fixture("adapters/qwen2_plain"), Combination::Cat, "is of another shape than the others");
    refuse(fixture("adapters/smollm2_regex"), Combination::Linear, "use cat or svd");
    let density = Density::Largest(1.5);
    let error =
        combine_adapters(&parts, Combination::Linear, density, Signs::Total, out.path()).unwrap_err().to_string();
    assert!(error.contains("density is 1.5"), "{error}");
}

/// PEFT draws VeRA's shared pair from a seed of torch's where its file lacks it: the setting that leaves it out is named.
#[test]
fn a_vera_adapter_without_its_matrices_is_refused_by_the_setting() {
    let (from, dir) = (fixture("adapters/qwen2_vera"), tempfile::tempdir().unwrap());
    let reader = WeightsReader::open(from.join("adapter_model.safetensors")).unwrap();
    let names = reader.names().iter().filter(|name| !name.starts_with("base_model.vera_"));
    let tensors: Vec<_> = names.map(|name| (name.clone(), reader.get(name).unwrap())).collect();
    assert_eq!(tensors.len() + 2, reader.names().len());
    save_safetensors(dir.path().join("adapter_model.safetensors"), tensors, &Default::default()).unwrap();
    std::fs::copy(from.join("adapter_config.json"), dir.path().join("adapter_config.json")).unwrap();
    let error = load_adapter(&mut base_of(&from), dir.path()).unwrap_err().to_string();
    assert!(error.contains("save_projection was off when this adapter was saved"), "{error}");
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let mut model = Pretrained::open(&fixture("models/qwen3")).unwrap().load(LoadOptions::default()).unwrap();
    let error = load_adapter(&mut model, &fixture("adapters/qwen2_saved_head")).unwrap_err().to_string();
    assert!(error.contains("made for another one"), "{error}");
}
