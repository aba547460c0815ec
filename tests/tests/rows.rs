//! Rows from outside: answers that become training data, rows that are wrong among good ones, rows longer than the
//! model's window, and plain text.

use std::fs;
use std::path::PathBuf;

use planish_tests::program::{Done, planish, refused};
use serde_json::{Value, json};

/// A directory with data, and runs in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        self.text(name)
    }

    /// A step of `command` on these rows with the builtin model, in the run directory `out`.
    fn run(&self, command: &str, data: &str, out: &str, extra: &[&str]) -> Done {
        let out = self.text(out);
        let own = [command, "--model", "builtin", "--dataset", data, "--output-dir", &out, "--max-steps", "1"];
        planish(&[&own[..], extra].concat())
    }

    /// The report that a run began with.
    fn preflight(&self, out: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(out).join("preflight.json")).unwrap()).unwrap()
    }

    /// `command` on these rows is refused with these words.
    fn refuses(&self, command: &str, data: &str, extra: &[&str], words: &str) -> String {
        let out = self.text("refused");
        let own = [command, "--model", "builtin", "--dataset", data, "--output-dir", &out, "--max-steps", "1"];
        let said = refused(&[&own[..], extra].concat(), words);
        assert!(!self.path("refused").exists(), "{said}");
        said
    }
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

#[track_caller]
fn fine(done: &Done) {
    assert_eq!(done.code, 0, "{done:?}");
}

/// What a teacher answers is written in the form that `sft` takes: the student sees what the teacher saw, and is
/// trained on the answer.
#[test]
fn a_teachers_answers_are_trained_on_as_they_are_written() {
    let place = Place::new();
    let chat = json!([{ "role": "user", "content": "What is 2 plus 3?" }]);
    let requests = place.write("requests.jsonl", lines(&[json!({ "prompt": "A cat" }), json!({ "prompt": chat })]));
    let generate = |extra: &[&str]| planish(&[&["generate", "--model", "builtin"], extra].concat());
    let answers = place.text("answers.jsonl");
    let own = ["--requests", &requests, "--n", "2", "--temperature", "1", "--max-new-tokens", "6"];
    let done = generate(&[&own[..], &["--output", &answers]].concat());
    fine(&done);
    assert!(done.stdout.is_empty() && done.stderr.contains("4 answers are in"), "{done:?}");
    let rows: Vec<Value> =
        fs::read_to_string(&answers).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 4);
    assert_eq!(rows[0]["prompt"], json!([{ "role": "user", "content": "A cat" }]));
    assert_eq!(rows[2]["prompt"], chat);
    assert!(rows.iter().all(|row| row["completion"][0]["role"] == "assistant"), "{rows:?}");
    let cut = rows.iter().filter(|row| row["finish_reason"] == "length").count();
    assert_eq!(done.stderr.contains(&format!("{cut} of them have no end")), cut > 0, "{done:?}");

    fine(&place.run("sft", &answers, "student", &["--no-shuffle"]));
    let report = place.preflight("student");
    assert_eq!((&report["files"][0]["kind"], &report["examples"]), (&json!("prompt_completion"), &json!(4)));
    assert!(report["template"].is_string(), "{report}");
    let said = rows[0]["completion"][0]["content"].as_str().unwrap();
    let spans = report["first"]["spans"].as_array().unwrap();
    assert!(spans[0]["text"].as_str().unwrap().contains("A cat") && spans[0]["trained"] == false, "{spans:?}");
    assert!(spans[1]["text"].as_str().unwrap().starts_with(said) && spans[1]["trained"] == true, "{spans:?}");

    // Without the template both sides are texts; a system message is part of the conversation.
    let plain = place.text("plain.jsonl");
    let done = generate(&["--raw", "--prompt", "A cat", "--max-new-tokens", "3", "--output", &plain, "--json"]);
    fine(&done);
    let row: Value = serde_json::from_str(&fs::read_to_string(&plain).unwrap()).unwrap();
    let shown: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((&row["prompt"], &row["completion"]), (&json!("A cat"), &shown[0]["text"]));
    fine(&place.run("sft", &plain, "plain", &[]));
    let report = place.preflight("plain");
    let shown_as: String =
        report["first"]["spans"].as_array().unwrap().iter().filter_map(|span| span["text"].as_str()).collect();
    assert!(shown_as.starts_with("A cat") && !shown_as.contains("user"), "{shown_as}");
    fine(&generate(&["--system", "Be brief.", "--prompt", "Hi", "--max-new-tokens", "2", "--output", &plain]));
    let row: Value = serde_json::from_str(&fs::read_to_string(&plain).unwrap()).unwrap();
    assert_eq!(row["prompt"][0], json!({ "role": "system", "content": "Be brief." }));

    // What is printed has a prompt beside a text, which no run takes for a text alone.
    let printed = place.write("printed.json", shown.to_string());
    let said = place.refuses("sft", &printed, &[], "--completion-column text");
    assert!(said.contains("--text-column text") && said.contains("prompt+completion | "), "{said}");
    fine(&place.run("sft", &printed, "named", &["--completion-column", "text"]));
    assert_eq!(place.preflight("named")["files"][0]["kind"], "prompt_completion");
    let generate = ["generate", "--model", "builtin", "--prompt", "a", "--output"];
    refused(&[&generate[..], &[&place.text("a.json")]].concat(), "name it with .jsonl at the end");
    refused(&[&generate[..], &[&place.text("no/a.jsonl")]].concat(), "there is no directory");
}

/// A row that is wrong stops a run with file, line and reason, also where rows without anything to learn are dropped;
/// `drop_invalid` costs the row alone, and counts it by reason.
#[test]
fn rows_that_are_wrong_do_not_cost_the_others() {
    let place = Place::new();
    let good = |label: bool| format!("{}\n", json!({ "prompt": "a", "completion": "b", "label": label }));
    let labelled = |label: &str| format!("{{\"prompt\": \"a\", \"completion\": \"b\", \"label\": {label}}}\n");
    let wrong = [
        (labelled("\"maybe\""), "`label` must be true or false, found \"maybe\""),
        (labelled("0.5"), "`label` must be true or false, found 0.5"),
        (labelled("2"), "`label` must be true or false, found 2"),
        (labelled("null"), "`label` must be true or false, found null"),
        (labelled("NaN"), "malformed JSON: NaN is no number of JSON"),
        ("{\"prompt\": \"a\"\n".to_owned(), "malformed JSON"),
        ("{\"prompt\": \"a\", \"completion\": \"b\"}\n".to_owned(), "the column \"label\" is missing"),
        ("{\"prompt\": 3, \"completion\": \"b\", \"label\": true}\n".to_owned(), "`prompt` must be a string"),
    ];
    for (row, words) in &wrong {
        let data = place.write("data.jsonl", good(true) + row + &good(false));
        let said = place.refuses("kto", &data, &["--drop-unsupervised"], words);
        assert!(said.contains("data.jsonl:2: "), "{said}");
    }
    // The first row, too, which says nothing of the columns then; and one that teaches nothing.
    let empty = "{\"prompt\": \"a\", \"completion\": \"\", \"label\": true}\n";
    let all: String = wrong.iter().map(|(row, _)| row.as_str()).rev().collect();
    let bytes = [all.as_bytes(), b"\xFF\n", (good(true) + empty + &good(false)).as_bytes()].concat();
    let data = place.write("data.jsonl", bytes);
    let done = place.run("kto", &data, "run", &["--drop-invalid"]);
    fine(&done);
    let report = place.preflight("run");
    assert_eq!((&report["examples"], &report["dropped_unsupervised"]), (&json!(2), &json!(1)), "{report}");
    let reasons = report["dropped_invalid"].as_array().unwrap();
    let count = |reason: &str| reasons.iter().find(|r| r["reason"] == reason).map(|r| r["rows"].as_u64().unwrap());
    assert_eq!(count("`label` must be true or false"), Some(4), "{report}");
    assert_eq!(count("malformed JSON"), Some(2), "{report}");
    assert_eq!((count("invalid UTF-8"), count("the column \"label\" is missing")), (Some(1), Some(1)), "{report}");
    assert_eq!(reasons.iter().map(|r| r["rows"].as_u64().unwrap()).sum::<u64>(), 9, "{report}");
    assert!(done.stderr.contains("4 of 12 rows are wrong and dropped: ") && done.stderr.contains("data.jsonl:5: "));

    // Margins; where nothing is left, the first reason is said.
    for (margin, words) in [
        ("NaN", "NaN is no number of JSON"),
        ("-Infinity", "Infinity is no number of JSON"),
        ("\"NaN\"", "`margin` must be a finite number, found \"NaN\""),
        ("null", "`margin` must be a finite number, found null"),
    ] {
        let row = |margin: &str| {
            format!("{{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\", \"margin\": {margin}}}\n")
        };
        let data = place.write("pairs.jsonl", row("0.5") + &row(margin));
        assert!(place.refuses("reward", &data, &["--drop-unsupervised"], words).contains("pairs.jsonl:2: "));
        fine(&place.run("reward", &data, &format!("reward {margin}"), &["--drop-invalid"]));
        let data = place.write("pairs.jsonl", row(margin));
        place.refuses("reward", &data, &["--drop-invalid"], words);
    }
    // Held-out rows are dropped likewise.
    let data = place.write("data.jsonl", good(true) + &good(false));
    let held_out = place.write("held.jsonl", good(true) + &labelled("2") + &good(false));
    let held = ["--eval-dataset", &held_out, "--eval-strategy", "steps", "--eval-steps", "1"];
    assert_eq!(place.run("kto", &data, "stopped", &held).code, 2);
    fine(&place.run("kto", &data, "held", &[&held[..], &["--drop-invalid"]].concat()));
}

/// What is longer than the model was made for is trained on, as transformers does, and named.
#[test]
fn rows_beyond_the_models_window_are_named() {
    let place = Place::new();
    let row = |n: usize| json!({ "prompt": "a ".repeat(n), "completion": "b" });
    let data = place.write("data.jsonl", lines(&[row(3), row(900), row(4)]));
    let done = place.run("sft", &data, "run", &[]);
    fine(&done);
    let words = "1 of 3 examples are longer than the 512 positions that the model was made for";
    assert!(done.stderr.contains(words) && done.stderr.contains("data.jsonl:2"), "{done:?}");
    let report = place.preflight("run");
    assert_eq!((&report["window"], &report["beyond_window"]), (&json!(512), &json!(1)));
    let done = place.run("sft", &data, "short", &["--max-length", "512", "--truncation-mode", "drop"]);
    assert!(done.code == 0 && !done.stderr.contains("was made for"), "{done:?}");
    let pair = |n: usize| json!({ "prompt": "a ".repeat(n), "chosen": "b", "rejected": "c" });
    let data = place.write("pairs.jsonl", lines(&[pair(3), pair(900)]));
    let done = place.run("reward", &data, "reward", &[]);
    assert!(done.code == 0 && done.stderr.contains("pairs.jsonl:2; it computes on"), "{done:?}");
}

/// "A cat.\n\nA dog.\n" as gzip packs it.
const PACKED: &[u8] = &[
    31, 139, 8, 0, 0, 0, 0, 0, 2, 3, 115, 84, 72, 78, 44, 209, 227, 226, 114, 84, 72, 201, 79, 215, 227, 2, 0, 173,
    185, 149, 62, 15, 0, 0, 0,
];

/// Plain text is read in documents, by blank lines or as the setting says.
#[test]
fn plain_text_is_read_in_documents() {
    let place = Place::new();
    let corpus = place.write("corpus.txt", "A cat sat.\nIt slept.\n\nA dog ran.\n\n\nA bird flew.\n");
    for (by, rows) in [("paragraph", 3), ("line", 4), ("document", 1)] {
        fine(&place.run("pretrain", &corpus, by, &["--sample-by", by]));
        let report = place.preflight(by);
        assert_eq!((&report["rows"], &report["files"][0]["kind"]), (&json!(rows), &json!("text")), "{by}");
    }
    let done = planish(&["data", "preview", "--model", "builtin", "--dataset", &corpus]);
    fine(&done);
    let shown = format!("{}{}", done.stdout, done.stderr);
    assert!(shown.contains("corpus.txt: 3 rows of text") && shown.contains("It slept."), "{shown}");
    // Packed; and what is no gzip file under such a name.
    let packed = place.write("packed.txt.gz", PACKED);
    fine(&place.run("pretrain", &packed, "packed run", &[]));
    assert_eq!(place.preflight("packed run")["rows"], 2);
    place.refuses("pretrain", &place.write("no.txt.gz", "A cat.\n"), &[], "no.txt.gz: cannot unpack it: ");
    place.refuses("pretrain", &place.write("half.jsonl.gz", &PACKED[..20]), &[], "half.jsonl.gz: cannot unpack it: ");
    place.refuses("pretrain", &place.write("a.md.gz", PACKED), &[], "the extension \"md\" is no data format");
    // A directory of them, each a document.
    fs::create_dir(place.path("books")).unwrap();
    for name in ["books/a.txt", "books/b.txt"] {
        place.write(name, "One.\n\nTwo.\n");
    }
    fine(&place.run("pretrain", &place.text("books"), "books run", &["--sample-by", "document"]));
    assert_eq!(place.preflight("books run")["rows"], 2);
    let damaged = place.write("damaged.txt", b"A cat.\n\nA\nd\xFFg.\n");
    place.refuses("pretrain", &damaged, &[], "damaged.txt:4: invalid UTF-8 at byte 11 of the file");
    fine(&place.run("pretrain", &damaged, "damaged run", &["--drop-invalid"]));
    place.refuses("pretrain", &place.write("blank.txt", " \n\n"), &[], "blank.txt: the file holds no rows");
}
