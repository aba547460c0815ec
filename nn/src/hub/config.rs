//! Where the hub and its cache are, and how patiently to talk to it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Settings of a [`super::Hub`].
#[derive(Clone)]
pub struct HubConfig {
    /// The cache: the directory that holds `models--org--name`.
    pub cache_dir: PathBuf,
    /// URL of the hub, without a slash at the end.
    pub endpoint: String,
    /// Access token. Sent to the endpoint's host only.
    pub token: Option<String>,
    /// Never ask the hub.
    pub offline: bool,
    /// Ask the hub what the revision stands for now, even if the cache has all that is needed.
    pub refresh: bool,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// How long to wait for the next bytes.
    pub read_timeout: Duration,
    /// Attempts to go on, in a row, that may fail without a byte before giving up.
    pub retries: u32,
    /// Pause before the first retry; doubled for each further one.
    pub retry_pause: Duration,
    /// Whether to go through the proxy that HTTPS_PROXY and its kin name.
    pub proxy: bool,
}

impl HubConfig {
    /// The settings that the environment gives every Hugging Face tool.
    ///
    /// `HF_HUB_CACHE`, else `$HF_HOME/hub`, else `$XDG_CACHE_HOME/huggingface/hub`, else
    /// `~/.cache/huggingface/hub`; `HF_ENDPOINT`; `HF_TOKEN`, else the file `HF_TOKEN_PATH`, else
    /// `$HF_HOME/token`; `HF_HUB_OFFLINE`.
    pub fn from_env() -> HubConfig {
        Self::from_vars(|name| std::env::var(name).ok(), std::env::home_dir())
    }

    /// As [`HubConfig::from_env`], with the variables given.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>, home: Option<PathBuf>) -> HubConfig {
        let home = home.unwrap_or_default();
        let var = |name: &str| var(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let path = |name: &str| var(name).map(|v| expand(&v, &home));
        let truth = |name: &str| {
            var(name).is_some_and(|v| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        let hf_home = path("HF_HOME")
            .unwrap_or_else(|| path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache")).join("huggingface"));
        let cache_dir =
            path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| hf_home.join("hub"));
        let from_file = || {
            let file = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
            let token = std::fs::read_to_string(file).ok()?.trim().to_owned();
            (!token.is_empty()).then_some(token)
        };
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        HubConfig {
            cache_dir,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN")).or_else(from_file),
            offline: truth("HF_HUB_OFFLINE"),
            refresh: false,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            retries: 5,
            retry_pause: Duration::from_millis(500),
            proxy: true,
        }
    }
}

fn expand(path: &str, home: &Path) -> PathBuf {
    match path.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None => path.into(),
    }
}

impl fmt::Debug for HubConfig {
    /// Leaves the token out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubConfig")
            .field("cache_dir", &self.cache_dir)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}
