//! Routes in the order in which they are asked, persistent: clones share everything, and a change costs the logarithm of how many
//! there are. Of many, only those are asked that the path's beginning leaves. Pure.

use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use imbl::OrdSet;

use crate::model::rule::Asked;
use crate::model::{RouteSpec, ServiceName};

/// A route of an entry point.
#[derive(Debug)]
pub struct Routed {
    pub service: ServiceName,
    /// By which the table finds the service.
    pub number: u64,
    pub route: RouteSpec,
}

/// A service that has gone and come again has another number, and is the same.
impl PartialEq for Routed {
    fn eq(&self, other: &Routed) -> bool {
        self.service == other.service && self.route == other.route
    }
}

impl Routed {
    /// Ascending is the order in which they are asked. Without the name two of the same length would change places by chance.
    pub(super) fn rank(&self) -> (Reverse<i64>, &str, &ServiceName) {
        let rule = self.route.rule.as_str();
        (Reverse(self.route.priority()), rule, &self.service)
    }
}

/// Who comes first is first.
#[derive(Debug, Clone)]
pub(super) struct Ranked {
    all: All,
    /// How many of them look at the path.
    n_by_path: usize,
}

#[derive(Debug, Clone)]
enum All {
    /// In order. What most hosts have: it is copied when one changes, and takes least.
    Few(Arc<[Arc<Routed>]>),
    Many(Arc<Many>),
}

#[derive(Debug, Clone)]
struct Many {
    /// By what their paths begin with, and in order.
    all: OrdSet<Key>,
    /// How many there are with a beginning of that length.
    n_by_length: [usize; BEGINNING_BYTES + 1],
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    beginning: Beginning,
    /// `None` comes before all.
    routed: Option<ByRank>,
}

/// What every path of a route begins with, as much of it as is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Beginning {
    bytes: [u8; BEGINNING_BYTES],
    length: u8,
}

#[derive(Debug, Clone)]
struct ByRank(Arc<Routed>);

impl Default for Ranked {
    fn default() -> Ranked {
        Ranked {
            all: All::Few(Arc::default()),
            n_by_path: 0,
        }
    }
}

impl Ranked {
    /// Of those that take this request the first, if it comes before `best`.
    pub(super) fn find<'a>(&'a self, asked: &Asked<'_>, best: Option<&'a Arc<Routed>>) -> Option<&'a Arc<Routed>> {
        match &self.all {
            All::Few(few) => first_of(few.iter(), asked, best),
            All::Many(many) => many.find(asked, best),
        }
    }

    /// Whether any of them looks at the path.
    pub(super) fn asks_for_path(&self) -> bool {
        self.n_by_path > 0
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(&self.all, All::Few(few) if few.is_empty())
    }

    pub(super) fn insert(&mut self, routed: Arc<Routed>) {
        self.n_by_path += usize::from(routed.route.rule.asks_for_path());
        match &mut self.all {
            All::Few(few) if few.len() < FEW => {
                let at = few.partition_point(|other| other.rank() < routed.rank());
                let (before, after) = few.split_at(at);
                let all = before.iter().cloned().chain([routed]);
                *few = all.chain(after.iter().cloned()).collect();
            }
            All::Few(few) => {
                let mut many = Many::default();
                few.iter().cloned().chain([routed]).for_each(|one| many.insert(one));
                self.all = All::Many(Arc::new(many));
            }
            All::Many(many) => Arc::make_mut(many).insert(routed),
        }
    }

    /// Forgets that one, which is among them.
    pub(super) fn remove(&mut self, routed: &Arc<Routed>) {
        self.n_by_path -= usize::from(routed.route.rule.asks_for_path());
        match &mut self.all {
            All::Few(few) => *few = few.iter().filter(|other| *other != routed).cloned().collect(),
            All::Many(many) => {
                Arc::make_mut(many).remove(routed);
                // Not at once, or one that comes and goes would have all written anew each time.
                if many.all.len() <= FEW / 2 {
                    let mut few: Vec<Arc<Routed>> = many.all.iter().filter_map(Key::routed).cloned().collect();
                    few.sort_by(|one, other| one.rank().cmp(&other.rank()));
                    self.all = All::Few(few.into());
                }
            }
        }
    }
}

/// The first of `all`, which are in order, that takes the request and comes before `best`; otherwise `best`.
fn first_of<'a>(
    all: impl Iterator<Item = &'a Arc<Routed>>,
    asked: &Asked<'_>,
    best: Option<&'a Arc<Routed>>,
) -> Option<&'a Arc<Routed>> {
    let mut before = all.take_while(|routed| best.is_none_or(|best| routed.rank() < best.rank()));
    before.find(|routed| routed.route.rule.takes(asked)).or(best)
}

impl Default for Many {
    fn default() -> Many {
        Many {
            all: OrdSet::new(),
            n_by_length: [0; BEGINNING_BYTES + 1],
        }
    }
}

impl Many {
    fn find<'a>(&'a self, asked: &Asked<'_>, best: Option<&'a Arc<Routed>>) -> Option<&'a Arc<Routed>> {
        let lengths = 0..=asked.path.len().min(BEGINNING_BYTES);
        let in_use = lengths.filter(|length| self.n_by_length[*length] > 0);
        in_use.fold(best, |best, length| {
            let beginning = Beginning::of(&asked.path[..length]);
            let from = Key {
                beginning,
                routed: None,
            };
            let those = self.all.range(from..).take_while(|key| key.beginning == beginning);
            first_of(those.filter_map(Key::routed), asked, best)
        })
    }

    fn insert(&mut self, routed: Arc<Routed>) {
        let key = Key::of(routed);
        self.n_by_length[usize::from(key.beginning.length)] += 1;
        self.all.insert(key);
    }

    fn remove(&mut self, routed: &Arc<Routed>) {
        let key = Key::of(routed.clone());
        if self.all.remove(&key).is_some() {
            self.n_by_length[usize::from(key.beginning.length)] -= 1;
        }
    }
}

impl Key {
    fn of(routed: Arc<Routed>) -> Key {
        Key {
            beginning: Beginning::of(routed.route.rule.beginning().as_bytes()),
            routed: Some(ByRank(routed)),
        }
    }

    fn routed(&self) -> Option<&Arc<Routed>> {
        self.routed.as_ref().map(|routed| &routed.0)
    }
}

impl Beginning {
    fn of(text: &[u8]) -> Beginning {
        let length = text.len().min(BEGINNING_BYTES);
        let mut bytes = [0; BEGINNING_BYTES];
        bytes[..length].copy_from_slice(&text[..length]);
        Beginning {
            bytes,
            length: u8::try_from(length).unwrap_or(u8::MAX),
        }
    }
}

impl PartialEq for ByRank {
    fn eq(&self, other: &ByRank) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for ByRank {}

impl PartialOrd for ByRank {
    fn partial_cmp(&self, other: &ByRank) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByRank {
    fn cmp(&self, other: &ByRank) -> Ordering {
        self.0.rank().cmp(&other.0.rank())
    }
}

/// As many are asked one after another.
const FEW: usize = 8;
/// Of a path: each length in use is a look of its own.
const BEGINNING_BYTES: usize = 24;
