//! What the commands that run a recipe have in common.

use clap::{ArgMatches, Command};
use planish_train::config::{LoraSettings, ModelSettings, Recipe, RunSettings};
use planish_train::run::{Observer, Outcome};

use super::json_flag;
use crate::terminal::{Terminal, catch_interrupts, conclude};
use crate::{model_args, output, settings};

/// A command with the settings of a recipe as flags.
pub(crate) fn command<C: Recipe>(about: &'static str) -> Command {
    settings::with_flags::<C>(Command::new(C::NAME).about(about)).arg(json_flag()).next_line_help(true)
}

/// Resolves the settings and runs the recipe.
///
/// # Errors
/// What the recipe says.
pub(crate) fn run<C: Recipe>(
    matches: &ArgMatches,
    blocks: fn(&C) -> (&RunSettings, &ModelSettings, &LoraSettings),
    recipe: fn(&C, &mut dyn Observer) -> planish_train::Result<Outcome>,
) -> anyhow::Result<u8> {
    let loaded = settings::load::<C>(matches)?;
    let (run, model, lora) = blocks(&loaded.config);
    if !lora.use_peft
        && model.adapter.is_none()
        && let Some(key) = loaded.chosen.iter().find(|k| k.starts_with("lora_"))
    {
        output::note(format_args!("note: `{key}` has no effect without --use-peft: all weights are trained"));
    }
    model_args::set_threads(run.threads)?;
    catch_interrupts()?;
    let mut seen = Terminal::new(run.logging_steps);
    let outcome = recipe(&loaded.config, &mut seen)?;
    conclude(&outcome, &seen, matches.get_flag("json"))
}
