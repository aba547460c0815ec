//! The preflight report.

use super::*;

fn report(rows: &str, encode: EncodeOptions, limit: u64) -> Preflight {
    let f = Files::new();
    let s = sampler(f.open("a.jsonl", rows).unwrap(), encode, SamplerOptions::default());
    preflight(&s, limit).unwrap().0
}

#[test]
fn counts_and_quantiles() {
    let encode = EncodeOptions { max_length: Some(20), ..EncodeOptions::default() };
    let lengths: Vec<usize> = (2..=31).collect();
    let r = report(&texts(&lengths), encode, 1000);
    assert_eq!((r.rows, r.examples, r.sampled, r.truncated), (30, 30, false, 11));
    assert_eq!((r.lengths.min, r.lengths.p50, r.lengths.p90, r.lengths.max), (2, 16, 28, 31));
    assert_eq!(r.lengths.histogram.iter().map(|b| b.count).sum::<u64>(), 30);
    assert_eq!(r.tokens, (2..=31).map(|n: u64| n.min(20)).sum::<u64>());
    assert_eq!(r.supervised_tokens, r.tokens - 30);
    assert_eq!(r.steps_per_epoch, 4);
    assert!(
        r.warnings[0].starts_with("11 of 30 examples are cut to 20 tokens; the longest has 31"),
        "{:?}",
        r.warnings
    );
    // The report is data, too.
    let json = serde_json::to_string(&r).unwrap();
    assert_eq!(serde_json::from_str::<Preflight>(&json).unwrap(), r);
}

#[test]
fn a_large_set_is_sampled_evenly() {
    let f = Files::new();
    let s = sampler(f.open("a.jsonl", texts(&[11; 400])).unwrap(), EncodeOptions::default(), SamplerOptions::default());
    let (r, lengths) = preflight(&s, 40).unwrap();
    assert_eq!((r.examined, r.sampled, r.steps_per_epoch), (40, true, 50));
    assert!(lengths.by_row.is_empty());
    assert!(render(&r, false).contains("(from a sample of 40 of 400 rows)"));
}

#[test]
fn the_first_example_shows_its_mask() {
    let rows = r#"{"prompt": "2+2=\u001b[2J", "completion": "4"}"#;
    let r = report(rows, EncodeOptions::default(), 10);
    let spans: Vec<(&str, bool)> =
        r.first.as_ref().unwrap().spans.iter().map(|s| (s.text.as_str(), s.trained)).collect();
    assert_eq!(spans, [("2+2=\x1b[2J", false), ("4</s>", true)]);
    let text = render(&r, false);
    assert!(text.contains("2+2=\\u{1b}[2J⟦4</s>⟧"), "{text}");
    assert!(!text.contains('\x1b'));
    let color = render(&r, true);
    assert!(color.contains("\x1b[32m4</s>\x1b[0m") && !color.contains("\x1b[2J"), "{color}");
}

#[test]
fn warnings_say_what_is_odd() {
    let f = Files::new();
    let rows = "{\"text\": \"<s>ab\"}\n{\"text\": \"\"}\n";
    let (view, _) = Arc::new(f.open("a.jsonl", rows).unwrap()).split(None, 0).unwrap();
    let options = EncodeOptions { append_eos: false, ..EncodeOptions::default() };
    let e = encoder(Toy { add_bos: true, ..Toy::default() }, options);
    let (r, _) = preflight(&Sampler::new(view, e, SamplerOptions::default()).unwrap(), 10).unwrap();
    assert_eq!((r.double_bos, r.missing_eos, r.dropped_unsupervised), (1, 1, 1));
    assert_eq!(r.warnings.len(), 3, "{:?}", r.warnings);
}
