//! The data layer from outside, with a real tokenizer and template: files to the steps of a run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use planish_nn::tokenizer::Tokenizer;
use planish_train::data::{
    Columns, Cursor, Dataset, DatasetSpec, DatasetType, EncodeOptions, Encoder, Loader, Packing, Sampler,
    SamplerOptions, Step, TextEncoder, ValidationSplit, preflight, render,
};

fn tokenizer() -> Arc<Tokenizer> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../train/builtin");
    Arc::new(Tokenizer::from_dir(dir).unwrap())
}

/// The same twelve questions in three formats, the last two as conversations.
fn files(dir: &Path) -> Vec<DatasetSpec> {
    let (mut csv, mut jsonl, mut json) = (String::from("question,answer\n"), String::new(), Vec::new());
    for i in 0..12 {
        let (q, a) = (format!("what is {i} plus 1"), format!("it is {}", i + 1));
        csv += &format!("\"{q}\",{a}\n");
        let turns = serde_json::json!([{"role": "user", "content": q}, {"role": "assistant", "content": a}]);
        jsonl += &format!("{}\n", serde_json::json!({"messages": turns}));
        json.push(serde_json::json!({"prompt": [turns[0]], "completion": [turns[1]]}));
    }
    let write = |name: &str, text: &str| -> PathBuf {
        std::fs::write(dir.join(name), text).unwrap();
        dir.join(name)
    };
    let json = serde_json::to_string_pretty(&serde_json::json!({"version": 1, "rows": json})).unwrap();
    [write("a.csv", &csv), write("b.jsonl", &jsonl), write("c.json", &json)].map(DatasetSpec::new).into()
}

#[test]
fn one_conversation_has_the_same_tokens_from_any_file() {
    let dir = tempfile::tempdir().unwrap();
    let data = Dataset::open(&files(dir.path()), &Columns::default(), &DatasetType::SFT).unwrap();
    let tokenizer = tokenizer();
    let options = EncodeOptions { assistant_only_loss: true, ..EncodeOptions::default() };
    let encoder = Encoder::new(tokenizer.clone(), options).unwrap();
    for i in 0..12 {
        let [a, b, c] = [i, i + 12, i + 24].map(|i| {
            let (row, source) = data.read(i).unwrap();
            encoder.encode(&row, source).unwrap().example.unwrap()
        });
        assert_eq!((&a.ids, &a.mask, &a.ids, &a.mask), (&b.ids, &b.mask, &c.ids, &c.mask));
        let trained: Vec<u32> = a.ids.iter().zip(&a.mask).filter(|(_, m)| **m).map(|(&id, _)| id).collect();
        let text = TextEncoder::decode(&*tokenizer, &trained).unwrap();
        assert!(text.trim_start().starts_with(&format!("it is {}", i + 1)), "{text:?}");
        assert!(tokenizer.eos_token_ids().contains(trained.last().unwrap()), "the end of the turn is trained on");
    }
}

#[test]
fn a_run_over_three_files_resumes_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let data = Arc::new(Dataset::open(&files(dir.path()), &Columns::default(), &DatasetType::SFT).unwrap());
    let (train, held) = data.split(Some(ValidationSplit::Count(6)), 3).unwrap();
    assert_eq!((train.epoch_len(), held.unwrap().epoch_len()), (30, 6));
    for packing in [Packing::None, Packing::Bfd, Packing::Wrapped] {
        let options = EncodeOptions { max_length: Some(64), ..EncodeOptions::default() };
        let encoder = Encoder::new(tokenizer(), options).unwrap();
        let options = SamplerOptions { packing, micro_batch: 2, accumulation: 2, pack_window: 8, ..Default::default() };
        let sampler = Arc::new(Sampler::new(train.clone(), encoder, options).unwrap());
        let from = |cursor| {
            let steps = sampler.steps(cursor).unwrap().epochs(2);
            Loader::new(steps, 2).collect::<Result<Vec<Step>, _>>().unwrap()
        };
        let run = from(Cursor::default());
        for k in 0..run.len() {
            let tail = from(run[k].cursor);
            assert!(tail.iter().zip(&run[k + 1..]).all(|(a, b)| a.micro_batches == b.micro_batches), "{packing:?} {k}");
            assert_eq!(tail.len(), run.len() - k - 1);
        }
        let (report, lengths) = preflight(&sampler, 1000).unwrap();
        let steps: u64 = (0..2).map(|epoch| sampler.steps_in_epoch(&lengths, epoch)).sum();
        assert_eq!((report.examples, steps), (30, run.len() as u64), "{packing:?}");
        assert!(render(&report, false).contains("what is"), "the first example is shown");
    }
}
