//! What is asked: whom a client dials, and what it says.

use std::net::{IpAddr, Ipv4Addr};

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

/// A client that dials, and its request if it has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The address that is dialed, where it is said: some listen at one alone.
    pub ip: Option<IpAddr>,
    pub port: u16,
    /// The name that the request is for, without a port.
    pub host: String,
    /// With its query.
    pub path: String,
    pub method: String,
    /// The name that TLS begins with. `None`: there is no TLS.
    pub sni: Option<String>,
    /// The client's address.
    pub from: IpAddr,
}

/// A field of a question that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} = {value:?}: expected {expected}")]
pub struct BadQuestion {
    field: &'static str,
    value: String,
    expected: &'static str,
}

impl Question {
    /// Reads the query of a URL: `ask=HOST:PORT`, and `host`, `path`, `method`, `sni`, `from`. Returns the node that is to say it, too, if one is named.
    ///
    /// Errors: which field is wrong, and what was expected.
    pub fn parse(query: &str) -> Result<(Question, Option<String>), BadQuestion> {
        let mut fields = Fields::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(&value.replace('+', " "))
                .decode_utf8_lossy()
                .into_owned();
            let slot = match name {
                "ask" => &mut fields.ask,
                "host" => &mut fields.host,
                "path" => &mut fields.path,
                "method" => &mut fields.method,
                "sni" => &mut fields.sni,
                "from" => &mut fields.from,
                "node" => &mut fields.node,
                _ => {
                    return Err(BadQuestion {
                        field: "field",
                        value: name.to_owned(),
                        expected: "ask, host, path, method, sni, from or node",
                    });
                }
            };
            if !value.is_empty() {
                *slot = Some(value);
            }
        }
        fields.read()
    }
}

#[derive(Default)]
struct Fields {
    ask: Option<String>,
    host: Option<String>,
    path: Option<String>,
    method: Option<String>,
    sni: Option<String>,
    from: Option<String>,
    node: Option<String>,
}

impl Fields {
    fn read(self) -> Result<(Question, Option<String>), BadQuestion> {
        let wrong = |field, value: &str, expected| BadQuestion {
            field,
            value: value.to_owned(),
            expected,
        };
        let ask = self.ask.unwrap_or_default();
        let (dialed, port) = ask
            .rsplit_once(':')
            .or_else(|| ask.parse::<u16>().ok().map(|_| ("", ask.as_str())))
            .and_then(|(host, port)| Some((host, port.parse::<u16>().ok().filter(|port| *port != 0)?)))
            .ok_or_else(|| wrong("ask", &ask, "HOST:PORT, such as 10.0.0.1:8080"))?;
        let bare = dialed.trim_start_matches('[').trim_end_matches(']');
        let ip = bare.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
        let is_word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        let host = self.host.unwrap_or_else(|| bare.to_owned());
        if !host.is_empty() && !is_word(&host) {
            return Err(wrong("host", &host, "a name, such as a.example"));
        }
        let path = self.path.unwrap_or_else(|| "/".to_owned());
        if !is_word(&path) || !path.starts_with('/') {
            return Err(wrong("path", &path, "a path that begins with /, as a request has it"));
        }
        let method = self.method.unwrap_or_else(|| "GET".to_owned());
        if !method.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(wrong("method", &method, "a method, such as GET"));
        }
        if let Some(sni) = &self.sni
            && !is_word(sni)
        {
            return Err(wrong("sni", sni, "a name, such as a.example"));
        }
        let from = match &self.from {
            Some(from) => from
                .parse()
                .map_err(|_| wrong("from", from, "an address of a client"))?,
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        let question = Question {
            ip,
            port,
            host: plain(&host),
            path,
            method,
            sni: self.sni.as_deref().map(plain),
            from: from.to_canonical(),
        };
        Ok((question, self.node))
    }
}

/// Without a port and a dot at the end, in lower case.
fn plain(host: &str) -> String {
    let end = match host.starts_with('[') {
        true => host.find(']').map_or(host.len(), |end| end + 1),
        false => host.find(':').unwrap_or(host.len()),
    };
    host[..end].trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_with_what_is_left_out() {
        let (asked, node) = Question::parse("ask=10.0.0.1:8080").unwrap();
        assert_eq!((asked.ip, asked.port), (Some("10.0.0.1".parse().unwrap()), 8080));
        assert_eq!((&*asked.host, &*asked.path, &*asked.method), ("10.0.0.1", "/", "GET"));
        assert_eq!((asked.sni, node), (None, None));
        let all = "ask=[fd00::1]:443&host=A.Example.:443&path=%2Fapi%3Fa%3D1&method=POST&sni=A.example&from=%3A%3Affff%3A10.1.2.3&node=b";
        let (asked, node) = Question::parse(all).unwrap();
        assert_eq!((asked.ip, asked.port), (Some("fd00::1".parse().unwrap()), 443));
        assert_eq!(
            (&*asked.host, &*asked.path, &*asked.method),
            ("a.example", "/api?a=1", "POST")
        );
        assert_eq!(asked.sni.as_deref(), Some("a.example"));
        assert_eq!((asked.from, node.as_deref()), ("10.1.2.3".parse().unwrap(), Some("b")));
        let (asked, _) = Question::parse("ask=8080&host=&path=").unwrap();
        assert_eq!((asked.ip, asked.port, &*asked.host), (None, 8080, ""));
        let (asked, _) = Question::parse("ask=web.example:80").unwrap();
        assert_eq!((asked.ip, &*asked.host), (None, "web.example"));
    }

    #[test]
    fn what_means_nothing_is_named() {
        for (query, said) in [
            ("", "ask = \"\": expected HOST:PORT"),
            ("ask=web", "ask = \"web\""),
            ("ask=web:0", "ask = "),
            ("ask=web:99999", "ask = "),
            ("ask=a:1&path=api", "path = \"api\""),
            ("ask=a:1&path=/a%20b", "path = "),
            ("ask=a:1&path=/%0d%0aX:y", "path = "),
            ("ask=a:1&host=a%20b", "host = "),
            ("ask=a:1&method=G%20T", "method = "),
            ("ask=a:1&sni=%00", "sni = "),
            ("ask=a:1&from=me", "from = \"me\": expected an address"),
            ("ask=a:1&form=me", "field = \"form\""),
        ] {
            let error = Question::parse(query).unwrap_err().to_string();
            assert!(error.starts_with(said), "{query}: {error}");
        }
    }
}
