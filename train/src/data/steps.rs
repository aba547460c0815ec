//! Answers in steps: TRL's stepwise supervision, and the files of PRM800K.

use serde_json::Value;

use super::error::Result;
use super::row::{Reader, Trajectory, TypedRow, truth};

/// `prompt`, `completions` and, perhaps, `labels`: one answer.
pub(crate) fn stepwise(r: &Reader) -> Result<TypedRow> {
    let prompt = r.text("prompt")?.to_owned();
    let value = r.need("completions")?;
    let Value::Array(items) = value else {
        return Err(r.wrong("`completions`", "an array of steps, each a string", value));
    };
    let step = |(i, v): (usize, &Value)| match v.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(r.wrong(format!("completions[{i}]"), "a string", v)),
    };
    let steps = items.iter().enumerate().map(step).collect::<Result<Vec<_>>>()?;
    let labels = match r.get("labels") {
        None | Some(Value::Null) => None,
        Some(Value::Array(labels)) if labels.len() == steps.len() => {
            let label =
                |(i, v): (usize, &Value)| truth(v).ok_or_else(|| r.wrong(format!("labels[{i}]"), "true or false", v));
            Some(labels.iter().enumerate().map(label).collect::<Result<Vec<_>>>()?)
        }
        Some(Value::Array(labels)) => {
            let found = Value::from(format!("{} of {} steps", labels.len(), steps.len()));
            return Err(r.wrong("`labels`", "as long as `completions`", &found));
        }
        Some(other) => return Err(r.wrong("`labels`", "an array of true and false", other)),
    };
    Ok(TypedRow::Stepwise { prompt, trajectories: vec![Trajectory { steps, labels }] })
}

/// A row of PRM800K: `question.problem`, and `label.steps`, each with rated completions of which one was gone on from.
///
/// As in TRL's conversion of these files: each completion that was not gone on from ends an answer of its own; a step is
/// right if its rating is 1, or if a person wrote it. Deviation: an answer that is only the beginning of others (the last
/// step had no completion to go on from) is not repeated.
pub(crate) fn prm800k(r: &Reader) -> Result<TypedRow> {
    let (question, label) = (r.need("question")?, r.need("label")?);
    let problem = question.get("problem").and_then(Value::as_str);
    let prompt = problem.ok_or_else(|| r.wrong("`question`", "an object with the string `problem`", question))?;
    let Some(Value::Array(steps)) = label.get("steps") else {
        return Err(r.wrong("`label`", "an object with the array `steps`", label));
    };
    let (mut trajectories, mut path) = (Vec::new(), Trajectory { steps: Vec::new(), labels: Some(Vec::new()) });
    let longer = |path: &Trajectory, step: &str, right: bool| {
        let mut longer = path.clone();
        longer.steps.push(step.to_owned());
        longer.labels.get_or_insert_default().push(right);
        longer
    };
    let mut begins_others = false;
    for (i, step) in steps.iter().enumerate() {
        let text = |at: String, v: &'_ Value| match v.get("text").and_then(Value::as_str) {
            Some(text) => Ok(text.to_owned()),
            None => Err(r.wrong(at, "an object with the string `text`", v)),
        };
        let completions = match step.get("completions") {
            Some(Value::Array(all)) => &all[..],
            None | Some(Value::Null) => &[],
            Some(other) => return Err(r.wrong(format!("label.steps[{i}].completions"), "an array", other)),
        };
        let chosen = match step.get("chosen_completion") {
            None | Some(Value::Null) => None,
            Some(v) => match v.as_u64().and_then(|k| usize::try_from(k).ok()).filter(|&k| k < completions.len()) {
                Some(k) => Some(k),
                None => {
                    let at = format!("label.steps[{i}].chosen_completion");
                    return Err(r.wrong(at, "null, or the number of one of the completions", v));
                }
            },
        };
        let mut next = None;
        for (k, completion) in completions.iter().enumerate() {
            let said = text(format!("label.steps[{i}].completions[{k}]"), completion)?;
            let right = completion.get("rating").and_then(Value::as_f64) == Some(1.0);
            let answer = longer(&path, &said, right);
            if chosen == Some(k) { next = Some(answer) } else { trajectories.push(answer) }
        }
        if let (None, Some(human)) = (chosen, step.get("human_completion").filter(|h| !h.is_null())) {
            let said = text(format!("label.steps[{i}].human_completion"), human)?;
            next = Some(longer(&path, &said, true));
        }
        match next {
            Some(next) => path = next,
            None => {
                begins_others = !completions.is_empty();
                break;
            }
        }
    }
    if !begins_others && !path.steps.is_empty() {
        trajectories.push(path);
    }
    Ok(TypedRow::Stepwise { prompt: prompt.to_owned(), trajectories })
}
