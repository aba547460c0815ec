//! The settings of `planish mix`: an objective for each data set.

use serde_json::{Map, Value as Json, json};

use super::error::{ConfigError, Origin};
use super::groups::{EvalSettings, LoraSettings, ModelSettings, OptimSettings, RunSettings};
use super::load::nearest;
use super::preference::{
    CpoSettings, DpoLossType, DpoSettings, KtoLossType, KtoSettings, OrpoSettings, PreferenceDataSettings,
    ReferenceSettings, SimpoSettings,
};
use super::preference_recipes::{
    DropoutSettings, PairSettings, PreferenceBlocks, PreferenceRecipe, check_dpo, check_kto, check_reference,
    preference_recipe,
};
use super::raw::{Node, Raw, parse_node};
use super::recipes::{Recipe, check_base, check_data, check_eval, check_run, conflict};
use super::router::RouterSettings;
use super::setting::rules::NOT_NEGATIVE;
use super::setting::{Arity, Rule, Setting, wrong};
use super::table::{Settings, recipe_settings, settings};

/// What the rows of one data set are trained with.
#[derive(Clone, Debug, PartialEq)]
pub struct Ingredient {
    /// What its metrics begin with.
    pub name: String,
    /// Weight of its mean loss in the loss of a step.
    pub weight: f64,
    /// The loss.
    pub loss: IngredientLoss,
}

/// Declares the losses: cross-entropy, and those that have settings.
macro_rules! losses {
    ($( $(#[$meta:meta])* $variant:ident($settings:ty) = $name:literal, )+) => {
        /// The objectives that can be mixed, with the settings of their losses.
        #[derive(Clone, Debug, PartialEq)]
        pub enum IngredientLoss {
            /// Cross-entropy of the supervised tokens.
            Sft,
            $( $(#[$meta])* $variant($settings), )+
        }

        impl IngredientLoss {
            const NAMES: &[&str] = &["sft", $($name),+];

            /// That of a name, with its defaults.
            pub fn named(name: &str) -> Option<IngredientLoss> {
                Some(match name {
                    "sft" => IngredientLoss::Sft,
                    $( $name => IngredientLoss::$variant(Default::default()), )+
                    _ => return None,
                })
            }

            /// The command that trains with it alone.
            pub fn name(&self) -> &'static str {
                match self {
                    IngredientLoss::Sft => "sft",
                    $( IngredientLoss::$variant(_) => $name, )+
                }
            }

            fn settings(&self) -> Option<&dyn Settings> {
                match self {
                    IngredientLoss::Sft => None,
                    $( IngredientLoss::$variant(settings) => Some(settings), )+
                }
            }

            fn settings_mut(&mut self) -> Option<&mut dyn Settings> {
                match self {
                    IngredientLoss::Sft => None,
                    $( IngredientLoss::$variant(settings) => Some(settings), )+
                }
            }
        }
    };
}

losses! {
    /// DPO and its family.
    Dpo(DpoSettings) = "dpo",
    /// KTO.
    Kto(KtoSettings) = "kto",
    /// ORPO.
    Orpo(OrpoSettings) = "orpo",
    /// CPO.
    Cpo(CpoSettings) = "cpo",
    /// SimPO.
    Simpo(SimpoSettings) = "simpo",
}

impl IngredientLoss {
    /// Whether it compares with a reference.
    pub fn has_reference(&self) -> bool {
        matches!(self, IngredientLoss::Dpo(_) | IngredientLoss::Kto(_))
    }
}

/// Metrics that began with nothing would be nobody's.
const NAME: Rule<String> = Rule { accepts: "a name that is not empty", test: |name| !name.trim().is_empty() };

/// What is accepted for one of them.
const ONE: &str = "sft, dpo, kto, orpo, cpo or simpo, or a map with one of them as `objective`";

impl Ingredient {
    fn parse(key: &str, raw: &Raw) -> Result<Ingredient, ConfigError> {
        let of = |raw: &Raw| match &raw.node {
            Node::Text(text) => IngredientLoss::named(text.trim()),
            _ => None,
        };
        let Node::Map(entries) = &raw.node else {
            let loss = of(raw).ok_or_else(|| wrong(key, raw, ONE))?;
            return Ok(Ingredient { name: loss.name().to_owned(), weight: 1.0, loss });
        };
        let Some((_, _, objective)) = entries.iter().find(|(name, ..)| name == "objective") else {
            return Err(wrong(key, raw, ONE));
        };
        let path = |name: &str| format!("{key}.{name}");
        let loss = of(objective).ok_or_else(|| {
            wrong(&path("objective"), objective, format!("one of {}", IngredientLoss::NAMES.join(", ")))
        })?;
        let mut one = Ingredient { name: loss.name().to_owned(), weight: 1.0, loss };
        for (i, (name, at, value)) in entries.iter().enumerate() {
            if entries[..i].iter().any(|(before, ..)| before == name) {
                return Err(ConfigError::Twice { key: path(name), at: at.clone() });
            }
            match name.as_str() {
                "objective" => {}
                "weight" => one.weight = Setting::parse(&path(name), value, &NOT_NEGATIVE)?,
                "name" => one.name = Setting::parse(&path(name), value, &NAME)?,
                _ => one.set(key, name, at, value)?,
            }
        }
        Ok(one)
    }

    fn set(&mut self, key: &str, name: &str, at: &Origin, value: &Raw) -> Result<(), ConfigError> {
        if let Some(settings) = self.loss.settings_mut()
            && settings.set(name, value)?
        {
            return Ok(());
        }
        let own = self.loss.settings().map(Settings::keys).unwrap_or_default();
        let names = own.iter().map(|key| key.name).chain(["objective", "weight", "name"]);
        Err(ConfigError::UnknownKey {
            key: format!("{key}.{name}"),
            at: at.clone(),
            nearest: nearest(name, names).map(|n| format!("{key}.{n}")),
        })
    }

    fn to_json(&self) -> Json {
        let mut all = Map::new();
        all.insert("objective".to_owned(), json!(self.loss.name()));
        all.insert("name".to_owned(), json!(self.name));
        all.insert("weight".to_owned(), Setting::to_json(&self.weight));
        all.extend(self.loss.settings().map(Settings::to_json).unwrap_or_default());
        Json::Object(all)
    }
}

/// One objective for each data set, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objectives(pub Vec<Ingredient>);

impl Objectives {
    const RULE: Rule<Objectives> = Rule { accepts: ONE, test: |_| true };
}

impl Setting for Objectives {
    type Scalar = Objectives;
    const ARITY: Arity = Arity::Many;

    /// A list of names and maps; as text `sft,{objective: dpo, weight: 0.5}`.
    fn parse(key: &str, raw: &Raw, rule: &Rule<Objectives>) -> Result<Self, ConfigError> {
        let all = |items: &[Raw]| items.iter().map(|item| Ingredient::parse(key, item)).collect::<Result<_, _>>();
        let list = match &raw.node {
            Node::Null => return Ok(Objectives::default()),
            Node::List(items) => return Ok(Objectives(all(items)?)),
            Node::Map(_) => return Ok(Objectives(vec![Ingredient::parse(key, raw)?])),
            Node::Text(text) => match parse_node(&format!("[{text}]"), &Default::default()) {
                Ok(Raw { node: Node::List(items), .. }) => items,
                _ => return Err(wrong(key, raw, format!("a list, each {}", rule.accepts))),
            },
        };
        // Lines inside a flag's value mean nothing to the user; the flag does.
        Ok(Objectives(all(&list.into_iter().map(|item| at(item, &raw.at)).collect::<Vec<_>>())?))
    }

    fn allowed(&self, _: &Rule<Objectives>) -> bool {
        let right = |one: &Ingredient| {
            (NOT_NEGATIVE.test)(&one.weight)
                && (NAME.test)(&one.name)
                && one.loss.settings().is_none_or(|s| s.check_ranges().is_ok())
        };
        self.0.iter().all(right)
    }

    fn to_json(&self) -> Json {
        Json::Array(self.0.iter().map(Ingredient::to_json).collect())
    }
}

/// The value with another origin, all through.
fn at(raw: Raw, origin: &Origin) -> Raw {
    let node = match raw.node {
        Node::List(items) => Node::List(items.into_iter().map(|item| at(item, origin)).collect()),
        Node::Map(entries) => {
            Node::Map(entries.into_iter().map(|(key, _, value)| (key, origin.clone(), at(value, origin))).collect())
        }
        other => other,
    };
    Raw { node, at: origin.clone() }
}

settings! {
    /// What is trained with what.
    pub struct MixSettings ("Objectives") {
        /// An objective for each `dataset`, in their order, or one for all: a name (sft, dpo, kto, orpo, cpo, simpo), or a map of `objective`, `weight` (of its mean loss in the loss of a step), `name` (what its metrics begin with) and the settings of its loss.
        objectives: Objectives = Objectives::default(), Objectives::RULE;
    }
}

preference_recipe! {
    /// Several objectives in one run (`planish mix`).
    MixConfig, "mix",
    (mix: MixSettings, "The objectives."),
    (router: RouterSettings, "Losses of a router."),
    (pairs: PairSettings, "How pairs are computed."),
    (reference: ReferenceSettings, "What objectives compare with.");
    |_| {};
    check_mix
}

fn check_mix(c: &MixConfig) -> Result<(), ConfigError> {
    let (all, data) = (&c.mix.objectives.0, &c.data);
    if all.is_empty() {
        return Err(ConfigError::Missing { key: "objectives" });
    }
    if all.len() != 1 && all.len() != data.dataset.len() {
        return conflict("objectives", "must be one for each `dataset`, in their order, or one for all");
    }
    if all.len() != 1 && !data.eval_dataset.is_empty() && data.eval_dataset.len() != all.len() {
        return conflict("eval_dataset", "must be one for each of the `objectives`, in their order");
    }
    if !all.iter().any(|one| one.weight > 0.0) {
        return conflict("objectives", "must have a weight above 0 among them");
    }
    if (1..all.len()).any(|i| all[..i].iter().any(|before| before.name == all[i].name)) {
        return conflict(
            "objectives",
            "must differ in `name`, which their metrics begin with: give one to those that are alike",
        );
    }
    for one in all {
        check_one(one, c.optim.per_device_train_batch_size)?;
    }
    if !all.iter().any(|one| one.loss.has_reference()) {
        let key = match &c.reference {
            r if r.ref_model.is_some() => Some("ref_model"),
            r if r.sync_ref_model => Some("sync_ref_model"),
            _ => None,
        };
        if let Some(key) = key {
            return conflict(key, "is for dpo and kto, and none of the `objectives` is one of them; leave it out");
        }
    }
    if c.reference.precompute_ref_log_probs {
        return conflict("precompute_ref_log_probs", "is for recipes of pairs alone; leave it out");
    }
    check_reference(&c.reference, c.lora.use_peft || c.model.adapter.is_some())
}

fn check_one(one: &Ingredient, batch: usize) -> Result<(), ConfigError> {
    match &one.loss {
        IngredientLoss::Dpo(dpo) => {
            check_dpo(dpo)?;
            if dpo.loss_type.iter().any(|l| matches!(l, DpoLossType::Aot | DpoLossType::AotUnpaired)) {
                return conflict(
                    "objectives",
                    "cannot have aot and aot_unpaired, which look at all pairs of a micro-batch at once",
                );
            }
            if dpo.use_weighting {
                return conflict("objectives", "cannot have use_weighting, which takes the logits of every token");
            }
        }
        IngredientLoss::Kto(kto) if kto.loss_type == KtoLossType::Bco => {
            return conflict("objectives", "cannot have bco, whose mean of rewards is one of a whole run's own rows");
        }
        IngredientLoss::Kto(kto) => check_kto(kto, batch)?,
        _ => {}
    }
    Ok(())
}
