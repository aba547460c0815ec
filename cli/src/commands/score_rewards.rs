//! `planish score --reward`: what a reward model makes of rows.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::ArgMatches;
use planish_nn::Ctx;
use planish_nn::decoder::{Model, Packed};
use planish_nn::weights::atomic_write;
use planish_tensor::DType;
use planish_train::data::{
    Columns, Dataset, DatasetSpec, DatasetType, EncodeOptions, Encoded, Encoder, OnUnsupervised,
};
use planish_train::preference::{Judged, Judgement};
use serde_json::json;

use crate::failure::DONE;
use crate::{model_args, output};

/// Tokens that go through the model at once.
const BATCH_TOKENS: usize = 2048;

/// The rewards of sequences, in batches: each at its last token.
fn rewards(model: &Model, sequences: &[Vec<u32>]) -> anyhow::Result<Vec<f64>> {
    let ctx = Ctx::inference();
    let batch = Packed::new(sequences);
    let hidden = model.forward(&ctx, &batch, false)?;
    let last: Vec<u32> = batch.cu_seqlens[1..].iter().map(|end| end - 1).collect();
    Ok(model.rewards(&ctx, &hidden, &last)?.value().to_dtype(DType::F64)?.to_vec::<f64>()?)
}

/// Writes a line for each of the rows that wait, and takes pairs into the account.
fn flush(
    model: &Model,
    waiting: &mut Vec<(u64, Vec<Vec<u32>>)>,
    to: &mut dyn Write,
    judgement: &mut Judgement,
) -> anyhow::Result<()> {
    let sequences: Vec<Vec<u32>> = waiting.iter().flat_map(|(_, sides)| sides.iter().cloned()).collect();
    if sequences.is_empty() {
        return Ok(());
    }
    let mut rewards = rewards(model, &sequences)?.into_iter();
    for (index, sides) in waiting.drain(..) {
        let mut next = || rewards.next().expect("a reward for each sequence");
        let line = match &sides[..] {
            [chosen, rejected] => {
                let found = [next(), next()];
                let tokens = [chosen.len(), rejected.len()];
                let judged = Judged::new(found, tokens);
                judgement.add(&judged);
                json!({ "index": index, "chosen": found[0], "rejected": found[1], "margin": judged.margin, "tokens": tokens })
            }
            _ => json!({ "index": index, "reward": next(), "tokens": sides[0].len() }),
        };
        serde_json::to_writer(&mut *to, &line)?;
        to.write_all(b"\n")?;
    }
    Ok(())
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let (model, tokenizer) = model_args::open_reward(matches)?;
    let specs: Vec<DatasetSpec> = matches
        .get_many::<String>("dataset")
        .into_iter()
        .flatten()
        .map(|s| DatasetSpec::parse(s))
        .collect::<Result<_, _>>()?;
    let accepted = [&[DatasetType::Preference][..], &DatasetType::SFT].concat();
    let data = Dataset::open(&specs, &Columns::default(), &accepted)?;
    let options = EncodeOptions {
        max_length: None,
        on_unsupervised: OnUnsupervised::Drop,
        vocab_size: Some(model.config.vocab_size),
        ..EncodeOptions::default()
    };
    let encoder = Encoder::new(Arc::new(tokenizer), options)?;
    let path = matches.get_one::<PathBuf>("output").expect("required");
    let (mut judgement, mut rows, mut dropped, mut failed) = (Judgement::default(), 0u64, 0u64, None);
    let written = atomic_write(path, |to| {
        let mut all = || -> anyhow::Result<()> {
            let (mut waiting, mut tokens) = (Vec::new(), 0);
            for i in 0..data.len() {
                let (row, source) = data.read(i)?;
                let Encoded { example, rejected, .. } = encoder.encode(&row, source)?;
                let Ok(example) = example else {
                    dropped += 1;
                    continue;
                };
                let sides: Vec<Vec<u32>> =
                    std::iter::once(example.ids).chain(rejected.map(|r| r.example.ids)).collect();
                let own: usize = sides.iter().map(Vec::len).sum();
                if tokens + own > BATCH_TOKENS {
                    flush(&model, &mut waiting, to, &mut judgement)?;
                    tokens = 0;
                }
                tokens += own;
                waiting.push((i, sides));
                rows += 1;
            }
            flush(&model, &mut waiting, to, &mut judgement)
        };
        if let Err(error) = all() {
            failed = Some(error);
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    });
    if let Some(error) = failed {
        return Err(error);
    }
    written?;
    if rows == 0 {
        return Err(model_args::wrong(format!("no row was left: {dropped} have an empty completion or equal sides")));
    }
    let pairs = (judgement.all.pairs > 0).then_some(&judgement);
    if matches.get_flag("json") {
        output::json(&json!({ "rows": rows, "dropped": dropped, "pairs": pairs, "output": path }))?;
        return Ok(DONE);
    }
    output::line(format_args!("{rows} rows, {dropped} left out"))?;
    let Some(j) = pairs else { return Ok(DONE) };
    output::line(format_args!(
        "accuracy        {:.4} over {} pairs, mean margin {:.4}",
        j.all.accuracy, j.all.pairs, j.margin
    ))?;
    for (name, share) in [("chosen longer", &j.chosen_longer), ("chosen shorter", &j.chosen_shorter)] {
        output::line(format_args!("  {name:<14}{:.4} over {} pairs", share.accuracy, share.pairs))?;
    }
    output::line(format_args!("calibration     expected error {:.4}", j.expected_calibration_error))?;
    for bin in j.calibration.iter().filter(|bin| bin.share.pairs > 0) {
        output::line(format_args!(
            "  from {:.2}     confidence {:.4}, accuracy {:.4} over {} pairs",
            bin.from, bin.confidence, bin.share.accuracy, bin.share.pairs
        ))?;
    }
    Ok(DONE)
}
