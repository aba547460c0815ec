//! [`Slots`]: what each of several adapters has at one place of the model.

use crate::Ctx;

/// What adapters have put at one place: at most one thing for each adapter's number.
#[derive(Clone, Debug)]
pub struct Slots<T>(Vec<(usize, T)>);

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots(Vec::new())
    }
}

impl<T> Slots<T> {
    /// That of adapter `slot`.
    pub fn get(&self, slot: usize) -> Option<&T> {
        self.0.iter().find(|(s, _)| *s == slot).map(|(_, t)| t)
    }

    /// That of the adapter that takes part in the pass.
    pub fn active(&self, ctx: &Ctx) -> Option<&T> {
        self.get(ctx.adapter()?)
    }

    /// Puts one in, in place of what adapter `slot` had here.
    pub fn set(&mut self, slot: usize, value: T) {
        self.take(slot);
        self.0.push((slot, value));
    }

    /// Takes that of adapter `slot` out.
    pub fn take(&mut self, slot: usize) -> Option<T> {
        let at = self.0.iter().position(|(s, _)| *s == slot)?;
        Some(self.0.remove(at).1)
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, t)| t)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
