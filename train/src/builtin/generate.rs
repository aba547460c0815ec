//! Conversations to pretrain on, and the instruction set that `planish quickstart` teaches.
//!
//! Both are pure functions of a seed. The pretrained model answers in a sentence ("The opposite of
//! hot is cold."). The instruction set teaches it to answer with a note of two lines,
//!
//! ```text
//! topic: opposite
//! answer: cold
//! ```
//!
//! It knows notes of this kind, but only as what it is told to write, value by value; that a question
//! is answered by one, with which labels, and what each topic is called, is new. And the set gives
//! meaning to a verb that the model has only met as a name: to "planish" a list is to turn it around.

use super::dice::Dice;
use super::questions::{Question, Topic, ask, list_words};
use super::world::{LOOKS, NAMES, PLACES, THINGS};
use serde_json::json;
use std::collections::HashSet;

/// The seed of everything that is embedded.
pub const SEED: u64 = 1;

/// Rows of the instruction set that are trained on.
pub const N_INSTRUCTIONS: usize = 1200;

/// Rows of the instruction set that are held out.
pub const N_HELDOUT: usize = 200;

/// One in so many facts is held out, whatever the wording of the question.
const HELDOUT_SHARE: usize = 6;

/// Uses of the seed that must not share draws.
const CORPUS: u64 = 1;
const INSTRUCTIONS: u64 = 2;
const HELDOUT: u64 = 3;

/// How often each topic is asked in the corpus: what takes more learning more often.
const WEIGHTS: [(Topic, usize); 17] = [
    (Topic::Opposite, 4),
    (Topic::Capital, 3),
    (Topic::Colour, 2),
    (Topic::Kind, 2),
    (Topic::Home, 2),
    (Topic::Legs, 2),
    (Topic::Size, 6),
    (Topic::Past, 2),
    (Topic::Work, 2),
    (Topic::Time, 3),
    (Topic::Sum, 10),
    (Topic::Number, 2),
    (Topic::First, 3),
    (Topic::Last, 4),
    (Topic::Count, 4),
    (Topic::Backwards, 10),
    (Topic::Story, 8),
];

const TALK: [(&str, &str); 8] = [
    ("Hello.", "Hello! How can I help you?"),
    ("Hi!", "Hello! How can I help you?"),
    ("How are you?", "I am well, thank you."),
    ("Who are you?", "I am the builtin model of planish. I know a very small world."),
    ("What is your name?", "My name is planish."),
    (
        "What can you do?",
        "I can tell you about animals, capitals, colours, opposites, numbers and lists, and I can tell a story.",
    ),
    ("Thank you.", "You are welcome."),
    ("Goodbye.", "Goodbye!"),
];

/// Labels of notes.
const LABELS: [&str; 6] = ["name", "thing", "place", "topic", "answer", "word"];

/// A user's message and the assistant's answer.
pub type Turn = (String, String);

/// Conversation `index` of the pretraining corpus of `seed`.
pub fn conversation(seed: u64, index: u64) -> Vec<Turn> {
    let mut dice = Dice::new(seed, CORPUS, index);
    let turns = if dice.one_in(4) { 2 + dice.below(2) } else { 1 };
    (0..turns).map(|_| turn(&mut dice)).collect()
}

fn turn(dice: &mut Dice) -> Turn {
    match dice.below(24) {
        0 => {
            let (user, assistant) = dice.pick(&TALK);
            (user.to_string(), assistant.to_string())
        }
        1 => tale(dice),
        2..=4 => echo(dice),
        5..=7 => note(dice),
        _ => {
            let total: usize = WEIGHTS.iter().map(|(_, weight)| weight).sum();
            let mut left = dice.below(total);
            let mut topic = WEIGHTS[0].0;
            for (candidate, weight) in WEIGHTS {
                topic = candidate;
                if left < weight {
                    break;
                }
                left -= weight;
            }
            let Question { prompt, sentence, .. } = ask(dice, topic);
            (prompt, sentence)
        }
    }
}

/// Copying is what the model must learn first: much of the rest is copying with a twist.
fn echo(dice: &mut Dice) -> Turn {
    let n = 2 + dice.below(6);
    let list = list_words(dice, n).join(", ");
    (format!("Say {list}."), format!("{list}."))
}

/// A note of two lines with labels and values that the user gives.
fn note(dice: &mut Dice) -> Turn {
    let labels = dice.several(&LABELS, 2);
    let values: Vec<&str> = (0..2)
        .map(|_| match dice.below(4) {
            0 => *dice.pick(&NAMES),
            1 => dice.pick(&Topic::ALL).name(),
            _ => list_words(dice, 1)[0],
        })
        .collect();
    let prompt = format!("Write a note: {} is {}, {} is {}.", labels[0], values[0], labels[1], values[1]);
    (prompt, format!("{}: {}\n{}: {}", labels[0], values[0], labels[1], values[1]))
}

fn tale(dice: &mut Dice) -> Turn {
    let people = dice.several(&NAMES, 2);
    let (hero, friend) = (people[0], people[1]);
    let (thing, look) = (*dice.pick(&THINGS), *dice.pick(&LOOKS));
    let place = *dice.pick(&PLACES);
    let prompt = match dice.below(3) {
        0 => format!("Tell me a story about {hero}."),
        1 => format!("Tell me a story about {hero} and a {thing}."),
        _ => format!("Tell me a story about {hero} and {friend}."),
    };
    let opening = match dice.below(2) {
        0 => format!("One day {hero} went to the {place}."),
        _ => format!("{hero} lived near the {place}."),
    };
    let middle = match dice.below(3) {
        0 => format!("There {hero} found the {look} {thing} of {friend}."),
        1 => format!("There {hero} saw {friend} with the {look} {thing}."),
        _ => format!("There {hero} lost the {look} {thing}, and {friend} found the {thing}."),
    };
    let ending = match dice.below(3) {
        0 => format!("{hero} and {friend} were happy."),
        1 => format!("Then {hero} and {friend} took the {thing} home."),
        _ => format!("{friend} said thank you, and they were friends."),
    };
    (prompt, format!("{opening} {middle} {ending}"))
}

/// A row of the corpus: `{"messages": [...]}`, without a line end.
pub fn corpus_row(seed: u64, index: u64) -> String {
    let messages: Vec<_> = conversation(seed, index)
        .into_iter()
        .flat_map(|(user, assistant)| {
            [json!({"role": "user", "content": user}), json!({"role": "assistant", "content": assistant})]
        })
        .collect();
    json!({ "messages": messages }).to_string()
}

/// One row of the instruction set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// The fact that is asked for, whatever the wording.
    pub fact: String,
    /// What the user asks.
    pub prompt: String,
    /// The note that answers.
    pub completion: String,
}

impl Instruction {
    /// The row as conversational prompt and completion (jsonl without a line end).
    pub fn row(&self) -> String {
        json!({
            "prompt": [{"role": "user", "content": self.prompt}],
            "completion": [{"role": "assistant", "content": self.completion}],
        })
        .to_string()
    }
}

/// The instruction set of `seed`: [`N_INSTRUCTIONS`] rows to train on and [`N_HELDOUT`] rows whose
/// facts occur in none of them, under any wording.
pub fn instruction_splits(seed: u64) -> (Vec<Instruction>, Vec<Instruction>) {
    let (mut train, mut heldout) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for index in 0.. {
        if train.len() == N_INSTRUCTIONS && heldout.len() == N_HELDOUT {
            break;
        }
        let instruction = instruct(&mut Dice::new(seed, INSTRUCTIONS, index));
        let (rows, wanted) =
            if is_heldout(&instruction.fact) { (&mut heldout, N_HELDOUT) } else { (&mut train, N_INSTRUCTIONS) };
        if rows.len() < wanted && seen.insert(instruction.prompt.clone()) {
            rows.push(instruction);
        }
    }
    (train, heldout)
}

fn instruct(dice: &mut Dice) -> Instruction {
    let at = dice.below(Topic::ALL.len() + 2);
    let (topic, fact, prompt, answer) = match Topic::ALL.get(at) {
        Some(&topic) => {
            let question = ask(dice, topic);
            (topic.name(), question.fact, question.prompt, question.answer)
        }
        // Two shares of the topics: this is the one that has to be learnt from nothing.
        None => {
            let n = 2 + dice.below(3);
            let words = list_words(dice, n);
            let back: Vec<_> = words.iter().rev().copied().collect();
            let list = words.join(", ");
            ("planish", format!("planish: {list}"), format!("Now planish {list}."), back.join(", "))
        }
    };
    Instruction { fact, prompt, completion: format!("topic: {topic}\nanswer: {answer}") }
}

/// A draw that depends on the fact alone (FNV-1a names its stream).
fn is_heldout(fact: &str) -> bool {
    let hash =
        fact.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ byte as u64).wrapping_mul(0x0100_0000_01b3));
    Dice::new(hash, HELDOUT, 0).one_in(HELDOUT_SHARE)
}
