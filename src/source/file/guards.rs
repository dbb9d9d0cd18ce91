//! What is asked of requests on the way, as keys of a service. Not here: what it means (`model::guards`).

use std::sync::Arc;

use serde::Deserialize;

use super::text::Text;
use crate::model::compress::{Compress, MediaRange};
use crate::model::filters::FieldName;
use crate::model::guards::{AuthAddress, BasicAuth, BodyMost, ForwardAuth, Realm, Users};
use crate::model::redirect::{Redirect, WrongRedirect, part};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BasicAuthDto {
    users: Vec<String>,
    realm: Option<Text<Realm>>,
    user_header: Option<Text<FieldName>>,
    remove_header: Option<bool>,
}

impl BasicAuthDto {
    /// Errors: the key, and what was expected; never what stood there.
    pub(super) fn into_auth(self) -> Result<Arc<BasicAuth>, String> {
        let users = Users::of(self.users.iter().map(String::as_str));
        let mut auth = BasicAuth::new(users.map_err(|wrong| format!("basic_auth.users: {wrong}"))?);
        if let Some(Text(realm)) = self.realm {
            auth.realm = realm;
        }
        auth.user_field = self.user_header.map(|text| text.0);
        auth.removes_field = self.remove_header.unwrap_or(false);
        Ok(Arc::new(auth))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ForwardAuthDto {
    address: Text<AuthAddress>,
    request_headers: Option<Vec<Text<FieldName>>>,
    response_headers: Option<Vec<Text<FieldName>>>,
}

impl ForwardAuthDto {
    pub(super) fn into_auth(self) -> Arc<ForwardAuth> {
        let all = |names: Vec<Text<FieldName>>| names.into_iter().map(|text| text.0).collect();
        Arc::new(ForwardAuth {
            request_fields: self.request_headers.map(all),
            response_fields: self.response_headers.map(all).unwrap_or_default(),
            ..ForwardAuth::new(self.address.0)
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RedirectDto {
    regex: String,
    replacement: String,
    permanent: Option<bool>,
}

impl RedirectDto {
    /// Errors: the key, and what was expected.
    pub(super) fn into_redirect(self) -> Result<Arc<Redirect>, String> {
        let redirect = Redirect::new(&self.regex, &self.replacement, self.permanent.unwrap_or(false));
        redirect.map_err(|wrong| match wrong {
            WrongRedirect::Regex(expected) => {
                format!("redirect_regex.regex: {:?} is not valid: {expected}", part(&self.regex))
            }
            WrongRedirect::Replacement(expected) => {
                format!(
                    "redirect_regex.replacement: {:?} is not valid: {expected}",
                    part(&self.replacement)
                )
            }
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CompressDto {
    types: Option<Vec<Text<MediaRange>>>,
    except: Option<Vec<Text<MediaRange>>>,
    min_size: Option<Text<BodyMost>>,
}

impl CompressDto {
    pub(super) fn into_compress(self) -> Arc<Compress> {
        let mut compress = Compress::default();
        let all = |ranges: Vec<Text<MediaRange>>| ranges.into_iter().map(|text| text.0).collect();
        if let Some(types) = self.types {
            compress.types = all(types);
        }
        if let Some(except) = self.except {
            compress.except = all(except);
        }
        compress.set_min_size(self.min_size.map(|text| text.0));
        Arc::new(compress)
    }
}
