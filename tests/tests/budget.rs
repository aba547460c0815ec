//! A memory budget decides how a step is cut. A process of its own: what the process has in use counts, and tests
//! beside this one would change it.

use planish_train::Error;
use planish_train::config::SftConfig;
use planish_train::recipes::sft;
use planish_train::run::Silent;

/// Tokens of the longest pass that is chosen on the processor.
const LONGEST: u64 = 704;

/// A budget makes passes shorter, then recomputes layers, then is refused; the choice is written down, and a
/// resumed run keeps it though the budget is another.
#[test]
fn a_memory_budget_chooses_passes_and_recomputation() {
    let place = tempfile::tempdir().unwrap();
    let rows = place.path().join("rows.jsonl");
    let row = |i: usize| {
        let words = "blue bird red dog sun ".repeat(12 + i % 9);
        format!("{{\"prompt\": \"say {words}\", \"completion\": \"{words}\"}}\n")
    };
    std::fs::write(&rows, (0..64).map(row).collect::<String>()).unwrap();
    let flags = |run: &str, more: &[(&'static str, &'static str)]| {
        let mut flags = vec![
            ("model".to_owned(), vec!["builtin".to_owned()]),
            ("dataset".to_owned(), vec![rows.display().to_string()]),
            ("output_dir".to_owned(), vec![place.path().join(run).display().to_string()]),
            ("save_steps".to_owned(), vec!["1".to_owned()]),
            ("per_device_train_batch_size".to_owned(), vec!["16".to_owned()]),
        ];
        flags.extend(more.iter().map(|(k, v)| (k.to_string(), vec![v.to_string()])));
        planish_train::config::resolve::<SftConfig>(None, &flags).unwrap().config
    };
    let chosen = |run: &str| {
        let text = std::fs::read_to_string(place.path().join(run).join("config.yaml")).unwrap();
        let of = |key: &str| {
            let line = text.lines().find(|l| l.starts_with(&format!("{key}:"))).unwrap();
            line.split_once(": ").unwrap().1.to_owned()
        };
        let recomputed = (of("gradient_checkpointing") == "true").then(|| of("recompute_granularity"));
        (of("tokens_per_pass").parse::<u64>().unwrap(), recomputed)
    };
    let plenty = flags("plenty", &[("memory_budget", "64"), ("max_steps", "1")]);
    sft::run(&plenty, &mut Silent).unwrap();
    assert_eq!(chosen("plenty"), (LONGEST, None), "the longest pass fits, and nothing is recomputed");
    let foreseen = sft::plan(&plenty).unwrap();
    assert!(foreseen.recomputes.is_none() && foreseen.memory.tokens > 512, "what a run would choose: {foreseen:?}");
    let none = flags("none", &[("memory_budget", "0.001"), ("max_steps", "1")]);
    assert!(matches!(sft::plan(&none), Err(Error::OverBudget { .. })));
    let refusal = sft::run(&none, &mut Silent).unwrap_err();
    let problem = refusal.to_string();
    assert!(problem.contains("memory_budget allows 1 MiB") && problem.contains("raise memory_budget"), "{problem}");
    assert!(!place.path().join("none").exists(), "nothing is written");
    // The smallest budget that is enough, from the one that the refusal names on: what the process has in use
    // changes a little from one try to the next.
    let Error::OverBudget { needed, .. } = refusal else { panic!("{refusal}") };
    let runs = |name: &str, mib: u64| {
        let mut some = flags(name, &[("max_steps", "1")]);
        some.optim.memory_budget = Some(mib as f64 / 1024.0);
        sft::run(&some, &mut Silent).is_ok()
    };
    let found = (needed >> 20..(needed >> 20) + 64).find(|&mib| runs("some", mib));
    let smallest = found.expect("a budget as large as the refusal asks for is enough");
    assert_eq!(
        chosen("some").1.as_deref(),
        Some("full"),
        "the smallest budget that is enough asks for all recomputation"
    );
    // With more, less is made again, and before anything is, passes are made shorter.
    let mut seen: Vec<(u64, Option<String>)> = vec![];
    for mib in (smallest + 1..smallest + 200).step_by(2) {
        let run = format!("more-{mib}");
        if runs(&run, mib) && !seen.contains(&chosen(&run)) {
            seen.push(chosen(&run));
        }
        if seen.last() == Some(&(LONGEST, None)) {
            break;
        }
    }
    let saw =
        |pass: &dyn Fn(u64) -> bool, what: Option<&str>| seen.iter().any(|(p, r)| pass(*p) && r.as_deref() == what);
    assert!(saw(&|_| true, Some("selective")), "{seen:?}");
    assert!(saw(&|pass| pass < LONGEST, None) && saw(&|pass| pass == LONGEST, None), "{seen:?}");
    let mut on = flags("some", &[("max_steps", "2"), ("resume_from_checkpoint", "latest")]);
    on.optim.memory_budget = Some(64.0);
    let before = chosen("some");
    let mut like = flags("like", &[("max_steps", "1")]);
    like.optim.memory_budget = Some(smallest as f64 / 1024.0 + 0.01);
    let foreseen = sft::plan(&like).unwrap();
    let allowed = (like.optim.memory_budget.unwrap() * (1u64 << 30) as f64) as u64;
    assert!(foreseen.memory.total() <= allowed && foreseen.memory.tokens <= 512, "{foreseen:?}");
    sft::run(&on, &mut Silent).unwrap();
    assert_eq!(chosen("some").0, before.0, "a resumed run keeps its passes");
}
