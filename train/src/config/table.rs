//! The one table: a row of a `settings!` block is a field, a flag, a YAML key, a line of help, a
//! default and a range check at once, so these cannot disagree.

use serde_json::Value as Json;

use super::error::ConfigError;
use super::raw::Raw;
use super::setting::Arity;

/// What programs (help texts, flag parsers, tests) may know about a setting.
#[derive(Clone, Debug)]
pub struct Key {
    /// The name, as in the YAML file: `learning_rate`.
    pub name: &'static str,
    /// The heading it stands under in the help.
    pub group: &'static str,
    /// One sentence or two.
    pub help: &'static str,
    /// What is accepted: "a number above 0".
    pub accepts: String,
    /// The default; `null` when there is none.
    pub default: Json,
    /// How it is given on the command line.
    pub arity: Arity,
}

/// A set of settings: one block of the table, or all blocks of a recipe.
pub trait Settings {
    /// The rows in the order of the table, with the defaults of `self`.
    fn keys(&self) -> Vec<Key>;

    /// Parses and stores a value. `Ok(false)` if no setting has this name.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for a wrong type or range.
    fn set(&mut self, key: &str, value: &Raw) -> Result<bool, ConfigError>;

    /// Checks every range, for values that did not come through [`Settings::set`].
    ///
    /// # Errors
    /// [`ConfigError::Value`] for the first value outside its range.
    fn check_ranges(&self) -> Result<(), ConfigError>;

    /// All values in the order of the table.
    fn to_json(&self) -> serde_json::Map<String, Json> {
        self.keys().into_iter().map(|key| (key.name.to_owned(), key.default)).collect()
    }
}

/// Declares a block of settings: fields with docs (which are the help), type, default and rule.
macro_rules! settings {
    (
        $(#[$meta:meta])*
        pub struct $name:ident ($group:literal) {
            $( $(#[doc = $help:literal])+ $field:ident : $ty:ty = $default:expr, $rule:expr; )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $( $(#[doc = $help])+ pub $field: $ty, )*
        }

        impl Default for $name {
            fn default() -> Self {
                $name { $( $field: $default.into(), )* }
            }
        }

        impl $crate::config::table::Settings for $name {
            fn keys(&self) -> Vec<$crate::config::table::Key> {
                use $crate::config::setting::Setting;
                vec![$( $crate::config::table::Key {
                    name: stringify!($field),
                    group: $group,
                    help: concat!($($help),+).trim_start(),
                    accepts: $crate::config::table::accepts::<$ty>($rule.accepts),
                    default: Setting::to_json(&self.$field),
                    arity: <$ty as Setting>::ARITY,
                }, )*]
            }

            fn set(
                &mut self,
                key: &str,
                value: &$crate::config::raw::Raw,
            ) -> Result<bool, $crate::config::error::ConfigError> {
                use $crate::config::setting::Setting;
                match key {
                    $( stringify!($field) => {
                        self.$field = Setting::parse(stringify!($field), value, &$rule)?;
                    } )*
                    _ => return Ok(false),
                }
                Ok(true)
            }

            fn check_ranges(&self) -> Result<(), $crate::config::error::ConfigError> {
                use $crate::config::setting::Setting;
                $( if !Setting::allowed(&self.$field, &$rule) {
                    return Err($crate::config::error::ConfigError::Value {
                        key: stringify!($field).to_owned(),
                        at: $crate::config::error::Origin::Program,
                        expected: $rule.accepts.to_owned(),
                        found: format!("{:?}", self.$field),
                    });
                } )*
                Ok(())
            }
        }
    };
}
pub(super) use settings;

/// Declares the settings of a recipe: blocks, in the order of its help.
macro_rules! recipe_settings {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $( $(#[$field_meta:meta])* $field:ident : $block:ty, )* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name { $( $(#[$field_meta])* pub $field: $block, )* }

        impl $crate::config::table::Settings for $name {
            fn keys(&self) -> Vec<$crate::config::table::Key> {
                let mut keys = Vec::new();
                $( keys.extend(self.$field.keys()); )*
                keys
            }
            fn set(
                &mut self,
                key: &str,
                value: &$crate::config::raw::Raw,
            ) -> Result<bool, $crate::config::error::ConfigError> {
                $( if self.$field.set(key, value)? { return Ok(true); } )*
                Ok(false)
            }
            fn check_ranges(&self) -> Result<(), $crate::config::error::ConfigError> {
                $( self.$field.check_ranges()?; )*
                Ok(())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                $crate::config::table::Settings::to_json(self).serialize(to)
            }
        }
    };
}
pub(super) use recipe_settings;

/// Declares an enumeration whose names are what users write; further spellings after the first.
macro_rules! choices {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $( $(#[$variant_meta:meta])* $variant:ident = $first:literal $(| $other:literal)*, )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $( $(#[$variant_meta])* $variant, )+ }

        impl $name {
            /// Every variant.
            pub const ALL: &'static [$name] = &[$( $name::$variant, )+];
            /// All values in words.
            pub(super) const RULE: $crate::config::setting::Rule<$name> =
                $crate::config::setting::Rule {
                    accepts: $crate::config::table::one_of!($($first),+),
                    test: |_| true,
                };

            /// The name in settings files.
            pub fn name(self) -> &'static str {
                match self { $( $name::$variant => $first, )+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl $crate::config::setting::Setting for $name {
            type Scalar = $name;
            fn parse(
                key: &str,
                raw: &$crate::config::raw::Raw,
                rule: &$crate::config::setting::Rule<$name>,
            ) -> Result<Self, $crate::config::error::ConfigError> {
                let parsed = $crate::config::setting::parse_scalar(key, raw, rule, |text| {
                    match text.to_ascii_lowercase().as_str() {
                        $( $first $(| $other)* => Some($name::$variant), )+
                        _ => None,
                    }
                });
                parsed.map_err(|e| e.with_nearest(raw, [$($first),+]))
            }
            fn allowed(&self, rule: &$crate::config::setting::Rule<$name>) -> bool {
                (rule.test)(self)
            }
            fn to_json(&self) -> serde_json::Value {
                serde_json::Value::from(self.name())
            }
        }
    };
}
pub(super) use choices;

/// "one of a, b, c" at compile time.
macro_rules! one_of {
    ($first:literal $(, $rest:literal)*) => {
        concat!("one of ", $first $(, ", ", $rest)*)
    };
}
pub(super) use one_of;

/// What the help says is accepted: the rule, and whether it is a list or may be left out.
pub(super) fn accepts<T: super::setting::Setting>(rule: &str) -> String {
    match T::ARITY {
        Arity::Many => format!("a list, each {rule}"),
        _ if T::OPTIONAL => format!("{rule}, or null"),
        _ => rule.to_owned(),
    }
}
