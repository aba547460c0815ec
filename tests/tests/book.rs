//! What the book and the README say must be there, is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The pages of the book and the documents at the root.
fn documents() -> Vec<PathBuf> {
    let pages = fs::read_dir(root().join("docs/src")).unwrap().map(|entry| entry.unwrap().path());
    let at_root = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name));
    pages.filter(|path| path.extension().is_some_and(|e| e == "md")).chain(at_root).collect()
}

/// Targets of the inline links of a document, outside of code.
fn links(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (i, part) in text.split("```").enumerate() {
        let links = part.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        if i % 2 == 0 {
            found.extend(links);
        }
    }
    found
}

/// The anchor that mdBook and code hosts give a heading.
fn anchor(heading: &str) -> String {
    let letters = heading.trim_start_matches('#').trim().to_lowercase();
    letters
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn the_settings_page_is_the_table() {
    let page = read(&root().join("docs/src/settings.md"));
    assert!(
        page == planish_tests::settings_page(),
        "docs/src/settings.md is not what the settings are; run `cargo run -p planish-tests --bin settings-page`"
    );
}

#[test]
fn the_summary_lists_each_page_once() {
    let src = root().join("docs/src");
    let summary = read(&src.join("SUMMARY.md"));
    let listed = links(&summary);
    let pages: BTreeSet<String> = fs::read_dir(&src)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".md") && name != "SUMMARY.md")
        .collect();
    assert_eq!(listed.len(), pages.len());
    assert_eq!(listed.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>(), pages);
}

#[test]
fn links_within_the_repository_lead_somewhere() {
    let mut checked = 0;
    for document in documents() {
        let text = read(&document);
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
            assert!(target.exists(), "{}: {link}", document.display());
            if !heading.is_empty() {
                let found = read(&target).lines().any(|line| line.starts_with('#') && anchor(line) == heading);
                assert!(found, "{}: {link}: no such heading", document.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} links were found");
}
