//! What kind of rows a file holds, decided by its columns.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{DataError, Result};

/// The dataset types: TRL's, and the columns of other well-known sets.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatasetType {
    /// `input_ids`, with `labels` or `completion_mask` or `assistant_masks`: tokens already.
    Tokenized,
    /// `messages`: a conversation of roles and contents.
    Messages,
    /// `conversations`: a conversation of `from` and `value` (ShareGPT), or of roles and contents.
    ShareGpt,
    /// `chosen` and `rejected`, with `prompt` or with a common beginning that is the prompt.
    Preference,
    /// `prompt`, `completion` and `label`.
    Labelled,
    /// `prompt` and `completion`.
    PromptCompletion,
    /// `instruction` and `output`, perhaps `input` (Alpaca).
    Alpaca,
    /// `question` and `answer` (GSM8K and others).
    QuestionAnswer,
    /// `text`.
    Text,
    /// `prompt` alone.
    PromptOnly,
    /// `prompt`, `responses` and `scores`: several answers, and how good each is.
    Ranked,
    /// `prompt` and `completions`, the steps of an answer, with `labels` that say whether each is right (TRL's stepwise
    /// supervision).
    Stepwise,
    /// `question` and `label` as in the files of PRM800K: answers step by step, with a rating of each step.
    Prm800k,
}

impl DatasetType {
    /// All types, those first that others are a part of.
    pub const ALL: [DatasetType; 13] = [
        DatasetType::Tokenized,
        DatasetType::Messages,
        DatasetType::ShareGpt,
        DatasetType::Preference,
        DatasetType::Labelled,
        DatasetType::PromptCompletion,
        DatasetType::Alpaca,
        DatasetType::QuestionAnswer,
        DatasetType::Text,
        DatasetType::PromptOnly,
        DatasetType::Ranked,
        DatasetType::Stepwise,
        DatasetType::Prm800k,
    ];

    /// What reward models of steps take.
    pub const STEPS: [DatasetType; 2] = [DatasetType::Stepwise, DatasetType::Prm800k];

    /// What supervised fine-tuning takes.
    pub const SFT: [DatasetType; 7] = [
        DatasetType::Tokenized,
        DatasetType::Messages,
        DatasetType::ShareGpt,
        DatasetType::PromptCompletion,
        DatasetType::Alpaca,
        DatasetType::QuestionAnswer,
        DatasetType::Text,
    ];

    /// The columns, for messages: `prompt+completion`.
    pub fn name(self) -> &'static str {
        match self {
            DatasetType::Tokenized => "input_ids",
            DatasetType::Messages => "messages",
            DatasetType::ShareGpt => "conversations",
            DatasetType::Preference => "chosen+rejected",
            DatasetType::Labelled => "prompt+completion+label",
            DatasetType::PromptCompletion => "prompt+completion",
            DatasetType::Alpaca => "instruction+output",
            DatasetType::QuestionAnswer => "question+answer",
            DatasetType::Text => "text",
            DatasetType::PromptOnly => "prompt",
            DatasetType::Ranked => "prompt+responses+scores",
            DatasetType::Stepwise => "prompt+completions",
            DatasetType::Prm800k => "question+label",
        }
    }

    fn required(self) -> impl Iterator<Item = &'static str> {
        self.name().split('+')
    }

    /// Whether `other`'s columns are a part of what this type means by them.
    fn includes(self, other: DatasetType) -> bool {
        use DatasetType::*;
        match self {
            Labelled => matches!(other, PromptCompletion | PromptOnly),
            Preference | Ranked | Stepwise => matches!(other, PromptOnly),
            // A label of an answer is not a rating of its steps.
            QuestionAnswer => matches!(other, PromptOnly | Prm800k),
            // `prompt` beside these repeats their first turn, as in UltraChat.
            PromptCompletion | Messages | ShareGpt | Text | Alpaca => matches!(other, PromptOnly),
            // Tokens are the truth; whatever they came from stands beside them.
            Tokenized => other != Tokenized,
            PromptOnly | Prm800k => false,
        }
    }
}

/// Columns named by flags, where their names are not the usual ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Columns {
    /// `--prompt-column`
    pub prompt: Option<String>,
    /// `--completion-column`
    pub completion: Option<String>,
    /// `--text-column`
    pub text: Option<String>,
    /// `--messages-column`
    pub messages: Option<String>,
    /// `--dataset-type`: what the columns mean; decided by the columns named above where `None`.
    pub kind: Option<DatasetType>,
}

impl Columns {
    /// The name of a column in the file.
    pub(crate) fn actual<'a>(&'a self, canonical: &'a str) -> &'a str {
        let named = match canonical {
            "prompt" => &self.prompt,
            "completion" => &self.completion,
            "text" => &self.text,
            "messages" => &self.messages,
            _ => &None,
        };
        named.as_deref().unwrap_or(canonical)
    }

    /// The type that the flags decide, if they do.
    fn forced(&self) -> Result<Option<DatasetType>> {
        let completion = self.completion.is_some().then_some(("completion-column", "a prompt with a completion"));
        let text = self.text.is_some().then_some(("text-column", "a text"));
        let messages = self.messages.is_some().then_some(("messages-column", "a conversation"));
        let prompt = self.prompt.is_some().then_some(("prompt-column", "a prompt with a completion"));
        for (a, b) in [(text, messages), (text, completion), (messages, completion), (text, prompt), (messages, prompt)]
        {
            if let (Some((first, one)), Some((second, other))) = (a, b) {
                return Err(DataError::ColumnFlags { first, second, one, other });
            }
        }
        if let Some(kind) = self.kind {
            let uses =
                |column| kind.required().any(|c| c == column) || (kind, column) == (DatasetType::Preference, "prompt");
            let named = [("prompt", prompt), ("completion", completion), ("text", text), ("messages", messages)];
            return match named.into_iter().find(|(column, named)| named.is_some() && !uses(column)) {
                Some((_, Some((second, other)))) => {
                    Err(DataError::ColumnFlags { first: "dataset-type", second, one: kind.name(), other })
                }
                _ => Ok(Some(kind)),
            };
        }
        Ok(match (text, messages, completion) {
            (Some(_), _, _) => Some(DatasetType::Text),
            (_, Some(_), _) => Some(DatasetType::Messages),
            (_, _, Some(_)) => Some(DatasetType::PromptCompletion),
            // A prompt column alone goes with completion, chosen and rejected, or nothing.
            _ => None,
        })
    }
}

/// Decides the type of a file by the columns of its first row, among the types accepted here.
///
/// # Errors
/// Columns that fit none, two, or only types that are not accepted: all three list what was found.
pub(crate) fn detect(
    file: &Path,
    found: &[String],
    columns: &Columns,
    accepted: &[DatasetType],
) -> Result<DatasetType> {
    let names = || accepted.iter().map(|t| t.name()).collect::<Vec<_>>().join(" | ");
    let has = |t: DatasetType| t.required().all(|c| found.iter().any(|f| f == columns.actual(c)));
    let forced = columns.forced()?;
    let mut fits: Vec<DatasetType> = match forced {
        Some(forced) => {
            for c in forced.required() {
                let actual = columns.actual(c);
                if !found.iter().any(|f| f == actual) {
                    let at = super::error::At { file: file.into(), line: 0, row: None };
                    return Err(DataError::MissingColumn { at, column: actual.into(), found: found.to_vec() });
                }
            }
            // With a label beside the pair, a recipe may want the labelled type.
            let labelled =
                forced == DatasetType::PromptCompletion && columns.kind.is_none() && has(DatasetType::Labelled);
            if labelled { vec![forced, DatasetType::Labelled] } else { vec![forced] }
        }
        None => DatasetType::ALL.into_iter().filter(|&t| has(t)).collect(),
    };
    // A prompt column alone decides no type, but has to be there.
    if fits.is_empty()
        && let Some(named) = columns.prompt.as_ref().filter(|c| !found.contains(c))
    {
        let at = super::error::At { file: file.into(), line: 0, row: None };
        return Err(DataError::MissingColumn { at, column: named.clone(), found: found.to_vec() });
    }
    if fits.is_empty() {
        return Err(DataError::UnknownColumns { file: file.into(), found: found.to_vec(), accepted: names() });
    }
    let whole = |fits: &[DatasetType]| -> Vec<DatasetType> {
        fits.iter().copied().filter(|&t| !fits.iter().any(|&u| u != t && u.includes(t))).collect()
    };
    let kind = whole(&fits).first().map_or("", |t| t.name());
    fits.retain(|t| accepted.contains(t));
    match whole(&fits)[..] {
        [one] => Ok(one),
        [] => Err(DataError::WrongType { file: file.into(), found: found.to_vec(), kind, accepted: names() }),
        [first, second, ..] => Err(DataError::AmbiguousColumns {
            file: file.into(),
            found: found.to_vec(),
            first: first.name(),
            second: second.name(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(found: &str, columns: &Columns, accepted: &[DatasetType]) -> Result<DatasetType> {
        let found: Vec<String> = found.split_whitespace().map(str::to_string).collect();
        detect(Path::new("f.jsonl"), &found, columns, accepted)
    }

    #[test]
    fn types_by_columns() {
        use DatasetType::*;
        let none = Columns::default();
        for (found, kind) in [
            ("messages", Messages),
            ("messages prompt prompt_id", Messages),
            ("prompt completion", PromptCompletion),
            ("prompt completion label", Labelled),
            ("text id", Text),
            ("prompt chosen rejected", Preference),
            ("chosen rejected", Preference),
            ("prompt", PromptOnly),
            ("instruction input output", Alpaca),
            ("instruction output", Alpaca),
            ("conversations id", ShareGpt),
            ("question answer", QuestionAnswer),
            ("input_ids labels text", Tokenized),
            ("prompt completions labels", Stepwise),
            ("prompt completions", Stepwise),
            ("prompt responses scores", Ranked),
            ("labeler question label timestamp", Prm800k),
            ("question answer label", QuestionAnswer),
        ] {
            assert_eq!(run(found, &none, &DatasetType::ALL).unwrap(), kind, "{found}");
        }
        // A recipe that takes no labels reads the pair; one that takes no pairs the messages.
        assert_eq!(run("prompt completion label", &none, &DatasetType::SFT).unwrap(), PromptCompletion);
        assert_eq!(run("prompt chosen rejected messages", &none, &DatasetType::SFT).unwrap(), Messages);
    }

    #[test]
    fn ambiguous_wrong_and_unknown() {
        use DatasetType::Preference;
        let none = Columns::default();
        let e = run("messages text", &none, &DatasetType::SFT).unwrap_err().to_string();
        assert!(e.contains("both messages and text"), "{e}");
        let e = run("prompt chosen rejected", &none, &DatasetType::SFT).unwrap_err().to_string();
        assert!(e.contains("rows of type chosen+rejected, which are not read here"), "{e}");
        let e = run("prompt completions labels", &none, &[Preference]).unwrap_err().to_string();
        assert!(e.contains("rows of type prompt+completions, which are not read here"), "{e}");
        let e = run("a b", &none, &DatasetType::SFT).unwrap_err().to_string();
        assert!(e.contains("`a`, `b`") && e.contains("prompt+completion | ") && e.contains("--text-column"), "{e}");
    }

    #[test]
    fn flags_decide() {
        let named = |text: Option<&str>, prompt: Option<&str>, completion: Option<&str>| Columns {
            text: text.map(Into::into),
            prompt: prompt.map(Into::into),
            completion: completion.map(Into::into),
            ..Columns::default()
        };
        let sft = &DatasetType::SFT;
        assert_eq!(run("messages text", &named(Some("text"), None, None), sft).unwrap(), DatasetType::Text);
        let pair = named(None, Some("input"), Some("target"));
        assert_eq!(run("input target", &pair, sft).unwrap(), DatasetType::PromptCompletion);
        let e = run("input goal", &pair, sft).unwrap_err().to_string();
        assert!(e.contains("\"target\" is missing; found: `input`, `goal`"), "{e}");
        let both = named(Some("a"), None, Some("b"));
        assert!(matches!(run("a b", &both, sft), Err(DataError::ColumnFlags { .. })));
        // Alpaca's own file has a rendered `text` too.
        let alpaca = "instruction input output text";
        assert!(matches!(run(alpaca, &Columns::default(), sft), Err(DataError::AmbiguousColumns { .. })));
        let kind = Columns { kind: Some(DatasetType::Alpaca), ..Columns::default() };
        assert_eq!(run(alpaca, &kind, sft).unwrap(), DatasetType::Alpaca);
        let e = run("instruction text", &kind, sft).unwrap_err().to_string();
        assert!(e.contains("\"output\" is missing"), "{e}");
        let e = run(alpaca, &Columns { text: Some("text".into()), ..kind }, sft).unwrap_err().to_string();
        assert!(e.contains("--dataset-type and --text-column") && e.contains("instruction+output or a text"), "{e}");
        let pair = Columns { kind: Some(DatasetType::PromptCompletion), ..pair };
        assert_eq!(run("input target text", &pair, sft).unwrap(), DatasetType::PromptCompletion);
        // A prompt column alone goes with the usual completion.
        let prompt = named(None, Some("q"), None);
        assert_eq!(run("q completion", &prompt, sft).unwrap(), DatasetType::PromptCompletion);
    }
}
