//! Segments that share what they begin with: the bits of those that do not, and the same gradient.

use planish_autograd::Tape;
use planish_nn::Ctx;
use planish_nn::adapters::load_adapter;
use planish_nn::decoder::{LoadOptions, Model, Packed};
use planish_nn::pretrained::{Pretrained, read_json};
use planish_tensor::DType;
use planish_train::losses::{Laid, TokenScores, Want, token_scores};

use crate::fixture;

fn load(path: &str, dtype: Option<DType>, trainable: bool) -> Model {
    Pretrained::open(&fixture(path)).unwrap().load(LoadOptions { dtype, trainable }).unwrap()
}

/// Pairs that part at the first token, within a tile of keys, after one, in a completion, and not before the end of
/// one side; with a mask over all tokens of the chosen side, as ORPO has it, and those of the rejected completions.
fn pairs(vocabulary: usize) -> (Packed, Vec<bool>) {
    let mut segments: Vec<Vec<u32>> = Vec::new();
    let mut mask = Vec::new();
    for (i, (prompt, chosen, rejected)) in
        [(0usize, 5usize, 4usize), (12, 30, 9), (64, 3, 40), (70, 20, 21), (1, 1, 7)].into_iter().enumerate()
    {
        let id = |j: usize, salt: usize| ((j * 7 + salt * 13 + i * 5) % vocabulary) as u32;
        let shared: Vec<u32> = (0..prompt).map(|j| id(j, 0)).collect();
        for (s, n) in [chosen, rejected].into_iter().enumerate() {
            segments.push(shared.iter().copied().chain((0..n).map(|j| id(j, 1 + s))).collect());
            mask.extend((0..prompt + n).map(|j| j > 0 && (s == 0 || j >= prompt)));
        }
    }
    // One side is the beginning of the other.
    let longest = segments[6].clone();
    mask.extend(vec![true; longest.len()]);
    mask.extend((0..20).map(|j| j > 9));
    segments.push(longest);
    segments.push(segments[6][..20].to_vec());
    (Packed::new(&segments), mask)
}

fn scores(model: &Model, ctx: &Ctx, share: bool, recompute: bool) -> TokenScores {
    let (batch, mask) = pairs(model.config.vocab_size);
    let want = Want { share, recompute, mean_logits: true, ..Want::default() };
    token_scores(model, ctx, &batch, &mask, want).unwrap()
}

fn bits(x: &[f64]) -> Vec<u64> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn same_bits(what: &str, model: &Model) {
    let (batch, _) = pairs(model.config.vocab_size);
    let shared = Laid::new(model, &Ctx::inference(), batch.clone(), true).stream().len();
    assert_eq!(shared < batch.len(), model.can_branch(), "{what}: {shared} of {} tokens", batch.len());
    for ctx in [Ctx::inference(), Ctx::inference().without_adapters()] {
        let (apart, together) = (scores(model, &ctx, false, false), scores(model, &ctx, true, false));
        assert_eq!(bits(&apart.logprobs), bits(&together.logprobs), "{what}");
        assert_eq!(bits(&apart.entropy), bits(&together.entropy), "{what}");
        assert_eq!(apart.mean_logits.map(|x| bits(&x)), together.mean_logits.map(|x| bits(&x)), "{what}");
    }
}

/// Law 5, for every family; those whose rotations depend on a segment's length do not share.
#[test]
fn no_bit_depends_on_sharing() {
    let families = read_json(&fixture("models/metadata.json")).unwrap();
    let families: Vec<String> =
        families["families"].as_array().unwrap().iter().map(|f| f.as_str().unwrap().to_owned()).collect();
    assert!(families.len() >= 20, "{families:?}");
    for family in families {
        for dtype in [None, Some(DType::BF16)] {
            same_bits(&format!("{family} {dtype:?}"), &load(&format!("models/{family}"), dtype, false));
        }
    }
}

/// With adapters, also those that put tokens, or keys and values, before every sequence.
#[test]
fn no_bit_depends_on_sharing_under_adapters() {
    let mut dirs: Vec<_> = std::fs::read_dir(fixture("adapters")).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.retain(|d| d.is_dir());
    dirs.sort();
    assert!(dirs.len() >= 30);
    for dir in dirs {
        let config = read_json(&dir.join("adapter_config.json")).unwrap();
        let mut model = load(config["base_model_name_or_path"].as_str().unwrap(), None, false);
        load_adapter(&mut model, &dir).unwrap();
        same_bits(&dir.display().to_string(), &model);
    }
}

/// Nine segments, so two runs of four and one alone: that share a beginning of 20 or 70 tokens, a part of it, too
/// little to be worth it, all that they are, and nothing.
fn neighbours(vocabulary: usize) -> (Packed, Vec<bool>) {
    let id = |j: usize, salt: usize| ((j * 7 + salt * 13) % vocabulary) as u32;
    let lengths = [(20, 9), (20, 30), (12, 25), (3, 6), (70, 5), (70, 0), (64, 8), (0, 11), (20, 4)];
    let segments: Vec<Vec<u32>> = lengths
        .into_iter()
        .enumerate()
        .map(|(i, (shared, own))| (0..shared).map(|j| id(j, 0)).chain((0..own).map(|j| id(j, 1 + i))).collect())
        .collect();
    let mask = segments.iter().flat_map(|s| (0..s.len()).map(|j| j > s.len() / 3)).collect();
    (Packed::new(&segments), mask)
}

/// As [`no_bit_depends_on_sharing`], of runs of segments.
#[test]
fn no_bit_depends_on_shared_beginnings() {
    for family in ["smollm2", "gemma2", "qwen2_window"] {
        let model = load(&format!("models/{family}"), None, false);
        let (batch, mask) = neighbours(model.config.vocab_size);
        let laid = Laid::beginnings(&model, &Ctx::inference(), batch.clone(), true);
        assert!(laid.stream().len() + 100 < batch.len(), "{family}: {} of {}", laid.stream().len(), batch.len());
        let [apart, together] = [false, true].map(|beginnings| {
            let want = Want { beginnings, ..Want::default() };
            token_scores(&model, &Ctx::inference(), &batch, &mask, want).unwrap()
        });
        assert_eq!(bits(&apart.logprobs), bits(&together.logprobs), "{family}");
        assert_eq!(bits(&apart.entropy), bits(&together.entropy), "{family}");
    }
}

/// A batch, and whether its segments are pairs.
type Case = (fn(usize) -> (Packed, Vec<bool>), bool);

/// In f64, of all weights and of adapters, with and without recomputation.
#[test]
fn the_gradient_is_that_of_segments_apart() {
    let cases = [
        ("smollm2", None),
        ("gemma2", None),
        ("qwen2_window", None),
        ("", Some("qwen2_prefix")),
        ("", Some("llama3_prompt")),
    ];
    for (family, adapter) in cases {
        let model = match adapter {
            None => load(&format!("models/{family}"), Some(DType::F64), true),
            Some(name) => {
                let dir = fixture(&format!("adapters/{name}"));
                let config = read_json(&dir.join("adapter_config.json")).unwrap();
                let mut model = load(config["base_model_name_or_path"].as_str().unwrap(), Some(DType::F64), false);
                load_adapter(&mut model, &dir).unwrap();
                model
            }
        };
        let gradients = |(batch, pairs): Case, share: bool, recompute: bool| -> Vec<(String, Vec<f64>)> {
            model.params().iter().for_each(|p| p.clear_grad());
            let (batch, mask) = batch(model.config.vocab_size);
            let want = Want { share: share && pairs, beginnings: share && !pairs, recompute, ..Want::default() };
            let found = token_scores(&model, &Ctx::training(&Tape::new(), None), &batch, &mask, want).unwrap();
            let slopes: Vec<f64> = (0..found.logprobs.len()).map(|i| ((i * 37 % 11) as f64 - 5.0) / 10.0).collect();
            found.backward(&slopes).unwrap();
            let trained = model.params().into_iter().filter(|p| p.is_trainable());
            trained.map(|p| (p.name().to_string(), p.grad().unwrap().to_vec::<f64>().unwrap())).collect()
        };
        for case in [(pairs as fn(usize) -> _, true), (neighbours, false)] {
            let want = gradients(case, false, false);
            assert!(!want.is_empty());
            for recompute in [false, true] {
                for ((name, want), (_, found)) in want.iter().zip(gradients(case, true, recompute)) {
                    let size = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                    assert!(size > 0.0, "{family} {name}");
                    for (a, b) in want.iter().zip(&found) {
                        // Sums of some hundred f64 terms in another order.
                        assert!((a - b).abs() <= 1e-12 * size.max(1.0), "{family} {adapter:?} {name}: {a} and {b}");
                    }
                }
            }
        }
    }
}
