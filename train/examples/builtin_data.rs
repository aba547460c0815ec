//! Writes what the builtin model is made of: its corpus, tokenizer, config and instruction set.
//!
//! ```text
//! cargo run --release -p planish-train --example builtin_data -- DIRECTORY [CONVERSATIONS]
//! ```
//!
//! `scripts/train-builtin` calls it, pretrains on the corpus and installs the result.

use planish_train::builtin::generate::{SEED, corpus_row, instruction_splits};
use planish_train::builtin::vocabulary;
use std::error::Error;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

/// Conversations of the committed model's corpus.
const N_CONVERSATIONS: u64 = 300_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("usage: builtin_data DIRECTORY [CONVERSATIONS]")?);
    let conversations = match arguments.next() {
        Some(number) => number.parse()?,
        None => N_CONVERSATIONS,
    };
    fs::create_dir_all(&directory)?;

    let mut corpus = BufWriter::new(fs::File::create(directory.join("corpus.jsonl"))?);
    for index in 0..conversations {
        writeln!(corpus, "{}", corpus_row(SEED, index))?;
    }
    corpus.flush()?;

    let (train, heldout) = instruction_splits(SEED);
    for (name, rows) in [("instructions.jsonl", train), ("heldout.jsonl", heldout)] {
        let lines: String = rows.iter().map(|row| row.row() + "\n").collect();
        fs::write(directory.join(name), lines)?;
    }

    fs::write(directory.join("tokenizer.json"), vocabulary::train_tokenizer(SEED).map_err(|error| error.to_string())?)?;
    for (name, text) in vocabulary::companions() {
        fs::write(directory.join(name), text)?;
    }
    Ok(())
}
