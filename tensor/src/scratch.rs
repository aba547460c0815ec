//! Working memory that a thread keeps from task to task, so that steady work allocates nothing.

use std::any::Any;
use std::cell::RefCell;

thread_local! {
    static KEPT: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Lends the thread's `T` to `f`: whatever the last user left in it. A `T` that is lent already (parallel
/// work inside `f` can bring another task to this thread) is a fresh one.
pub(crate) fn with<T: Default + 'static, O>(f: impl FnOnce(&mut T) -> O) -> O {
    let taken = KEPT.with_borrow_mut(|kept| {
        let at = kept.iter().position(|any| any.is::<T>())?;
        Some(kept.swap_remove(at))
    });
    let mut any = taken.unwrap_or_else(|| Box::new(T::default()));
    let out = f(any.downcast_mut().expect("found by its type"));
    KEPT.with_borrow_mut(|kept| kept.push(any));
    out
}

/// Empties a buffer and fills it with `n` of `value`.
pub(crate) fn fill<T: Clone>(buffer: &mut Vec<T>, n: usize, value: T) {
    buffer.clear();
    buffer.resize(n, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_kept_and_never_lent_twice() {
        with(|a: &mut Vec<u8>| {
            a.push(1);
            with(|b: &mut Vec<u8>| assert!(b.is_empty()));
            with(|c: &mut Vec<u16>| assert!(c.is_empty()));
        });
        let mut seen = vec![];
        with(|a: &mut Vec<u8>| {
            seen.push(a.clone());
            with(|b: &mut Vec<u8>| seen.push(b.clone()));
        });
        assert!(seen.contains(&vec![1]), "{seen:?}");
    }
}
