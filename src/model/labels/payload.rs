//! What labels of secrets and configs say. Pure.

use std::collections::BTreeMap;

use super::names::is_ours;

/// What a secret or config with it holds is the node's for TLS: a certificate, its key, or both.
pub const CERTIFICATE: &str = "anynode.certificate";

/// Whether it says so. Errors: label, value and what was expected.
pub fn is_certificate(labels: &BTreeMap<String, String>) -> Result<bool, String> {
    match labels.get(CERTIFICATE).map(String::as_str) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => {
            let shown = match other.len() <= VALUE_SHOWN {
                true => format!("{other:?}"),
                // Somebody may have put there what belongs into the secret.
                false => "(not shown)".to_owned(),
            };
            Err(format!(
                "label {CERTIFICATE}: {shown} is not valid: expected true or false"
            ))
        }
    }
}

/// The labels that are ours and mean nothing where secrets and configs have them.
pub fn unknown(labels: &BTreeMap<String, String>) -> impl Iterator<Item = String> {
    let unknown = labels.keys().filter(|label| is_ours(label) && *label != CERTIFICATE);
    unknown.map(|label| format!("label {label}: no such option of a secret or config: expected {CERTIFICATE}"))
}

/// In bytes.
const VALUE_SHOWN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        let all = all.iter();
        all.map(|(label, value)| (label.to_string(), value.to_string()))
            .collect()
    }

    #[test]
    fn only_true_and_false_are_understood_and_what_may_be_a_key_is_not_shown() {
        let said = |value: &str| is_certificate(&labels(&[("a", "b"), (CERTIFICATE, value)]));
        assert_eq!(said("true"), Ok(true));
        assert_eq!(said("false"), Ok(false));
        assert_eq!(is_certificate(&labels(&[("a", "true")])), Ok(false));
        let not_valid = |shown: &str| {
            Err(format!(
                "label anynode.certificate: {shown} is not valid: expected true or false"
            ))
        };
        assert_eq!(said("True"), not_valid("\"True\""));
        assert_eq!(said(""), not_valid("\"\""));
        assert_eq!(said("-----BEGIN PRIVATE KEY-----"), not_valid("(not shown)"));
    }

    #[test]
    fn what_is_spelled_otherwise_is_no_option() {
        let all = labels(&[
            (CERTIFICATE, "true"),
            ("Anynode.certificate", "true"),
            ("anynode.certificat", "true"),
            ("com.docker.stack.namespace", "shop"),
        ]);
        let unknown: Vec<String> = unknown(&all).collect();
        assert_eq!(
            unknown,
            [
                "label Anynode.certificate: no such option of a secret or config: expected anynode.certificate",
                "label anynode.certificat: no such option of a secret or config: expected anynode.certificate"
            ]
        );
    }
}
