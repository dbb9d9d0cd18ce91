//! One order of one certificate, from the account to the certificate (RFC 8555). Not here: when (`due`), and what becomes of it (`driver`).

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, AuthorizationHandle, AuthorizationStatus, ChallengeType, Error, ExternalAccountKey, Identifier,
    NewAccount, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use super::client::Client;
use super::config::{AcmeConfig, ChallengeKind, ExternalAccount};
use super::kept;
use crate::tls::challenges::{Challenge, Challenges};

/// A certificate that was got, as PEM.
pub(super) struct Ordered {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// Why there is none.
#[derive(Debug)]
pub(super) struct Failure {
    /// For a person.
    pub(super) text: String,
    pub(super) of: Of,
}

/// Whom a failure is to be remembered of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// It answers nobody now.
    Authority,
    /// It knows our account no more.
    Account,
    /// It refuses this name, or cannot see that it is ours.
    Name,
    /// It has been asked too often, for this name or by this account.
    Limit,
}

/// The account at an authority: the one that was kept, or a new one. The second: what is to be kept, where that is another than before.
///
/// Errors: for a person.
pub(super) async fn account(
    config: &AcmeConfig,
    client: &Client,
    kept: Option<kept::Account>,
) -> Result<(Account, Option<kept::Account>), String> {
    let said = |error: Error| describe(&error);
    let builder = || Account::builder_with_http(Box::new(client.clone()));
    let contact = config.email.as_ref().map(|email| format!("mailto:{email}"));
    let contacts: Vec<&str> = contact.as_deref().into_iter().collect();
    if let Some(mut kept) = kept.filter(|kept| kept.directory == config.directory) {
        if let Some(credentials) = kept.credentials.as_object_mut() {
            // Whatever a file says: this one is known to be a URL, and what is behind it is looked at.
            credentials.insert("directory".to_owned(), config.directory.clone().into());
        }
        let credentials = serde_json::from_value(kept.credentials.clone());
        let credentials = credentials.map_err(|_| "the account that was kept cannot be read".to_owned())?;
        let account = builder().from_credentials(credentials).await.map_err(said)?;
        if kept.email == config.email {
            return Ok((account, None));
        }
        account.update_contacts(&contacts).await.map_err(said)?;
        kept.email.clone_from(&config.email);
        return Ok((account, Some(kept)));
    }
    let external = config.external.as_ref().map(external_key).transpose()?;
    let new = NewAccount {
        contact: &contacts,
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let made = builder()
        .create(&new, config.directory.clone(), external.as_ref())
        .await;
    let (account, credentials) = made.map_err(said)?;
    let kept = kept::Account {
        directory: config.directory.clone(),
        email: config.email.clone(),
        credentials: serde_json::to_value(&credentials).map_err(|error| error.to_string())?,
    };
    Ok((account, Some(kept)))
}

/// Errors: what is wrong with its file.
pub(super) fn external_key(external: &ExternalAccount) -> Result<ExternalAccountKey, String> {
    use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD, Engine};
    let wrong = |what: &str| format!("eab_key_file = {:?}: {what}", external.key_file.display().to_string());
    let text = std::fs::read_to_string(&external.key_file).map_err(|error| wrong(&error.to_string()))?;
    let text = text.trim().trim_end_matches('=');
    let key = BASE64_URL_SAFE_NO_PAD
        .decode(text)
        .or_else(|_| BASE64_STANDARD_NO_PAD.decode(text));
    match key {
        Ok(key) if !key.is_empty() => Ok(ExternalAccountKey::new(external.kid.clone(), &key)),
        _ => Err(wrong("expected the key as the authority gives it: base64url")),
    }
}

/// Gets a certificate for `host`, which the authority asks for meanwhile.
pub(super) async fn order(
    account: &Account,
    host: &str,
    kind: ChallengeKind,
    challenges: &Arc<Challenges>,
) -> Result<Ordered, Failure> {
    match tokio::time::timeout(ORDER_WITHIN, go_through(account, host, kind, challenges)).await {
        Ok(result) => result,
        Err(_) => Err(of_name("the order was not done in time".to_owned())),
    }
}

async fn go_through(
    account: &Account,
    host: &str,
    kind: ChallengeKind,
    challenges: &Arc<Challenges>,
) -> Result<Ordered, Failure> {
    let names = [Identifier::Dns(host.to_owned())];
    let mut order = account.new_order(&NewOrder::new(&names)).await.map_err(Failure::of)?;
    let mut offered = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(Failure::of)?;
        match authorization.status {
            AuthorizationStatus::Valid => {}
            AuthorizationStatus::Pending => {
                let offers = authorization.challenges.iter().map(|one| format!("{:?}", one.r#type));
                let offers: Vec<String> = offers.collect();
                let mut challenge = authorization.challenge(type_of(kind)).ok_or_else(|| {
                    let offers = offers.join(", ");
                    of_name(format!(
                        "the authority offers no {} for it, but {offers}",
                        kind.as_str()
                    ))
                })?;
                let key = challenge.key_authorization();
                let asked = match kind {
                    ChallengeKind::Http => Challenge::Http {
                        token: challenge.token.clone(),
                        answer: key.as_str().to_owned(),
                    },
                    ChallengeKind::TlsAlpn => Challenge::Tls {
                        host: host.to_owned(),
                        digest: key.digest().as_ref().to_vec(),
                    },
                };
                offered.push(challenges.offer(asked).map_err(of_name)?);
                // The authority has been asked for nothing yet that could fail. All names would wait for those nodes.
                let of_nodes = |text: String| Failure {
                    text,
                    of: Of::Authority,
                };
                challenges.in_place_elsewhere().await.map_err(of_nodes)?;
                challenge.set_ready().await.map_err(Failure::of)?;
            }
            other => return Err(of_name(format!("the authority has its authorization as {other:?}"))),
        }
    }
    let polled = order.poll_ready(&POLL).await;
    drop(offered);
    match polled {
        Ok(OrderStatus::Ready) => {}
        Ok(_) => return Err(of_name(why_invalid(&mut order).await)),
        // What failed is said of the challenge, and only that it did of the order.
        Err(Error::Api(problem)) if !is_of_type(&problem, "rateLimited") => {
            let why = why_invalid(&mut order).await;
            return Err(of_name(format!("{}: {why}", said(&problem))));
        }
        Err(error) => return Err(Failure::of(error)),
    }
    let (request, key) = request(host).map_err(|error| of_name(error.to_string()))?;
    order.finalize_csr(&request).await.map_err(Failure::of)?;
    let certificate = order.poll_certificate(&POLL).await.map_err(Failure::of)?;
    Ok(Ordered { certificate, key })
}

/// A request for a certificate (DER), and its key (PEM), which is new each time.
fn request(host: &str) -> Result<(Vec<u8>, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![host.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    Ok((params.serialize_request(&key)?.der().to_vec(), key.serialize_pem()))
}

/// What the authority says of the challenges of an order that came to nothing.
async fn why_invalid(order: &mut Order) -> String {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_ok()
            && let Some(problem) = problem_of(&authorization)
        {
            return said(problem);
        }
    }
    "the authority does not say why".to_owned()
}

fn problem_of<'a>(authorization: &'a AuthorizationHandle<'_>) -> Option<&'a Problem> {
    authorization
        .challenges
        .iter()
        .find_map(|challenge| challenge.error.as_ref())
}

fn type_of(kind: ChallengeKind) -> ChallengeType {
    match kind {
        ChallengeKind::Http => ChallengeType::Http01,
        ChallengeKind::TlsAlpn => ChallengeType::TlsAlpn01,
    }
}

fn of_name(text: String) -> Failure {
    Failure { text, of: Of::Name }
}

impl Failure {
    fn of(error: Error) -> Failure {
        let of = match &error {
            Error::Api(problem) if is_of_type(problem, "rateLimited") => Of::Limit,
            Error::Api(problem) if is_of_type(problem, "accountDoesNotExist") => Of::Account,
            Error::Api(problem) if is_of_type(problem, "serverInternal") => Of::Authority,
            Error::Api(problem) if is_of_type(problem, "userActionRequired") => Of::Authority,
            Error::Api(problem) if problem.status.is_some_and(|status| status >= 500) => Of::Authority,
            Error::Api(_) | Error::Timeout(_) | Error::Str(_) | Error::Unsupported(_) => Of::Name,
            // It was not reached, or what answers is no such authority.
            _ => Of::Authority,
        };
        let text = describe(&error);
        Failure { text, of }
    }
}

fn is_of_type(problem: &Problem, name: &str) -> bool {
    let kind = problem.r#type.as_deref().and_then(|kind| kind.strip_prefix(PROBLEMS));
    kind == Some(name)
}

fn describe(error: &Error) -> String {
    match error {
        Error::Api(problem) => said(problem),
        Error::Json(_) => "what it answers is not what an authority answers (RFC 8555)".to_owned(),
        other => shortened(&other.to_string()),
    }
}

fn said(problem: &Problem) -> String {
    let kind = problem.r#type.as_deref().unwrap_or_default();
    let of = |detail: &Option<String>| detail.clone().unwrap_or_else(|| "no detail".to_owned());
    let inner = problem
        .subproblems
        .iter()
        .map(|inner| format!("; {}", of(&inner.detail)));
    let detail = format!("{}{}", of(&problem.detail), inner.collect::<String>());
    shortened(&format!("{detail} ({})", kind.strip_prefix(PROBLEMS).unwrap_or(kind)))
}

/// What others say, as much of it as goes into a line.
fn shortened(text: &str) -> String {
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    line.take(SAID_MOST).collect()
}

const PROBLEMS: &str = "urn:ietf:params:acme:error:";
const SAID_MOST: usize = 500;
const ORDER_WITHIN: Duration = Duration::from_secs(180);
const POLL: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(250))
    .backoff(1.5)
    .timeout(Duration::from_secs(75));
