//! Order, packing, steps and resuming.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn options(packing: Packing, micro_batch: usize, accumulation: usize) -> SamplerOptions {
    SamplerOptions { packing, micro_batch, accumulation, pack_window: 16, ..SamplerOptions::default() }
}

fn encode(max_length: usize) -> EncodeOptions {
    EncodeOptions { max_length: Some(max_length), ..EncodeOptions::default() }
}

/// What must hold of any batch.
fn check(batch: &Batch) {
    let n = batch.tokens();
    assert_eq!((batch.mask.len(), batch.positions.len()), (n, n));
    assert_eq!((batch.cu_seqlens[0], *batch.cu_seqlens.last().unwrap()), (0, n as u32));
    assert_eq!(batch.cu_seqlens.len(), batch.segments() + 1);
    for w in batch.cu_seqlens.windows(2) {
        assert!(w[0] < w[1]);
        let segment = w[0] as usize..w[1] as usize;
        assert!(!batch.mask[segment.start]);
        assert!(batch.positions[segment].iter().copied().eq(0..w[1] - w[0]));
    }
}

fn counts(tokens: impl IntoIterator<Item = u32>) -> BTreeMap<u32, usize> {
    let mut out = BTreeMap::new();
    tokens.into_iter().for_each(|t| *out.entry(t).or_default() += 1);
    out
}

fn epoch(s: &Arc<Sampler>) -> Vec<Step> {
    s.steps(Cursor::default()).unwrap().epochs(1).collect::<Result<_>>().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn an_epoch_shows_everything_once(
        lengths in prop::collection::vec(2usize..40, 1..70),
        packing in prop::sample::select(vec![Packing::None, Packing::Bfd, Packing::Wrapped]),
        micro in 1usize..4, accumulation in 1usize..3, seed: u64, shuffle: bool,
    ) {
        let f = Files::new();
        let data = f.open("a.jsonl", texts(&lengths)).unwrap();
        let all: Vec<u32> = (0..data.len()).flat_map(|i| match data.read(i).unwrap().0 {
            TypedRow::Text(t) => Toy::default().encode(&(t + "</s>")).unwrap(),
            _ => unreachable!(),
        }).collect();
        let s = sampler(data, encode(40), SamplerOptions { seed, shuffle, ..options(packing, micro, accumulation) });
        let steps = epoch(&s);
        let batches: Vec<&Batch> = steps.iter().flat_map(|s| &s.micro_batches).collect();
        batches.iter().for_each(|b| check(b));
        let seen = counts(batches.iter().flat_map(|b| b.ids.iter().copied()));
        match packing {
            // A last block of one token has nothing to train on.
            Packing::Wrapped => prop_assert!(seen.values().sum::<usize>() + 1 >= all.len()),
            _ => {
                prop_assert_eq!(seen, counts(all));
                let mut indices: Vec<usize> = batches.iter().flat_map(|b| b.example_indices.clone()).collect();
                if !shuffle && packing == Packing::None {
                    prop_assert!(indices.is_sorted());
                }
                indices.sort();
                prop_assert_eq!(indices, (0..lengths.len()).collect::<Vec<_>>());
            }
        }
        for step in &steps {
            prop_assert!(step.micro_batches.len() <= accumulation);
            prop_assert_eq!(step.supervised, step.micro_batches.iter().map(Batch::supervised).sum::<usize>());
            prop_assert_eq!(step.tokens, step.micro_batches.iter().map(Batch::tokens).sum::<usize>());
            if packing != Packing::None {
                prop_assert!(step.micro_batches.iter().all(|b| b.tokens() <= micro * 40));
            }
        }
        // What is left of a stream after its last block can be a token that trains nothing.
        prop_assert!(steps.last().unwrap().epoch == 1.0 || packing == Packing::Wrapped);
        let (report, lengths) = preflight(&s, 1000).unwrap();
        prop_assert_eq!(s.steps_in_epoch(&lengths, 0), steps.len() as u64);
        prop_assert_eq!(report.steps_per_epoch, steps.len() as u64);
    }

    #[test]
    fn any_cursor_resumes_the_same_run(
        lengths in prop::collection::vec(2usize..60, 1..50),
        packing in prop::sample::select(vec![Packing::None, Packing::Bfd, Packing::Wrapped]),
        micro in 1usize..4, accumulation in 1usize..3, seed: u64,
    ) {
        // Some are too long and dropped on the way.
        let encode = EncodeOptions { truncation_mode: Truncation::Drop, ..encode(40) };
        let f = Files::new();
        let mut lengths = lengths;
        lengths.push(30);
        let s = sampler(f.open("a.jsonl", texts(&lengths)).unwrap(), encode,
            SamplerOptions { seed, ..options(packing, micro, accumulation) });
        let run: Vec<Step> = s.steps(Cursor::default()).unwrap().epochs(3).collect::<Result<_>>().unwrap();
        for k in 0..run.len() {
            let json = serde_json::to_string(&run[k].cursor).unwrap();
            let cursor: Cursor = serde_json::from_str(&json).unwrap();
            let tail: Vec<Step> = s.steps(cursor).unwrap().epochs(3).collect::<Result<_>>().unwrap();
            prop_assert_eq!(tail.len(), run.len() - k - 1);
            for (a, b) in tail.iter().zip(&run[k + 1..]) {
                prop_assert_eq!((&a.micro_batches, a.cursor, a.supervised), (&b.micro_batches, b.cursor, b.supervised));
            }
        }
    }
}

#[test]
fn wrapped_blocks_are_full_and_documents_go_on() {
    let f = Files::new();
    let s = sampler(
        f.open("a.jsonl", texts(&[25, 3, 12])).unwrap(),
        encode(10),
        SamplerOptions { shuffle: false, ..options(Packing::Wrapped, 1, 1) },
    );
    let steps = epoch(&s);
    let lens: Vec<Vec<u32>> = steps.iter().map(|s| s.micro_batches[0].cu_seqlens.clone()).collect();
    assert_eq!(lens, [vec![0, 10], vec![0, 10], vec![0, 5, 8, 10], vec![0, 10]]);
    assert_eq!(steps[2].micro_batches[0].example_indices, [0, 1, 2]);
    assert_eq!(steps[1].cursor, Cursor { epoch: 0, index: 0, offset: 20 });
}

#[test]
fn the_loader_gives_what_the_steps_give_and_can_be_left() {
    let f = Files::new();
    let s = sampler(f.open("a.jsonl", texts(&[9; 40])).unwrap(), encode(40), options(Packing::Bfd, 2, 1));
    let direct: Vec<Step> = s.steps(Cursor::default()).unwrap().epochs(2).map(Result::unwrap).collect();
    let ahead: Vec<Step> = Loader::new(s.steps(Cursor::default()).unwrap().epochs(2), 3).map(Result::unwrap).collect();
    assert_eq!(direct, ahead);
    let mut endless = Loader::new(s.steps(Cursor::default()).unwrap(), 2);
    assert!(endless.next().unwrap().is_ok());
    drop(endless);
}

#[test]
fn a_bad_row_is_met_when_it_is_drawn_and_ends_the_loader() {
    let f = Files::new();
    let rows = format!("{}{{\"text\": 3}}\n{}", texts(&[5; 6]), texts(&[5; 6]));
    let s = sampler(
        f.open("a.jsonl", rows).unwrap(),
        encode(40),
        SamplerOptions { shuffle: false, ..options(Packing::None, 4, 1) },
    );
    let got: Vec<Result<Step>> = Loader::new(s.steps(Cursor::default()).unwrap(), 1).collect();
    assert_eq!(got.len(), 2);
    assert!(got[1].as_ref().unwrap_err().to_string().ends_with(":7: `text` must be a string, found 3"));
}

#[test]
fn weights_show_files_more_and_less_often() {
    let f = Files::new();
    let a = DatasetSpec { weight: 2.0, ..DatasetSpec::new(f.write("a.jsonl", texts(&[5; 10]))) };
    let b = DatasetSpec { weight: 0.25, ..DatasetSpec::new(f.write("b.jsonl", texts(&[5; 20]))) };
    let c = DatasetSpec::new(f.write("c.jsonl", texts(&[5; 3])));
    let data = Arc::new(Dataset::open(&[a, b, c], &Columns::default(), &DatasetType::ALL).unwrap());
    for shuffle in [true, false] {
        let (view, _) = data.split(None, 0).unwrap();
        assert_eq!((view.epoch_len(), view.rows()), (20 + 5 + 3, 33));
        let draw = |epoch| {
            let order = view.order(1, shuffle, epoch);
            (0..order.len()).map(|i| order.get(i)).collect::<Vec<u64>>()
        };
        // Twice, a quarter, once; over four epochs the quarters make up the whole.
        let mut quarters = Vec::new();
        for epoch in 0..4 {
            let seen = draw(epoch);
            let times = |row: u64| seen.iter().filter(|&&r| r == row).count();
            assert!((0..10).all(|r| times(r) == 2) && (30..33).all(|r| times(r) == 1));
            quarters.extend(seen.iter().copied().filter(|r| (10..30).contains(r)));
        }
        quarters.sort();
        assert_eq!(quarters, (10..30).collect::<Vec<_>>());
    }
}

#[test]
fn a_split_holds_out_of_every_file() {
    let f = Files::new();
    let specs = [("a.jsonl", 30), ("b.jsonl", 10)].map(|(name, n)| DatasetSpec::new(f.write(name, texts(&vec![5; n]))));
    let data = Arc::new(Dataset::open(&specs, &Columns::default(), &DatasetType::ALL).unwrap());
    let (train, held) = data.split(Some(ValidationSplit::Fraction(0.2)), 5).unwrap();
    let held = held.unwrap();
    assert_eq!((train.epoch_len(), held.epoch_len()), (32, 8));
    let b: Vec<u64> = (0..8).map(|t| held.row(t)).collect();
    assert_eq!(b.iter().filter(|&&r| r >= 30).count(), 2);
    let mut all: Vec<u64> = (0..32).map(|t| train.row(t)).chain(b).collect();
    all.sort();
    assert_eq!(all, (0..40).collect::<Vec<_>>());
    for bad in [ValidationSplit::Count(40), ValidationSplit::Fraction(0.99)] {
        assert!(matches!(data.split(Some(bad), 0), Err(DataError::Split { rows: 40, .. })), "{bad:?}");
    }
}

#[test]
fn nothing_left_and_bad_settings_are_errors() {
    let f = Files::new();
    let drop = EncodeOptions { truncation_mode: Truncation::Drop, ..encode(4) };
    let s = sampler(f.open("a.jsonl", texts(&[9; 5])).unwrap(), drop, options(Packing::None, 2, 1));
    let e = s.steps(Cursor::default()).unwrap().next().unwrap().unwrap_err().to_string();
    assert!(e.starts_with("no example is left to train on: of 5 seen"), "{e}");
    let e = preflight(&s, 10).unwrap_err().to_string();
    assert!(e.contains("5 were longer than max_length"), "{e}");
    assert!(matches!(s.steps(Cursor { index: 6, ..Cursor::default() }), Err(DataError::Cursor { len: 5, .. })));
    let (view, _) = Arc::new(f.open("b.jsonl", texts(&[9; 5])).unwrap()).split(None, 0).unwrap();
    for (o, max) in [
        (options(Packing::None, 0, 1), Some(10)),
        (options(Packing::None, 1, 0), Some(10)),
        (options(Packing::Bfd, 1, 1), None),
        (options(Packing::None, usize::MAX, 2), Some(10)),
        (SamplerOptions { pack_window: 0, ..options(Packing::Bfd, 1, 1) }, Some(10)),
    ] {
        let e = encoder(Toy::default(), EncodeOptions { max_length: max, ..EncodeOptions::default() });
        assert!(matches!(Sampler::new(view.clone(), e, o), Err(DataError::Setting { .. })));
    }
}
