//! The swarm itself: made, shown, changed, left. Further nodes come later, and are refused until then.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bollard_stubs::models::{
    NodeSpec, NodeSpecAvailabilityEnum, NodeSpecRoleEnum, SwarmSpec, SwarmSpecCaConfig, SwarmSpecDispatcher,
    SwarmSpecEncryptionConfig, SwarmSpecOrchestration, SwarmSpecRaft, SwarmSpecTaskDefaults,
};
use hyper::{Method, StatusCode};
use ring::rand::{SecureRandom, SystemRandom};
use serde::Deserialize;
use serde_json::json;

use crate::api::backend::{Backend, new_id};
use crate::api::outside::{Lock, Outside, UnlockError};
use crate::api::wire::{self, Answer, ApiError, Asked, Json};
use crate::api::{find, view};
use crate::model::swarm::{Meta, Network, Node, Object, Swarm, SwarmAuthority, Time, UnlockKey, UnlockKeyError, Write};
use crate::store::{Snapshot, THIS_REVISION};

pub(in crate::api) async fn dispatch(backend: &Arc<Backend>, asked: Asked, rest: &[&str]) -> Result<Answer, ApiError> {
    let (get, post) = (asked.method == Method::GET, asked.method == Method::POST);
    if let Some(lock) = backend.lock() {
        return while_locked(lock, asked, rest).await;
    }
    match rest {
        [] if get => {
            let snapshot = backend.store.snapshot();
            let swarm = find::swarm(&snapshot)?;
            Ok(wire::json(StatusCode::OK, &view::swarm(&swarm, true)))
        }
        ["init"] if post => init(backend, asked).await,
        ["leave"] if post => leave(backend, asked).await,
        ["update"] if post => update(backend, asked).await,
        ["unlockkey"] if get => {
            let swarm = find::swarm(&backend.store.snapshot())?;
            let key = swarm.unlock_key.as_ref().map(ToString::to_string).unwrap_or_default();
            Ok(wire::json(StatusCode::OK, &json!({ "UnlockKey": key })))
        }
        ["join"] if post => {
            asked.object().await?;
            match backend.store.snapshot().swarm() {
                Some(_) => Err(part_of_a_swarm()),
                None => Err(ApiError::not_implemented(
                    "joining a swarm of several nodes does not work yet: \"docker swarm init\" makes one of this node",
                )),
            }
        }
        ["unlock"] if post => {
            asked.object().await?;
            match backend.store.snapshot().swarm() {
                Some(_) => Err(ApiError::conflict("swarm is not locked")),
                None => Err(no_part_of_a_swarm()),
            }
        }
        _ => Err(ApiError::page_not_found()),
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Unlock {
    unlock_key: String,
}

/// What a swarm does that waits for its key.
async fn while_locked(lock: &dyn Lock, asked: Asked, rest: &[&str]) -> Result<Answer, ApiError> {
    let (get, post) = (asked.method == Method::GET, asked.method == Method::POST);
    match rest {
        ["init" | "join"] if post => {
            asked.object().await?;
            Err(part_of_a_swarm())
        }
        ["leave"] if post => {
            let is_forced = asked.is_on("force");
            asked.no_body().await?;
            if !is_forced {
                return Err(ApiError::unavailable(
                    "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message.",
                ));
            }
            lock.leave().await.map_err(ApiError::internal)?;
            Ok(wire::empty(StatusCode::OK))
        }
        ["unlock"] if post => {
            let Unlock { unlock_key } = asked.json().await?;
            let wrong = || ApiError::unauthorized("swarm could not be unlocked: invalid key provided");
            let key: UnlockKey = unlock_key.parse().map_err(|error| match error {
                UnlockKeyError::NoKey => ApiError::bad(error.to_string()),
                UnlockKeyError::Length => wrong(),
            })?;
            lock.unlock(&key).await.map_err(|error| match error {
                UnlockError::WrongKey => wrong(),
                UnlockError::Failed(why) => ApiError::internal(format!("swarm component could not be started: {why}")),
            })?;
            Ok(wire::empty(StatusCode::OK))
        }
        [] | ["unlockkey"] if get => Err(ApiError::locked()),
        ["update"] if post => Err(ApiError::locked()),
        _ => Err(ApiError::page_not_found()),
    }
}

fn no_part_of_a_swarm() -> ApiError {
    ApiError::unavailable("This node is not part of a swarm")
}

fn part_of_a_swarm() -> ApiError {
    ApiError::unavailable(
        "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.",
    )
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Init {
    listen_addr: String,
    advertise_addr: String,
    data_path_addr: String,
    data_path_port: u32,
    default_addr_pool: Option<Vec<String>>,
    subnet_size: u32,
    availability: String,
    auto_lock_managers: bool,
    spec: SwarmSpec,
}

async fn init(backend: &Arc<Backend>, asked: Asked) -> Result<Answer, ApiError> {
    let init: Init = asked.json().await?;
    let host = backend.outside.host();
    let availability = match init.availability.as_str() {
        "" | "active" => NodeSpecAvailabilityEnum::ACTIVE,
        "pause" => NodeSpecAvailabilityEnum::PAUSE,
        "drain" => NodeSpecAvailabilityEnum::DRAIN,
        other => {
            let wrong = format!("invalid Availability: \"{other}\": expected active, pause or drain");
            return Err(ApiError::invalid(wrong));
        }
    };
    let listens_at = match init.listen_addr.as_str() {
        "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        text => Named::Listen.resolve(&*backend.outside, text)?,
    };
    let addr = match init.advertise_addr.as_str() {
        "" if !listens_at.is_unspecified() => listens_at,
        "" => host.addrs.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        text => Named::Advertise.resolve(&*backend.outside, text)?,
    };
    if !init.data_path_addr.is_empty() {
        Named::DataPath.resolve(&*backend.outside, &init.data_path_addr)?;
    }
    let pools = init.default_addr_pool.unwrap_or_default();
    let mut addr_pool = Vec::new();
    for pool in &pools {
        addr_pool.push(pool.parse().map_err(|_| {
            ApiError::invalid(format!(
                "invalid DefaultAddrPool \"{pool}\": expected a network such as \"10.0.0.0/8\""
            ))
        })?);
    }
    if addr_pool.is_empty() {
        addr_pool.push(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8));
    }
    let subnet_size = match init.subnet_size {
        0 => 24,
        size => u8::try_from(size)
            .ok()
            .filter(|size| *size <= 29)
            .ok_or_else(|| ApiError::invalid(format!("invalid SubnetSize {size}: expected at most 29")))?,
    };
    let data_path_port = match init.data_path_port {
        0 => 4789,
        port => u16::try_from(port).ok().filter(|port| *port >= 1024).ok_or_else(|| {
            ApiError::invalid(format!("invalid DataPathPort {port}: expected one from 1024 to 49151"))
        })?,
    };
    let mut spec = with_defaults(init.spec)?;
    if init.auto_lock_managers {
        spec.encryption_config = Some(SwarmSpecEncryptionConfig {
            auto_lock_managers: Some(true),
        });
    }
    refuse_other_authorities(&spec)?;
    let unlock_key = is_to_be_locked(&spec).then(new_unlock_key).transpose()?;
    let authority = new_authority(backend)?;
    let (swarm_id, node_id, network_id) = (new_id(), new_id(), new_id());
    let digest = random_text(50)?;
    let token = || Ok::<_, ApiError>(format!("SWMTKN-1-{digest}-{}", random_text(25)?));
    let (worker, manager) = (token()?, token()?);
    backend
        .update(|snapshot| {
            if snapshot.swarm().is_some() {
                return Err(part_of_a_swarm());
            }
            let now = Time::now();
            let meta = Meta::new(THIS_REVISION, now);
            let swarm = Swarm {
                id: swarm_id.clone(),
                meta: meta.clone(),
                spec: spec.clone(),
                node: node_id.clone(),
                join_token_worker: worker.clone(),
                join_token_manager: manager.clone(),
                addr_pool: addr_pool.clone(),
                subnet_size,
                data_path_port,
                authority: Some(authority.clone()),
                unlock_key: unlock_key.clone(),
            };
            let node = Node {
                id: node_id.clone(),
                meta: meta.clone(),
                spec: NodeSpec {
                    name: None,
                    labels: None,
                    role: Some(NodeSpecRoleEnum::MANAGER),
                    availability: Some(availability),
                },
                hostname: host.hostname.clone(),
                architecture: host.architecture.clone(),
                os: "linux".to_owned(),
                nano_cpus: host.nano_cpus,
                memory: host.memory,
                generic: host.generic.clone(),
                engine_version: env!("CARGO_PKG_VERSION").to_owned(),
                engine_labels: BTreeMap::new(),
                is_manager: true,
                is_up: true,
                addr,
            };
            let ingress = Network {
                id: network_id.clone(),
                meta,
                name: "ingress".to_owned(),
                labels: BTreeMap::new(),
                driver: "overlay".to_owned(),
                options: BTreeMap::new(),
                is_internal: false,
                is_attachable: false,
                is_ingress: true,
                ipv6: false,
                subnet: None,
                gateway: None,
                range: None,
                auxiliary: Default::default(),
            };
            let writes = vec![
                Write::Put(Object::Swarm(Arc::new(swarm))),
                Write::Put(Object::Node(Arc::new(node))),
                Write::Put(Object::Network(Arc::new(ingress))),
            ];
            Ok((writes, ()))
        })
        .await?;
    Ok(wire::json(StatusCode::OK, &node_id))
}

fn is_to_be_locked(spec: &SwarmSpec) -> bool {
    let encryption = spec.encryption_config.as_ref();
    encryption.is_some_and(|config| config.auto_lock_managers == Some(true))
}

/// One that nobody can guess. Errors: the system has no random bytes.
fn new_unlock_key() -> Result<UnlockKey, ApiError> {
    let mut bytes = [0; UnlockKey::BYTES];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| ApiError::unknown("the system has no random bytes for an unlock key"))?;
    Ok(UnlockKey::new(bytes))
}

fn new_authority(backend: &Backend) -> Result<SwarmAuthority, ApiError> {
    let made = backend.outside.new_authority();
    made.map_err(|error| ApiError::unknown(format!("the swarm's certificate authority: {error}")))
}

/// A swarm that an earlier version made gets an authority.
pub(in crate::api) async fn see_to_authority(backend: &Backend) {
    let has_none = |swarm: &Swarm| swarm.authority.is_none();
    if !backend.store.snapshot().swarm().is_some_and(|swarm| has_none(swarm)) {
        return;
    }
    let made = async {
        let authority = new_authority(backend)?;
        let given = backend.update(|snapshot| {
            let swarm = find::swarm(snapshot)?;
            let next = Swarm {
                authority: Some(authority.clone()),
                ..Swarm::clone(&swarm)
            };
            let writes = match has_none(&swarm) {
                true => vec![Write::Put(Object::Swarm(Arc::new(next)))],
                false => Vec::new(),
            };
            Ok((writes, ()))
        });
        given.await.map(drop)
    };
    if let Err(error) = made.await {
        tracing::warn!(error.message, "the swarm has no certificate authority");
    }
}

/// What this node has of generic resources is what its configuration says now.
pub(in crate::api) async fn see_to_resources(backend: &Backend) {
    let has = backend.outside.host().generic;
    let own = |snapshot: &Snapshot| snapshot.node(snapshot.swarm()?.node.as_str()).cloned();
    let is_other = |node: &Node| node.generic != has;
    if !own(&backend.store.snapshot()).is_some_and(|node| is_other(&node)) {
        return;
    }
    let said = backend.update(|snapshot| {
        let changed = own(snapshot).filter(|node| is_other(node)).map(|node| {
            let mut next = Node::clone(&node);
            next.generic = has.clone();
            next.meta.version = THIS_REVISION;
            next.meta.updated_at = Time::now();
            Write::Put(Object::Node(Arc::new(next)))
        });
        Ok((changed.into_iter().collect(), ()))
    });
    if let Err(error) = said.await {
        tracing::warn!(error.message, "the node's generic resources are what they were");
    }
}

/// Errors: another authority than the swarm has is asked for.
fn refuse_other_authorities(spec: &SwarmSpec) -> Result<(), ApiError> {
    let Some(ca) = &spec.ca_config else { return Ok(()) };
    let is_said = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if is_said(&ca.signing_ca_cert) || is_said(&ca.signing_ca_key) || ca.force_rotate.unwrap_or(0) != 0 {
        return Err(ApiError::not_implemented(
            "the swarm's certificate authority cannot be replaced yet: expected \"docker swarm ca\" without --rotate, and no \
             SigningCACert, SigningCAKey or other ForceRotate",
        ));
    }
    if ca.external_cas.as_ref().is_some_and(|cas| !cas.is_empty()) {
        return Err(ApiError::not_implemented(
            "external certificate authorities do not work yet: expected no --external-ca",
        ));
    }
    Ok(())
}

/// An address that an init names, or an interface that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Listen,
    Advertise,
    DataPath,
}

impl Named {
    /// Errors: in Docker's words.
    fn resolve(self, outside: &dyn Outside, text: &str) -> Result<IpAddr, ApiError> {
        let host = match (self, split_host_port(text)) {
            // It has no port of its own.
            (Named::DataPath, _) => text,
            (_, Some(host)) => host,
            (Named::Listen | Named::Advertise, None) => text,
        };
        if let Some(addrs) = outside.interface(host) {
            return of_interface(host, &addrs);
        }
        let addr: Option<IpAddr> = host.parse().ok();
        let is_good = |addr: &IpAddr| self == Named::Listen || !addr.is_unspecified();
        addr.filter(is_good).ok_or_else(|| {
            ApiError::bad(match self {
                Named::Listen => {
                    "listen address must be an IP address or network interface (with optional port number)"
                }
                Named::Advertise => {
                    "advertise address must be a non-zero IP address or network interface (with optional port number)"
                }
                Named::DataPath => {
                    "data path address must be a non-zero IP address or network interface (without a port number)"
                }
            })
        })
    }
}

/// The host of `host:port`, without the brackets of IPv6. `None`: it is no such text.
fn split_host_port(text: &str) -> Option<&str> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return match addr {
            SocketAddr::V4(_) => text.split(':').next(),
            SocketAddr::V6(_) => text.strip_prefix('[')?.split(']').next(),
        };
    }
    let (host, port) = text.rsplit_once(':')?;
    (!host.contains(':') && port.parse::<u16>().is_ok()).then_some(host)
}

fn of_interface(name: &str, addrs: &[IpAddr]) -> Result<IpAddr, ApiError> {
    let several = |kind: &str, one: IpAddr, other: IpAddr| {
        ApiError::bad(format!(
            "interface {name} has more than one {kind} address ({one} and {other})"
        ))
    };
    let of_kind = |is_ipv4: bool| -> Vec<IpAddr> {
        let all = addrs.iter().copied();
        all.filter(|addr| addr.is_ipv4() == is_ipv4).collect()
    };
    match (of_kind(true).as_slice(), of_kind(false).as_slice()) {
        ([one, other, ..], _) => Err(several("IPv4", *one, *other)),
        (_, [one, other, ..]) => Err(several("IPv6", *one, *other)),
        ([one], _) | ([], [one]) => Ok(*one),
        ([], []) => Err(ApiError::bad(format!(
            "interface {name} has no usable IPv4 or IPv6 address"
        ))),
    }
}

/// What a swarm that says nothing of it has.
fn with_defaults(spec: SwarmSpec) -> Result<SwarmSpec, ApiError> {
    if spec
        .name
        .as_deref()
        .is_some_and(|name| !name.is_empty() && name != "default")
    {
        return Err(ApiError::bad("swarm spec must be named \"default\""));
    }
    let positive = |value: Option<i64>, default: i64| Some(value.filter(|value| *value != 0).unwrap_or(default));
    let orchestration = spec.orchestration.unwrap_or_default();
    let raft = spec.raft.unwrap_or_default();
    let dispatcher = spec.dispatcher.unwrap_or_default();
    let ca = spec.ca_config.unwrap_or_default();
    let expiry = ca.node_cert_expiry.unwrap_or(0);
    if expiry != 0 && expiry < CERTIFICATE_LIFE_LEAST {
        return Err(ApiError::invalid("minimum certificate expiry time is: 1h0m0s"));
    }
    Ok(SwarmSpec {
        name: Some("default".to_owned()),
        labels: Some(spec.labels.unwrap_or_default()),
        orchestration: Some(SwarmSpecOrchestration {
            task_history_retention_limit: positive(orchestration.task_history_retention_limit, 5),
        }),
        raft: Some(SwarmSpecRaft {
            snapshot_interval: raft.snapshot_interval.filter(|n| *n != 0).or(Some(10_000)),
            keep_old_snapshots: raft.keep_old_snapshots,
            log_entries_for_slow_followers: raft.log_entries_for_slow_followers.filter(|n| *n != 0).or(Some(500)),
            election_tick: raft.election_tick.filter(|n| *n != 0).or(Some(10)),
            heartbeat_tick: raft.heartbeat_tick.filter(|n| *n != 0).or(Some(1)),
        }),
        dispatcher: Some(SwarmSpecDispatcher {
            heartbeat_period: positive(dispatcher.heartbeat_period, 5_000_000_000),
        }),
        ca_config: Some(SwarmSpecCaConfig {
            node_cert_expiry: positive(ca.node_cert_expiry, 7_776_000_000_000_000),
            ..ca
        }),
        encryption_config: Some(spec.encryption_config.unwrap_or(SwarmSpecEncryptionConfig {
            auto_lock_managers: Some(false),
        })),
        task_defaults: Some(spec.task_defaults.unwrap_or(SwarmSpecTaskDefaults { log_driver: None })),
    })
}

async fn leave(backend: &Arc<Backend>, asked: Asked) -> Result<Answer, ApiError> {
    let is_forced = asked.is_on("force");
    asked.no_body().await?;
    backend.update(|snapshot| {
        if snapshot.swarm().is_none() {
            return Err(no_part_of_a_swarm());
        }
        if !is_forced {
            return Err(ApiError::unavailable(
                "You are attempting to leave the swarm on a node that is participating as a manager. Removing the last manager \
                 erases all current state of the swarm. Use `--force` to ignore this message.",
            ));
        }
        let writes = snapshot.keys().into_iter().map(Write::Remove).collect();
        Ok((writes, ()))
    })
    .await?;
    Ok(wire::empty(StatusCode::OK))
}

async fn update(backend: &Arc<Backend>, asked: Asked) -> Result<Answer, ApiError> {
    let version = asked.version("swarm")?;
    let (worker, manager) = (asked.truth("rotateWorkerToken")?, asked.truth("rotateManagerToken")?);
    let is_key_rotated = asked.truth("rotateManagerUnlockKey")?;
    find::swarm(&backend.store.snapshot())?;
    let (_, body) = asked.json_and_bytes().await?;
    if body == Json::Null {
        // All would be Docker's defaults again.
        return Err(ApiError::bad("invalid JSON: null: expected an object"));
    }
    let spec = with_defaults(wire::typed(&body)?)?;
    refuse_other_authorities(&spec)?;
    let (worker_secret, manager_secret) = (random_text(25)?, random_text(25)?);
    let new_key = new_unlock_key()?;
    backend
        .update(|snapshot| {
            let swarm = find::swarm(snapshot)?;
            if swarm.meta.version != version {
                return Err(ApiError::unknown("update out of sequence"));
            }
            let mut next = Swarm::clone(&swarm);
            next.spec = spec.clone();
            // Of a swarm that is not locked nothing is rotated, as in Docker.
            next.unlock_key = match (is_to_be_locked(&spec), next.unlock_key.take()) {
                (false, _) => None,
                (true, Some(key)) if !is_key_rotated => Some(key),
                (true, _) => Some(new_key.clone()),
            };
            next.meta.version = THIS_REVISION;
            next.meta.updated_at = Time::now();
            for (is_rotated, secret, token) in [
                (worker, &worker_secret, &mut next.join_token_worker),
                (manager, &manager_secret, &mut next.join_token_manager),
            ] {
                if let (true, Some((digest, _))) = (is_rotated, token.rsplit_once('-')) {
                    *token = format!("{digest}-{secret}");
                }
            }
            Ok((vec![Write::Put(Object::Swarm(Arc::new(next)))], ()))
        })
        .await?;
    Ok(wire::empty(StatusCode::OK))
}

/// In nanoseconds.
const CERTIFICATE_LIFE_LEAST: i64 = 3_600_000_000_000;

/// Letters and digits that nobody can guess. Errors: the system has no random bytes.
fn random_text(length: usize) -> Result<String, ApiError> {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let random = SystemRandom::new();
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let mut bytes = [0; 64];
        random
            .fill(&mut bytes)
            .map_err(|_| ApiError::unknown("the system has no random bytes for a join token"))?;
        // Of 256 values the last 4 would make some digits likelier than others.
        let even = bytes.iter().filter(|byte| **byte < 252);
        let digits = even.map(|byte| char::from(DIGITS[usize::from(byte % 36)]));
        text.extend(digits.take(length - text.len()));
    }
    Ok(text)
}
