//! One chart as SVG: axes with round numbers, lines, dots, and its data for the pointer.

use std::fmt::Write;

use serde_json::json;

use super::page::escape;

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Line,
    /// A line behind its smoothed self.
    Faint,
    /// A dashed line that is no measurement.
    Level,
    Dots,
}

impl Look {
    /// The class of it in the page's style, after a blank.
    fn class(self) -> &'static str {
        match self {
            Look::Faint => " faint",
            Look::Level => " level",
            Look::Line | Look::Dots => "",
        }
    }
}

pub(super) struct Series {
    pub(super) label: String,
    /// Index into the page's palette.
    pub(super) color: usize,
    pub(super) look: Look,
    pub(super) points: Vec<(f64, f64)>,
}

pub(super) struct Chart {
    pub(super) title: String,
    pub(super) series: Vec<Series>,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 28.0;
/// More points than pixels are only a larger file.
const MOST_POINTS: usize = 800;

impl Chart {
    pub(super) fn is_empty(&self) -> bool {
        self.series.iter().all(|series| series.points.is_empty())
    }

    pub(super) fn svg(&self) -> String {
        let all = || self.series.iter().flat_map(|series| &series.points);
        let (x0, x1) = range(all().map(|point| point.0));
        let (low, high) = range(all().map(|point| point.1));
        let (ticks_y, y0, y1) = round_axis(low, high);
        let x = |value: f64| LEFT + (value - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - (value - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);

        let mut svg =
            format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", escape(&self.title));
        for tick in ticks_y {
            let at = y(tick);
            let _ = write!(
                svg,
                "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                at + 4.0,
                label(tick),
            );
        }
        for tick in round_axis(x0, x1).0.into_iter().filter(|tick| (x0..=x1).contains(tick)) {
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                x(tick),
                HEIGHT - 8.0,
                label(tick),
            );
        }
        for series in &self.series {
            let points = thinned(&series.points);
            let color = series.color % 6;
            if series.look != Look::Dots && points.len() > 1 {
                let kind = series.look.class();
                let _ = write!(svg, "<polyline class=\"line c{color}{kind}\" points=\"");
                for (px, py) in &points {
                    let _ = write!(svg, "{:.1},{:.1} ", x(*px), y(*py));
                }
                svg.push_str("\"/>");
            } else {
                for (px, py) in &points {
                    let (px, py) = (x(*px), y(*py));
                    let _ = write!(svg, "<circle class=\"dot c{color}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3.5\"/>");
                }
            }
        }
        svg.push_str("<g class=\"cursor\"></g></svg>");
        let data = json!({
            "x": [x0, x1, LEFT, WIDTH - RIGHT],
            "y": [y0, y1, HEIGHT - BOTTOM, TOP],
            "series": self.series.iter()
                .filter(|series| series.look != Look::Level && (series.look != Look::Faint || self.series.len() < 3))
                .map(|series| json!({
                    "label": series.label, "color": series.color % 6, "points": thinned(&series.points),
                })).collect::<Vec<_>>(),
        });
        // In a script element only `<` can end the text early.
        let data = data.to_string().replace('<', "\\u003c");
        format!("{svg}<script type=\"application/json\">{data}</script>")
    }

    /// The names of the series, in their colours.
    pub(super) fn legend(&self) -> String {
        let mut html = String::new();
        for series in self.series.iter().filter(|series| !series.points.is_empty()) {
            let kind = series.look.class();
            let _ =
                write!(html, "<span class=\"key c{}{kind}\"><i></i>{}</span>", series.color % 6, escape(&series.label));
        }
        html
    }
}

/// Smallest and largest; widened if they are one, so that the axis has a length.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        (0.0, 1.0)
    } else if low == high {
        let by = if low == 0.0 { 1.0 } else { low.abs() * 0.5 };
        (low - by, high + by)
    } else {
        (low, high)
    }
}

/// About five round numbers that enclose the range, and the ends of the axis.
fn round_axis(low: f64, high: f64) -> (Vec<f64>, f64, f64) {
    let rough = (high - low) / 4.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    let (first, last) = ((low / step).floor(), (high / step).ceil());
    if !(last - first < 20.0) || step == 0.0 {
        return (vec![low, high], low, high); // Beyond what floats can step through.
    }
    let count = (last - first) as usize;
    let ticks: Vec<f64> = (0..=count).map(|i| (first + i as f64) * step).collect();
    (ticks, first * step, last * step)
}

fn label(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 || size < 1e-300 {
        "0".into()
    } else if size >= 1e6 {
        format!("{}M", trim(format!("{:.2}", value / 1e6)))
    } else if size >= 1e4 {
        format!("{}k", trim(format!("{:.1}", value / 1e3)))
    } else if size < 1e-3 {
        let text = format!("{value:.1e}");
        text.replace(".0e", "e")
    } else {
        trim(format!("{value:.4}"))
    }
}

fn trim(text: String) -> String {
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// At most [`MOST_POINTS`] points; of each stretch its lowest and highest, so that spikes stay.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let points: Vec<(f64, f64)> = points.iter().copied().filter(|(_, y)| y.is_finite()).collect();
    if points.len() <= MOST_POINTS {
        return points;
    }
    let stretch = points.len().div_ceil(MOST_POINTS / 2);
    let mut kept = Vec::with_capacity(MOST_POINTS);
    for part in points.chunks(stretch) {
        let by_height = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        if let (Some(low), Some(high)) = (part.iter().min_by(by_height), part.iter().max_by(by_height)) {
            let (first, second) = if low.0 <= high.0 { (low, high) } else { (high, low) };
            kept.push(*first);
            if first != second {
                kept.push(*second);
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_round_and_enclose_the_range() {
        for (low, high) in [(0.0, 1.0), (1.37, 2.94), (-3e-7, 1e-5), (5.0, 5000.0), (2.0, 2.001)] {
            let (ticks, y0, y1) = round_axis(low, high);
            let room = (high - low) * 1e-9;
            assert!(y0 <= low + room && y1 >= high - room, "{low} {high} {y0} {y1}");
            assert!((3..=7).contains(&ticks.len()), "{ticks:?}");
        }
        let (ticks, ..) = round_axis(1.0, f64::MAX);
        assert!(ticks.len() < 25);
    }

    #[test]
    fn labels_are_short() {
        let labels: Vec<String> = [0.0, 2.5, 0.025, 2e-5, 1.24e-6, 12000.0, 2_500_000.0].map(label).into();
        assert_eq!(labels, ["0", "2.5", "0.025", "2e-5", "1.2e-6", "12k", "2.5M"]);
    }

    #[test]
    fn thinning_keeps_spikes_and_order() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|x| (f64::from(x), 1.0)).collect();
        points[54_321].1 = 9.0;
        let thin = thinned(&points);
        assert!(thin.len() <= MOST_POINTS + 2);
        assert!(thin.contains(&(54_321.0, 9.0)));
        assert!(thin.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
