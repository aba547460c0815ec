//! Settings of the data that only a run shows to be heeded.

use std::fmt::Write as _;
use std::path::Path;

use planish_train::config::{PretrainConfig, SftConfig};
use planish_train::data::{DatasetType, Packing, Preflight};
use planish_train::recipes::{pretrain, sft};
use planish_train::run::{Silent, read_metrics};

use crate::resume::{prepare, pretrain_settings};
use crate::{result, settings};

fn preview(data: &Path, extra: &[(&str, &str)]) -> Result<Preflight, String> {
    let data = data.to_string_lossy().into_owned();
    let mut flags = vec![("model", "builtin"), ("dataset", &data), ("output_dir", "none")];
    flags.extend(extra);
    sft::preview(&settings::<SftConfig>(&flags)).map_err(|e| e.to_string())
}

#[test]
fn dataset_type_decides_where_columns_fit_two() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("alpaca.jsonl");
    let mut rows = String::new();
    for i in 0..4 {
        writeln!(rows, r#"{{"instruction": "say {i}", "input": "", "output": "{i}", "text": "say {i} {i}"}}"#).unwrap();
    }
    std::fs::write(&file, rows).unwrap();
    let problem = preview(&file, &[]).unwrap_err();
    assert!(problem.contains("both instruction+output and text") && problem.contains("--dataset-type"), "{problem}");
    for (word, kind) in [("alpaca", DatasetType::Alpaca), ("text", DatasetType::Text)] {
        let report = preview(&file, &[("dataset_type", word)]).unwrap();
        assert_eq!(report.files[0].kind, kind);
        assert_eq!(report.examples, 4);
    }
    let problem = preview(&file, &[("dataset_type", "messages")]).unwrap_err();
    assert!(problem.contains("the column \"messages\" is missing"), "{problem}");
}

#[test]
fn packing_strategy_wrapped_fills_every_row() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    prepare(dir);
    let tokens = |strategy: &str| {
        let flags = [("packing_strategy", strategy)];
        let config: PretrainConfig = pretrain_settings(dir, strategy, &flags);
        let end = result(pretrain::run(&config, &mut Silent).unwrap());
        let log = read_metrics(&end.parent().unwrap().join("metrics.jsonl")).unwrap();
        log.iter().take(3).map(|row| row["num_tokens"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    // 2 rows of 32 tokens, twice a step.
    assert_eq!(tokens("wrapped"), [128, 256, 384]);
    let whole = tokens("bfd");
    assert!(whole[2] < 384, "{whole:?}");
    let data = dir.join("texts.jsonl");
    let packed = [("packing", "true"), ("packing_strategy", "wrapped"), ("max_length", "32")];
    assert_eq!(preview(&data, &packed).unwrap().packing, Packing::Wrapped);
}
