//! How one request is brought to its endpoint: by which version of HTTP, and over what. Not here: the connections themselves (`pool`,
//! `h2::pool`, `secured`).

use super::pool;
use super::wish;
use crate::model::{Scheme, ServiceSpec};
use crate::proxy::core;
use crate::proxy::h2;
use crate::proxy::http::{Method, Refusal};
use crate::proxy::secured::Offer;
use crate::proxy::wire::Leg;
use crate::routing::EndpointId;
use crate::tls::Seal;

#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 without TLS.
    H2c,
    /// Over TLS; by which version, the connection says.
    Https {
        /// How endpoints are judged now; `None`: nobody can be.
        seal: Option<Seal>,
        offer: Offer,
    },
}

impl Way {
    /// `head`: of the request, as it is sent. Errors: it cannot be sent that way.
    #[inline(always)]
    pub(super) fn of(spec: &ServiceSpec, head: &[u8]) -> Result<Way, Refusal> {
        match spec.scheme {
            Scheme::Http => Ok(Way::Http),
            Scheme::H2c if has_authority(head) => Ok(Way::H2c),
            Scheme::H2c => Err(Refusal::Host),
            Scheme::Https => Ok(Way::secured(spec, head)),
        }
    }

    #[inline(never)]
    fn secured(spec: &ServiceSpec, head: &[u8]) -> Way {
        let towards = core::trust().towards(&spec.endpoint_tls);
        Way::Https {
            seal: towards.ok().map(|towards| towards.seal()),
            offer: offer(head),
        }
    }

    /// A connection that stands to an endpoint, for a request by `method`.
    pub(super) fn standing(self, endpoint: EndpointId, target: u16, method: Method) -> Option<Leg> {
        let take = || match self {
            Way::Https {
                seal: Some(seal),
                offer,
            } => pool::take_secured(endpoint, target, seal, offer),
            _ => pool::take(endpoint, target),
        };
        match self {
            Way::Http => {}
            Way::H2c => return h2::pool::take(endpoint, target, None),
            Way::Https { seal: None, .. } => return None,
            Way::Https { seal, offer } => {
                let shared = (offer == Offer::Any).then(|| h2::pool::take(endpoint, target, seal));
                if let Some(leg) = shared.flatten() {
                    return Some(leg);
                }
            }
        }
        loop {
            let stream = take()?;
            // What cannot be sent twice is sent on a connection that stood a moment ago.
            if method.is_idempotent() || stream.stands() {
                return Some(stream);
            }
        }
    }
}

/// What an endpoint is offered for a request with this head, should it be spoken to by TLS: what HTTP/2 has no words for goes by HTTP/1.1.
pub(super) fn offer(head: &[u8]) -> Offer {
    match has_authority(head) && wish::field(head, "upgrade").is_none() {
        true => Offer::Any,
        false => Offer::Http1,
    }
}

/// Whether a connection that was just made is to carry many requests.
pub(super) fn is_shared(scheme: Scheme, made: &Leg) -> bool {
    match scheme {
        Scheme::Http => false,
        Scheme::H2c => true,
        Scheme::Https => made.agreed().is_some_and(|agreed| agreed.is_http2),
    }
}

pub(super) fn has_authority(head: &[u8]) -> bool {
    wish::field(head, "host").is_some_and(h2::is_authority)
}
