//! Steps of a mixture of experts: the losses of its routers, what they did, and what to say of it.

use planish_autograd::Var;
use planish_nn::Ctx;
use planish_nn::config::{ModelConfig, Moe};
use planish_nn::decoder::{LayerRouting, Model, Packed, Routing};

use super::{Sums, packed, passes};
use crate::Result;
use crate::config::{ConfigError, OptimSettings, RouterSettings};
use crate::data::Step;
use crate::losses::{Load, LossSum, RouterTerms, Want, cross_entropy_beside, predicted, router_loss};

/// Steps whose routing is looked at together.
const WINDOW: u64 = 10;

/// The weights that the settings and the model's own config.json give the losses of its routers. As in TRL, a model
/// that has a `router_aux_loss_coef` is balanced with it unless told otherwise.
///
/// # Errors
/// [`ConfigError::Conflict`] for a weight where there is no router.
pub fn terms(settings: &RouterSettings, config: &ModelConfig) -> Result<RouterTerms, ConfigError> {
    let (balance, z) = (settings.router_aux_loss_coef, settings.router_z_loss_coef);
    if let Some(moe) = &config.moe {
        return Ok(RouterTerms { balance: balance.unwrap_or(moe.aux_coefficient), z });
    }
    let set = [("router_aux_loss_coef", balance.unwrap_or(0.0)), ("router_z_loss_coef", z)];
    match set.into_iter().find(|(_, weight)| *weight > 0.0) {
        Some((key, _)) => {
            let problem = "is for mixtures of experts, and this model has no router; leave it out";
            Err(ConfigError::Conflict { key, problem })
        }
        None => Ok(RouterTerms::default()),
    }
}

/// The losses of a step's routers, beside another loss.
///
/// The balance needs the whole step's counts before the first gradient: a step of several passes goes through the
/// model once more for them, without a tape.
pub(crate) struct Routers {
    terms: RouterTerms,
    /// What the routers do in the whole step, where it has several passes.
    before: Load,
    load: Load,
    squares: f64,
}

impl Routers {
    /// For a step of these passes.
    ///
    /// # Errors
    /// Those of the kernels.
    pub(crate) fn new(
        model: &Model,
        terms: RouterTerms,
        passes: impl ExactSizeIterator<Item = (Packed, Ctx)>,
    ) -> Result<Routers> {
        let mut before = Load::default();
        if terms.any() && passes.len() > 1 {
            for (batch, ctx) in passes {
                let routing = Routing::default();
                model.forward(&ctx.on(None).with_routing(&routing), &batch, false)?;
                before.add(&routing.take())?;
            }
        }
        Ok(Routers { terms, before, load: Load::default(), squares: 0.0 })
    }

    /// Takes note of a pass, and gives its part in the losses with a slope: these are means already, and the gradient is
    /// divided by `count` later on.
    ///
    /// # Errors
    /// Those of the kernels.
    pub(crate) fn beside(&mut self, pass: &[LayerRouting], count: f64) -> Result<Option<(Var, f64)>> {
        self.see(pass)?;
        if !self.terms.any() {
            return Ok(None);
        }
        let whole = if self.before.layers.is_empty() { &self.load } else { &self.before };
        let (loss, squared) = router_loss(pass, whole, self.terms)?;
        self.squares += squared;
        Ok(loss.map(|loss| (loss, count)))
    }

    /// Takes note of a pass beside which routers have no losses.
    ///
    /// # Errors
    /// Those of the kernels.
    pub(crate) fn see(&mut self, pass: &[LayerRouting]) -> Result<()> {
        self.load.add(pass)
    }

    /// Adds the losses to sums that are divided by `count`, and what the routers did to what is measured.
    pub(crate) fn add_to(&self, sums: &mut Sums, count: f64) {
        let Routers { terms, load, squares, .. } = self;
        if terms.balance > 0.0 && !load.layers.is_empty() {
            let balance = load.balance();
            sums.loss += count * terms.balance * balance;
            sums.measure("aux_loss", balance, 1.0);
        }
        if terms.z > 0.0 && !load.layers.is_empty() {
            let z = squares / load.rows();
            sums.loss += count * terms.z * z;
            sums.measure("router_z_loss", z, 1.0);
        }
        let layers = load.layers.len() as f64;
        sums.measure("router/entropy", load.layers.iter().map(|l| l.entropy()).sum(), layers);
        let peak = load.layers.iter().map(|l| l.peak()).fold(0.0, f64::max);
        sums.measure("router/load_max_over_mean", peak, layers.min(1.0));
        sums.measure("router/dead_experts", load.layers.iter().map(|l| l.dead() as f64).sum(), layers.min(1.0));
    }
}

/// As [`super::accumulate_sharing`] for a model with experts: the losses of the routers are part of the sum, and `load`
/// is what the routers did.
///
/// # Errors
/// As [`super::accumulate`].
pub(super) fn accumulate(
    model: &Model,
    optim: &OptimSettings,
    step: &Step,
    done: u64,
    share: bool,
    terms: RouterTerms,
) -> Result<(Sums, Routers)> {
    let share = share && !terms.any();
    let mut passes = passes(optim, step, done, share);
    // What has no supervised token is not computed.
    let supervised = |batch: &crate::data::Batch| predicted(&packed(batch), &batch.mask).0.len();
    passes.retain(|(batch, _)| supervised(batch) > 0);
    let count: usize = passes.iter().map(|(batch, _)| supervised(batch)).sum();
    let mut routers = Routers::new(model, terms, passes.iter().map(|(batch, ctx)| (packed(batch), ctx.clone())))?;
    let mut unread = Vec::new();
    let want = Want { recompute: optim.recomputes_layers(), beginnings: share, ..Want::default() };
    for (batch, ctx) in passes.iter() {
        let routing = Routing::default();
        let ctx = ctx.clone().with_routing(&routing);
        let beside = || routers.beside(&routing.take(), count as f64);
        unread.push(cross_entropy_beside(model, &ctx, &packed(batch), &batch.mask, want, beside)?);
    }
    let mut sum = LossSum::default();
    for part in unread {
        sum += part.read()?;
    }
    let mut sums = Sums::from(sum);
    routers.add_to(&mut sums, count as f64);
    Ok((sums, routers))
}

/// The weights of the losses of a model's routers, and an eye on what the routers do.
#[derive(Debug, Clone, Default)]
pub struct Balance {
    /// None where no setting has them.
    terms: Option<RouterTerms>,
    watch: Watch,
    moe: Option<Moe>,
}

impl Balance {
    /// With these weights.
    pub fn new(terms: RouterTerms) -> Balance {
        Balance { terms: Some(terms), ..Balance::default() }
    }

    /// The weights.
    pub fn terms(&self) -> RouterTerms {
        self.terms.unwrap_or_default()
    }

    /// Takes note of a step.
    pub(crate) fn see(&mut self, model: &Model, routers: &Routers) {
        self.moe = model.config.moe;
        self.watch.see(&routers.load);
    }

    /// What to say after the step.
    pub(crate) fn advice(&mut self) -> Option<String> {
        self.moe.and_then(|moe| self.watch.advice(&moe, self.terms))
    }
}

/// Looks out for a router that has collapsed, and says so once.
#[derive(Debug, Clone, Default)]
struct Watch {
    seen: Load,
    steps: u64,
    said: bool,
}

impl Watch {
    /// Takes note of a step.
    fn see(&mut self, load: &Load) {
        if self.steps == WINDOW {
            (self.seen, self.steps) = (Load::default(), 0);
        }
        self.seen.merge(load);
        self.steps += 1;
    }

    /// What to say after the step.
    fn advice(&mut self, moe: &Moe, terms: Option<RouterTerms>) -> Option<String> {
        if self.said || self.steps < WINDOW {
            return None;
        }
        let widths = self.seen.layers.iter().map(|l| (l.entropy().exp(), l));
        let (width, worst) = widths.min_by(|a, b| a.0.total_cmp(&b.0))?;
        // As wide as the experts that one token takes, or an eighth of all; half of all is no collapse in any case.
        let (experts, k) = (moe.experts as f64, moe.per_token as f64);
        if !(width < (experts / 8.0).max(1.5 * k).min(experts / 2.0)) {
            return None;
        }
        self.said = true;
        let remedy = match terms.map(|terms| terms.balance) {
            Some(balance) if balance > 0.0 => format!("raise router_aux_loss_coef (now {balance}) or "),
            Some(_) => "set router_aux_loss_coef (to 0.001, say) or ".to_string(),
            None => String::new(),
        };
        Some(format!(
            "the router of layer {} sends nearly all tokens to few of its {} experts: over the last {WINDOW} steps its mean \
             distribution was as wide as {width:.1} experts, and {} were not chosen at all; {remedy}lower the \
             learning rate",
            worst.layer,
            moe.experts,
            worst.dead(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use planish_nn::config::ModelConfig;
    use serde_json::json;

    use super::*;
    use crate::losses::LayerLoad;

    fn mixtral() -> ModelConfig {
        let config = json!({
            "model_type": "mixtral", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02,
        });
        ModelConfig::from_json(&config).unwrap()
    }

    fn step(load: [u64; 8]) -> Load {
        let mass = load.iter().map(|n| *n as f64 / 2.0).collect();
        Load { layers: vec![LayerLoad { layer: 5, rows: 16, load: load.to_vec(), mass }] }
    }

    #[test]
    fn a_collapse_is_said_once_and_after_a_while() {
        let (mut watch, terms) = (Watch::default(), Some(RouterTerms::default()));
        let moe = mixtral().moe.unwrap();
        let mut said = Vec::new();
        for _ in 0..25 {
            watch.see(&step([16, 15, 1, 0, 0, 0, 0, 0]));
            said.extend(watch.advice(&moe, terms));
        }
        assert_eq!(said.len(), 1);
        assert!(
            said[0].contains("layer 5") && said[0].contains("8 experts") && said[0].contains("5 were not"),
            "{said:?}"
        );
        assert!(said[0].contains("set router_aux_loss_coef"));
        // Nothing is proposed that the recipe does not have.
        let mut watch = Watch::default();
        (0..10).for_each(|_| watch.see(&step([16, 16, 0, 0, 0, 0, 0, 0])));
        let text = watch.advice(&moe, None).unwrap();
        assert!(!text.contains("router_aux_loss_coef") && text.ends_with("at all; lower the learning rate"), "{text}");
        // What no token chose in one step, others did: no collapse.
        let mut watch = Watch::default();
        for i in 0..40 {
            let mut load = [0; 8];
            (load[i % 8], load[(i + 1) % 8]) = (16, 16);
            watch.see(&step(load));
            assert_eq!(watch.advice(&moe, terms), None);
        }
    }

    #[test]
    fn weights_come_from_the_settings_or_the_model() {
        let mut settings = RouterSettings::default();
        let moe = mixtral();
        assert_eq!(terms(&settings, &moe).unwrap(), RouterTerms { balance: 0.02, z: 0.0 });
        settings.router_aux_loss_coef = Some(0.0);
        assert!(!terms(&settings, &moe).unwrap().any());
        let dense = json!({
            "model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 2,
            "num_attention_heads": 2,
        });
        let dense = ModelConfig::from_json(&dense).unwrap();
        assert!(!terms(&settings, &dense).unwrap().any());
        settings.router_z_loss_coef = 0.1;
        assert!(terms(&settings, &dense).unwrap_err().to_string().contains("router_z_loss_coef"));
        settings.router_aux_loss_coef = Some(0.1);
        assert!(terms(&settings, &dense).unwrap_err().to_string().contains("router_aux_loss_coef"));
    }
}
