//! That everything which is to be trained is: after the first backward pass each trained parameter has a gradient.
//!
//! A gradient that is zero counts (that of LoRA's A is, as long as B is): what is looked for is a parameter that no
//! backward pass came to, because nothing of the loss depends on it. It would stay as it is for the whole run, in
//! silence. The weights of experts that no token chose are the exception, as their turn may come; but where nothing else
//! is trained either, the step changes nothing, and the run stops.

use planish_autograd::Param;

use crate::{Error, Result};

/// What to say of experts that no token chose, if there are any.
///
/// # Errors
/// [`Error::NotReached`] for a parameter without a gradient, [`Error::NoExpertChosen`] if nothing has one.
pub(super) fn check(trained: &[Param], step: u64) -> Result<Option<String>> {
    let without: Vec<&Param> = trained.iter().filter(|p| p.grad().is_none()).collect();
    let (unchosen, unreached): (Vec<&Param>, Vec<&Param>) =
        without.into_iter().partition(|p| expert(p.name()).is_some());
    if let Some(first) = unreached.first() {
        let (name, others) = (first.name().to_owned(), unreached.len() - 1);
        return Err(Error::NotReached { step, name, others });
    }
    let of = experts(trained.iter());
    let idle = experts(unchosen.into_iter());
    if trained.iter().all(|p| p.grad().is_none()) {
        none_chosen(&idle, step)?;
    }
    Ok(idle.first().map(|first| {
        format!(
            "step {step} sent no token to {} of the {} experts that are trained (the first is {first}): they learn \
             nothing from steps like that",
            idle.len(),
            of.len()
        )
    }))
}

/// That the first step moves something, where experts are all that is trained: one that was chosen only by tokens on
/// which the loss does not depend (the last of a sequence, in the last layer) has a gradient of zeros. `norm` is that of
/// all gradients.
///
/// # Errors
/// [`Error::NoExpertChosen`].
pub(super) fn moves(trained: &[Param], step: u64, norm: f64) -> Result<()> {
    if norm == 0.0 && trained.iter().all(|p| expert(p.name()).is_some()) {
        none_chosen(&experts(trained.iter()), step)?;
    }
    Ok(())
}

fn none_chosen(experts: &[String], step: u64) -> Result<()> {
    match experts.first() {
        None => Ok(()),
        Some(first) => Err(Error::NoExpertChosen { step, name: first.clone(), others: experts.len() - 1 }),
    }
}

/// The experts that parameters are of, each once.
fn experts<'a>(params: impl Iterator<Item = &'a Param>) -> Vec<String> {
    let mut all: Vec<String> = params.filter_map(|p| expert(p.name())).map(str::to_owned).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The expert that a parameter is of: its name up to the number behind `experts`.
fn expert(name: &str) -> Option<&str> {
    const PART: &str = ".experts.";
    let start = name.find(PART)? + PART.len();
    let digits = name[start..].bytes().take_while(u8::is_ascii_digit).count();
    (digits > 0 && name[start + digits..].starts_with('.')).then(|| &name[..start + digits])
}

#[cfg(test)]
mod tests {
    use planish_tensor::{DType, Tensor};

    use super::*;

    fn param(name: &str, reached: bool) -> Param {
        let zeros = || Tensor::zeros([2], DType::F32).unwrap();
        let param = Param::trainable(name, zeros());
        param.set_grad(reached.then(zeros));
        param
    }

    #[test]
    fn a_gradient_of_zeros_is_one_and_none_is_not() {
        assert_eq!(check(&[param("a.lora_A.weight", true)], 1).unwrap(), None);
        let all = [param("a.weight", true), param("b.weight", false), param("c.weight", false)];
        let error = check(&all, 1).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("`b.weight` (and 1 more)") && said.starts_with("step 1: "), "{said}");
        assert!(error.is_usage());
    }

    #[test]
    fn experts_alone_that_no_token_chose_stop_the_run() {
        let all = [param("model.layers.1.mlp.experts.3.up_proj.weight", false)];
        let error = check(&all, 1).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("no token that the loss depends on chose `model.layers.1.mlp.experts.3`"), "{said}");
        assert!(error.is_usage());
        // Chosen by tokens whose gradient is zero.
        let chosen = param("model.layers.1.mlp.experts.3.up_proj.weight", true);
        assert!(check(std::slice::from_ref(&chosen), 1).unwrap().is_none());
        let one = std::slice::from_ref(&chosen);
        assert!(matches!(moves(one, 1, 0.0), Err(Error::NoExpertChosen { .. })));
        assert!(moves(one, 1, 0.5).is_ok());
        // A loss may have a slope of zero by itself.
        assert!(moves(&[chosen, param("a.weight", true)], 1, 0.0).is_ok());
    }

    #[test]
    fn experts_that_no_token_chose_are_counted() {
        let at = |e: usize, part: &str| format!("model.layers.1.mlp.experts.{e}.{part}.weight");
        let mut all = vec![param("model.layers.1.mlp.gate.weight", true)];
        for e in 0..4 {
            all.extend(["gate_proj", "up_proj"].map(|part| param(&at(e, part), e % 2 == 0)));
        }
        let said = check(&all, 1).unwrap().unwrap();
        assert!(said.contains("no token to 2 of the 4 experts"), "{said}");
        assert!(said.contains("model.layers.1.mlp.experts.1)"), "{said}");
        assert_eq!(expert("model.layers.1.mlp.shared_expert.up_proj.weight"), None);
        assert_eq!(expert("x.experts.gate_up_proj"), None);
    }
}
