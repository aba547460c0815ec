//! Files into rows: every format, every kind of damage.

use super::*;

fn texts_of(data: &Dataset) -> Vec<String> {
    let text = |i| match data.read(i).unwrap().0 {
        TypedRow::Text(t) => t,
        other => panic!("{other:?}"),
    };
    (0..data.len()).map(text).collect()
}

#[test]
fn jsonl_with_blank_lines_bom_and_crlf() {
    let f = Files::new();
    let data = f
        .open("a.jsonl", "\u{feff}\n {\"text\": \"a\"}\r\n\n\r\n{\"text\": \"b\", \"id\": 3}\n{\"text\":\"c\"}")
        .unwrap();
    assert_eq!(texts_of(&data), ["a", "b", "c"]);
    assert_eq!((0..3).map(|i| data.read(i).unwrap().1.line).collect::<Vec<_>>(), [2, 5, 6]);
}

#[test]
fn jsonl_rows_across_chunks() {
    // Rows of 300 KB: the scan reads a MiB at a time.
    let long = "x".repeat(300_000);
    let lines: String = (0..9).map(|i| format!("{{\"text\": \"{i}{long}\"}}\n")).collect();
    let data = Files::new().open("a.jsonl", lines).unwrap();
    assert!(texts_of(&data).iter().enumerate().all(|(i, t)| t.len() == 300_001 && t.starts_with(&i.to_string())));
}

#[test]
fn json_array_object_and_lines() {
    let f = Files::new();
    let rows = r#"[{"text": "a, ]}\" ["}, {"text": "b"},
        {"text": "c", "meta": {"x": [1, {"y": 2}]}}]"#;
    for (name, text) in [
        ("array.json", rows.to_string()),
        (
            "object.json",
            format!(
                "{{\"canary\": \"x: [{{\", \"n\": 1, \"tags\": [\"p\", \"q\"], \"examples\": {rows}, \"none\": []}}\n"
            ),
        ),
    ] {
        let data = f.open(name, text).unwrap();
        assert_eq!(texts_of(&data), ["a, ]}\" [", "b", "c"], "{name}");
        assert_eq!((0..3).map(|i| data.read(i).unwrap().1.line).collect::<Vec<_>>(), [1, 1, 2]);
    }
    // Lines under the name of a document, and one row alone, also one that holds messages.
    assert_eq!(texts_of(&f.open("lines.json", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n").unwrap()), ["a", "b"]);
    assert_eq!(texts_of(&f.open("one.json", "{\"text\": \"a\"}").unwrap()), ["a"]);
    let chat = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    assert_eq!(f.open("chat.json", format!("{chat}\n{chat}")).unwrap().len(), 2);
    assert_eq!(f.open("chat1.json", chat).unwrap().len(), 1);
}

#[test]
fn csv_with_quotes_line_breaks_and_tabs() {
    let f = Files::new();
    let data = f.open("a.csv", "id,text\r\n1,\"a, \"\"b\"\"\r\nc\"\r\n\r\n2,d \"e\"\n3,\n").unwrap();
    assert_eq!(texts_of(&data), ["a, \"b\"\r\nc", "d \"e\"", ""]);
    assert_eq!((0..3).map(|i| data.read(i).unwrap().1.line).collect::<Vec<_>>(), [2, 5, 6]);
    let data = f.open("a.tsv", "\u{feff}text\tid\na,b\t1\n").unwrap();
    assert_eq!(texts_of(&data), ["a,b"]);
}

#[test]
fn damage_is_named_by_file_and_line() {
    let f = Files::new();
    for (name, content, expected) in [
        ("a.jsonl", "".as_bytes(), "a.jsonl: the file holds no rows"),
        ("b.jsonl", b"\n \n", "b.jsonl: the file holds no rows"),
        ("c.jsonl", b"{\"text\": \"a\"}\n{\"text\": }\n", "c.jsonl:2: malformed JSON: expected value (column 10)"),
        (
            "d.jsonl",
            b"{\"text\": \"a\"}\n\n{\"text\": \"a\xff\"}\n",
            "d.jsonl:3: invalid UTF-8 at byte 11 of the row; save the file as UTF-8",
        ),
        ("e.jsonl", b"{\"text\": \"a\"}\n[1]\n", "e.jsonl:2: expected an object with columns, found an array"),
        (
            "f.jsonl",
            b"{\"text\": \"a\"}\n{\"txt\": \"b\"}\n",
            "f.jsonl:2: the column \"text\" is missing; did you mean `txt`?; found: `txt`",
        ),
        ("g.jsonl", b"{\"text\": \"a\"}\n{\"text\": 5}\n", "g.jsonl:2: `text` must be a string, found 5"),
        (
            "h.jsonl",
            b"{\"text\": \"a\"} {\"text\": \"b\"}\n",
            "h.jsonl:1: malformed JSON: trailing characters (column 15)",
        ),
        ("a.json", b"[]", "a.json: the file holds no rows"),
        ("b.json", b"   ", "b.json: the file holds no rows"),
        ("c.json", b"[{\"text\": \"a\"},\n{\"text\": \"b\"", "c.json:2: malformed JSON: the file ends within a value"),
        (
            "d.json",
            b"[{\"text\": \"a\"}\n{\"text\": \"b\"}]",
            "d.json:2: malformed JSON: expected `,` or `]` between rows",
        ),
        ("e.json", b"[{\"text\": \"a\"},\n\n]", "e.json:3: malformed JSON: a row is missing after `,`"),
        ("f.json", b"[{\"text\": \"a\"}] x", "f.json:1: malformed JSON: more text after the end of the document"),
        (
            "g.json",
            b"{\"a\": [{\"text\": \"a\"}], \"b\": [{}]}",
            "g.json: expected an array of rows, or an object with one array of them; found the arrays `a`, `b`",
        ),
        ("h.json", b"[{\"text\": \"a\"},\n{\"text\":\n tru}]", "h.json:3: malformed JSON: expected ident (column 5)"),
        ("i.json", b"5", "i.json:1: malformed JSON: expected `[` or `{`"),
        (
            "j.json",
            b"[{\"text\": \"a\"} 7]",
            "j.json:1: malformed JSON: expected `,` or `]` after the row, found \"7\"",
        ),
        ("a.csv", b"text,id\n", "a.csv: the file holds no rows"),
        ("b.csv", b"text,id\na,1\nb\n", "b.csv:3: 1 cell(s) where the header names 2 column(s)"),
        ("c.csv", b"text,id\na,1,2\n", "c.csv:2: 3 cell(s) where the header names 2 column(s)"),
        ("d.csv", b"text,id\na,1\n\"b,2\nc,3\n", "d.csv:3: the quote opened here is never closed"),
        ("e.csv", b"text,text\na,b\n", "e.csv: the header names the column \"text\" twice"),
        ("f.csv", b"text\n\xff\n", "f.csv:2: invalid UTF-8 at byte 0 of the row; save the file as UTF-8"),
    ] {
        assert_eq!(f.error(name, content), expected);
    }
}

#[test]
fn deep_nesting_and_unknown_extensions_are_errors() {
    let f = Files::new();
    let deep = format!("{{\"text\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(f.error("a.jsonl", &deep).contains("recursion limit"));
    assert!(f.error("a.json", format!("[{deep}]")).contains("recursion limit"));
    let e = f.error("a.doc", "x");
    assert!(e.contains("\"doc\"") && e.contains("jsonl, ndjson, json, csv") && e.contains("rename the file"), "{e}");
    let missing = Dataset::open(&[DatasetSpec::new("no/such.jsonl")], &Columns::default(), &DatasetType::ALL);
    let e = missing.unwrap_err().to_string();
    assert!(e.starts_with("no/such.jsonl: cannot read it: "), "{e}");
    #[cfg(not(feature = "parquet"))]
    assert!(f.error("a.parquet", "x").contains("--features parquet"));
}

#[test]
fn a_row_over_the_limit_is_refused_before_it_is_read() {
    let f = Files::new();
    let path = f.write("a.jsonl", "{\"text\": \"a\"}\n{");
    // A sparse file: a line of 80 MB of zeros.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(80 << 20).unwrap();
    let data = Dataset::open(&[DatasetSpec::new(path)], &Columns::default(), &DatasetType::ALL).unwrap();
    assert!(matches!(data.read(1), Err(DataError::RowTooLong { limit, .. }) if limit == 64 << 20));
}

#[test]
fn a_file_cut_while_in_use_is_an_error() {
    let f = Files::new();
    let path = f.write("a.jsonl", texts(&[10, 10]));
    let data = Dataset::open(&[DatasetSpec::new(&path)], &Columns::default(), &DatasetType::ALL).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(5).unwrap();
    assert!(matches!(data.read(1), Err(DataError::Changed { .. })));
}

#[test]
fn share_gpt_alpaca_and_parts() {
    let f = Files::new();
    let data = f
        .open("a.jsonl", r#"{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}"#)
        .unwrap();
    let TypedRow::Messages(m, _) = data.read(0).unwrap().0 else { panic!() };
    assert_eq!(m, [ChatMessage::new("user", "hi"), ChatMessage::new("assistant", "ho")]);

    let data = f.open("b.jsonl", r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": null}, {"role": "assistant", "content": null, "tool_calls": [1]}], "tools": "[{\"x\": 1}]"}"#).unwrap();
    let TypedRow::Messages(m, extras) = data.read(0).unwrap().0 else { panic!() };
    assert_eq!(m[0], ChatMessage::new("user", "ab"));
    assert_eq!((m[1].content.as_str(), m[1].extra.len()), ("", 2));
    assert_eq!(extras.tools.unwrap()[0]["x"], 1);

    let data = f.open("c.jsonl", r#"{"instruction": "Do", "input": "it", "output": "done"}"#).unwrap();
    let TypedRow::Task(t) = data.read(0).unwrap().0 else { panic!() };
    assert_eq!((t.user.as_str(), t.answer.as_str()), ("Do\n\nit", "done"));
    assert!(t.plain.ends_with("### Instruction:\nDo\n\n### Input:\nit\n\n### Response:"));
}

#[test]
fn wrong_messages_are_named_by_path() {
    let f = Files::new();
    for (row, expected) in [
        (r#"{"messages": "hi"}"#, "`messages` must be an array of messages, found \"hi\""),
        (r#"{"messages": []}"#, "`messages` must be an array of at least one message, found an array"),
        (
            r#"{"messages": [{"role": "user"}]}"#,
            "messages[0] must be an object with `content` (or `value`), found an object",
        ),
        (
            r#"{"messages": [{"content": "x"}]}"#,
            "messages[0] must be an object with `role` (or `from`), found an object",
        ),
        (r#"{"messages": [{"role": 1, "content": "x"}]}"#, "messages[0].role must be a string, found 1"),
        (
            r#"{"messages": [{"role": "user", "content": [{"type": "image"}]}]}"#,
            "messages[0].content[0] must be a part of type text (this engine reads text only), found an object",
        ),
        (
            r#"{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}"#,
            "`completion` must be a string, as the prompt is, found an array",
        ),
        (r#"{"prompt": "a", "completion": "b", "label": "maybe"}"#, "`label` must be true or false, found \"maybe\""),
        (
            r#"{"input_ids": [1, 2], "labels": [1]}"#,
            "`labels` must be as long as `input_ids`, found \"1 of 2 input_ids\"",
        ),
        (r#"{"input_ids": [1, 2], "labels": [-100, 3]}"#, "labels[1] must be -100 or the token at its place, found 3"),
        (r#"{"input_ids": [1, 2.5]}"#, "input_ids[1] must be an integer, found 2.5"),
        (r#"{"input_ids": [1, 2], "completion_mask": [0, 2]}"#, "completion_mask[1] must be 0 or 1, found 2"),
    ] {
        assert_eq!(f.error("a.jsonl", row), format!("a.jsonl:1: {expected}"));
    }
}

#[test]
fn preference_pairs_with_explicit_and_implicit_prompts() {
    let f = Files::new();
    let read = |row: &str| match f.open("a.jsonl", row).unwrap().read(0).unwrap().0 {
        TypedRow::Preference { prompt, chosen, rejected, .. } => (prompt, chosen, rejected),
        other => panic!("{other:?}"),
    };
    let text = |t: &str| Content::Text(t.into());
    let chat = |turns: &[(&str, &str)]| Content::Chat(turns.iter().map(|&(r, c)| ChatMessage::new(r, c)).collect());
    assert_eq!(read(r#"{"prompt": "p", "chosen": "pc", "rejected": "pr"}"#), (text("p"), text("pc"), text("pr")));
    assert_eq!(
        read(r#"{"chosen": "\n\nHuman: é?\n\nAssistant: Yes", "rejected": "\n\nHuman: é?\n\nAssistant: No"}"#),
        (text("\n\nHuman: é?\n\nAssistant:"), text(" Yes"), text(" No"))
    );
    let row = r#"{"prompt": "u", "chosen": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "c"}],
        "rejected": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "r"}]}"#;
    assert_eq!(
        read(&row.replace('\n', " ")),
        (chat(&[("user", "u")]), chat(&[("assistant", "c")]), chat(&[("assistant", "r")]))
    );
    // Equal texts, an empty one, and a beginning of the other.
    assert_eq!(extract_prompt_text("ab", "ab"), ("a", "b", "b"));
    assert_eq!(extract_prompt_text("", "ab"), ("", "", "ab"));
    assert_eq!(extract_prompt_text("aé", "aéb"), ("a", "é", "éb"));
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_damage_is_an_error() {
    let f = Files::new();
    for bytes in [&b""[..], b"PAR1", b"PAR1xxxxPAR1", b"PAR1\xff\xff\xff\x7fPAR1"] {
        let e = f.error("a.parquet", bytes);
        assert!(e.starts_with("a.parquet: not a readable parquet file: "), "{e}");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(
        pieces in proptest::collection::vec(proptest::sample::select(vec![
            "{", "}", "[", "]", "\"", "\\", ",", ":", "\n", "\r", " ", "text", "messages", "1", "null", "\u{feff}", "é", "a,b",
            "{\"text\": \"a\"}", "[{\"text\": \"a\"}", "{\"x\": [{\"text\": \"b\"}]}", "text,id\n",
        ]), 0..24),
        raw in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..8),
        name in proptest::sample::select(vec!["a.json", "a.jsonl", "a.csv", "a.tsv"]),
    ) {
        let f = Files::new();
        for bytes in [pieces.concat().into_bytes(), [pieces.concat().as_bytes(), &raw].concat()] {
            if let Ok(data) = f.open(name, bytes) {
                (0..data.len()).for_each(|i| drop(data.read(i)));
            }
        }
    }
}
