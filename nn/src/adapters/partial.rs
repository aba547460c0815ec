//! Training some of the model's own weights: BitFit and freeze tuning. No adapter: the result is a model.

use planish_autograd::Param;
use regex::Regex;

use super::AdapterError;
use super::select::{Targets, last_parts, layer_of};
use crate::decoder::Model;
use crate::modules::Weight;

/// Which of the model's own weights are trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Partial {
    /// Every bias (BitFit, arXiv:2106.10199).
    Biases,
    /// Whole layers, by number, and modules outside of them by name (`embed_tokens`, `lm_head`, `norm`); of the
    /// layers, only modules with one of `modules` in their path, if there are any: names (`mlp`, `experts.3`), or a
    /// regular expression that fits somewhere in it.
    Layers {
        /// Numbers.
        layers: Vec<usize>,
        /// Parts of paths: `self_attn`, `mlp.experts.3`, `experts\.[0-3]\.`.
        modules: Vec<String>,
        /// Names.
        extra: Vec<String>,
    },
}

impl Partial {
    /// The last `n` layers, or for a negative n the first -n, as LLaMA-Factory's `freeze_trainable_layers`.
    ///
    /// # Errors
    /// [`AdapterError::Value`]: 0, or more layers than there are.
    pub fn layers(n: i64, count: usize, modules: Vec<String>, extra: Vec<String>) -> Result<Partial, AdapterError> {
        let wanted = n.unsigned_abs() as usize;
        if n == 0 || wanted > count {
            let expected = "a number of layers that the model has, negative for the first ones";
            return Err(AdapterError::Value { key: "freeze_trainable_layers", value: n.to_string(), expected });
        }
        let layers = if n > 0 { (count - wanted..count).collect() } else { (0..wanted).collect() };
        Ok(Partial::Layers { layers, modules, extra })
    }
}

/// An entry of `modules`, compiled.
enum Part {
    /// One name or several behind each other, whole: `mlp`, `experts.3`.
    Names(String),
    /// A regular expression that fits somewhere in the path.
    Regex(Regex),
}

impl Part {
    fn new(entry: &str) -> Result<Part, AdapterError> {
        match Targets::from_list(&[entry.to_owned()], &[]) {
            Targets::Regex(pattern) => Regex::new(&pattern).map(Part::Regex).map_err(|e| AdapterError::Pattern {
                key: "freeze_trainable_modules",
                pattern,
                problem: e.to_string(),
            }),
            _ => Ok(Part::Names(format!(".{entry}."))),
        }
    }

    fn is_in(&self, module: &str) -> bool {
        match self {
            Part::Names(names) => format!(".{module}.").contains(names),
            Part::Regex(regex) => regex.is_match(module),
        }
    }
}

/// [`Partial`], compiled.
struct Wanted<'a> {
    what: &'a Partial,
    modules: Vec<Part>,
}

impl Wanted<'_> {
    fn new(what: &Partial) -> Result<Wanted<'_>, AdapterError> {
        let modules = match what {
            Partial::Biases => Vec::new(),
            Partial::Layers { modules, .. } => modules.iter().map(|m| Part::new(m)).collect::<Result<_, _>>()?,
        };
        Ok(Wanted { what, modules })
    }

    fn wants(&self, name: &str) -> bool {
        match self.what {
            Partial::Biases => name.ends_with(".bias"),
            Partial::Layers { layers, extra, .. } => match layer_of(name) {
                Some(layer) => {
                    let named = self.modules.is_empty() || self.modules.iter().any(|m| m.is_in(module(name)));
                    layers.contains(&layer) && named
                }
                None => module(name).rsplit('.').next().is_some_and(|last| extra.iter().any(|e| e == last)),
            },
        }
    }
}

/// The module that a parameter is of.
fn module(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(module, _)| module)
}

/// Makes these weights of a frozen model trainable. A tied head is the embedding: it is trained with it.
///
/// # Errors
/// [`AdapterError::NoMatch`] if there is none; [`AdapterError::Conflict`] for a module that is not there.
pub fn train_only(model: &mut Model, what: &Partial) -> Result<(), AdapterError> {
    let wanted = Wanted::new(what)?;
    let (mut found, mut names, mut frozen) = (false, Vec::new(), None);
    let mut visit = |weight: &mut Weight| {
        let name = weight.base.name().to_string();
        if wanted.wants(&name) {
            if weight.base.value().quantized().is_some() {
                frozen = Some(name.clone());
            }
            weight.base = Param::trainable(name.clone(), weight.base.value());
            found = true;
        }
        names.push(name);
    };
    visit(&mut model.embed_tokens);
    for layer in &mut model.layers {
        for linear in layer.linears_mut() {
            visit(&mut linear.weight);
            linear.bias.iter_mut().for_each(&mut visit);
        }
        layer.norms_mut().into_iter().for_each(|n| visit(&mut n.weight));
    }
    visit(&mut model.norm.weight);
    model.lm_head.iter_mut().for_each(&mut visit);
    if let Some(name) = frozen {
        let problem = format!("asks to train `{name}`, which is quantised; train an adapter on it (use_peft)");
        return Err(AdapterError::Conflict { key: "finetuning_type", problem });
    }
    if let Partial::Layers { layers, modules: parts, extra } = what {
        let no_match = |key, missing: &String, available: Vec<String>| {
            let wanted = format!("{missing:?}");
            Err(AdapterError::NoMatch { key, wanted, kind: "own", available: last_parts(available) })
        };
        let inside = || names.iter().filter(|n| layer_of(n).is_some_and(|l| layers.contains(&l)));
        let in_a_path = |part: &Part| inside().any(|n| part.is_in(module(n)));
        if let Some((missing, _)) = parts.iter().zip(&wanted.modules).find(|(_, part)| !in_a_path(part)) {
            let blocks = ["self_attn", "mlp"].map(str::to_owned).into_iter();
            let available = blocks.chain(inside().map(|n| module(n).to_owned())).collect();
            return no_match("freeze_trainable_modules", missing, available);
        }
        let outside: Vec<String> =
            names.iter().filter(|n| layer_of(n).is_none()).map(|n| module(n).to_owned()).collect();
        let no_name = |part: &&String| !outside.iter().any(|m| m.rsplit('.').next() == Some(part));
        if let Some(missing) = extra.iter().find(no_name) {
            return no_match("freeze_extra_modules", missing, outside);
        }
    }
    if found {
        return Ok(());
    }
    let (key, wanted) = match what {
        Partial::Biases => ("finetuning_type", "bitfit, which trains biases".to_string()),
        Partial::Layers { layers, .. } => ("freeze_trainable_layers", format!("that are layers {layers:?}")),
    };
    Err(AdapterError::NoMatch {
        key,
        wanted,
        kind: "own",
        available: last_parts(names.iter().map(|n| module(n).to_string())),
    })
}
