//! Preference pairs, implicit prompts, and the short forms of Alpaca and GSM8K.

use super::error::Result;
use super::row::{ChatMessage, Content, Reader, Task, TypedRow};

/// `chosen` and `rejected`, with an explicit or an implicit prompt.
///
/// As TRL does, a prompt column is taken as the prompt only if it has the form of the completions;
/// a plain prompt beside two whole conversations repeats their first turn, so the prompt is what
/// the conversations have in common.
pub(crate) fn preference(r: &Reader) -> Result<TypedRow> {
    let (chosen, rejected, extras) = (r.content("chosen")?, r.content("rejected")?, r.extras()?);
    let margin = r.number("margin")?;
    r.same_form(&chosen, &rejected, "rejected")?;
    if r.get("prompt").is_some_and(|p| !p.is_null()) {
        let prompt = r.content("prompt")?;
        match (&prompt, &chosen) {
            (Content::Text(_), Content::Chat(_)) => {}
            _ => {
                r.same_form(&prompt, &chosen, "chosen")?;
                return Ok(TypedRow::Preference { prompt, chosen, rejected, margin, extras });
            }
        }
    }
    let (prompt, chosen, rejected) = match (chosen, rejected) {
        (Content::Text(a), Content::Text(b)) => {
            let (p, c, d) = extract_prompt_text(&a, &b);
            (Content::Text(p.into()), Content::Text(c.into()), Content::Text(d.into()))
        }
        (Content::Chat(a), Content::Chat(b)) => {
            let (p, c, d) = extract_prompt_chat(&a, &b);
            (Content::Chat(p.to_vec()), Content::Chat(c.to_vec()), Content::Chat(d.to_vec()))
        }
        // Excluded by same_form.
        (chosen, rejected) => (Content::Text(String::new()), chosen, rejected),
    };
    Ok(TypedRow::Preference { prompt, chosen, rejected, margin, extras })
}

/// The common beginning of two texts, and what follows it in each.
///
/// By characters, and a space before the difference goes to the completions, as TRL's
/// `extract_prompt` does. Where TRL leaves the last common character to the completions of two
/// texts that do not differ within the shorter one, so does this.
///
/// ```
/// use planish_train::data::extract_prompt_text;
/// let (prompt, chosen, rejected) = extract_prompt_text("The sky is blue.", "The sky is green.");
/// assert_eq!((prompt, chosen, rejected), ("The sky is", " blue.", " green."));
/// ```
pub fn extract_prompt_text<'a, 'b>(chosen: &'a str, rejected: &'b str) -> (&'a str, &'a str, &'b str) {
    let mut cut = 0;
    let (mut last, mut differs) = (None, false);
    for (a, b) in chosen.chars().zip(rejected.chars()) {
        if a != b {
            differs = true;
            break;
        }
        last = Some(a);
        cut += a.len_utf8();
    }
    match last {
        Some(c) if !differs || c == ' ' => cut -= c.len_utf8(),
        _ => {}
    }
    // Both begin with the same `cut` bytes.
    (&chosen[..cut], &chosen[cut..], &rejected[cut..])
}

/// The common first turns of two conversations, and what follows them in each; at least one turn
/// is left to each side.
pub fn extract_prompt_chat<'a, 'b>(
    chosen: &'a [ChatMessage],
    rejected: &'b [ChatMessage],
) -> (&'a [ChatMessage], &'a [ChatMessage], &'b [ChatMessage]) {
    let shorter = chosen.len().min(rejected.len());
    let common = chosen.iter().zip(rejected).take_while(|(a, b)| a == b).count().min(shorter.saturating_sub(1));
    (&chosen[..common], &chosen[common..], &rejected[common..])
}

/// Stanford Alpaca's prompt as plain text.
///
/// # Source
/// Taori et al., "Stanford Alpaca", 2023, `prompt_with_input` and `prompt_no_input`.
pub(crate) fn alpaca(instruction: &str, input: &str, output: &str) -> Task {
    let (user, plain) = if input.trim().is_empty() {
        (
            instruction.to_string(),
            format!(
                "Below is an instruction that describes a task. Write a response that appropriately completes the \
                 request.\n\n### Instruction:\n{instruction}\n\n### Response:"
            ),
        )
    } else {
        (
            format!("{instruction}\n\n{input}"),
            format!(
                "Below is an instruction that describes a task, paired with an input that provides further context. \
                 Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n\
                 ### Input:\n{input}\n\n### Response:"
            ),
        )
    };
    Task { user, plain, answer: output.to_string(), separator: "\n" }
}

/// `Question: …\nAnswer:` as plain text, the common form of few-shot evaluations.
pub(crate) fn question_answer(question: &str, answer: &str) -> Task {
    Task {
        user: question.to_string(),
        plain: format!("Question: {question}\nAnswer:"),
        answer: answer.to_string(),
        separator: " ",
    }
}
