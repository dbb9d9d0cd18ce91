//! The scrape in Prometheus' older text format, which everybody reads: made of the OpenMetrics text. Not here: what is in it
//! (`metrics`).

use hyper::HeaderMap;
use hyper::header::ACCEPT;

/// The text format that a scrape is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    OpenMetrics,
    Plain,
}

impl Format {
    /// What whoever asks wants: OpenMetrics where it is named and not refused by `q=0`.
    pub(super) fn wanted(headers: &HeaderMap) -> Format {
        let fields = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let is_wanted = |range: &str| {
            let mut parts = range.split(';').map(str::trim);
            let is_it = parts
                .next()
                .is_some_and(|kind| kind.eq_ignore_ascii_case("application/openmetrics-text"));
            let weight = parts.find_map(|part| part.strip_prefix("q="));
            is_it && weight.is_none_or(|weight| weight.parse::<f32>().is_ok_and(|weight| weight > 0.0))
        };
        match fields.flat_map(|field| field.split(',')).any(is_wanted) {
            true => Format::OpenMetrics,
            false => Format::Plain,
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// `openmetrics`, written in the older format: a counter's family has the name of its series, and the text has no end mark.
pub(super) fn plain(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len() + 4096);
    // HELP comes before TYPE, and is named as that says.
    let mut help: Option<(&str, &str)> = None;
    for line in openmetrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("HELP"), Some(name), Some(text)) => help = Some((name, text)),
            (Some("TYPE"), Some(name), Some(kind)) => {
                let end = if kind == "counter" { "_total" } else { "" };
                if let Some((_, text)) = help.take_if(|(of, _)| *of == name) {
                    out.push_str(&format!("# HELP {name}{end} {text}\n"));
                }
                out.push_str(&format!("# TYPE {name}{end} {kind}\n"));
            }
            // "EOF", and "UNIT", which that format does not know.
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn openmetrics_is_for_whoever_names_it() {
        for (accept, expected) in [
            (None, Format::Plain),
            (Some("*/*"), Format::Plain),
            (Some("text/plain;version=0.0.4"), Format::Plain),
            (
                Some("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"),
                Format::OpenMetrics,
            ),
            (Some("text/html, Application/OpenMetrics-Text"), Format::OpenMetrics),
            (Some("application/openmetrics-text;q=0"), Format::Plain),
            (Some("application/openmetrics-text;q=x"), Format::Plain),
            (Some(";;,=,"), Format::Plain),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(ACCEPT, HeaderValue::from_str(accept).unwrap());
            }
            assert_eq!(Format::wanted(&headers), expected, "{accept:?}");
        }
    }

    #[test]
    fn counters_have_the_name_of_their_series() {
        let openmetrics = "# HELP a A's # own.\n# TYPE a counter\n# UNIT a x\na_total{b=\"# c\"} 1\n# HELP d D.\n# TYPE d gauge\nd 2\n# EOF\n";
        let expected = "# HELP a_total A's # own.\n# TYPE a_total counter\na_total{b=\"# c\"} 1\n# HELP d D.\n# TYPE d gauge\nd 2\n";
        assert_eq!(plain(openmetrics), expected);
    }
}
