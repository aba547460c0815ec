//! What a backward rule keeps of its inputs: the values, or how to make them again.
//!
//! The output of a cheap op over tensors that are kept anyway (a norm, an activation) is not worth its
//! memory until the backward pass: such an op leaves with its output a recipe, and the rules of its
//! consumers keep that instead. The recipe runs once, when the first of them needs the value, and the
//! value is freed with the last.

use std::cell::RefCell;
use std::rc::Rc;

use planish_tensor::Tensor;

use crate::Result;

/// A value that can be made again, bit for bit.
pub(crate) struct Recipe {
    make: Box<dyn Fn() -> Result<Tensor>>,
    made: RefCell<Option<Tensor>>,
}

impl Recipe {
    pub(crate) fn new(make: impl Fn() -> Result<Tensor> + 'static) -> Rc<Recipe> {
        Rc::new(Recipe { make: Box::new(make), made: RefCell::new(None) })
    }
}

/// An input as a backward rule keeps it.
#[derive(Clone)]
pub struct Saved(Kind);

#[derive(Clone)]
enum Kind {
    Kept(Tensor),
    Remade(Rc<Recipe>),
}

impl Saved {
    pub(crate) fn kept(value: Tensor) -> Saved {
        Saved(Kind::Kept(value))
    }

    pub(crate) fn remade(recipe: Rc<Recipe>) -> Saved {
        Saved(Kind::Remade(recipe))
    }

    /// The value.
    ///
    /// # Errors
    /// Those of making it again.
    pub fn get(&self) -> Result<Tensor> {
        match &self.0 {
            Kind::Kept(value) => Ok(value.clone()),
            Kind::Remade(recipe) => {
                let made = recipe.made.borrow().clone();
                if let Some(value) = made {
                    return Ok(value);
                }
                let value = (recipe.make)()?;
                *recipe.made.borrow_mut() = Some(value.clone());
                Ok(value)
            }
        }
    }

    /// The value, given up: with the last holder its memory is the caller's alone, to be written over.
    ///
    /// # Errors
    /// As [`Saved::get`].
    pub fn take(self) -> Result<Tensor> {
        match self.0 {
            Kind::Kept(value) => Ok(value),
            Kind::Remade(recipe) => match Rc::try_unwrap(recipe) {
                Ok(Recipe { make, made }) => match made.into_inner() {
                    Some(value) => Ok(value),
                    None => make(),
                },
                Err(recipe) => Saved::remade(recipe).get(),
            },
        }
    }
}
