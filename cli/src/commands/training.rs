//! What the commands that run a recipe have in common.

use clap::{ArgMatches, Command};
use planish_train::config::{Loaded, LoraSettings, ModelSettings, Recipe, RunSettings};
use planish_train::run::{Observer, Outcome};

use super::json_flag;
use crate::terminal::{Terminal, catch_interrupts, conclude};
use crate::{model_args, output, settings};

/// A command with the settings of a recipe as flags.
pub(crate) fn command<C: Recipe>(about: &'static str) -> Command {
    settings::with_flags::<C>(Command::new(C::NAME).about(about)).arg(json_flag()).next_line_help(true)
}

/// Says so if settings are of an adapter and there is none.
pub(crate) fn note_without_adapter<C: Recipe>(loaded: &Loaded<C>, model: &ModelSettings, lora: &LoraSettings) {
    if lora.use_peft || model.adapter.is_some() {
        return;
    }
    // Their group has what is trained without one, too.
    let without = |key: &str| key == "use_peft" || key == "finetuning_type" || key.starts_with("freeze_");
    let keys = loaded.config.keys();
    let of_adapters = |chosen: &&String| {
        keys.iter().any(|key| key.group == "Adapters" && key.name == chosen.as_str() && !without(key.name))
    };
    if let Some(key) = loaded.chosen.iter().filter(of_adapters).min() {
        output::note(format_args!("note: `{key}` has no effect without --use-peft: it is for adapters"));
    }
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
    note_without_adapter(&loaded, model, lora);
    model_args::set_threads(run.threads)?;
    catch_interrupts()?;
    let mut seen = Terminal::new(run.logging_steps).with_model(model);
    let outcome = recipe(&loaded.config, &mut seen)?;
    conclude(&outcome, &seen, matches.get_flag("json"))
}
