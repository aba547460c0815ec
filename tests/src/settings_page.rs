//! The settings page of the book, made from the table of settings.

use std::fmt::Write;

use planish_train::config::{
    Arity, CpoConfig, DistillConfig, DpoConfig, Key, KtoConfig, MixConfig, OrpoConfig, PretrainConfig, RewardConfig,
    Settings, SftConfig, SimpoConfig, aliases,
};
use serde_json::Value as Json;

const HEAD: &str = "\
# Settings

<!-- Made by `cargo run -p planish-tests --bin settings-page` from train/src/config; do not edit. -->

A setting is a flag (`--learning-rate 1e-4`) or a line of a YAML file (`learning_rate: 1e-4`), `-` and `_` alike; a
flag beats the file. Switches are `--packing`, `--no-packing` or `--packing false`; lists are repeated flags or
values with commas between them. An unknown name is an error that suggests the nearest. Names and defaults are those
of TRL and transformers unless a line says otherwise.

```console
planish sft train.yaml --learning-rate 1e-4
planish config sft train.yaml
```

The second command checks a file and prints every setting as it would be used.
";

/// The page `docs/src/settings.md`.
pub fn settings_page() -> String {
    let mut page = HEAD.to_owned();
    let sft = SftConfig::default().keys();
    page.push_str("\n## `planish sft`\n");
    groups(&mut page, &sft);
    let dpo = DpoConfig::default().keys();
    let as_sft = "As `planish sft`, but for these, and without packing, masks and other columns.";
    let as_dpo = "As `planish dpo`, but for these.";
    let without = "As `planish dpo`, but for these, and without a reference.";
    for (name, says, keys, above) in [
        ("pretrain", "As above, but for these.", PretrainConfig::default().keys(), &sft),
        ("dpo", as_sft, dpo.clone(), &sft),
        ("kto", as_dpo, KtoConfig::default().keys(), &dpo),
        ("orpo", without, OrpoConfig::default().keys(), &dpo),
        ("cpo", without, CpoConfig::default().keys(), &dpo),
        ("simpo", without, SimpoConfig::default().keys(), &dpo),
        ("mix", as_dpo, MixConfig::default().keys(), &dpo),
        ("reward", without, RewardConfig::default().keys(), &dpo),
        ("distill", "As `planish sft`, but for these.", DistillConfig::default().keys(), &sft),
    ] {
        put(&mut page, format_args!("\n## `planish {name}`\n\n{says}\n"));
        let own: Vec<Key> = keys.into_iter().filter(|key| !above.iter().any(|other| same(key, other))).collect();
        groups(&mut page, &own);
    }
    page.push_str("\n## Other names\n\nAccepted everywhere.\n\n| name | setting |\n| --- | --- |\n");
    for (alias, own) in aliases() {
        put(&mut page, format_args!("| `{alias}` | `{own}` |\n"));
    }
    page
}

/// Whether a reader of one line knows the other.
fn same(a: &Key, b: &Key) -> bool {
    (a.name, a.help, &a.accepts, &a.default) == (b.name, b.help, &b.accepts, &b.default)
}

fn groups(page: &mut String, keys: &[Key]) {
    let mut group = "";
    for key in keys {
        if key.group != group {
            group = key.group;
            put(page, format_args!("\n### {group}\n\n| setting | default | |\n| --- | --- | --- |\n"));
        }
        let help = key.help.replace('|', "\\|");
        let accepts = accepts(key);
        put(page, format_args!("| `{}` | {} | {help}{accepts} |\n", key.name, default(&key.default)));
    }
}

/// What is accepted, where the default does not say it all.
fn accepts(key: &Key) -> String {
    let rule = key.accepts.trim_end_matches(", or null").trim_start_matches("a list, each ");
    if key.arity == Arity::Switch || rule.starts_with("a text") {
        return String::new();
    }
    let mut letters = rule.chars();
    let sentence: String =
        letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default();
    format!(" *{sentence}.*")
}

fn default(value: &Json) -> String {
    match value {
        Json::Null => String::new(),
        Json::String(text) if text.is_empty() => String::new(),
        Json::Array(items) if items.is_empty() => String::new(),
        Json::Object(map) if map.is_empty() => String::new(),
        // As in YAML: a line break in the table would end its row.
        Json::String(text) if text.trim().is_empty() => format!("`{value}`"),
        Json::String(text) => format!("`{text}`"),
        Json::Number(number) if number.as_f64().is_some_and(|x| x > 0.0 && x < 1e-3) => {
            format!("`{:e}`", number.as_f64().unwrap_or_default())
        }
        other => format!("`{other}`"),
    }
}

fn put(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("a string takes all");
}
