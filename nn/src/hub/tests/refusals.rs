//! What is refused, and what is said then.

use std::fs;
use std::net::TcpListener;
use std::sync::Mutex;
use std::time::Duration;

use super::super::*;
use super::{Answer, OTHER, Seen, Server, answer, config, get, hub, info};

#[test]
fn refusals_say_what_to_do() {
    let cases = [
        (answer(401, "").with("X-Error-Code", "GatedRepo"), "accept its terms"),
        (answer(403, "").with("X-Error-Code", "GatedRepo"), "accept its terms"),
        (answer(404, "").with("X-Error-Code", "RepoNotFound"), "check the spelling"),
        (answer(404, "").with("X-Error-Code", "RevisionNotFound"), "no revision of that name"),
        (answer(401, ""), "HF_TOKEN is missing, wrong or expired"),
        (answer(403, ""), "HF_TOKEN is missing, wrong or expired"),
        (answer(418, ""), "HTTP status 418"),
        (answer(503, ""), "HTTP status 503"),
        (answer(200, "<html>"), "is HF_ENDPOINT a Hugging Face hub?"),
        (answer(200, "{\"sha\":\"../../x\",\"siblings\":[]}"), "40 hexadecimal digits"),
        (answer(302, ""), "redirect to nowhere"),
        (answer(302, "").with("Location", "file:///etc/passwd"), "not a URL"),
        (info(&["config.json", "../../.bashrc"]), "\"../../.bashrc\", which is no path inside"),
        (info(&["config.json", "/etc/passwd"]), "no path inside"),
        (info(&["config.json", "a\\b"]), "no path inside"),
        (
            info(&["config.json", "pytorch_model.bin", "x.gguf"]),
            "has no safetensors weights; it has pytorch_model.bin, x.gguf",
        ),
        (info(&[]), "it has no weights"),
    ];
    for (refusal, expected) in cases {
        let cache = tempfile::tempdir().unwrap();
        let refusal = Mutex::new(refusal);
        let server = Server::start(move |_| {
            let refusal = refusal.lock().unwrap();
            Answer {
                status: refusal.status,
                headers: refusal.headers.clone(),
                body: refusal.body.clone(),
                cut: usize::MAX,
            }
        });
        let error =
            get(&HubConfig { retries: 1, ..config(cache.path(), &server) }, "org/name@x").unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0, "{expected}: something was written");
    }
    // Without a token, a model that is not there looks like a private one.
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|_| answer(401, ""));
    let error = get(&HubConfig { token: None, ..config(cache.path(), &server) }, "org/name").unwrap_err().to_string();
    assert!(error.contains("for a private model set HF_TOKEN"), "{error}");
}

#[test]
fn hostile_file_answers_are_refused() {
    let etag = |etag: &'static str| move |_: &Seen| answer(200, "x").with("ETag", etag);
    let refused = |server: Server, expected: &str| {
        let cache = tempfile::tempdir().unwrap();
        let error =
            get(&HubConfig { retries: 0, ..config(cache.path(), &server) }, "org/name").unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    };
    refused(hub(etag("\"../../../evil\"")), "usable ETag");
    refused(hub(etag("\"\"")), "usable ETag");
    refused(hub(|_| answer(200, "x")), "usable ETag");
    refused(hub(|_| answer(200, "x").with("ETag", "\"a\"").with("X-Repo-Commit", OTHER)), "another commit");
    refused(hub(|_| answer(404, "")), "has no file \"model.safetensors\"");
    // More than announced.
    refused(
        hub(|_| answer(200, vec![7; 100]).with("X-Linked-Etag", "\"abc\"").with("X-Linked-Size", "10")),
        "received 100 bytes of 10",
    );
}

#[test]
fn unreachable_and_silent_servers_are_told_apart() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|_| {
        std::thread::sleep(Duration::from_millis(400));
        answer(200, "")
    });
    let mut config = config(cache.path(), &server);
    config.read_timeout = Duration::from_millis(50);
    config.retries = 0;
    let error = get(&config, "org/name").unwrap_err();
    assert!(matches!(error, HubError::Timeout { .. }), "{error}");
    // A port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    config.endpoint = format!("http://{free}");
    let error = get(&config, "org/name").unwrap_err();
    assert!(matches!(error, HubError::Network { .. }), "{error}");
    config.endpoint = "huggingface.co".into();
    assert!(matches!(Hub::new(config), Err(HubError::BadEndpoint { .. })));
}
