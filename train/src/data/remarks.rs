//! What deserves attention in a preflight report, in sentences.

use super::columns::DatasetType;
use super::encode::{Encoder, OnUnsupervised};
use super::pack::Packing;
use super::preflight::Preflight;

/// What the numbers of the report say.
pub(super) fn warnings(r: &Preflight, encoder: &Encoder) -> Vec<String> {
    let mut out = Vec::new();
    let of = r.examined;
    let mut warn = |count: u64, text: String| {
        if count > 0 {
            out.push(text);
        }
    };
    let max = r.max_length.unwrap_or(0);
    warn(
        r.truncated,
        format!(
            "{} of {of} examples are cut to {max} tokens; the longest has {}: raise max_length to keep them{}",
            r.truncated,
            r.lengths.max,
            if r.packing == Packing::Bfd { ", or set packing_strategy to wrapped, which loses nothing" } else { "" }
        ),
    );
    warn(
        r.dropped_too_long,
        format!("{} of {of} examples are longer than {max} tokens and dropped", r.dropped_too_long),
    );
    warn(
        r.dropped_after_truncation,
        format!(
            "{} of {of} examples are dropped: cut to {max} tokens they have nothing to train on",
            r.dropped_after_truncation
        ),
    );
    warn(
        r.dropped_unsupervised,
        format!("{} of {of} examples are dropped: no token of them is trained on", r.dropped_unsupervised),
    );
    for rows in &r.dropped_invalid {
        let more = if rows.rows as usize > rows.first.len() { "; …" } else { "" };
        warn(rows.rows, format!("{} of {of} rows are wrong and dropped: {}{more}", rows.rows, rows.first.join("; ")));
    }
    warn(
        r.double_bos,
        format!(
            "{} of {of} examples begin with two beginning-of-sequence tokens: the text or template writes one, the tokenizer adds one",
            r.double_bos
        ),
    );
    warn(
        r.missing_eos,
        format!(
            "{} of {of} examples have no trained end-of-sequence token: the model will not learn to stop",
            r.missing_eos
        ),
    );
    warn(
        r.prompt_diverges,
        format!(
            "in {} of {of} examples the prompt alone is encoded differently than before its completion, so training sees another context than generation",
            r.prompt_diverges
        ),
    );
    let tasks = r.files.iter().any(|f| matches!(f.kind, DatasetType::Alpaca | DatasetType::QuestionAnswer));
    warn(
        u64::from(tasks && encoder.text().template().is_none()),
        "the tokenizer has no chat template: questions and instructions become plain text".into(),
    );
    let chats = r.files.iter().any(|f| matches!(f.kind, DatasetType::Messages | DatasetType::ShareGpt));
    warn(
        u64::from(chats && !encoder.options().assistant_only_loss),
        "all turns are trained on, the user's too; assistant_only_loss trains on the answers only".into(),
    );
    let options = encoder.options();
    let lenient = options.on_unsupervised == OnUnsupervised::Drop || options.drop_invalid;
    let dropped = r.dropped_after_truncation + r.dropped_unsupervised + r.invalid();
    warn(
        u64::from(lenient && r.sampled && dropped > 0),
        "only a sample was looked at: more examples may be dropped while training, and are counted there".into(),
    );
    out
}

/// What is longer than the model was made for, or may be: a sequence has at most `limit` tokens.
///
/// A warning, as in transformers: a model with rotary positions computes on, and some reach further than they say.
pub(super) fn of_window(r: &Preflight, first: &[String], limit: usize) -> Option<String> {
    let window = r.window?;
    let made_for = format!("the {window} positions that the model was made for (max_position_embeddings)");
    if r.beyond_window > 0 {
        let more = if r.beyond_window as usize > first.len() { ", …" } else { "" };
        return Some(format!(
            "{} of {} examples are longer than {made_for}: {}{more}; it computes on, but has not learnt to: set max_length to {window} or less, or use a model with a longer window",
            r.beyond_window,
            r.examined,
            first.join(", ")
        ));
    }
    let may = r.sampled && limit > window;
    let limit = if limit == usize::MAX { "not set".to_owned() } else { limit.to_string() };
    may.then(|| {
        format!("max_length is {limit}, more than {made_for}: rows that were not looked at may be longer than those")
    })
}
