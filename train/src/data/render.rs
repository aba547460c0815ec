//! The preflight report for people.

use std::fmt::Write;

use super::pack::Packing;
use super::preflight::Preflight;

/// Characters of the first example that are shown, at most.
const SHOWN: usize = 3000;
/// Width of the longest bar.
const BAR: usize = 40;

const BOLD: &str = "\x1b[1m";
const GREEN: &str = "\x1b[32m";
const DIM: &str = "\x1b[2m";
const YELLOW: &str = "\x1b[33m";
const RESET: &str = "\x1b[0m";

/// The report as text; with `color`, ANSI colours: trained tokens green, context dim. Without,
/// trained tokens stand in `⟦ ⟧`. Control characters of the data are shown escaped, so a data set
/// cannot drive the terminal.
pub fn render(r: &Preflight, color: bool) -> String {
    let paint = |code: &'static str, text: &str| if color { format!("{code}{text}{RESET}") } else { text.to_string() };
    let mut o = String::new();
    // Writing to a String does not fail.
    let mut line = |text: String| {
        let _ = writeln!(o, "{text}");
    };
    line(paint(BOLD, "Data"));
    for f in &r.files {
        let weight = if f.weight == 1.0 { String::new() } else { format!(", shown {} times an epoch", f.weight) };
        line(format!("  {}: {} rows of {}{weight}", f.path, group(f.rows), f.kind.name()));
    }
    let sampled = if r.sampled {
        format!(" (from a sample of {} of {} rows)", group(r.examined), group(r.rows))
    } else {
        String::new()
    };
    line(format!("  {} examples of {} rows{sampled}", group(r.examples), group(r.examined)));
    let about = if r.sampled { "about " } else { "" };
    line(format!("  {about}{} optimizer steps an epoch, {}", group(r.steps_per_epoch), packing(r)));
    line(format!(
        "  {} tokens, {} of them trained on ({:.1}%)",
        group(r.tokens),
        group(r.supervised_tokens),
        100.0 * r.supervised_share
    ));
    line(match &r.template {
        Some(t) => format!("  chat template of {} characters", group(t.chars().count() as u64)),
        None => "  no chat template used".into(),
    });
    line(String::new());
    line(paint(BOLD, "Tokens of an example"));
    let l = &r.lengths;
    line(format!(
        "  half up to {}, 90% up to {}, 99% up to {}, longest {}, mean {:.1}",
        l.p50, l.p90, l.p99, l.max, l.mean
    ));
    let most = l.histogram.iter().map(|b| b.count).max().unwrap_or(1).max(1);
    let digits = l.max.to_string().len() + 1;
    for b in &l.histogram {
        // A bar that has any is seen.
        let n = (b.count as usize * BAR).div_ceil(most as usize);
        let over = r.max_length.is_some_and(|max| b.to > max && b.count > 0);
        let bar = paint(if over { YELLOW } else { GREEN }, &"█".repeat(n));
        line(format!("  {:>digits$}–{:<digits$} {bar} {}", b.from, b.to, group(b.count)));
    }
    line(format!(
        "  truncated {}, dropped {} (too long {}, nothing left to train on {}, nothing to train on {}, wrong {})",
        group(r.truncated),
        group(r.dropped_too_long + r.dropped_after_truncation + r.dropped_unsupervised + r.invalid()),
        group(r.dropped_too_long),
        group(r.dropped_after_truncation),
        group(r.dropped_unsupervised),
        group(r.invalid())
    ));
    line(format!("  double BOS {}, missing EOS {}", group(r.double_bos), group(r.missing_eos)));
    if let Some(first) = &r.first {
        line(String::new());
        let legend = if color { "green is trained on" } else { "⟦trained on⟧" };
        line(paint(BOLD, &format!("First example, {}:{} ({legend})", first.file, first.line)));
        let mut left = SHOWN;
        let mut text = String::new();
        for span in &first.spans {
            let shown: String = span.text.chars().take(left).collect();
            left -= shown.chars().count();
            let cut = shown.len() < span.text.len();
            let safe = printable(&shown);
            text += &match (color, span.trained) {
                (true, true) => format!("{GREEN}{safe}{RESET}"),
                (true, false) => format!("{DIM}{safe}{RESET}"),
                (false, true) => format!("⟦{safe}⟧"),
                (false, false) => safe,
            };
            if cut || left == 0 {
                text += " …";
                break;
            }
        }
        for l in text.split('\n') {
            line(format!("  {l}"));
        }
    }
    if !r.warnings.is_empty() {
        line(String::new());
        line(paint(BOLD, "Look at this"));
        for w in &r.warnings {
            line(format!("  {} {w}", paint(YELLOW, "!")));
        }
    }
    o
}

fn packing(r: &Preflight) -> String {
    let max = r.max_length.map_or(String::new(), |m| format!(" into rows of {m} tokens"));
    match r.packing {
        Packing::None => "not packed".into(),
        Packing::Bfd => format!("packed whole{max}"),
        Packing::Wrapped => "one stream cut in blocks".into(),
    }
}

/// Text without control characters other than line breaks and tabs.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// 1234567 as 1,234,567.
fn group(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(d);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_and_control_characters() {
        assert_eq!([group(0), group(999), group(1000), group(1234567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(printable("a\x1b[31m\n\té"), "a\\u{1b}[31m\n\té");
    }
}
