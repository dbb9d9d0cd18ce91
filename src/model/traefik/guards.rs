//! What Traefik's middlewares ask of requests, as ours. What has no counterpart is refused, and no fault shows what may be a password.

use super::middlewares::no_counterpart;
use super::tree::{Options, elements, flag, is_list};
use crate::model::guards::{BasicAuth, Users};

/// Errors: what is wrong, in words.
pub(super) fn basic_auth(options: &Options<'_>) -> Result<BasicAuth, String> {
    let users = options.iter().filter(|(option, _)| is_list(option, "basicauth.users"));
    let users = Users::of(users.flat_map(|(_, label)| elements(label.value)));
    let mut auth = BasicAuth::new(users.map_err(|wrong| format!("has users: {wrong}"))?);
    if let Ok(realm) = TRAEFIKS_REALM.parse() {
        auth.realm = realm;
    }
    for (option, label) in options {
        let taken = match option.as_str() {
            "basicauth.realm" if label.value.is_empty() => Some(()),
            "basicauth.realm" => label.value.parse().ok().map(|realm| auth.realm = realm),
            "basicauth.headerfield" if label.value.is_empty() => Some(()),
            "basicauth.headerfield" => label.value.parse().ok().map(|field| auth.user_field = Some(field)),
            "basicauth.removeheader" => flag(label.value).map(|is| auth.removes_field = is),
            _ if is_list(option, "basicauth.users") => Some(()),
            _ => None,
        };
        taken.ok_or_else(|| no_counterpart(label))?;
    }
    Ok(auth)
}

const TRAEFIKS_REALM: &str = "traefik";
