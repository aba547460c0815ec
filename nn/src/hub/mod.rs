//! The Hugging Face hub: from `org/name` to a directory on this machine.
//!
//! The cache is the one that every Hugging Face tool uses, so what transformers has downloaded is
//! found here, and the other way round:
//!
//! ```text
//! <cache>/models--org--name/refs/main                      the commit that a revision stands for
//! <cache>/models--org--name/blobs/<etag>                   contents, under their hash
//! <cache>/models--org--name/snapshots/<commit>/config.json a link to ../../blobs/<etag>
//! ```
//!
//! A snapshot that has all that is needed is used without asking the hub. Otherwise the missing files
//! are downloaded: resumed where an earlier attempt ended, and checked by size and hash before they
//! get their names. The access token goes to the hub's own host and no other.
//!
//! ```no_run
//! use planish_nn::hub::{Hub, Needs, RepoId};
//! let repo = RepoId::parse("HuggingFaceTB/SmolLM2-135M-Instruct")?;
//! let dir = Hub::from_env()?.snapshot(&repo, &Needs::Model, &mut |p| tracing::info!("{p:?}"))?;
//! # Ok::<(), planish_nn::hub::HubError>(())
//! ```
//!
//! # Source
//! `huggingface_hub` 1.x: its documentation of the cache, and `file_download.py`.

mod cache;
mod client;
mod config;
mod download;
mod error;
mod repo;
mod select;
#[cfg(test)]
mod tests;

pub use config::HubConfig;
pub use error::{HubError, Result};
pub use repo::RepoId;
pub use select::Needs;

use std::path::PathBuf;

use cache::RepoCache;
use client::Client;

/// How far the download of a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file that is being downloaded.
    pub file: &'a str,
    /// Bytes on this machine, of all files, those of earlier attempts included.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
}

/// A client of a hub, with its cache.
#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
    client: Client,
}

impl Hub {
    /// A client with these settings.
    ///
    /// # Errors
    /// [`HubError::BadEndpoint`].
    pub fn new(config: HubConfig) -> Result<Hub> {
        let client = Client::new(&config)?;
        Ok(Hub { config, client })
    }

    /// A client with the settings of the environment: see [`HubConfig::from_env`].
    ///
    /// # Errors
    /// [`HubError::BadEndpoint`].
    pub fn from_env() -> Result<Hub> {
        Hub::new(HubConfig::from_env())
    }

    /// The directory that holds what is needed of a repository, without asking the hub.
    pub fn cached(&self, repo: &RepoId, needs: &Needs) -> Option<PathBuf> {
        let snapshot = RepoCache::new(&self.config.cache_dir, repo).snapshot_of(repo.revision())?;
        needs.met_by(&snapshot).then_some(snapshot)
    }

    /// The directory that holds what is needed of a repository, downloaded if it is not there yet.
    ///
    /// `progress` is called as bytes arrive. Two processes that want the same file wait for each other.
    ///
    /// # Errors
    /// Any variant of [`HubError`]; what was downloaded until then is kept and resumed.
    pub fn snapshot(&self, repo: &RepoId, needs: &Needs, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
        if !self.config.refresh
            && let Some(found) = self.cached(repo, needs)
        {
            return Ok(found);
        }
        if self.config.offline {
            if let Some(found) = self.cached(repo, needs) {
                return Ok(found);
            }
            return Err(HubError::Offline { repo: repo.to_string(), cache: self.config.cache_dir.clone() });
        }
        let info = self.client.repo_info(repo)?;
        let wanted = needs.select(repo, &info.files)?;
        let cache = RepoCache::new(&self.config.cache_dir, repo);
        // All sizes first, so that progress has a total.
        let mut files = Vec::with_capacity(wanted.len());
        for name in wanted {
            let remote = self.client.file_info(repo, &info.commit, &name)?;
            files.push((name, remote));
        }
        let total = files.iter().map(|(_, remote)| remote.size).fold(0, u64::saturating_add);
        let mut before = 0;
        for (name, remote) in &files {
            let mut report = |done| progress(Progress { file: name, done: before + done, total });
            download::fetch(&self.client, &self.config, &cache, remote, &mut report)?;
            cache.link(&info.commit, name, &remote.etag)?;
            before += remote.size;
        }
        cache.write_ref(repo.revision(), &info.commit)?;
        Ok(cache.snapshot(&info.commit))
    }
}
