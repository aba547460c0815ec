//! One file: resumed, checked, and only then given its name.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::http::StatusCode;

use super::cache::RepoCache;
use super::client::{Client, RemoteFile, header, is_busy, network};
use super::{HubConfig, HubError, Result};

/// Makes sure that the blob of `file` is in the cache; `report` gets the bytes of it that are there.
pub(super) fn fetch(
    client: &Client,
    config: &HubConfig,
    cache: &RepoCache,
    file: &RemoteFile,
    report: &mut dyn FnMut(u64),
) -> Result<()> {
    let blob = cache.blob(&file.etag);
    let whole = || fs::metadata(&blob).is_ok_and(|m| m.is_file() && m.len() == file.size);
    if !whole() {
        let _lock = cache.lock(&file.etag)?;
        // Another process may have finished it while we waited.
        if !whole() {
            let partial = cache.incomplete(&file.etag);
            Download::open(&partial, file)?.run(client, config, report)?;
            fs::rename(&partial, &blob).map_err(|e| HubError::io("rename", &partial, e))?;
        }
    }
    report(file.size);
    Ok(())
}

/// A file that grows, and the hash of what it has.
struct Download<'a> {
    path: &'a Path,
    remote: &'a RemoteFile,
    file: File,
    len: u64,
    hash: Hash,
}

impl<'a> Download<'a> {
    fn open(path: &'a Path, remote: &'a RemoteFile) -> Result<Self> {
        let dir = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir).map_err(|e| HubError::io("create", dir, e))?;
        let options = File::options().create(true).read(true).write(true).truncate(false).open(path);
        let file = options.map_err(|e| HubError::io("open", path, e))?;
        let mut download = Download { path, remote, file, len: 0, hash: Hash::of(remote) };
        let found = download.file.metadata().map_err(|e| HubError::io("read", path, e))?.len();
        if found > remote.size {
            download.restart()?;
        } else {
            let mut buffer = vec![0; 1 << 16];
            loop {
                match download.file.read(&mut buffer).map_err(|e| HubError::io("read", path, e))? {
                    0 => break,
                    n => download.hash.update(&buffer[..n]),
                }
            }
            download.len = found;
        }
        Ok(download)
    }

    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(|e| HubError::io("write", self.path, e))?;
        self.len = 0;
        self.hash = Hash::of(self.remote);
        Ok(())
    }

    fn run(mut self, client: &Client, config: &HubConfig, report: &mut dyn FnMut(u64)) -> Result<()> {
        let mut failures = 0;
        while self.len < self.remote.size {
            let before = self.len;
            let Err(error) = self.attempt(client, report) else { break };
            // Whatever gets a byte further is worth going on with.
            failures = if self.len > before { 0 } else { failures + 1 };
            let transient = match &error {
                HubError::Network { .. } | HubError::Timeout { .. } | HubError::Protocol { .. } => true,
                HubError::Status { status, .. } => StatusCode::from_u16(*status).is_ok_and(is_busy),
                _ => false,
            };
            if !transient || failures > config.retries {
                return Err(error);
            }
            client.pause(failures);
        }
        self.finish()
    }

    fn attempt(&mut self, client: &Client, report: &mut dyn FnMut(u64)) -> Result<()> {
        let url = &self.remote.url;
        let response = client.get(self.remote, self.len)?;
        match response.status().as_u16() {
            206 if range_start(header(&response, "content-range")) == Some(self.len) => {}
            // The server knows no ranges, or not this one: from the beginning.
            200 => self.restart()?,
            206 | 416 => {
                self.restart()?;
                return Err(HubError::Protocol { url: url.clone(), problem: "another range than was asked for" });
            }
            status @ (401 | 403) => return Err(HubError::Unauthorized { repo: self.remote.repo.clone(), status }),
            status => return Err(HubError::Status { url: url.clone(), status }),
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 16];
        while self.len < self.remote.size {
            let n = body.read(&mut buffer).map_err(|e| network(url, e.into()))?;
            if n == 0 {
                let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended early");
                return Err(network(url, cut.into()));
            }
            let fits = (self.remote.size - self.len).min(n as u64) as usize;
            self.file.write_all(&buffer[..fits]).map_err(|e| HubError::io("write", self.path, e))?;
            self.hash.update(&buffer[..fits]);
            self.len += fits as u64;
            if fits < n {
                let (expected, got) = (self.remote.size, self.remote.size + (n - fits) as u64);
                fs::remove_file(self.path).ok();
                return Err(HubError::WrongSize { url: url.clone(), expected, got });
            }
            report(self.len);
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let got = self.hash.finish();
        if let Some(got) = got.filter(|got| *got != self.remote.etag) {
            fs::remove_file(self.path).ok();
            return Err(HubError::WrongHash { url: self.remote.url.clone(), expected: self.remote.etag.clone(), got });
        }
        self.file.sync_all().map_err(|e| HubError::io("write", self.path, e))
    }
}

/// The hash that an etag is, told by its length.
enum Hash {
    /// Of the content.
    Sha256(Sha256),
    /// Of the content after git's header of a blob.
    Git(Sha1),
    /// An etag of another kind, as some mirrors have: the size must do.
    Unknown,
}

impl Hash {
    fn of(file: &RemoteFile) -> Hash {
        let hex = file.etag.bytes().all(|b| b.is_ascii_hexdigit());
        match file.etag.len() {
            64 if hex => Hash::Sha256(Sha256::new()),
            40 if hex => Hash::Git(Sha1::new_with_prefix(format!("blob {}\0", file.size))),
            _ => Hash::Unknown,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hash::Sha256(h) => h.update(bytes),
            Hash::Git(h) => h.update(bytes),
            Hash::Unknown => {}
        }
    }

    fn finish(self) -> Option<String> {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
        match self {
            Hash::Sha256(h) => Some(hex(&h.finalize())),
            Hash::Git(h) => Some(hex(&h.finalize())),
            Hash::Unknown => None,
        }
    }
}

/// The first byte of `bytes 5-9/10`.
fn range_start(content_range: Option<&str>) -> Option<u64> {
    content_range?.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}
