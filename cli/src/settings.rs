//! The settings of a recipe as flags of a command: built from the table, never by hand.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use planish_train::config::{
    Arity, ConfigError, CpoConfig, DistillConfig, DpoConfig, Flag, Key, KtoConfig, Loaded, MixConfig, OrpoConfig,
    PretrainConfig, Recipe, RewardConfig, Settings, SftConfig, SimpoConfig, aliases, resolve,
};
use serde_json::Value as Json;

/// Names, aliases included, of the settings that are true or false.
pub(crate) fn switches() -> &'static HashSet<&'static str> {
    static SWITCHES: LazyLock<HashSet<&'static str>> = LazyLock::new(|| {
        let keys = [
            SftConfig::default().keys(),
            PretrainConfig::default().keys(),
            DpoConfig::default().keys(),
            KtoConfig::default().keys(),
            OrpoConfig::default().keys(),
            CpoConfig::default().keys(),
            SimpoConfig::default().keys(),
            RewardConfig::default().keys(),
            MixConfig::default().keys(),
            DistillConfig::default().keys(),
        ];
        let keys = keys.into_iter().flatten();
        keys.filter(|key| key.arity == Arity::Switch).map(|key| key.name).collect()
    });
    &SWITCHES
}

/// Adds a recipe's flags, and the settings file as the positional argument.
pub(crate) fn with_flags<C: Recipe>(command: Command) -> Command {
    let file = Arg::new("config")
        .value_name("CONFIG.yaml")
        .value_parser(value_parser!(PathBuf))
        .help("Settings file; a flag beats it");
    C::default().keys().into_iter().fold(command.arg(file), |command, key| command.arg(flag(&key)))
}

fn flag(key: &Key) -> Arg {
    let dashed = |name: &str| name.replace('_', "-");
    let mut arg = Arg::new(key.name)
        .long(dashed(key.name))
        .help(help(key))
        .help_heading(key.group)
        .allow_negative_numbers(true)
        .action(if key.arity == Arity::Many { ArgAction::Append } else { ArgAction::Set });
    arg = match key.arity {
        Arity::Switch => arg.value_name("true|false").require_equals(true),
        Arity::One | Arity::Many => arg.value_name(value_name(key)),
    };
    aliases().iter().filter(|(_, own)| *own == key.name).fold(arg, |arg, (alias, _)| arg.alias(dashed(alias)))
}

fn value_name(key: &Key) -> &'static str {
    if key.accepts.contains("whole number") {
        "N"
    } else if key.accepts.contains("number") {
        "X"
    } else {
        "VALUE"
    }
}

/// What it is, what is accepted where that is not plain, and the default.
fn help(key: &Key) -> String {
    let mut help = key.help.to_owned();
    if key.accepts.contains("one of ") {
        help = format!("{help} ({})", key.accepts);
    }
    let default = match &key.default {
        Json::Null => None,
        Json::String(text) if text.is_empty() => None,
        Json::Array(items) if items.is_empty() => None,
        Json::Object(map) if map.is_empty() => None,
        // A line break would be one in the help too.
        Json::String(text) if text.trim().is_empty() => Some(key.default.to_string()),
        Json::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    match default {
        Some(default) => format!("{help} [default: {default}]"),
        None => help,
    }
}

/// Resolves the settings of a command built by [`with_flags`].
///
/// # Errors
/// [`ConfigError`].
pub(crate) fn load<C: Recipe>(matches: &ArgMatches) -> Result<Loaded<C>, ConfigError> {
    let file = matches.get_one::<PathBuf>("config");
    resolve(file.map(PathBuf::as_path), &given::<C>(matches))
}

/// The settings given as flags.
fn given<C: Recipe>(matches: &ArgMatches) -> Vec<Flag> {
    let keys = C::default().keys().into_iter();
    keys.filter_map(|key| {
        let values = matches.get_many::<String>(key.name)?;
        Some((key.name.to_owned(), values.cloned().collect()))
    })
    .collect()
}

/// As [`load`] for commands that look but do not train: `output_dir` need not be given.
///
/// # Errors
/// [`ConfigError`].
pub(crate) fn load_without_run<C: Recipe>(matches: &ArgMatches) -> Result<C, ConfigError> {
    let file = matches.get_one::<PathBuf>("config");
    let mut flags = given::<C>(matches);
    if !flags.iter().any(|(name, _)| name == "output_dir") {
        flags.push(("output_dir".to_owned(), vec!["unused".to_owned()]));
    }
    Ok(resolve(file.map(PathBuf::as_path), &flags)?.config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_lists_every_setting_with_its_default() {
        let mut command = with_flags::<SftConfig>(Command::new("sft"));
        let help = command.render_long_help().to_string();
        for key in SftConfig::default().keys() {
            let flag = format!("--{}", key.name.replace('_', "-"));
            assert!(help.contains(&flag), "{flag}");
            let words: String = key.help.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
            assert!(help.contains(&words), "{flag}: {words}");
        }
        assert!(help.contains("[default: 2e-5]") || help.contains("[default: 0.00002]"));
    }

    #[test]
    fn every_setting_parses_as_a_flag() {
        for key in SftConfig::default().keys() {
            let flag = format!("--{}=1", key.name.replace('_', "-"));
            let command = with_flags::<SftConfig>(Command::new("sft"));
            let matches = command.try_get_matches_from(["sft", &flag]).unwrap();
            assert_eq!(matches.get_one::<String>(key.name).map(String::as_str), Some("1"));
        }
    }
}
