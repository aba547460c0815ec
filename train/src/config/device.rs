//! Where to compute, as a setting.

use planish_tensor::Device;
use serde_json::Value as Json;

use super::error::ConfigError;
use super::raw::Raw;
use super::setting::{Rule, Setting, parse_scalar};

/// Where tensors live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU that can do all of the run, or else the processor.
    Auto,
    /// This one.
    On(Device),
}

impl DeviceChoice {
    /// All values in words.
    pub const RULE: Rule<DeviceChoice> =
        Rule { accepts: "one of cpu, cuda, cuda:N (GPU number N), emulator, auto", test: |_| true };

    /// Reads `auto` or the name of a device.
    pub fn from_text(text: &str) -> Option<DeviceChoice> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Some(DeviceChoice::Auto),
            name => Device::parse(name).map(DeviceChoice::On),
        }
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::On(device) => device.fmt(f),
        }
    }
}

impl Setting for DeviceChoice {
    type Scalar = DeviceChoice;

    fn parse(key: &str, raw: &Raw, rule: &Rule<DeviceChoice>) -> Result<Self, ConfigError> {
        parse_scalar(key, raw, rule, DeviceChoice::from_text)
    }

    fn allowed(&self, rule: &Rule<DeviceChoice>) -> bool {
        (rule.test)(self)
    }

    fn to_json(&self) -> Json {
        Json::String(self.to_string())
    }
}
