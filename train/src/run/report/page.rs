//! The page around the charts.

use std::fmt::Write;

use super::chart::Chart;
use super::{RunData, Sample};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

pub(super) fn render(runs: &[RunData], charts: &[Chart]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let title = escape(&names.join(", "));
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title} · planish</title>\n<style>\n{STYLE}</style></head>\n<body>\n\
         <header><p class=\"brand\">planish</p><h1>{title}</h1></header>\n<main>\n"
    );
    for run in runs {
        tiles(&mut html, run, runs.len() > 1);
        advice(&mut html, run);
    }
    if charts.is_empty() {
        html.push_str("<p class=\"none\">There are no metrics yet.</p>\n");
    }
    html.push_str("<div class=\"charts\">\n");
    for chart in charts {
        let _ = writeln!(
            html,
            "<figure><figcaption>{}<span class=\"legend\">{}</span></figcaption>{}</figure>",
            escape(&chart.title),
            chart.legend(),
            chart.svg()
        );
    }
    html.push_str("</div>\n");
    for run in runs {
        samples(&mut html, &run.samples);
        details(&mut html, run);
    }
    let _ = writeln!(html, "</main>\n<div id=\"tip\" hidden></div>\n<script>\n{SCRIPT}</script>\n</body></html>");
    html
}

/// The numbers that one looks for first.
fn tiles(html: &mut String, run: &RunData, named: bool) {
    if named {
        let _ = writeln!(html, "<h2>{}</h2>", escape(&run.name));
    }
    let loss = run.curve("loss");
    let held_out = run.curve("eval_loss");
    let ends = |curve: &[(f64, f64)]| curve.first().zip(curve.last()).map(|(a, b)| (a.1, b.1));
    let mut tiles: Vec<(&str, String)> = Vec::new();
    if let Some((step, _)) = loss.last() {
        tiles.push(("steps", format!("{step}")));
    }
    if let Some((first, last)) = ends(&loss) {
        tiles.push(("loss", format!("{first:.3} → {last:.3}")));
    }
    if let Some((first, last)) = ends(&held_out) {
        let text = if held_out.len() > 1 { format!("{first:.3} → {last:.3}") } else { format!("{last:.3}") };
        tiles.push(("held-out loss", text));
    }
    if let Some((_, tokens)) = run.curve("num_tokens").last() {
        tiles.push(("tokens", grouped(*tokens)));
    }
    let seconds: f64 = run.curve("step_seconds").iter().map(|point| point.1).sum();
    if seconds > 0.0 {
        tiles.push(("time in steps", duration(seconds)));
    }
    if let Some(peak) = run.curve("peak_memory_bytes").iter().map(|p| p.1).max_by(f64::total_cmp) {
        tiles.push(("peak memory", format!("{:.2} GB", peak / 1e9)));
    }
    html.push_str("<section class=\"tiles\">");
    for (name, value) in tiles {
        let _ = write!(html, "<div><b>{value}</b><span>{name}</span></div>");
    }
    html.push_str("</section>\n");
}

/// What the run said while it went on.
fn advice(html: &mut String, run: &RunData) {
    if run.advice.is_empty() {
        return;
    }
    html.push_str("<ul class=\"advice\">\n");
    for (step, sentence) in &run.advice {
        let _ = writeln!(html, "<li><b>step {step}</b> {}</li>", escape(sentence));
    }
    html.push_str("</ul>\n");
}

fn samples(html: &mut String, samples: &[Sample]) {
    if samples.is_empty() {
        return;
    }
    html.push_str("<h2>Answers</h2>\n");
    for sample in samples {
        let _ = write!(html, "<article><p class=\"prompt\">{}</p><dl>", escape(&sample.prompt));
        let _ = write!(html, "<dt>before</dt><dd>{}</dd>", escape(&sample.before));
        let _ = write!(html, "<dt>after</dt><dd>{}</dd>", escape(&sample.after));
        if let Some(reference) = &sample.reference {
            let _ = write!(html, "<dt>reference</dt><dd>{}</dd>", escape(reference));
        }
        html.push_str("</dl></article>\n");
    }
}

fn details(html: &mut String, run: &RunData) {
    if !run.facts.is_empty() {
        html.push_str("<h2>Facts</h2>\n<table>");
        for (key, value) in &run.facts {
            let _ = write!(html, "<tr><th>{}</th><td>{}</td></tr>", escape(key), escape(value));
        }
        html.push_str("</table>\n");
    }
    if !run.config.is_empty() {
        let name = escape(&run.name);
        let _ = writeln!(
            html,
            "<details><summary>config.yaml of {name}</summary><pre>{}</pre></details>",
            escape(&run.config)
        );
    }
}

/// Text as HTML, also inside a quoted attribute.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            _ => out.push(c),
        }
    }
    out
}

/// 1234567 as `1,234,567`.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}
