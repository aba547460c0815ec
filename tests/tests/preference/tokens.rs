//! Rows of text become the tokens that TRL's preparation and collators make of them.

use std::sync::Arc;

use planish_nn::pretrained::read_json;
use planish_nn::tokenizer::Tokenizer;
use planish_train::data::{
    Columns, Cursor, Dataset, DatasetSpec, DatasetType, EncodeOptions, Encoder, Example, Lengths, Sampler,
    SamplerOptions, preflight,
};
use planish_train::plan::worst_micro_batch;
use planish_train::recipes::kto;

use crate::{fixture, repo, write_data};

#[test]
fn rows_become_the_tokens_of_trl() {
    let tokenizer = Arc::new(Tokenizer::from_dir(repo("train/builtin")).unwrap());
    let place = tempfile::tempdir().unwrap();
    let cases = read_json(&fixture("preference/tokens.json")).unwrap();
    let (mut pairs, mut cut) = (0, 0);
    for (i, case) in cases.as_array().unwrap().iter().enumerate() {
        let file = place.path().join(format!("{i}.jsonl"));
        std::fs::write(&file, format!("{}\n", case["row"])).unwrap();
        let accepted = [DatasetType::Preference, DatasetType::Labelled];
        let data = Dataset::open(&[DatasetSpec::new(&file)], &Columns::default(), &accepted).unwrap();
        let max_length = case["max_length"].as_u64().map(|n| n as usize);
        let encoder =
            Encoder::new(tokenizer.clone(), EncodeOptions { max_length, ..EncodeOptions::default() }).unwrap();
        let (row, source) = data.read(0).unwrap();
        let encoded = encoder.encode(&row, source).unwrap();
        cut += usize::from(max_length == Some(20));
        let mut got: Vec<Example> = vec![encoded.example.unwrap()];
        got.extend(encoded.rejected.map(|r| r.example));
        pairs += usize::from(got.len() == 2);
        let sides = case["sides"].as_array().unwrap();
        assert_eq!(got.len(), sides.len(), "{}", case["row"]);
        assert_eq!(encoded.label, case["row"]["label"].as_bool(), "{}", case["row"]);
        for (got, want) in got.iter().zip(sides) {
            let ids: Vec<u64> = got.ids.iter().map(|&id| id.into()).collect();
            let want_ids: Vec<u64> = want["ids"].as_array().unwrap().iter().map(|x| x.as_u64().unwrap()).collect();
            assert_eq!(ids, want_ids, "{}", case["row"]);
            let n_prompt = want["n_prompt"].as_u64().unwrap() as usize;
            assert_eq!(got.n_prompt, n_prompt, "{}", case["row"]);
            assert!(got.mask.iter().enumerate().all(|(i, &m)| m == (i >= n_prompt)), "{}", case["row"]);
        }
    }
    assert!(pairs >= 9 && cut >= 4, "{pairs} pairs, {cut} of them cut");
}

/// Both sides of a pair are in one batch, go through the model together, and are planned for together.
#[test]
fn pairs_stay_together() {
    let place = tempfile::tempdir().unwrap();
    write_data(place.path());
    let spec = [DatasetSpec::new(place.path().join("pairs.jsonl"))];
    let data = Arc::new(Dataset::open(&spec, &Columns::default(), &[DatasetType::Preference]).unwrap());
    let tokenizer = Arc::new(Tokenizer::from_dir(repo("train/builtin")).unwrap());
    let encoder = Encoder::new(tokenizer, EncodeOptions { max_length: Some(20), ..EncodeOptions::default() }).unwrap();
    let options = SamplerOptions { micro_batch: 4, ..SamplerOptions::default() };
    let sampler = Arc::new(Sampler::new(data.all(), encoder, options).unwrap());
    let (report, lengths) = preflight(&sampler, 1000).unwrap();
    let mut worst = 0;
    for step in sampler.steps(Cursor::default()).unwrap().epochs(1) {
        for batch in step.unwrap().micro_batches {
            assert_eq!((batch.per_example, batch.segments(), batch.margins.len()), (2, 8, 4));
            worst = worst.max(batch.tokens());
            for limit in [1, 50, 90] {
                let parts = batch.split(limit);
                assert_eq!(parts.iter().map(|p| p.margins.len()).sum::<usize>(), 4);
                for part in &parts {
                    assert!(part.example_indices.chunks(2).all(|pair| pair.len() == 2 && pair[0] == pair[1]));
                    assert!(part.segments() == 2 || part.tokens() <= limit);
                }
            }
        }
    }
    assert_eq!(worst_micro_batch(&sampler, &lengths, lengths.max as u64, 5), worst as u64);
    // Of a sample only the longest is known: a pair of up to twice max_length.
    let sampled = Lengths { by_row: Vec::new(), ..lengths.clone() };
    assert_eq!(worst_micro_batch(&sampler, &sampled, lengths.max as u64, 5), 4 * lengths.max as u64);
    assert!(lengths.max > 20 && report.lengths.max <= lengths.max);
}

/// Pairs and labelled completions in one batch: each example keeps its segments, and each completion its label.
#[test]
fn pairs_and_labelled_rows_keep_their_labels() {
    let place = tempfile::tempdir().unwrap();
    write_data(place.path());
    let specs = ["pairs.jsonl", "labelled.jsonl"].map(|name| DatasetSpec::new(place.path().join(name)));
    let data = Arc::new(Dataset::open(&specs, &Columns::default(), kto::ACCEPTED).unwrap());
    let tokenizer = Arc::new(Tokenizer::from_dir(repo("train/builtin")).unwrap());
    let encoder = Encoder::new(tokenizer, EncodeOptions::default()).unwrap();
    let options = SamplerOptions { micro_batch: 5, ..SamplerOptions::default() };
    let sampler = Arc::new(Sampler::new(data.all(), encoder, options).unwrap());
    let (mut pairs, mut labelled) = (0, 0);
    for step in sampler.steps(Cursor::default()).unwrap().epochs(1) {
        for batch in step.unwrap().micro_batches.iter().flat_map(|b| b.split(40)) {
            for example in batch.examples() {
                let index = batch.example_indices[example.start];
                assert!(example.clone().all(|s| batch.example_indices[s] == index));
                let labels: Vec<bool> = example.map(|s| batch.labels[s]).collect();
                match index {
                    0..20 => assert_eq!(labels, [true, false]),
                    _ => assert_eq!(labels, [(index - 20) % 3 > 0]),
                }
                *(if index < 20 { &mut pairs } else { &mut labelled }) += 1;
            }
        }
    }
    assert_eq!((pairs, labelled), (20, 20));
}
