//! Tokens per second over time against the budget, as SVG. Colours of middling lightness on no background, so that it
//! can be read on a light page and on a dark one.

use std::fmt::Write;

use fake_api::{FakeApi, Second};

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 360.0;
/// The edges of the area in which the lines are.
const LEFT: f64 = 64.0;
const RIGHT: f64 = WIDTH - 16.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 260.0;
/// Below it: what was refused, a strip for each series.
const STRIP: f64 = 30.0;
/// Where the words about each series and the budget begin.
const LEGEND: [f64; 3] = [LEFT - 48.0, LEFT + 208.0, LEFT + 488.0];
const TEXT: &str = "#808080";
const COLOURS: [&str; 2] = ["#2f86d6", "#d9822b"];

/// What one client did, second by second.
pub struct Series {
    name: String,
    seconds: Vec<Second>,
}

impl Series {
    /// What an API saw.
    pub fn new(name: &str, api: &FakeApi) -> Self {
        Self {
            name: name.to_owned(),
            seconds: api.per_second(),
        }
    }

    fn refused(&self) -> u64 {
        self.seconds.iter().map(|second| second.refused).sum()
    }

    fn sent(&self) -> u64 {
        self.refused()
            + self
                .seconds
                .iter()
                .map(|second| second.requests)
                .sum::<u64>()
    }
}

/// Two clients under the same budget.
pub struct Plot {
    /// Tokens per second.
    pub budget: f64,
    /// What is drawn.
    pub series: [Series; 2],
}

impl Plot {
    /// The picture.
    pub fn svg(&self) -> String {
        let seconds = self.series.iter().map(|series| series.seconds.len());
        let seconds = seconds.max().unwrap_or(1).max(10);
        let most = self
            .series
            .iter()
            .flat_map(|series| &series.seconds)
            .map(|second| second.tokens as f64)
            .fold(self.budget, f64::max);
        let step = steps(most, 4.0);
        let top = (most / step).ceil() * step;
        let x = |second: f64| LEFT + (RIGHT - LEFT) * second / seconds as f64;
        let y = |tokens: f64| BOTTOM - (BOTTOM - TOP) * tokens / top;
        let mut svg = String::new();
        let mut put = |piece: String| {
            svg.push_str(&piece);
            svg.push('\n');
        };
        put(format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12" fill="{TEXT}">"#
        ));
        put(format!(
            "<title>Tokens per second under a budget of {} a second</title>",
            thousands(self.budget.round() as u64)
        ));
        let mut tick = 0.0;
        while tick <= top + 0.5 {
            let at = y(tick);
            put(format!(
                r#"<path d="M{LEFT} {at:.1}H{RIGHT}" stroke="{TEXT}" stroke-opacity="0.25"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                LEFT - 6.0,
                at + 4.0,
                thousands(tick as u64)
            ));
            tick += step;
        }
        put(format!(
            r#"<text x="{LEFT}" y="{:.1}">tokens per second</text>"#,
            TOP - 10.0
        ));
        let between = steps(seconds as f64, 8.0);
        let axis = BOTTOM + 16.0;
        let mut tick = 0.0;
        while tick <= seconds as f64 {
            put(format!(
                r#"<path d="M{:.1} {BOTTOM}v4" stroke="{TEXT}"/><text x="{:.1}" y="{axis}" text-anchor="middle">{tick} s</text>"#,
                x(tick),
                x(tick)
            ));
            tick += between;
        }
        let highest = self.series.iter().flat_map(|series| &series.seconds);
        let highest = highest.map(|second| second.refused).max().unwrap_or(0);
        // The first is drawn last, over the others.
        for (index, series) in self.series.iter().enumerate().rev() {
            let colour = COLOURS[index];
            let mut line = String::new();
            for (second, seen) in series.seconds.iter().enumerate() {
                let command = if second == 0 { 'M' } else { 'L' };
                let (from, to) = (x(second as f64), x(second as f64 + 1.0));
                let at = y(seen.tokens as f64);
                let _ = write!(line, "{command}{from:.1} {at:.1}H{to:.1}");
            }
            put(format!(
                r#"<path d="{line}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-linejoin="round"/>"#
            ));
            let strip = axis + 14.0 + STRIP * index as f64;
            let mut marks = String::new();
            for (second, seen) in series.seconds.iter().enumerate() {
                if seen.refused > 0 {
                    let length = 3.0 + (STRIP - 8.0) * seen.refused as f64 / highest as f64;
                    let _ = write!(
                        marks,
                        "M{:.1} {strip:.1}v{length:.1}",
                        x(second as f64 + 0.5)
                    );
                }
            }
            put(format!(
                r#"<path d="M{LEFT} {strip:.1}H{RIGHT}" stroke="{colour}" stroke-opacity="0.5"/><path d="{marks}" stroke="{colour}" stroke-width="2"/><text x="{:.1}" y="{:.1}" text-anchor="end">refused</text>"#,
                LEFT - 6.0,
                strip + 10.0
            ));
            let legend = LEGEND[index];
            put(format!(
                r#"<path d="M{legend} 14h22" stroke="{colour}" stroke-width="3"/><text x="{}" y="18">{}: {} of {} requests refused</text>"#,
                legend + 28.0,
                series.name,
                thousands(series.refused()),
                thousands(series.sent())
            ));
        }
        let (at, legend) = (y(self.budget), LEGEND[2]);
        put(format!(
            r#"<path d="M{LEFT} {at:.1}H{RIGHT}M{legend} 14h22" stroke="{TEXT}" stroke-width="1.5" stroke-dasharray="6 4"/><text x="{}" y="18">the budget: {} tokens a second</text>"#,
            legend + 28.0,
            thousands(self.budget.round() as u64)
        ));
        put("</svg>".to_owned());
        svg
    }
}

/// A round distance at which about `wanted` marks fit into `length`.
fn steps(length: f64, wanted: f64) -> f64 {
    let power = 10f64.powf((length / wanted).log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|factor| factor * power >= length / wanted);
    factor.unwrap_or(10.0) * power
}

/// `66667` as `66,667`.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
