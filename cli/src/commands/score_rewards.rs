//! `planish score --reward`: what reward models make of rows.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::ArgMatches;
use planish_nn::Ctx;
use planish_nn::decoder::{Model, Packed};
use planish_nn::reward::RewardKind;
use planish_nn::weights::atomic_write;
use planish_tensor::{DType, Device};
use planish_train::data::{
    Columns, Dataset, DatasetType, EncodeOptions, Encoder, Example, OnUnsupervised, StepOptions,
};
use planish_train::preference::{Answer, Judged, Judgement, Spread, StepJudgement};
use serde_json::{Value, json};

use crate::failure::DONE;
use crate::{model_args, output};

/// Tokens that go through the model at once.
const BATCH_TOKENS: usize = 2048;

/// A sequence, what is read of it, and what the data says.
struct Sequence {
    ids: Vec<u32>,
    /// Tokens at which the head is read.
    at: Vec<u32>,
    labels: Vec<bool>,
}

/// A row: two sides of a pair, one answer, or several of them in steps.
struct Row {
    index: u64,
    pair: bool,
    sequences: Vec<Sequence>,
}

impl Row {
    fn tokens(&self) -> usize {
        self.sequences.iter().map(|s| s.ids.len()).sum()
    }
}

/// What one model says of all rows.
struct Member {
    rows: Vec<Row>,
    /// A number for each place that is read, row by row.
    values: Vec<f64>,
    dropped: u64,
}

/// Reads all rows as one member's tokenizer does.
fn read(data: &Dataset, encoder: &Encoder, kind: RewardKind) -> anyhow::Result<(Vec<Row>, u64)> {
    let (mut rows, mut dropped) = (Vec::new(), 0);
    for index in 0..data.len() {
        let (row, source) = data.read(index)?;
        let mut encoded = encoder.encode(&row, source)?;
        let rejected = encoded.rejected.take();
        let last = |example: Example| {
            let at = vec![example.ids.len() as u32 - 1];
            Sequence { ids: example.ids, at, labels: Vec::new() }
        };
        let in_steps = |(example, labels): (Example, Vec<bool>)| {
            let ends = example.mask.iter().enumerate().skip(1).filter(|(_, m)| **m);
            Sequence { at: ends.map(|(i, _)| i as u32).collect(), ids: example.ids, labels }
        };
        let pair = rejected.is_some();
        let mut sequences: Vec<Sequence> = match kind {
            RewardKind::Process => encoded.answers().into_iter().map(in_steps).collect(),
            RewardKind::Outcome => encoded.example.ok().into_iter().map(last).collect(),
        };
        sequences.extend(rejected.map(|r| last(r.example)));
        match sequences.is_empty() {
            true => dropped += 1,
            false => rows.push(Row { index, pair, sequences }),
        }
    }
    Ok((rows, dropped))
}

/// What the model says of rows in one batch: rewards, or the probabilities that steps are right.
fn judge(model: &Model, rows: &[Row], kind: RewardKind) -> anyhow::Result<Vec<f64>> {
    let ctx = Ctx::inference();
    let sequences: Vec<&Sequence> = rows.iter().flat_map(|row| &row.sequences).collect();
    let batch = Packed::new(&sequences.iter().map(|s| &s.ids[..]).collect::<Vec<_>>());
    let hidden = model.forward(&ctx, &batch, false)?;
    let at = sequences.iter().zip(&batch.cu_seqlens[..]).flat_map(|(s, start)| s.at.iter().map(move |i| start + i));
    let at: Vec<u32> = at.collect();
    let values =
        model.rewards(&ctx, &hidden, &at)?.value().to_device(Device::Cpu)?.to_dtype(DType::F64)?.to_vec::<f64>()?;
    Ok(match kind {
        RewardKind::Outcome => values,
        RewardKind::Process => values.chunks_exact(2).map(|z| 1.0 / (1.0 + (z[0] - z[1]).exp())).collect(),
    })
}

/// Runs one model over the data.
fn member(
    matches: &ArgMatches,
    named: model_args::Named<'_>,
    data: &mut Option<(Dataset, RewardKind)>,
) -> anyhow::Result<Member> {
    let (model, tokenizer) = model_args::open_reward(matches, named)?;
    let kind = model.reward_kind().context("a reward model has a head")?;
    let (data, before) = match data {
        Some((data, before)) => (data, *before),
        None => {
            let specs = super::score::datasets(matches)?;
            let accepted = match kind {
                RewardKind::Outcome => [&[DatasetType::Preference][..], &DatasetType::SFT].concat(),
                RewardKind::Process => DatasetType::STEPS.to_vec(),
            };
            let opened = Dataset::open(&specs, &Columns::default(), &accepted)?;
            let (data, _) = data.insert((opened, kind));
            (data, kind)
        }
    };
    if before != kind {
        return Err(model_args::wrong(format!("{} is {kind}, but the first member is {before}", named.0)));
    }
    let separator = matches.get_one::<String>("step-separator").cloned();
    let options = EncodeOptions {
        max_length: None,
        on_unsupervised: OnUnsupervised::Drop,
        vocab_size: Some(model.config.vocab_size),
        steps: StepOptions {
            step_separator: separator.unwrap_or(StepOptions::default().step_separator),
            max_prompt_length: None,
            labelled: false,
            ..StepOptions::default()
        },
        ..EncodeOptions::default()
    };
    let (rows, dropped) = read(data, &Encoder::new(Arc::new(tokenizer), options)?, kind)?;
    let mut values = Vec::new();
    let mut rest = &rows[..];
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = |row: &&Row| {
            tokens += row.tokens();
            tokens <= BATCH_TOKENS
        };
        let (batch, after) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        values.extend(judge(&model, batch, kind)?);
        rest = after;
    }
    let read = |row: &Row| row.sequences.iter().map(|s| s.at.len()).sum::<usize>();
    let of_rows = rows.iter().flat_map(|row| std::iter::repeat_n(row.index, read(row)));
    if let Some((index, bad)) = of_rows.zip(&values).find(|(_, value)| !value.is_finite()) {
        anyhow::bail!("{}: a reward of row {index} is {bad}: the weights are damaged or have diverged", named.0);
    }
    Ok(Member { rows, values, dropped })
}

/// What came of all rows.
#[derive(Default)]
struct Findings {
    pairs: Judgement,
    /// Pairs that each member judges right, and those whose least rewards say so.
    by_member: Vec<f64>,
    by_min: f64,
    steps: StepJudgement,
}

/// The members' numbers at some places.
struct Said<'a>(&'a [Member], Range<usize>);

impl Said<'_> {
    fn of(&self, member: &Member) -> Vec<f64> {
        member.values[self.1.clone()].to_vec()
    }

    fn spreads(&self) -> Vec<Spread> {
        let at = |i| Spread::of(&self.0.iter().map(|m| m.values[i]).collect::<Vec<_>>());
        self.1.clone().map(at).collect()
    }

    /// Standard deviation and least, under names that begin with `name`, and with what each member says.
    fn spread(&self, line: &mut Value, name: &str, spreads: &[Spread]) {
        if self.0.len() > 1 {
            let one = |values: Vec<f64>| if name == "steps" { json!(values) } else { json!(values[0]) };
            line[format!("{name}_std")] = one(spreads.iter().map(|s| s.std).collect());
            line[format!("{name}_min")] = one(spreads.iter().map(|s| s.min).collect());
        }
    }
}

/// Lines of a row, and its part in the findings. `start` is the place of its first number.
fn lines(row: &Row, members: &[Member], mut start: usize, kind: RewardKind, found: &mut Findings) -> Vec<Value> {
    if row.pair {
        let (chosen, rejected) = (Said(members, start..start + 1), Said(members, start + 1..start + 2));
        let (c, r) = (chosen.spreads(), rejected.spreads());
        let tokens = [0, 1].map(|side| row.sequences[side].ids.len());
        let judged = Judged::new([c[0].mean, r[0].mean], tokens);
        found.pairs.add(&judged);
        found.by_min += f64::from(u8::from(c[0].min > r[0].min));
        let margins: Vec<f64> = members.iter().map(|m| m.values[start] - m.values[start + 1]).collect();
        found.by_member.resize(members.len(), 0.0);
        found.by_member.iter_mut().zip(&margins).for_each(|(right, m)| *right += f64::from(u8::from(*m > 0.0)));
        let mut line = json!({ "index": row.index, "chosen": c[0].mean, "rejected": r[0].mean, "margin": judged.margin, "tokens": tokens });
        chosen.spread(&mut line, "chosen", &c);
        rejected.spread(&mut line, "rejected", &r);
        if members.len() > 1 {
            line["margin_std"] = json!(Spread::of(&margins).std);
            line["members"] = members.iter().map(|m| json!(Said(members, start..start + 2).of(m))).collect();
        }
        return vec![line];
    }
    let one = |(k, sequence): (usize, &Sequence)| {
        let said = Said(members, start..start + sequence.at.len());
        start = said.1.end;
        let spreads = said.spreads();
        let mut line = json!({ "index": row.index });
        if row.sequences.len() > 1 {
            line["answer"] = json!(k);
        }
        let name = match kind {
            RewardKind::Outcome => {
                line["reward"] = json!(spreads[0].mean);
                "reward"
            }
            RewardKind::Process => {
                let mut answer = Answer::default();
                spreads.iter().enumerate().for_each(|(i, s)| answer.push(s.mean, sequence.labels.get(i).copied()));
                found.steps.add(&answer);
                line["steps"] = json!(answer.probabilities());
                if !sequence.labels.is_empty() {
                    line["labels"] = json!(sequence.labels);
                }
                line["min"] = json!(answer.min());
                line["product"] = json!(answer.product());
                line["last"] = json!(answer.last());
                "steps"
            }
        };
        line["tokens"] = json!(sequence.ids.len());
        said.spread(&mut line, name, &spreads);
        if members.len() > 1 {
            let of = |m: &Member| if name == "steps" { json!(said.of(m)) } else { json!(said.of(m)[0]) };
            line["members"] = members.iter().map(of).collect();
        }
        line
    };
    row.sequences.iter().enumerate().map(one).collect()
}

fn write(path: &Path, members: &[Member], kind: RewardKind) -> anyhow::Result<Findings> {
    let mut found = Findings::default();
    atomic_write(path, |to| {
        let mut start = 0;
        for row in &members[0].rows {
            for line in lines(row, members, start, kind, &mut found) {
                serde_json::to_writer(&mut *to, &line)?;
                to.write_all(b"\n")?;
            }
            start += row.sequences.iter().map(|s| s.at.len()).sum::<usize>();
        }
        Ok(())
    })?;
    Ok(found)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let named = model_args::members(matches)?;
    model_args::start_threads(matches)?;
    let (mut members, mut data) = (Vec::new(), None);
    // One after the other: only one model is in memory at a time.
    for &one in &named {
        let next = member(matches, one, &mut data)?;
        let same = |a: &Row, b: &Row| {
            let places = |row: &Row| row.sequences.iter().map(|s| s.at.len()).collect::<Vec<_>>();
            a.index == b.index && places(a) == places(b)
        };
        if let Some(Member { rows, .. }) = members.first()
            && !(rows.len() == next.rows.len() && rows.iter().zip(&next.rows).all(|(a, b)| same(a, b)))
        {
            return Err(model_args::wrong(format!("{} leaves out other rows than the first member does", one.0)));
        }
        members.push(next);
    }
    let kind = data.map_or(RewardKind::Outcome, |(_, kind)| kind);
    let (rows, dropped) = (members[0].rows.len(), members[0].dropped);
    if rows == 0 {
        return Err(model_args::wrong(format!("no row was left: {dropped} have an empty completion or equal sides")));
    }
    let path = matches.get_one::<PathBuf>("output").expect("required");
    let found = write(path, &members, kind)?;
    report(matches, &found, (rows, dropped, members.len()), path)
}

/// Prints what came of it.
fn report(
    matches: &ArgMatches,
    found: &Findings,
    (rows, dropped, members): (usize, u64, usize),
    path: &Path,
) -> anyhow::Result<u8> {
    let pairs = (found.pairs.all.pairs > 0).then_some(&found.pairs);
    let ensemble = pairs.filter(|_| members > 1).map(|j| {
        let share = |right: &f64| right / j.all.pairs as f64;
        (found.by_member.iter().map(share).collect::<Vec<_>>(), share(&found.by_min))
    });
    let shares = || found.steps.shares().into_iter().filter(|(.., count)| *count > 0);
    if matches.get_flag("json") {
        let of = |(name, sum, count): (&str, u64, u64)| (name.to_owned(), json!(sum as f64 / count as f64));
        let steps = (found.steps.steps > 0).then(|| shares().map(of).collect::<serde_json::Map<_, _>>());
        let mut said = json!({ "rows": rows, "dropped": dropped, "pairs": pairs, "steps": steps, "output": path });
        if let Some(j) = pairs {
            said["pairs"]["interval"] = json!(j.all.interval());
        }
        if members > 1 {
            said["members"] = json!(members);
        }
        if let Some((by_member, by_min)) = ensemble {
            (said["member_accuracy"], said["min_accuracy"]) = (json!(by_member), json!(by_min));
        }
        output::json(&said)?;
        return Ok(DONE);
    }
    let of = if members > 1 { format!(", {members} members") } else { String::new() };
    output::line(format_args!("{rows} rows, {dropped} left out{of}"))?;
    for (name, sum, count) in shares() {
        output::line(format_args!("{name:<22}{:.4} ({sum} of {count})", sum as f64 / count as f64))?;
    }
    let Some(j) = pairs else { return Ok(DONE) };
    let [low, high] = j.all.interval();
    output::line(format_args!(
        "accuracy          {:.4} (95%: {low:.4} to {high:.4}) over {} pairs, mean margin {:.4}",
        j.all.accuracy, j.all.pairs, j.margin
    ))?;
    if let Some((by_member, by_min)) = ensemble {
        let each: Vec<String> = by_member.iter().map(|a| format!("{a:.4}")).collect();
        output::line(format_args!("  of the members    {}", each.join(", ")))?;
        output::line(format_args!("  by the least      {by_min:.4}"))?;
    }
    for (name, share) in [("chosen longer", &j.chosen_longer), ("chosen shorter", &j.chosen_shorter)] {
        output::line(format_args!("  {name:<16}{:.4} over {} pairs", share.accuracy, share.pairs))?;
    }
    output::line(format_args!("calibration       expected error {:.4}", j.expected_calibration_error))?;
    for bin in j.calibration.iter().filter(|bin| bin.share.pairs > 0) {
        output::line(format_args!(
            "  from {:.2}       confidence {:.4}, accuracy {:.4} over {} pairs",
            bin.from, bin.confidence, bin.share.accuracy, bin.share.pairs
        ))?;
    }
    Ok(DONE)
}
