//! Sizes of blocks that must divide a width.

use super::AdapterError;

/// Divisors that are shown, those nearest to what was asked for.
const SHOWN: usize = 12;

/// That `wanted` does not divide the inputs of a module, with the numbers that do.
pub(super) fn does_not_divide(key: &'static str, wanted: usize, module: &str, input: usize) -> AdapterError {
    let mut divisors: Vec<usize> = (1..=input).filter(|d| input.is_multiple_of(*d)).collect();
    divisors.sort_by_key(|d| d.abs_diff(wanted));
    divisors.truncate(SHOWN);
    divisors.sort_unstable();
    let shown = divisors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let problem = format!("is {wanted}, which does not divide the {input} inputs of {module}; choose among {shown}");
    AdapterError::Conflict { key, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_divisors_are_shown() {
        let said = does_not_divide("oft_block_size", 31, "q_proj", 128).to_string();
        assert!(said.ends_with("the 128 inputs of q_proj; choose among 1, 2, 4, 8, 16, 32, 64, 128"), "{said}");
        let said = does_not_divide("oft_block_size", 1000, "q_proj", 5040).to_string();
        assert!(said.contains("840, 1008, 1260") && !said.contains(" 1, "), "{said}");
    }
}
