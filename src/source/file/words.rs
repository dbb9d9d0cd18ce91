//! What the YAML library says of a services file, in the words of whoever wrote it. Pure. Not here: reading it (`parse`).

/// What is wrong under `key` (as in `services.my-web.publish[0]`), where `value` stands, said without YAML's own terms.
///
/// What is not known here stays as the library says it.
pub(super) fn plain(message: &str, key: &str, value: Option<&str>) -> String {
    if key.contains(BASIC_AUTH) && !is_of_plain_keys(message) && !key.ends_with("_header") && !key.ends_with(".realm") {
        // What stands there may be a password.
        return "expected { users: [\"name:hash\"] }, and beside users none but realm, user_header and remove_header"
            .to_owned();
    }
    let last = key.rsplit('.').next().unwrap_or(key);
    let last = last.split('[').next().unwrap_or(last);
    let expected = match message {
        "expected mapping start" => keys_expected(key, last),
        "expected sequence start" => list_expected(last),
        "expected string scalar" => "one value, not a list or further keys",
        "invalid boolean" => "true or false",
        _ if message.starts_with("invalid u") => match last {
            "rise" | "fall" => "a whole number from 1 to 4294967295",
            _ => "a whole number up to 4294967295; 0 means no limit",
        },
        _ if message.starts_with("budget breached: Anchors") || message.starts_with("budget breached: Aliases") => {
            return "anchors and aliases (& and *) are not taken: expected everything written out".to_owned();
        }
        _ => return other(message),
    };
    match value {
        Some(value) => format!("{value:?} is not valid: expected {expected}"),
        None => format!("expected {expected}"),
    }
}

/// As far as a key may be shown: not what may be a name and its password.
pub(super) fn plain_key(key: &str) -> &str {
    let end = key.find(BASIC_AUTH).map(|at| at + BASIC_AUTH.len());
    match end.filter(|end| key[*end..].contains(':')) {
        Some(end) => &key[..end],
        None => key,
    }
}

const BASIC_AUTH: &str = ".basic_auth";

/// Whether a message names a key, and no value. With a colon in it a key may be a name and its password, written where none belongs.
fn is_of_plain_keys(message: &str) -> bool {
    let rest = ["duplicate mapping key: ", "unknown field ", "missing field "]
        .iter()
        .find_map(|begin| message.strip_prefix(begin));
    rest.is_some_and(|rest| !rest.split(", expected").next().unwrap_or(rest).contains(':'))
}

/// Messages with operands of their own.
fn other(message: &str) -> String {
    if let Some(name) = message
        .strip_prefix("duplicate mapping key: ")
        .and_then(|rest| rest.split(',').next())
    {
        return format!("{name} is there twice: expected it once");
    }
    if let Some(rest) = message.strip_prefix("unknown field ") {
        // Written as documents name it.
        let name = rest
            .strip_prefix('`')
            .and_then(|rest| rest.split('`').next())
            .unwrap_or_default();
        if let Some((outer, inner)) = name.split_once('.')
            && NESTED.contains(&outer)
        {
            return format!("no such key: `{name}`: expected {outer}: {{ {inner}: ... }}");
        }
        return format!("no such key: {}", rest.replacen(", expected", ": expected", 1));
    }
    if let Some(name) = message.strip_prefix("missing field ") {
        return format!("no {}: expected this key too", name.replace('`', ""));
    }
    if let Some((kind, expected)) = message
        .strip_prefix("invalid type: ")
        .and_then(|rest| rest.split_once(", "))
    {
        return format!("{kind} is not valid: {expected}");
    }
    message.to_owned()
}

/// Keys of a service that have others in them.
const NESTED: [&str; 9] = [
    "health",
    "limits",
    "timeouts",
    "endpoint_tls",
    "sticky",
    "redirect_regex",
    "basic_auth",
    "forward_auth",
    "compress",
];

fn keys_expected(key: &str, last: &str) -> &'static str {
    match last {
        "" => "services:, and below it each service by its name",
        "services" if key == "services" => "services by their names, such as my-web:",
        "health" => "{ http: /path } or { tcp: true }",
        "endpoint_tls" => "keys with values, such as { ca: internal, server_name: web.internal }",
        "limits" => "keys with values, such as { queue: 100 }",
        "timeouts" => "keys with values, such as { connect: 1s }",
        "compress" => "{} for the defaults, or keys with values, such as { min_size: 1KiB }",
        "sticky" => "keys with values, such as { key: 16 random characters }",
        _ if key.matches('.').count() == 1 => "the service's keys, such as endpoints: [\"127.0.0.1:9001\"]",
        _ => "keys with values",
    }
}

fn list_expected(last: &str) -> &'static str {
    match last {
        "publish" => "a list, such as [\"8080:80\"]",
        "expose" => "a list, such as [8000]",
        "entrypoints" => "a list, such as [websecure]",
        "allow" => "a list, such as [\"10.0.0.0/8\"]",
        "strip_prefix" => "a list, such as [\"/api\"]",
        "routes" => "a list, such as [{ rule: \"Host(`a.example`)\" }]",
        "endpoints" => "a list, such as [\"127.0.0.1:9001\"]",
        _ => "a list",
    }
}

#[cfg(test)]
mod tests {
    use super::{plain, plain_key};

    #[test]
    fn what_may_be_a_password_is_not_shown() {
        let key = "services.web.basic_auth";
        for message in [
            "unknown field `ann:secret`, expected one of `users`, `realm`",
            "unknown field `ann:secret, expected`, expected one of `users`, `realm`",
            "duplicate mapping key: ann:secret, set another policy",
        ] {
            let said = plain(message, key, None);
            assert!(!said.contains("secret") && said.contains("expected { users:"), "{said}");
        }
        assert_eq!(plain_key("services.web.basic_auth.ann:secret"), key);
        assert_eq!(
            plain_key("services.web.basic_auth.users[0]"),
            "services.web.basic_auth.users[0]"
        );
        let said = plain("unknown field `user`, expected one of `users`, `realm`", key, None);
        assert_eq!(said, "no such key: `user`: expected one of `users`, `realm`");
    }
}
