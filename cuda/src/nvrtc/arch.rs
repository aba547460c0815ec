//! Names of architectures.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// What code is compiled for: `sm_80`, or `sm_90a` with the instructions that only this architecture has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch {
    /// Compute capability: (9, 0) for Hopper.
    pub capability: (u32, u32),
    /// Whether the instructions that later architectures may lack are allowed.
    pub specific: bool,
}

impl Arch {
    /// Those that every kernel must compile for: Ampere, Ada, Hopper, Blackwell.
    pub const ALL: [Arch; 4] = [Arch::new(8, 0), Arch::new(8, 9), Arch::specific(9, 0), Arch::new(10, 0)];

    /// `sm_MAJORMINOR`.
    pub const fn new(major: u32, minor: u32) -> Arch {
        Arch { capability: (major, minor), specific: false }
    }

    /// `sm_MAJORMINORa`.
    pub const fn specific(major: u32, minor: u32) -> Arch {
        Arch { capability: (major, minor), specific: true }
    }

    /// What to compile for on a device of this compute capability: on Hopper its own instructions too.
    pub const fn of_device(capability: (u32, u32)) -> Arch {
        Arch { capability, specific: matches!(capability, (9, 0)) }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        write!(f, "sm_{major}{minor}{}", if self.specific { "a" } else { "" })
    }
}

impl FromStr for Arch {
    type Err = Error;

    /// `sm_90a`, `90a` or `9.0`.
    fn from_str(text: &str) -> Result<Arch> {
        let wrong = || Error::Architecture { text: text.to_owned() };
        let bare = text.strip_prefix("sm_").unwrap_or(text);
        let (digits, specific) = match bare.strip_suffix('a') {
            Some(digits) => (digits, true),
            None => (bare, false),
        };
        let digits = digits.replace('.', "");
        if !(2..=3).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let number: u32 = digits.parse().map_err(|_| wrong())?;
        Ok(Arch { capability: (number / 10, number % 10), specific })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (text, arch) in [("sm_80", Arch::new(8, 0)), ("90a", Arch::specific(9, 0)), ("sm_100", Arch::new(10, 0))] {
            assert_eq!(text.parse::<Arch>().unwrap(), arch);
            assert_eq!(arch.to_string(), format!("sm_{}", text.trim_start_matches("sm_")));
        }
        assert_eq!("8.9".parse::<Arch>().unwrap(), Arch::new(8, 9));
        for wrong in ["", "sm_", "sm_9", "hopper", "sm_9000", "sm_-1", "90b", "١٢"] {
            assert!(wrong.parse::<Arch>().unwrap_err().to_string().contains("sm_90a"), "{wrong}");
        }
        assert_eq!(Arch::of_device((9, 0)).to_string(), "sm_90a");
        assert_eq!(Arch::of_device((8, 6)).to_string(), "sm_86");
    }
}
