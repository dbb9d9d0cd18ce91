//! Options that mean something in one mode only, by their keys in a services file and their labels. Pure. In the other mode they would
//! promise what is not kept, so that both refuse them.

use std::fmt;

use super::{ClientAddress, HashKey, Mode, Scheme, ServiceSpec};

/// An option of one mode.
#[derive(Debug)]
pub struct OneMode {
    /// Its key in a services file.
    pub key: &'static str,
    pub label: &'static str,
    mode: Mode,
    /// Whether a service asks for it.
    is_asked_for: fn(&ServiceSpec) -> bool,
    /// What there is in the other mode.
    otherwise: &'static str,
}

const OPTIONS: [OneMode; 8] = [
    OneMode {
        key: "scheme",
        label: "anynode.scheme",
        mode: Mode::Http,
        is_asked_for: |spec| spec.scheme != Scheme::Http,
        otherwise: "in tcp mode bytes go on as they come, and no TLS is begun with endpoints",
    },
    OneMode {
        key: "hash",
        label: "anynode.hash",
        mode: Mode::Http,
        is_asked_for: |spec| spec.hash != HashKey::ClientAddress,
        otherwise: "in tcp mode there is client-address alone",
    },
    OneMode {
        key: "sticky",
        label: super::labels::STICKY,
        mode: Mode::Http,
        is_asked_for: |spec| spec.sticky.is_some(),
        otherwise: "in tcp mode there are no cookies",
    },
    OneMode {
        key: "proxy_protocol",
        label: "anynode.proxy-protocol",
        mode: Mode::Tcp,
        is_asked_for: |spec| spec.proxy_protocol.is_some(),
        otherwise: "in http mode the client's address is in X-Forwarded-For",
    },
    OneMode {
        key: "client_address",
        label: "anynode.client-address",
        mode: Mode::Tcp,
        is_asked_for: |spec| spec.client_address == ClientAddress::Transparent,
        otherwise: "in http mode the client's address is in X-Forwarded-For",
    },
    OneMode {
        key: "abort_on_client_close",
        label: "anynode.abort-on-client-close",
        mode: Mode::Http,
        is_asked_for: |spec| spec.abort_on_client_close,
        otherwise: "in tcp mode what a client ends is ended for the endpoint too",
    },
    OneMode {
        key: "timeouts.request_head",
        label: "anynode.timeout.request-head",
        mode: Mode::Http,
        is_asked_for: |spec| !spec.timeouts.request_head.is_zero(),
        otherwise: "in tcp mode there are no requests",
    },
    OneMode {
        key: "timeouts.response",
        label: "anynode.timeout.response",
        mode: Mode::Http,
        is_asked_for: |spec| !spec.timeouts.response.is_zero(),
        otherwise: "in tcp mode there are no requests",
    },
];

impl OneMode {
    /// The options of the other mode that `spec` asks for, of those that were said: of what is not, there are defaults.
    pub fn out_of_place(
        spec: &ServiceSpec,
        was_said: impl Fn(&OneMode) -> bool,
    ) -> impl Iterator<Item = &'static OneMode> {
        OPTIONS
            .iter()
            .filter(move |option| option.mode != spec.mode && was_said(option) && (option.is_asked_for)(spec))
    }
}

/// What was expected instead.
impl fmt::Display for OneMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected mode {}: {}", self.mode.as_str(), self.otherwise)
    }
}
