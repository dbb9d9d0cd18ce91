//! What a manager answers other nodes: which challenges are pending and which certificates there are, as soon as that changes; and
//! certificates with their keys, of names that its own table wants and of no others.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;

use super::acks::Acks;
use super::wire::{Gift, Given, Has, NAMES_MOST, Take, Told, Wait};
use crate::admin::SwarmView;
use crate::tls::{Acme, Challenges, List, is_host};

pub(super) struct Desk {
    acme: Arc<Acme>,
    challenges: Arc<Challenges>,
    acks: Arc<Acks>,
    /// Of this run of the program.
    instance: u64,
    /// `None`: it is not known yet what routes there are.
    notice: watch::Sender<Option<Notice>>,
    /// Takes that are being answered, by node. std mutex: for a moment each.
    takes: Mutex<BTreeMap<Arc<str>, Budget>>,
    lists: Mutex<BTreeMap<Arc<str>, Budget>>,
    /// How long a call is held where nothing changes.
    hold: Duration,
}

/// What there is, for all who ask.
#[derive(Clone)]
struct Notice {
    list: Arc<List>,
    digest: u64,
}

/// What a node has asked for within a while.
struct Budget {
    since: Instant,
    n: u32,
}

impl Desk {
    pub(super) fn new(acme: Arc<Acme>, challenges: Arc<Challenges>, acks: Arc<Acks>, instance: u64) -> Desk {
        Desk {
            acme,
            challenges,
            acks,
            instance,
            notice: watch::Sender::new(None),
            takes: Mutex::default(),
            lists: Mutex::default(),
            hold: HOLD,
        }
    }

    /// Keeps what there is up with names, certificates and failures. Never ends.
    pub(super) async fn publish(&self, view: &SwarmView) -> Infallible {
        let (mut changes, mut clusters) = (self.acme.changes(), view.link.cluster.clone());
        loop {
            changes.mark_unchanged();
            let is_known = !clusters.borrow_and_update().is_empty();
            if is_known {
                self.notice();
            }
            tokio::select! {
                _ = changes.changed() => {}
                _ = clusters.changed(), if !is_known => {}
            }
            // What changes often is said now and then.
            tokio::time::sleep(PUBLISH_PAUSE).await;
        }
    }

    fn notice(&self) {
        let Some(list) = self.acme.list() else { return };
        let bytes = serde_json::to_vec(&list).unwrap_or_default();
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
        let digest = digest
            .as_ref()
            .iter()
            .take(8)
            .fold(0, |all: u64, byte| all << 8 | u64::from(*byte));
        self.notice.send_if_modified(|notice| {
            let is_news = notice.as_ref().is_none_or(|before| before.digest != digest);
            if is_news {
                let list = Arc::new(list);
                *notice = Some(Notice { list, digest });
            }
            is_news
        });
    }

    /// Answers once something differs from what the node has, or after a while.
    pub(super) async fn wait(&self, node: Arc<str>, body: Value) -> Result<Value, String> {
        let ask: Wait = read(body)?;
        // What it had of an earlier run of ours is of no use.
        let has = ask.has.filter(|has| has.of == self.instance);
        let in_place = has.map(|has| has.challenges);
        let mut held = self.acks.hold(&node, ask.instance, in_place, Instant::now());
        let (mut own, mut notices) = (self.challenges.own(), self.notice.subscribe());
        let until = tokio::time::sleep(self.hold);
        tokio::pin!(until);
        let mut is_time = false;
        loop {
            let (own_now, notice) = (own.borrow_and_update().clone(), notices.borrow_and_update().clone());
            if let Some(notice) = notice {
                let now = Has {
                    of: self.instance,
                    challenges: own_now.number,
                    list: notice.digest,
                };
                if is_time || has != Some(now) {
                    let is_new = has.is_none_or(|has| has.list != now.list);
                    if is_new {
                        // It is long where there are many names.
                        let most = if has.is_some() { LISTS_MOST } else { LISTS_ANEW_MOST };
                        spend(&self.lists, &node, most)?;
                    }
                    let told = Told {
                        now,
                        challenges: own_now.challenges,
                        list: is_new.then(|| List::clone(&notice.list)),
                    };
                    let answer = write(&told);
                    held.answered();
                    return answer;
                }
            } else if is_time {
                return Err("it is not known yet what routes there are".to_owned());
            }
            tokio::select! {
                _ = own.changed() => {}
                _ = notices.changed() => {}
                () = held.over() => return Err("another call has taken its place".to_owned()),
                () = &mut until, if !is_time => is_time = true,
            }
        }
    }

    /// Gives certificates with their keys.
    pub(super) fn take(&self, node: &Arc<str>, body: Value) -> Result<Value, String> {
        let take: Take = read(body)?;
        if take.names.len() > NAMES_MOST {
            return Err(format!("{} names, expected {NAMES_MOST} at most", take.names.len()));
        }
        spend(&self.takes, node, TAKES_MOST)?;
        let gift = |host: &str, acme: &str| match is_host(host) {
            true => self.acme.give(host, acme),
            false => Err("no name that a certificate is ordered for".to_owned()),
        };
        let gifts = take.names.iter().map(|name| match gift(&name.host, &name.acme) {
            Ok(certificate) => Gift::Certificate(Box::new(certificate)),
            Err(why) => Gift::Refused(why),
        });
        write(&Given {
            certificates: gifts.collect(),
        })
    }
}

/// Errors: the node has asked for too many within a while.
fn spend(spent: &Mutex<BTreeMap<Arc<str>, Budget>>, node: &Arc<str>, most: u32) -> Result<(), String> {
    let mut spent = spent.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    spent.retain(|_, budget| now.duration_since(budget.since) < ASKED_WITHIN);
    let budget = spent.entry(node.clone()).or_insert(Budget { since: now, n: 0 });
    budget.n += 1;
    match budget.n <= most {
        true => Ok(()),
        false => Err(format!("more than {most} within {} s", ASKED_WITHIN.as_secs())),
    }
}

fn read<T: DeserializeOwned>(body: Value) -> Result<T, String> {
    serde_json::from_value(body).map_err(|error| format!("no such question: {error}"))
}

fn write(answer: &impl Serialize) -> Result<Value, String> {
    serde_json::to_value(answer).map_err(|error| error.to_string())
}

const HOLD: Duration = Duration::from_secs(20);
const PUBLISH_PAUSE: Duration = Duration::from_millis(50);
/// So that a node has 16,000 certificates within ten seconds, and no node all of the manager's time.
const TAKES_MOST: u32 = 1000;
/// Whole lists, to one that follows their changes; and to one that has none, as after a start.
const LISTS_MOST: u32 = 250;
const LISTS_ANEW_MOST: u32 = 30;
const ASKED_WITHIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rcgen::{CertificateParams, KeyPair};
    use serde_json::json;

    use super::super::wire::Name;
    use super::*;
    use crate::model::{AcmeName, ServiceName};
    use crate::tls::{AcmeConfig, Certificate, ChallengeKind, Terminators, TlsConfig, Wanted, WantedBy, now};

    fn le() -> AcmeName {
        "le".parse().unwrap()
    }

    /// A manager whose table wants a certificate for `a.test`, and that has one.
    fn desk() -> (Desk, Arc<Acme>) {
        let config = AcmeConfig {
            name: le(),
            directory: "https://ca.test/dir".to_owned(),
            email: None,
            challenge: ChallengeKind::Http,
            authorities: None,
            external: None,
        };
        let tls = Terminators::new(TlsConfig {
            acme: vec![config],
            ..TlsConfig::default()
        });
        let tls = tls.unwrap();
        let acme = tls.acme().clone();
        acme.share();
        let by = WantedBy {
            acme: le(),
            service: ServiceName::new("a").unwrap(),
            said_by: "route".into(),
        };
        acme.want(Wanted {
            names: BTreeMap::from([("a.test".to_owned(), by)]),
            ..Wanted::default()
        });
        let desk = Desk::new(acme.clone(), tls.challenges().clone(), Arc::default(), 7);
        (desk, acme)
    }

    fn certificate() -> Certificate {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        Certificate {
            directory: "https://ca.test/dir".to_owned(),
            ordered_at: now(),
            certificate: params.self_signed(&key).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    async fn ask(desk: &Desk, has: Option<Has>) -> Told {
        let body = serde_json::to_value(Wait { instance: 1, has }).unwrap();
        serde_json::from_value(desk.wait("n".into(), body).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_call_is_answered_when_something_differs_or_after_a_while() {
        let (mut desk, acme) = desk();
        desk.notice();
        let first = ask(&desk, None).await;
        let list = first.list.unwrap();
        assert_eq!((first.now.of, first.now.challenges), (7, 0));
        assert!(list.names["a.test"].version.is_none() && first.challenges.is_empty());
        // Nothing differs.
        desk.hold = Duration::from_millis(50);
        let begun = Instant::now();
        let same = ask(&desk, Some(first.now)).await;
        assert_eq!((same.list, same.now), (None, first.now));
        assert!(begun.elapsed() >= desk.hold);
        // A certificate comes meanwhile.
        desk.hold = Duration::from_secs(600);
        let comes = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            acme.take_from("m", vec![("a.test".to_owned(), le(), certificate())]);
            desk.notice();
        };
        let (told, ()) = tokio::join!(ask(&desk, Some(first.now)), comes);
        assert!(told.list.unwrap().names["a.test"].version.is_some());
        // What it had of an earlier run of the manager is nothing.
        let before = Has { of: 6, ..told.now };
        assert!(ask(&desk, Some(before)).await.list.is_some());
        // A second call takes the place of the first.
        let (mut one, two) = (Box::pin(ask_text(&desk, told.now)), ask(&desk, None));
        assert!(futures_util::poll!(&mut one).is_pending());
        two.await;
        assert_eq!(one.await.unwrap_err(), "another call has taken its place");
    }

    async fn ask_text(desk: &Desk, has: Has) -> Result<Value, String> {
        let has = Some(has);
        desk.wait("n".into(), serde_json::to_value(Wait { instance: 1, has }).unwrap())
            .await
    }

    #[test]
    fn certificates_are_given_of_what_the_own_table_wants_a_few_at_a_time() {
        let (desk, acme) = desk();
        let given = certificate();
        acme.take_from("m", vec![("a.test".to_owned(), le(), given.clone())]);
        let name = |host: &str| Name {
            host: host.to_owned(),
            acme: "le".to_owned(),
        };
        let take = |names: Vec<Name>| desk.take(&"n".into(), serde_json::to_value(Take { names }).unwrap());
        let gifts: Given =
            serde_json::from_value(take(vec![name("a.test"), name("b.test"), name("../a")]).unwrap()).unwrap();
        match &gifts.certificates[..] {
            [Gift::Certificate(one), Gift::Refused(unwanted), Gift::Refused(no_host)] => {
                assert_eq!(one.key, given.key);
                assert!(unwanted.contains("no route that this manager knows"), "{unwanted}");
                assert!(no_host.contains("no name"), "{no_host}");
            }
            other => panic!("{other:?}"),
        }
        let many = vec![name("a.test"); NAMES_MOST + 1];
        assert!(take(many).unwrap_err().contains("expected 16 at most"));
        assert!(desk.take(&"n".into(), json!({ "names": "all" })).is_err());
        // One that takes all the time is refused, and no other.
        let refused = (0..TAKES_MOST).filter(|_| take(Vec::new()).is_err()).count();
        assert!(refused > 0 && take(Vec::new()).unwrap_err().contains("within 10 s"));
        assert!(desk.take(&"other".into(), json!({ "names": [] })).is_ok());
    }
}
