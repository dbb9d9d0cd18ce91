//! What is to be done to requests and answers on the way, from labels.

use std::sync::Arc;

use super::names::{
    BASIC_AUTH, COMPRESS, COMPRESS_EXCEPT, COMPRESS_MIN_SIZE, COMPRESS_TYPES, FILTERS, FORWARD_AUTH, FORWARD_REQUEST,
    FORWARD_RESPONSE, IN_FLIGHT, IN_FLIGHT_PER_CLIENT, MAX_BODY, PERMANENT, RATE, REALM, REDIRECT, REMOVE_HEADER,
    REPLACEMENT, REQUEST_HEADER, RESPONSE_HEADER, RETRIES, USER_HEADER, is_field, is_filter,
};
use super::reader::Reader;
use crate::model::compress::{Compress, MediaRange};
use crate::model::filters::{FieldEdit, FieldName, FieldValue, Filters, ToHttps, network};
use crate::model::guards::{BasicAuth, BodyMost, ForwardAuth, Guards, Users};
use crate::model::redirect::{Redirect, WrongRedirect, part};
use crate::model::{InvalidValue, Mode, ServiceSpec};

impl Reader<'_> {
    pub(super) fn filters(&mut self) -> Option<Arc<Filters>> {
        let [allow, https_only, strip_prefix, replace_path, add_prefix] = FILTERS;
        let mut filters = Filters::default();
        self.read(allow, |text| {
            let networks: Result<Vec<_>, _> = text.split(',').map(|text| network(text.trim())).collect();
            networks.map(|networks| filters.allow = Some(networks.into()))
        });
        let mut is_https_only = false;
        self.flag(https_only, &mut is_https_only);
        filters.to_https = is_https_only.then_some(ToHttps {
            is_permanent: true,
            port: None,
        });
        self.read(strip_prefix, |text| {
            let prefixes: Result<Vec<_>, InvalidValue> = text.split(',').map(|text| text.trim().parse()).collect();
            prefixes.map(|prefixes| filters.strip_prefix = prefixes.into())
        });
        filters.redirect = self.redirect();
        filters.guards = self.guards();
        self.set_some(replace_path, &mut filters.replace_path);
        self.set_some(add_prefix, &mut filters.add_prefix);
        filters.request_fields = self.edits(REQUEST_HEADER);
        filters.response_fields = self.edits(RESPONSE_HEADER);
        filters.compress = self.compress();
        (!filters.is_empty()).then(|| Arc::new(filters))
    }

    fn compress(&mut self) -> Option<Arc<Compress>> {
        let mut is_on = false;
        self.flag(COMPRESS, &mut is_on);
        self.go_with(COMPRESS, &[COMPRESS_TYPES, COMPRESS_EXCEPT, COMPRESS_MIN_SIZE]);
        self.labels.get(COMPRESS)?;
        let mut compress = Compress::default();
        for (label, ranges) in [
            (COMPRESS_TYPES, &mut compress.types),
            (COMPRESS_EXCEPT, &mut compress.except),
        ] {
            self.read(label, |text| {
                let all: Result<Arc<[MediaRange]>, _> = text.split(',').map(|text| text.trim().parse()).collect();
                all.map(|all| *ranges = all)
            });
        }
        let mut min_size: Option<BodyMost> = None;
        self.set_some(COMPRESS_MIN_SIZE, &mut min_size);
        compress.set_min_size(min_size);
        is_on.then(|| Arc::new(compress))
    }

    /// Its labels are right or wrong together: of one from before and one of now no good place comes.
    fn redirect(&mut self) -> Option<Arc<Redirect>> {
        let labels = self.labels;
        let redirect = self.redirect_alone();
        let all = [REDIRECT, REPLACEMENT, PERMANENT];
        if !all.iter().any(|label| self.wrong.contains(*label)) {
            return redirect;
        }
        let said = all.into_iter().filter(|label| labels.contains_key(*label));
        self.wrong.extend(said.map(str::to_owned));
        None
    }

    fn redirect_alone(&mut self) -> Option<Arc<Redirect>> {
        let labels = self.labels;
        let mut is_permanent = false;
        self.flag(PERMANENT, &mut is_permanent);
        self.go_with(REDIRECT, &[REPLACEMENT, PERMANENT]);
        let regex = labels.get(REDIRECT)?;
        let Some(replacement) = labels.get(REPLACEMENT) else {
            self.faults.push(format!(
                "label {REDIRECT}={}: expected {REPLACEMENT} beside it",
                part(regex)
            ));
            self.wrong.insert(REDIRECT.to_owned());
            return None;
        };
        match Redirect::new(regex.trim(), replacement.trim(), is_permanent) {
            Ok(redirect) => Some(redirect),
            Err(wrong) => {
                let (label, value, expected) = match wrong {
                    WrongRedirect::Regex(expected) => (REDIRECT, regex, expected),
                    WrongRedirect::Replacement(expected) => (REPLACEMENT, replacement, expected),
                };
                self.faults.push(format!("label {label}={}: {expected}", part(value)));
                self.wrong.insert(label.to_owned());
                None
            }
        }
    }

    fn guards(&mut self) -> Option<Arc<Guards>> {
        let mut guards = Guards {
            auth: self.basic_auth(),
            forward: self.forward_auth(),
            ..Guards::default()
        };
        self.set_some(RATE, &mut guards.rate);
        self.set_some(IN_FLIGHT, &mut guards.in_flight);
        self.set_some(IN_FLIGHT_PER_CLIENT, &mut guards.in_flight_per_client);
        self.set_some(MAX_BODY, &mut guards.max_body);
        self.set_some(RETRIES, &mut guards.retries);
        guards.into_some()
    }

    fn basic_auth(&mut self) -> Option<Arc<BasicAuth>> {
        let mut auth = None;
        self.read(BASIC_AUTH, |text| {
            Users::of_text(text).map(|users| auth = Some(BasicAuth::new(users)))
        });
        self.go_with(BASIC_AUTH, &[REALM, USER_HEADER, REMOVE_HEADER]);
        let mut auth = auth?;
        self.set(REALM, &mut auth.realm);
        self.set_some(USER_HEADER, &mut auth.user_field);
        self.flag(REMOVE_HEADER, &mut auth.removes_field);
        Some(Arc::new(auth))
    }

    fn forward_auth(&mut self) -> Option<Arc<ForwardAuth>> {
        let mut auth = None;
        self.read(FORWARD_AUTH, |text| {
            text.parse().map(|address| auth = Some(ForwardAuth::new(address)))
        });
        self.go_with(FORWARD_AUTH, &[FORWARD_REQUEST, FORWARD_RESPONSE]);
        let mut auth = auth?;
        let names = |text: &str| -> Result<Arc<[FieldName]>, InvalidValue> {
            text.split(',').map(|text| text.trim().parse()).collect()
        };
        self.read(FORWARD_REQUEST, |text| {
            names(text).map(|all| auth.request_fields = Some(all))
        });
        self.read(FORWARD_RESPONSE, |text| {
            names(text).map(|all| auth.response_fields = all)
        });
        Some(Arc::new(auth))
    }

    /// Refuses those that mean something only beside `label`.
    fn go_with(&mut self, label: &str, others: &[&str]) {
        for other in others {
            if let Some(value) = self.labels.get(*other)
                && !self.labels.contains_key(label)
                && !self.wrong.contains(*other)
            {
                self.faults
                    .push(format!("label {other}={value}: expected {label} beside it"));
                self.wrong.insert((*other).to_owned());
            }
        }
    }

    /// Fields by the names that follow `prefix`: no value takes one away.
    fn edits(&mut self, prefix: &str) -> Arc<[FieldEdit]> {
        let labels = self.labels;
        let mut edits = Vec::new();
        for label in labels
            .keys()
            .filter(|label| label.starts_with(prefix) && is_field(label))
        {
            self.read(label, |text| {
                let name: FieldName = label[prefix.len()..].parse()?;
                let value = match text {
                    "" => None,
                    text => Some(text.parse::<FieldValue>()?),
                };
                if edits.iter().any(|(other, _): &FieldEdit| other.is_same(&name)) {
                    return Err(InvalidValue::new(name.as_str(), "a header that no other label is of"));
                }
                edits.push((name, value));
                Ok::<(), InvalidValue>(())
            });
        }
        edits.into()
    }

    /// In mode tcp there is nothing that they could be done to.
    pub(super) fn refuse_filters_without_requests(&mut self, spec: &mut ServiceSpec) {
        if spec.mode == Mode::Http {
            return;
        }
        spec.filters = None;
        let labels = self.labels;
        let said = labels.iter().filter(|(label, _)| is_filter(label));
        for (label, _) in said {
            if self.wrong.contains(label) {
                continue;
            }
            self.faults.push(format!(
                "label {label}: expected mode http: in tcp mode there are no requests"
            ));
            self.wrong.insert(label.clone());
        }
    }
}
