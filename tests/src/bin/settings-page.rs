//! Writes the settings page of the book.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/settings.md");
    std::fs::write(page, planish_tests::settings_page())
}
