//! Requests to the hub: what a repository holds, what a file is, and its bytes.

use std::time::Duration;

use serde::Deserialize;
use ureq::http::{Method, Request, Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::cache::{is_safe_etag, is_safe_path};
use super::repo::is_commit;
use super::{HubConfig, HubError, RepoId, Result};

const MAX_REDIRECTS: usize = 6;
/// Largest list of files that is read: a repository of 100,000 files takes about 10 MB.
const MAX_INFO_BYTES: u64 = 64 << 20;

/// What a repository holds at a revision.
#[derive(Debug)]
pub(super) struct RepoInfo {
    pub(super) commit: String,
    /// Paths inside a directory: checked.
    pub(super) files: Vec<String>,
}

/// What the hub says about a file before sending it.
#[derive(Debug)]
pub(super) struct RemoteFile {
    pub(super) url: String,
    pub(super) repo: String,
    /// SHA-256 of the content in hexadecimal for large files, git's blob id for small ones.
    pub(super) etag: String,
    pub(super) size: u64,
}

#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    retries: u32,
    pause: Duration,
}

impl Client {
    pub(super) fn new(config: &HubConfig) -> Result<Client> {
        let endpoint = config.endpoint.clone();
        if origin(&endpoint).is_none() {
            return Err(HubError::BadEndpoint { endpoint });
        }
        // Redirects are followed here, because the token must not follow them.
        let mut builder = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(config.connect_timeout))
            .timeout_recv_response(Some(config.read_timeout))
            .timeout_per_read(Some(config.read_timeout))
            .accept_encoding("identity")
            .user_agent(concat!("planish/", env!("CARGO_PKG_VERSION")));
        if !config.proxy {
            builder = builder.proxy(None);
        }
        let (token, retries, pause) = (config.token.clone(), config.retries, config.retry_pause);
        Ok(Client { agent: builder.build().into(), endpoint, token, retries, pause })
    }

    /// The commit and files of a revision.
    pub(super) fn repo_info(&self, repo: &RepoId) -> Result<RepoInfo> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let url = format!("{}/api/models/{}/revision/{}", self.endpoint, repo.name(), encode(repo.revision(), true));
        let mut response = self.retried(|| self.request(Method::GET, &url, None))?;
        self.check_status(&url, repo, None, &response)?;
        let body = response.body_mut().with_config().limit(MAX_INFO_BYTES).read_to_vec();
        let body = body.map_err(|e| network(&url, e))?;
        let protocol = |problem| HubError::Protocol { url: url.clone(), problem };
        let info: Info =
            serde_json::from_slice(&body).map_err(|_| protocol("something that is not a list of a model's files"))?;
        if !is_commit(&info.sha) {
            return Err(protocol("a commit that is not 40 hexadecimal digits"));
        }
        let files: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
        if let Some(file) = files.iter().find(|file| !is_safe_path(file)) {
            return Err(HubError::UnsafePath { repo: repo.to_string(), file: file.clone() });
        }
        Ok(RepoInfo { commit: info.sha, files })
    }

    /// Hash and size of a file.
    pub(super) fn file_info(&self, repo: &RepoId, commit: &str, file: &str) -> Result<RemoteFile> {
        let url = format!("{}/{}/resolve/{commit}/{}", self.endpoint, repo.name(), encode(file, false));
        let mut at = url.clone();
        for _ in 0..MAX_REDIRECTS {
            let response = self.retried(|| self.send(Method::HEAD, &at, None))?;
            // A large file redirects to its store; the hub's own answer has what is asked for here.
            let stored_elsewhere = header(&response, "x-linked-etag").is_some();
            if let Some(next) = redirect(&at, &response)?.filter(|_| !stored_elsewhere) {
                at = next;
                continue;
            }
            if !stored_elsewhere {
                self.check_status(&url, repo, Some(file), &response)?;
            }
            let protocol = |problem| HubError::Protocol { url: url.clone(), problem };
            if header(&response, "x-repo-commit").is_some_and(|found| found != commit) {
                return Err(protocol("a file of another commit"));
            }
            let etag = header(&response, "x-linked-etag").or_else(|| header(&response, "etag"));
            let etag = etag.map(|e| e.trim_start_matches("W/").trim_matches('"').to_owned());
            let etag = etag.filter(|e| is_safe_etag(e)).ok_or_else(|| protocol("a file without a usable ETag"))?;
            let size = header(&response, "x-linked-size").or_else(|| header(&response, "content-length"));
            let size = size.and_then(|s| s.parse().ok()).ok_or_else(|| protocol("a file without a size"))?;
            return Ok(RemoteFile { url, repo: repo.to_string(), etag, size });
        }
        Err(HubError::Protocol { url, problem: "too many redirects" })
    }

    /// The bytes of a file from `start`. Status 200 means that they come from the beginning after all.
    pub(super) fn get(&self, file: &RemoteFile, start: u64) -> Result<Response<Body>> {
        self.request(Method::GET, &file.url, (start > 0).then_some(start))
    }

    /// Follows redirects; the token goes to the endpoint's own host only.
    fn request(&self, method: Method, url: &str, start: Option<u64>) -> Result<Response<Body>> {
        let mut at = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let response = self.send(method.clone(), &at, start)?;
            match redirect(&at, &response)? {
                Some(next) => at = next,
                None => return Ok(response),
            }
        }
        Err(HubError::Protocol { url: shown(url), problem: "too many redirects" })
    }

    fn send(&self, method: Method, url: &str, start: Option<u64>) -> Result<Response<Body>> {
        let mut request = Request::builder().method(method).uri(url);
        if let Some(token) = self.token.as_ref().filter(|_| origin(url) == origin(&self.endpoint)) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(start) = start {
            request = request.header("range", format!("bytes={start}-"));
        }
        let request = request.body(()).map_err(|e| network(url, e.into()))?;
        self.agent.run(request).map_err(|e| network(url, e))
    }

    /// Repeats a request that failed on the way, or that the server was too busy for.
    fn retried(&self, request: impl Fn() -> Result<Response<Body>>) -> Result<Response<Body>> {
        let mut attempt = 0;
        loop {
            let result = request();
            let again = match &result {
                Ok(response) => is_busy(response.status()),
                Err(error) => is_transient(error),
            };
            if !again || attempt == self.retries {
                return result;
            }
            self.pause(attempt);
            attempt += 1;
        }
    }

    pub(super) fn pause(&self, attempt: u32) {
        std::thread::sleep(self.pause.saturating_mul(1 << attempt.min(6)));
    }

    fn check_status(&self, url: &str, repo: &RepoId, file: Option<&str>, response: &Response<Body>) -> Result<()> {
        let (repo, token) = (repo.to_string(), self.token.is_some());
        let code = header(response, "x-error-code").unwrap_or_default();
        let status = response.status().as_u16();
        Err(match (status, code) {
            (200..300, _) => return Ok(()),
            (_, "GatedRepo") => HubError::Gated { repo, token },
            // To whom may not see it, the hub says 401 of a model that may not exist.
            (_, "RepoNotFound") | (401, "") if !token || status == 404 => HubError::RepoNotFound { repo, token },
            (404, "RevisionNotFound") => HubError::RevisionNotFound { repo },
            (404, _) => match file {
                Some(file) => HubError::FileNotFound { repo, file: file.into() },
                None => HubError::RepoNotFound { repo, token },
            },
            (401 | 403, _) => HubError::Unauthorized { repo, status },
            _ => HubError::Status { url: shown(url), status },
        })
    }
}

/// Whether the server may answer otherwise in a moment.
pub(super) fn is_busy(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// Whether the same request may succeed in a moment.
fn is_transient(error: &HubError) -> bool {
    match error {
        HubError::Timeout { .. } => true,
        // A wrong name, address or certificate stays wrong.
        HubError::Network { source, .. } => matches!(**source, ureq::Error::Io(_) | ureq::Error::Protocol(_)),
        _ => false,
    }
}

pub(super) fn network(url: &str, error: ureq::Error) -> HubError {
    match error {
        ureq::Error::Timeout(phase) => HubError::Timeout { url: shown(url), phase: phase.to_string() },
        error => HubError::Network { url: shown(url), source: Box::new(error) },
    }
}

/// A URL without its query, which may hold a signature that gives access.
fn shown(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

pub(super) fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// Scheme, host and port.
fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let default = match scheme.as_str() {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    Some((scheme, uri.host()?.to_ascii_lowercase(), uri.port_u16().unwrap_or(default)))
}

/// Where a response sends us, if it does.
fn redirect(from: &str, response: &Response<Body>) -> Result<Option<String>> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let bad = |problem| HubError::Protocol { url: shown(from), problem };
    let location = header(response, "location").ok_or_else(|| bad("a redirect to nowhere"))?;
    let (scheme, host, port) = origin(from).ok_or_else(|| bad("a redirect to nowhere"))?;
    let next = match location {
        l if l.starts_with("//") => format!("{scheme}:{l}"),
        l if l.starts_with('/') => format!("{scheme}://{host}:{port}{l}"),
        l => l.to_owned(),
    };
    match origin(&next) {
        None => Err(bad("a redirect to something that is not a URL")),
        Some((to, ..)) if scheme == "https" && to != "https" => Err(bad("a redirect from https to http")),
        Some(_) => Ok(Some(next)),
    }
}

/// Percent-encodes all but what a path may hold; slashes too if `slashes`.
fn encode(path: &str, slashes: bool) -> String {
    let mut out = String::with_capacity(path.len());
    for &b in path.as_bytes() {
        let plain = b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~') || (b == b'/' && !slashes);
        if plain { out.push(b as char) } else { out.push_str(&format!("%{b:02X}")) }
    }
    out
}
