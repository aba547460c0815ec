use std::path::Path;

use planish_autograd::Param;
use planish_tensor::Tensor;

use super::*;
use crate::decoder::{LoadOptions, Packed};
use crate::pretrained::Pretrained;

fn model(name: &str) -> Model {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models").join(name);
    Pretrained::open(&dir).unwrap().load(LoadOptions::default()).unwrap()
}

fn prompts() -> Vec<Vec<u32>> {
    (0..5u32).map(|p| (0..3 + 7 * p).map(|i| (p * 31 + i * 17) % 90).collect()).collect()
}

fn go_on(_: &TokenEvent<'_>) -> bool {
    true
}

/// Each id is a letter; id 3 gives its text only at the end, as half a character would.
struct Letters(bool);

impl TextStream for Letters {
    fn push(&mut self, id: u32) -> Option<String> {
        self.0 = id == 3;
        (id != 3).then(|| letter(id).to_string())
    }

    fn finish(&mut self) -> Option<String> {
        self.0.then(|| "?".to_string())
    }
}

fn letter(id: u32) -> char {
    char::from_u32('a' as u32 + id).unwrap()
}

/// Batch size, chunks and threads change no bit; neither does which call a prompt comes in.
#[test]
fn samples_depend_on_nothing_else_in_the_batch() {
    let model = model("smollm2");
    let prompts = prompts();
    for params in [
        SamplingParams { max_new_tokens: 9, n: 3, seed: 5, ..Default::default() },
        SamplingParams { max_new_tokens: 9, temperature: 0.0, repetition_penalty: 1.3, ..Default::default() },
        SamplingParams { max_new_tokens: 9, n: 2, temperature: 0.7, top_k: 20, top_p: 0.9, ..Default::default() },
    ] {
        let want = Generator::new(&model).generate(&prompts, &params, &mut go_on).unwrap();
        assert!(want.iter().all(|samples| samples.len() == params.n));
        for (max_batch, tokens, threads) in [(1, 4, 1), (2, 512, 2), (4, 1, 3), (7, 13, 4)] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let got = pool.install(|| {
                let generator = Generator::new(&model).max_batch(max_batch).tokens_per_pass(tokens);
                generator.generate(&prompts, &params, &mut go_on).unwrap()
            });
            assert_eq!(got, want, "{max_batch} sequences, {tokens} tokens a pass, {threads} threads");
        }
        for (i, prompt) in prompts.iter().enumerate() {
            let generator = Generator::new(&model).first_prompt(i as u64);
            assert_eq!(generator.generate(&[prompt], &params, &mut go_on).unwrap()[0], want[i]);
        }
    }
}

/// A sequence that has ended makes room at once: the next enters while its neighbour still goes on.
#[test]
fn a_waiting_prompt_enters_as_soon_as_another_ends() {
    let model = model("smollm2");
    let all = prompts();
    let greedy = SamplingParams { max_new_tokens: 8, temperature: 0.0, ..Default::default() };
    let answers = Generator::new(&model).generate(&all, &greedy, &mut go_on).unwrap();
    // What one answers first ends it, and does not end another before its eighth token.
    let pairs = (0..all.len()).flat_map(|a| (0..all.len()).map(move |b| (a, b)));
    let (short, long) =
        pairs.clone().find(|&(a, b)| !answers[b][0].ids[..7].contains(&answers[a][0].ids[0])).expect("two that differ");
    let prompts = [&all[short], &all[long], &all[long]];
    let params = SamplingParams { eos_token_ids: vec![answers[short][0].ids[0]], ..greedy };
    let mut order = vec![];
    let mut note = |event: &TokenEvent<'_>| {
        order.push(event.prompt);
        true
    };
    let got = Generator::new(&model).max_batch(2).generate(&prompts, &params, &mut note).unwrap();
    assert_eq!(got[0][0].ids.len(), 1);
    assert_eq!(got[1][0].ids, got[2][0].ids);
    let (entered, ended) = (order.iter().position(|&p| p == 2), order.iter().rposition(|&p| p == 1));
    assert!(entered.unwrap() + 8 < ended.unwrap(), "{order:?}");
}

/// The end token does not come before its time, and the log-probabilities are still the model's own.
#[test]
fn an_answer_has_at_least_min_new_tokens() {
    let model = model("smollm2");
    let prompts = prompts();
    let free = SamplingParams { max_new_tokens: 8, temperature: 0.0, ..Default::default() };
    let generate = |params: &SamplingParams| Generator::new(&model).generate(&prompts, params, &mut go_on).unwrap();
    let want = generate(&free);
    for (prompt, want) in want.iter().enumerate() {
        // The greedy answer's third token is made the end.
        let eos = want[0].ids[2];
        let ending = SamplingParams { eos_token_ids: vec![eos], ..free.clone() };
        let first = want[0].ids.iter().position(|id| *id == eos).unwrap();
        assert_eq!(generate(&ending)[prompt][0].ids, want[0].ids[..=first]);
        let longer = generate(&SamplingParams { min_new_tokens: 6, ..ending.clone() }).swap_remove(prompt).remove(0);
        assert!(longer.ids.len() >= 6 && !longer.ids[..6].contains(&eos), "{:?}", longer.ids);
        assert_eq!(longer.ids[..first], want[0].ids[..first]);
        assert_eq!(longer.logprobs[..first], want[0].logprobs[..first]);
        let drawn = SamplingParams { min_new_tokens: 8, temperature: 1.5, ..ending };
        assert_eq!(generate(&drawn)[prompt][0].ids.len(), 8);
    }
}

#[test]
fn seeds_prompts_and_samples_draw_differently() {
    let model = model("qwen3");
    let params = SamplingParams { max_new_tokens: 12, n: 3, temperature: 3.0, ..Default::default() };
    let run = |p: &SamplingParams| {
        let all = Generator::new(&model).generate(&[[1, 2, 3], [1, 2, 3]], p, &mut go_on).unwrap();
        all.into_iter().flatten().map(|c| c.ids).collect::<Vec<_>>()
    };
    let mut all = run(&params);
    all.extend(run(&SamplingParams { seed: 1, ..params }));
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 12);
}

/// The log-probabilities are those of scoring the finished sequence, bit for bit, and greedy tokens are
/// the most probable ones.
#[test]
fn logprobs_are_those_of_scoring() {
    for (name, temperature) in [("gemma2", 1.5), ("granite", 0.0), ("mistral", 0.6)] {
        let model = model(name);
        let params = SamplingParams { max_new_tokens: 30, temperature, ..Default::default() };
        let prompts = prompts();
        let all = Generator::new(&model).tokens_per_pass(6).generate(&prompts, &params, &mut go_on).unwrap();
        for (prompt, completion) in prompts.iter().zip(all.iter().flatten()) {
            let whole = [&prompt[..], &completion.ids].concat();
            let ctx = Ctx::inference();
            let hidden = model.forward(&ctx, &Packed::new(&[&whole]), false).unwrap();
            let rows: Vec<u32> = (prompt.len() as u32 - 1..whole.len() as u32 - 1).collect();
            let scores = model.scores(&ctx, &hidden, &rows, &completion.ids).unwrap();
            let want: Vec<f32> = scores.logprobs.value().to_vec().unwrap();
            let got: Vec<f32> = completion.logprobs.iter().map(|&x| x as f32).collect();
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&got), bits(&want), "{name}");
            assert!(temperature != 0.0 || scores.correct.read().unwrap().iter().all(|&c| c), "{name}");
        }
    }
}

#[test]
fn sequences_end_as_they_should() {
    let model = model("smollm2");
    let prompt = [[5u32, 6, 7]];
    let base = SamplingParams { max_new_tokens: 20, temperature: 2.0, seed: 3, ..Default::default() };
    let generate = |p: &SamplingParams| Generator::new(&model).text(|| Letters(false)).generate(&prompt, p, &mut go_on);
    let free = generate(&base).unwrap().remove(0).remove(0);
    assert_eq!((free.finish, free.ids.len(), free.logprobs.len()), (FinishReason::Length, 20, 20));

    let eos = free.ids[6];
    let at = free.ids.iter().position(|&id| id == eos).unwrap();
    let ended =
        generate(&SamplingParams { eos_token_ids: vec![eos, 9999], ..base.clone() }).unwrap().remove(0).remove(0);
    assert_eq!((ended.finish, &ended.ids[..]), (FinishReason::Eos, &free.ids[..=at]));
    assert!(!ended.text.ends_with(letter(eos)));

    let stop: String = free.text.chars().skip(4).take(3).collect();
    let cut = free.text.find(&stop).unwrap();
    let stopped = generate(&SamplingParams { stop: vec![stop], ..base.clone() }).unwrap().remove(0).remove(0);
    assert_eq!((stopped.finish, &stopped.text[..]), (FinishReason::Stop, &free.text[..cut]));
    assert!(free.ids.starts_with(&stopped.ids) && stopped.ids.len() < 20);

    // The caller ends one of two samples; the text of all events is the completion's.
    let mut seen = [String::new(), String::new()];
    let mut on_token = |e: &TokenEvent<'_>| {
        seen[e.sample].push_str(e.text);
        e.sample == 0 || seen[1].len() < 4
    };
    let generator = Generator::new(&model).text(|| Letters(false));
    let all = generator.generate(&prompt, &SamplingParams { n: 2, ..base }, &mut on_token).unwrap().remove(0);
    assert_eq!(all[0], free);
    assert_eq!(all[1].finish, FinishReason::Cancelled);
    assert_eq!([all[0].text.clone(), all[1].text.clone()], seen);
}

#[test]
fn wrong_use_is_refused() {
    let mut model = model("smollm2");
    let base = SamplingParams::default();
    let fail = |model: &Model, prompts: &[Vec<u32>], p: SamplingParams| {
        Generator::new(model).generate(prompts, &p, &mut go_on).unwrap_err().to_string()
    };
    let ok = [vec![1u32]];
    for (params, what) in [
        (SamplingParams { max_new_tokens: 0, ..base.clone() }, "max_new_tokens is 0"),
        (SamplingParams { min_new_tokens: 1 + base.max_new_tokens, ..base.clone() }, "min_new_tokens is"),
        (SamplingParams { temperature: -1.0, ..base.clone() }, "temperature is -1"),
        (SamplingParams { temperature: f64::NAN, ..base.clone() }, "temperature is NaN"),
        (SamplingParams { temperature: f64::INFINITY, ..base.clone() }, "temperature is inf"),
        (SamplingParams { top_p: 1.1, ..base.clone() }, "top_p is 1.1"),
        (SamplingParams { min_p: f64::NAN, ..base.clone() }, "min_p is NaN"),
        (SamplingParams { repetition_penalty: 0.0, ..base.clone() }, "repetition_penalty is 0"),
        (SamplingParams { n: 0, ..base.clone() }, "n is 0"),
        (SamplingParams { stop: vec!["".into()], ..base.clone() }, "stop is"),
        (SamplingParams { stop: vec!["x".into()], ..base.clone() }, "no tokenizer"),
    ] {
        let error = fail(&model, &ok, params);
        assert!(error.contains(what), "{error}");
    }
    assert!(fail(&model, &[vec![1], vec![]], base.clone()).contains("prompt 1 has no tokens"));
    assert!(fail(&model, &[vec![1_000_000]], base.clone()).contains("outside the vocabulary"));
    let none: [[u32; 1]; 0] = [];
    assert!(Generator::new(&model).generate(&none, &base, &mut go_on).unwrap().is_empty());

    let size = model.norm.weight.base.value().numel();
    let broken = Tensor::full(f32::NAN, [size]).unwrap();
    model.norm.weight.base = Param::frozen("model.norm.weight", broken);
    for temperature in [0.0, 1.0] {
        let error = fail(&model, &ok, SamplingParams { temperature, ..base.clone() });
        assert!(error.contains("prompt 0") && error.contains("token 1 are not finite"), "{error}");
    }
}
