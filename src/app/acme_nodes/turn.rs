//! Which manager orders: of those that answer the one with the lowest id, and none before it knows what the others have. Pure.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// Another manager, as this node finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manager {
    pub(super) node: Arc<str>,
    /// It has answered, and its list of certificates is known.
    pub(super) is_heard: bool,
    /// Since when it is as `is_heard` says.
    pub(super) since: Instant,
}

/// Whose turn it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Turn {
    Ours,
    /// Another's, by id.
    Of(Arc<str>),
    /// It is not known yet, or nobody's: there is no manager that answers.
    Nobodys,
}

/// `own`: this node's id, if it is a manager.
pub(super) fn whose(own: Option<&str>, others: &[Manager], now: Instant) -> Turn {
    // One that was heard a moment ago may be back in another.
    let is_there = |one: &&Manager| one.is_heard || now.duration_since(one.since) < GONE_AFTER;
    let first = others.iter().filter(is_there).min_by(|a, b| a.node.cmp(&b.node));
    let is_first = |own: &str| first.is_none_or(|first| own < &*first.node);
    match (own, first) {
        (Some(own), _) if is_first(own) => {
            // What others have would be ordered again.
            let is_known = others.iter().filter(is_there).all(|one| one.is_heard);
            if is_known { Turn::Ours } else { Turn::Nobodys }
        }
        (_, Some(first)) if first.is_heard => Turn::Of(first.node.clone()),
        _ => Turn::Nobodys,
    }
}

/// A manager that does not answer for so long is not waited for.
pub(super) const GONE_AFTER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_of_those_that_answer_orders_once_it_knows_what_the_others_have() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let others = |all: &[(&str, bool, u64)]| -> Vec<Manager> {
            let one = |(node, is_heard, since): &(&str, bool, u64)| Manager {
                node: (*node).into(),
                is_heard: *is_heard,
                since: at(*since),
            };
            all.iter().map(one).collect()
        };
        let check = |own: Option<&str>, all: &[(&str, bool, u64)], now: u64, expected: Turn| {
            assert_eq!(whose(own, &others(all), at(now)), expected, "{own:?} {all:?} {now}");
        };
        let of = |node: &str| Turn::Of(node.into());
        // Alone.
        check(Some("b"), &[], 0, Turn::Ours);
        check(None, &[], 0, Turn::Nobodys);
        // Nobody is known at first; the lowest waits for the others all the same.
        check(Some("a"), &[("b", false, 0), ("c", false, 0)], 0, Turn::Nobodys);
        check(Some("a"), &[("b", true, 1), ("c", false, 0)], 5, Turn::Nobodys);
        check(Some("a"), &[("b", true, 1), ("c", true, 2)], 2, Turn::Ours);
        check(Some("a"), &[("b", true, 1), ("c", false, 0)], 10, Turn::Ours);
        check(Some("b"), &[("a", true, 1), ("c", true, 2)], 2, of("a"));
        check(None, &[("c", true, 1), ("b", true, 2)], 2, of("b"));
        // The first is gone, for a moment or for good.
        check(Some("b"), &[("a", false, 100), ("c", true, 2)], 109, Turn::Nobodys);
        check(Some("c"), &[("a", false, 100), ("b", true, 2)], 109, Turn::Nobodys);
        check(Some("b"), &[("a", false, 100), ("c", true, 2)], 110, Turn::Ours);
        check(Some("c"), &[("a", false, 100), ("b", true, 2)], 110, of("b"));
        check(None, &[("a", false, 100), ("b", true, 2)], 110, of("b"));
        // It is back.
        check(Some("b"), &[("a", true, 200), ("c", true, 2)], 200, of("a"));
        // At most one of those who see each other alike orders.
        for now in 0..300 {
            let seen = [
                ("a", now >= 7 && !(100..200).contains(&now)),
                ("b", now >= 3),
                ("c", now >= 1),
            ];
            let since = |node: &str| match (node, now) {
                ("a", 200..) => 200,
                ("a", 100..) => 100,
                ("a", 7..) => 7,
                ("b", 3..) => 3,
                ("c", 1..) => 1,
                _ => 0,
            };
            let turns = seen.iter().map(|(own, _)| {
                let rest = seen.iter().filter(|(node, _)| node != own);
                let rest: Vec<(&str, bool, u64)> = rest.map(|(node, is)| (*node, *is, since(node))).collect();
                whose(Some(own), &others(&rest), at(now))
            });
            let running = turns.take(3).enumerate().filter(|(i, turn)| {
                // One that is away does not order.
                *turn == Turn::Ours && (*i != 0 || seen[0].1)
            });
            assert!(running.count() <= 1, "{now}");
        }
    }
}
