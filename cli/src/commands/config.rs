//! `planish config RECIPE …`: check settings and print them resolved.

use clap::{ArgMatches, Command};
use planish_train::config::{
    CpoConfig, DistillConfig, DpoConfig, KtoConfig, MixConfig, OrpoConfig, PretrainConfig, Recipe, RewardConfig,
    SftConfig, SimpoConfig, to_yaml,
};

use super::json_flag;
use crate::failure::DONE;
use crate::{output, settings};

pub(crate) fn command() -> Command {
    let recipe = |name, about, with: fn(Command) -> Command| {
        with(Command::new(name).about(about)).arg(json_flag()).next_line_help(true)
    };
    Command::new("config")
        .about("Check the settings of a training command and print them resolved, as YAML")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(recipe(SftConfig::NAME, "Settings of supervised fine-tuning", settings::with_flags::<SftConfig>))
        .subcommand(recipe(
            PretrainConfig::NAME,
            "Settings of training from nothing",
            settings::with_flags::<PretrainConfig>,
        ))
        .subcommand(recipe(DpoConfig::NAME, "Settings of DPO and its family", settings::with_flags::<DpoConfig>))
        .subcommand(recipe(KtoConfig::NAME, "Settings of KTO", settings::with_flags::<KtoConfig>))
        .subcommand(recipe(OrpoConfig::NAME, "Settings of ORPO", settings::with_flags::<OrpoConfig>))
        .subcommand(recipe(CpoConfig::NAME, "Settings of CPO", settings::with_flags::<CpoConfig>))
        .subcommand(recipe(SimpoConfig::NAME, "Settings of SimPO", settings::with_flags::<SimpoConfig>))
        .subcommand(recipe(MixConfig::NAME, "Settings of several objectives", settings::with_flags::<MixConfig>))
        .subcommand(recipe(RewardConfig::NAME, "Settings of reward models", settings::with_flags::<RewardConfig>))
        .subcommand(recipe(DistillConfig::NAME, "Settings of distillation", settings::with_flags::<DistillConfig>))
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let (name, matches) = matches.subcommand().expect("clap demands a subcommand");
    match name {
        SftConfig::NAME => print::<SftConfig>(matches),
        DpoConfig::NAME => print::<DpoConfig>(matches),
        KtoConfig::NAME => print::<KtoConfig>(matches),
        OrpoConfig::NAME => print::<OrpoConfig>(matches),
        CpoConfig::NAME => print::<CpoConfig>(matches),
        SimpoConfig::NAME => print::<SimpoConfig>(matches),
        MixConfig::NAME => print::<MixConfig>(matches),
        RewardConfig::NAME => print::<RewardConfig>(matches),
        DistillConfig::NAME => print::<DistillConfig>(matches),
        _ => print::<PretrainConfig>(matches),
    }
}

fn print<C: Recipe>(matches: &ArgMatches) -> anyhow::Result<u8> {
    let config = settings::load::<C>(matches)?.config;
    if matches.get_flag("json") {
        output::json(&config.to_json())?;
    } else {
        output::line(to_yaml(&config).trim_end())?;
    }
    Ok(DONE)
}
