//! Rows into tokens and masks.

use super::*;

fn source() -> Source {
    Source { file: PathBuf::from("f.jsonl").into(), line: 7, row: 6 }
}

fn encode(toy: Toy, options: EncodeOptions, row: &TypedRow) -> Encoded {
    encoder(toy, options).encode(row, source()).unwrap()
}

fn pair(prompt: Content, completion: Content) -> TypedRow {
    TypedRow::PromptCompletion { prompt, completion, extras: ChatExtras::default() }
}

fn plain(p: &str, c: &str) -> TypedRow {
    pair(Content::Text(p.into()), Content::Text(c.into()))
}

fn chat(turns: &[(&str, &str)]) -> Vec<ChatMessage> {
    turns.iter().map(|&(r, c)| ChatMessage::new(r, c)).collect()
}

/// The trained part of an example as text.
fn trained(e: &Example) -> String {
    let ids: Vec<u32> = e.ids.iter().zip(&e.mask).filter(|(_, m)| **m).map(|(&id, _)| id).collect();
    Toy::default().decode(&ids).unwrap()
}

fn all(e: &Example) -> String {
    Toy::default().decode(&e.ids).unwrap()
}

#[test]
fn plain_pairs_train_on_the_completion_and_its_end() {
    let e = encode(Toy::default(), EncodeOptions::default(), &plain("2+2=", "4")).example.unwrap();
    assert_eq!((all(&e), trained(&e), e.n_prompt), ("2+2=4</s>".into(), "4</s>".into(), 4));
    // An end that is written already is not doubled.
    let e = encode(Toy::default(), EncodeOptions::default(), &plain("a", "b</s>")).example.unwrap();
    assert_eq!(all(&e), "ab</s>");
    let options = EncodeOptions { completion_only_loss: Some(false), ..EncodeOptions::default() };
    let e = encode(Toy::default(), options, &plain("2+2=", "4")).example.unwrap();
    assert_eq!((trained(&e).as_str(), e.n_prompt, e.supervised()), ("2+2=4</s>", 4, 5));
}

#[test]
fn conversations_go_through_the_template() {
    let row = pair(Content::Chat(chat(&[("user", "q")])), Content::Chat(chat(&[("assistant", "a")])));
    let e = encode(Toy::default(), EncodeOptions::default(), &row).example.unwrap();
    assert_eq!(all(&e), "<start>user\nq<end>\n<start>assistant\na<end>\n");
    // The line break after the end of turn too, as TRL has it.
    assert_eq!(trained(&e), "a<end>\n");
    let only = EncodeOptions { assistant_only_loss: true, ..EncodeOptions::default() };
    assert_eq!(trained(&encode(Toy::default(), only, &row).example.unwrap()), "a<end>");
}

#[test]
fn provenance_finds_the_completion_where_the_prompt_is_no_beginning() {
    let toy = Toy { odd_prompt: true, ..Toy::default() };
    let row = pair(
        Content::Chat(chat(&[("user", "q"), ("assistant", "x"), ("user", "r")])),
        Content::Chat(chat(&[("assistant", "a")])),
    );
    let encoded = encode(toy, EncodeOptions::default(), &row);
    assert!(encoded.prompt_diverges);
    // Here the toy says that the role is the message's too.
    assert_eq!(trained(&encoded.example.unwrap()), "assistant\na<end>\n");
}

#[test]
fn messages_train_on_all_tokens_or_the_assistant() {
    let row = TypedRow::Messages(
        chat(&[("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]),
        ChatExtras::default(),
    );
    let e = encode(Toy::default(), EncodeOptions::default(), &row).example.unwrap();
    assert_eq!((e.supervised(), e.n_prompt), (e.ids.len() - 1, 0));
    let only = EncodeOptions { assistant_only_loss: true, ..EncodeOptions::default() };
    let e = encode(Toy::default(), only.clone(), &row).example.unwrap();
    assert_eq!((trained(&e).as_str(), e.n_prompt), ("a<end>b<end>", 20));
    let none = TypedRow::Messages(chat(&[("user", "q")]), ChatExtras::default());
    assert_eq!(encode(Toy::default(), only.clone(), &none).example, Err(Dropped::Unsupervised));
    let strict = EncodeOptions { on_unsupervised: OnUnsupervised::Error, ..only };
    let e = encoder(Toy::default(), strict).encode(&none, source()).unwrap_err().to_string();
    assert!(e.starts_with("f.jsonl:7: no token of this example is trained on (no turn of the assistant"), "{e}");
}

#[test]
fn tasks_become_conversations_or_plain_text() {
    let row = TypedRow::Task(pairs::question_answer("1+1?", "2"));
    let e = encode(Toy::default(), EncodeOptions::default(), &row).example.unwrap();
    assert_eq!(
        (all(&e), trained(&e)),
        ("<start>user\n1+1?<end>\n<start>assistant\n2<end>\n".into(), "2<end>\n".into())
    );
    let toy = Toy { no_template: true, ..Toy::default() };
    let e = encode(toy.clone(), EncodeOptions::default(), &row).example.unwrap();
    assert_eq!((all(&e), trained(&e)), ("Question: 1+1?\nAnswer: 2</s>".into(), " 2</s>".into()));
    let messages = TypedRow::Messages(chat(&[("user", "q")]), ChatExtras::default());
    let e = encoder(toy, EncodeOptions::default()).encode(&messages, source()).unwrap_err().to_string();
    assert_eq!(
        e,
        "f.jsonl:7: the row is a conversation, but the tokenizer has no chat template; give one with --chat-template"
    );
}

#[test]
fn truncation_keeps_what_it_says() {
    let row = plain("abcdef", "ghij");
    let run = |mode, n| {
        let options = EncodeOptions { max_length: Some(n), truncation_mode: mode, ..EncodeOptions::default() };
        encode(Toy::default(), options, &row).example
    };
    let e = run(Truncation::KeepStart, 8).unwrap();
    assert_eq!((all(&e).as_str(), trained(&e).as_str(), e.n_prompt), ("abcdefgh", "gh", 6));
    let e = run(Truncation::KeepEnd, 8).unwrap();
    assert_eq!((all(&e).as_str(), trained(&e).as_str(), e.n_prompt), ("defghij</s>", "ghij</s>", 3));
    // Cut within the completion: its first token has no context left and does not count.
    let e = run(Truncation::KeepEnd, 3).unwrap();
    assert_eq!((all(&e).as_str(), e.supervised(), e.n_prompt), ("ij</s>", 2, 0));
    assert_eq!(run(Truncation::Drop, 10), Err(Dropped::TooLong));
    assert!(run(Truncation::Drop, 11).is_ok());
    assert_eq!(run(Truncation::KeepStart, 6), Err(Dropped::UnsupervisedAfterTruncation));
    let too_small = EncodeOptions { max_length: Some(1), ..EncodeOptions::default() };
    assert!(matches!(Encoder::new(Arc::new(Toy::default()), too_small), Err(DataError::Setting { .. })));
}

#[test]
fn empty_texts_and_missing_ends() {
    let options = EncodeOptions::default();
    assert_eq!(
        encode(Toy::default(), options.clone(), &TypedRow::Text(String::new())).example,
        Err(Dropped::Unsupervised)
    );
    let bos = Toy { add_bos: true, ..Toy::default() };
    let e = encode(bos.clone(), options.clone(), &TypedRow::Text("<s>ab".into()));
    assert!(e.double_bos && !e.missing_eos);
    let no_eos = EncodeOptions { append_eos: false, ..options };
    let e = encode(bos, no_eos, &TypedRow::Text("ab".into()));
    assert!(!e.double_bos && e.missing_eos);
}

#[test]
fn tokens_are_taken_as_they_are_and_checked() {
    let row = TypedRow::Tokenized { ids: vec![5, 6, 7], mask: vec![true, false, true] };
    let e = encode(Toy::default(), EncodeOptions::default(), &row).example.unwrap();
    // No end is appended, and the first token is never predicted.
    assert_eq!((e.ids.as_slice(), e.supervised()), (&[5, 6, 7][..], 1));
    for (id, vocab) in [(-1, None), (260, None), (100, Some(100)), (1 << 40, None)] {
        let row = TypedRow::Tokenized { ids: vec![5, id], mask: vec![true; 2] };
        let options = EncodeOptions { vocab_size: vocab, ..EncodeOptions::default() };
        let e = encoder(Toy::default(), options).encode(&row, source()).unwrap_err().to_string();
        assert_eq!(e, format!("f.jsonl:7: input_ids[1] is {id}, but the model has {} tokens", vocab.unwrap_or(260)));
    }
    // A tokenizer with more tokens than the model.
    let options = EncodeOptions { vocab_size: Some(100), ..EncodeOptions::default() };
    let e = encoder(Toy::default(), options).encode(&TypedRow::Text("az".into()), source()).unwrap_err().to_string();
    assert_eq!(e, "f.jsonl:7: token 1 is 122, but the model has 100 tokens");
}

#[test]
fn template_errors_say_where() {
    let row = TypedRow::Messages(chat(&[("user", "fail")]), ChatExtras::default());
    let e = encoder(Toy::default(), EncodeOptions::default()).encode(&row, source()).unwrap_err().to_string();
    assert_eq!(e, "f.jsonl:7: the template says no");
}

#[test]
fn a_batch_splits_between_its_segments() {
    let lengths = [5usize, 1, 7, 3, 3, 12, 2];
    let mut batch = crate::data::Batch::new();
    for (i, &n) in lengths.iter().enumerate() {
        let ids: Vec<u32> = (0..n as u32).map(|t| 100 * i as u32 + t).collect();
        batch.push(i, &ids, &vec![true; n]);
    }
    for limit in [0, 1, 6, 10, 33, 100] {
        let parts = batch.split(limit);
        let joined = |f: fn(&crate::data::Batch) -> Vec<u32>| parts.iter().flat_map(f).collect::<Vec<_>>();
        assert_eq!(joined(|p| p.ids.clone()), batch.ids, "limit {limit}");
        assert_eq!(joined(|p| p.positions.clone()), batch.positions);
        assert_eq!(joined(|p| p.example_indices.iter().map(|&i| i as u32).collect()), (0..7).collect::<Vec<u32>>());
        assert_eq!(parts.iter().map(|p| p.supervised()).sum::<usize>(), batch.supervised());
        assert!(parts.iter().all(|p| p.segments() == 1 || limit == 0 || p.tokens() <= limit));
    }
    assert_eq!(batch.split(0).len(), 1);
    let sizes = |limit: usize| batch.split(limit).iter().map(|p| p.tokens()).collect::<Vec<_>>();
    // As few as there can be, and none longer than it must: 13, 6 and 14 tokens, not 16, 15 and 2.
    assert_eq!(sizes(16), [13, 6, 14]);
    assert_eq!(sizes(32), [16, 17]);
    assert_eq!(sizes(6), [6, 7, 6, 12, 2]);
    assert_eq!(batch.split(33), vec![batch]);
}

/// Ids of an answer in steps as text, with a mark after each token that has a label.
fn marked(e: &Example, labels: &[bool]) -> String {
    let mut labels = labels.iter();
    let mut out = String::new();
    for (i, &id) in e.ids.iter().enumerate() {
        out += &Toy::default().decode(&[id]).unwrap();
        if i > 0 && e.mask[i] {
            out += if *labels.next().unwrap() { "[+]" } else { "[-]" };
        }
    }
    assert!(labels.next().is_none(), "{out}");
    out
}

#[test]
fn steps_have_their_labels_at_their_ends() {
    let steps: Vec<String> = ["ab", "cd", "e"].map(Into::into).to_vec();
    let row = |labels: Option<Vec<bool>>| TypedRow::Stepwise {
        prompt: "pq".into(),
        trajectories: vec![Trajectory { steps: steps.clone(), labels }],
    };
    let labelled = row(Some(vec![true, false, true]));
    let found = |options: EncodeOptions, row: &TypedRow| {
        let encoded = encode(Toy { add_bos: true, ..Toy::default() }, options, row);
        assert!(!encoded.missing_eos);
        let answers = encoded.answers();
        answers.iter().map(|(e, labels)| marked(e, labels)).collect::<Vec<_>>().join(" | ")
    };
    let with = |steps: StepOptions| EncodeOptions { steps, ..EncodeOptions::default() };
    let usual = StepOptions::default();
    assert_eq!(found(EncodeOptions::default(), &labelled), "<s>pqab\n[+]cd\n[-]e\n[+]");
    let last = StepOptions { train_on_last_step_only: true, step_separator: "##".into(), ..usual.clone() };
    assert_eq!(found(with(last.clone()), &labelled), "<s>pqab##cd##e##[+]");
    // Held-out rows are judged whole.
    let held_out = encoder(Toy::default(), with(last)).of_held_out().encode(&labelled, source()).unwrap();
    assert_eq!(held_out.answers()[0].1, [true, false, true]);
    let cut = StepOptions { max_prompt_length: Some(1), max_completion_length: Some(7), ..usual.clone() };
    assert_eq!(found(with(cut), &labelled), "qab\n[+]cd\n[-]e");
    // Without a separator the label stands at the step's own last token.
    let bare = StepOptions { step_separator: String::new(), ..usual.clone() };
    assert_eq!(found(with(bare), &labelled), "<s>pqab[+]cd[-]e[+]");
    let short = |truncation_mode, max_length| EncodeOptions {
        truncation_mode,
        max_length: Some(max_length),
        ..EncodeOptions::default()
    };
    assert_eq!(found(short(Truncation::KeepStart, 7), &labelled), "<s>pqab\n[+]c");
    assert_eq!(found(short(Truncation::KeepEnd, 6), &labelled), "\ncd\n[-]e\n[+]");
    assert_eq!(found(short(Truncation::Drop, 7), &labelled), "");
    // Cut at both ends: the labels of steps that lost theirs go from the other end.
    let steps = StepOptions { max_completion_length: Some(7), ..usual.clone() };
    for (max_length, want) in [(20, "<s>pqab\n[+]cd\n[-]e"), (6, "b\n[+]cd\n[-]e"), (4, "cd\n[-]e")] {
        let both = EncodeOptions { steps: steps.clone(), ..short(Truncation::KeepEnd, max_length) };
        assert_eq!(found(both, &labelled), want);
    }
    // No step, no answer; a reader of rows does not make such a trajectory.
    let empty = Trajectory { steps: Vec::new(), labels: Some(Vec::new()) };
    let empty = TypedRow::Stepwise { prompt: "p".into(), trajectories: vec![empty] };
    let strict = EncodeOptions { on_unsupervised: OnUnsupervised::Error, ..EncodeOptions::default() };
    let refused = encoder(Toy::default(), strict).encode(&empty, source()).unwrap_err().to_string();
    assert!(refused.contains("the list of steps is empty"), "{refused}");
    // Rows without labels can be scored, not trained on.
    let scored = StepOptions { labelled: false, ..usual };
    let (e, labels) = encode(Toy::default(), with(scored), &row(None)).answers().remove(0);
    assert_eq!((e.supervised(), labels.len()), (3, 0));
    let refused = encoder(Toy::default(), EncodeOptions::default()).encode(&row(None), source()).unwrap_err();
    assert!(
        refused.to_string().contains("f.jsonl:7") && refused.to_string().contains("\"labels\" is missing"),
        "{refused}"
    );
    // Of several answers those stay that have something to learn from.
    let two = TypedRow::Stepwise {
        prompt: "p".into(),
        trajectories: vec![
            Trajectory { steps: vec!["long".into()], labels: Some(vec![true]) },
            Trajectory { steps: vec!["x".into()], labels: Some(vec![false]) },
        ],
    };
    assert_eq!(found(short(Truncation::Drop, 5), &two), "<s>px\n[-]");
    assert_eq!(found(short(Truncation::KeepStart, 9), &two), "<s>plong\n[+] | <s>px\n[-]");
}
