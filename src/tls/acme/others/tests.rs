//! What nodes take of one another, and what they do not.

use super::super::state::Next;
use super::super::state::tests::{acme, state};
use super::*;

fn shared(names: &[(&str, &str)]) -> State {
    let mut state = state(names);
    state.others = Some(Others {
        is_our_turn: true,
        ..Others::default()
    });
    state
}

fn given(names: &[&str], ordered_at: i64) -> kept::Certificate {
    let (certificate, key) = crate::tls::pair::tests::pem(names);
    kept::Certificate {
        directory: "https://le.test/dir".to_owned(),
        ordered_at,
        certificate,
        key,
    }
}

/// What a node has that has taken these.
fn list_of(certificates: &[(&str, &kept::Certificate)]) -> Arc<List> {
    let names: Vec<(&str, &str)> = certificates.iter().map(|(host, _)| (*host, "a")).collect();
    let mut state = shared(&names);
    for (host, file) in certificates {
        state.take_from("x", (host, &acme("le")), (*file).clone(), NOW).unwrap();
    }
    Arc::new(state.list())
}

fn hear(state: &mut State, node: &str, list: &Arc<List>) {
    state.others.as_mut().unwrap().lists.insert(node.into(), list.clone());
}

const NOW: i64 = 2_000_000_000;

#[test]
fn what_another_has_is_taken_and_ordered_by_nobody_and_the_later_one_counts() {
    let mut state = shared(&[("a.test", "a"), ("b.test", "b")]);
    let uncovered = |_: &str| false;
    let (old, new) = (given(&["a.test"], NOW - 10), given(&["a.test"], NOW - 5));
    hear(
        &mut state,
        "m1",
        &list_of(&[("a.test", &new), ("other.test", &given(&["other.test"], 1))]),
    );
    assert_eq!(state.lacks("m1"), [("a.test".to_owned(), acme("le"))]);
    assert_eq!(state.next(NOW, uncovered), Next::Order("b.test".to_owned(), acme("le")));
    assert!(state.is_coming("a.test", &acme("le")) && !state.is_coming("a.test", &acme("own")));
    state
        .take_from("m1", ("a.test", &acme("le")), new.clone(), NOW)
        .unwrap();
    assert!(state.lacks("m1").is_empty() && !state.is_coming("a.test", &acme("le")));
    assert_eq!(state.kept_of("a.test", &acme("le")).unwrap().file.ordered_at, NOW - 5);
    // It is neither over nor older than what another has.
    hear(&mut state, "m2", &list_of(&[("a.test", &old)]));
    assert!(state.lacks("m2").is_empty());
    let newest = given(&["a.test"], NOW - 1);
    hear(&mut state, "m2", &list_of(&[("a.test", &newest)]));
    assert_eq!(state.lacks("m2").len(), 1);
    // What another is at is not ordered twice.
    let mut at_it = shared(&[("b.test", "b")]);
    at_it.at = Some(("b.test".to_owned(), NOW));
    hear(&mut state, "m3", &Arc::new(at_it.list()));
    assert_eq!(state.next(NOW, uncovered), Next::Wait(None));
    state.others.as_mut().unwrap().lists.remove("m3");
    assert_eq!(state.next(NOW, uncovered), Next::Order("b.test".to_owned(), acme("le")));
    // Of another authority by the same name it is another certificate.
    let mut elsewhere = newest.clone();
    elsewhere.directory = "https://staging.test/dir".to_owned();
    hear(&mut state, "m2", &list_of(&[("a.test", &elsewhere)]));
    assert!(state.lacks("m2").is_empty());
    hear(&mut state, "m2", &list_of(&[("a.test", &newest)]));
    // Gone with what it had.
    state.others.as_mut().unwrap().lists.remove("m2");
    assert!(!state.is_coming("a.test", &acme("le")));
}

#[test]
fn what_is_of_no_use_is_refused_and_asked_for_once() {
    let mut state = shared(&[("a.test", "a")]);
    let listed = given(&["a.test"], NOW);
    hear(&mut state, "m", &list_of(&[("a.test", &listed)]));
    let le = acme("le");
    let other = given(&["b.test"], NOW);
    let mixed = kept::Certificate {
        key: other.key.clone(),
        ..listed.clone()
    };
    let error = state.take_from("m", ("a.test", &le), other, NOW).unwrap_err();
    assert_eq!(error, "it is for b.test alone");
    assert!(state.lacks("m").is_empty() && !state.is_coming("a.test", &le));
    state.others.as_mut().unwrap().useless.clear();
    assert!(state.take_from("m", ("a.test", &le), mixed, NOW).is_err());
    assert!(!state.look_again(0), "no clock mends it");
    state.others.as_mut().unwrap().useless.clear();
    // The clock is ahead, and is put right.
    let ahead = i64::MAX - 1;
    assert_eq!(
        state
            .take_from("m", ("a.test", &le), listed.clone(), ahead)
            .unwrap_err(),
        "it is over"
    );
    assert!(state.kept.is_empty() && state.lacks("m").is_empty());
    assert!(!state.look_again(ahead) && state.lacks("m").is_empty());
    assert!(state.look_again(NOW) && !state.look_again(NOW));
    assert_eq!(state.lacks("m").len(), 1);
    state.take_from("m", ("a.test", &le), listed, NOW).unwrap();
    assert!(state.lacks("m").is_empty());
}

#[test]
fn an_order_that_who_is_gone_was_at_has_failed_unless_it_came_after_all() {
    let le = acme("le");
    let at_it = |since: i64| {
        let mut before = shared(&[("a.test", "a"), ("b.test", "b")]);
        before.at = Some(("a.test".to_owned(), since));
        before.list()
    };
    let uncovered = |_: &str| false;
    let mut state = shared(&[("a.test", "a"), ("b.test", "b")]);
    state.learn_of_gone(&at_it(NOW - 10), NOW);
    assert_eq!(state.due("a.test"), Some(NOW + 60));
    assert_eq!(state.next(NOW, uncovered), Next::Order("b.test".to_owned(), le.clone()));
    // The very same order counts once, another one again, and one of an earlier version by when it is found out.
    state.learn_of_gone(&at_it(NOW - 10), NOW + 20);
    assert_eq!(state.due("a.test"), Some(NOW + 60));
    state.learn_of_gone(&at_it(NOW + 70), NOW + 80);
    assert_eq!(state.due("a.test"), Some(NOW + 80 + 180));
    let mut unsaid = at_it(0);
    unsaid.names.get_mut("a.test").unwrap().at_it_since = None;
    state.learn_of_gone(&unsaid, NOW + 300);
    assert_eq!(state.due("a.test"), Some(NOW + 300 + 540));
    // What had failed there before is not forgotten by that.
    let mut before = shared(&[("a.test", "a")]);
    let no = ("no".to_owned(), super::super::order::Of::Name);
    before.failed(("a.test", &le), no, (NOW - 100, None, 0.0));
    before.at = Some(("a.test".to_owned(), NOW - 30));
    let mut next = shared(&[("a.test", "a")]);
    next.learn_of_gone(&before.list(), NOW);
    assert_eq!(next.due("a.test"), Some(NOW + 180));
    // It was done, and comes when who did it is back.
    let done = given(&["a.test"], NOW - 5);
    next.take_from("m", ("a.test", &le), done.clone(), NOW).unwrap();
    assert_eq!(next.authorities[&le].failed.names.get("a.test"), None::<&Failures>);
    next.learn_of_gone(&before.list(), NOW);
    assert_eq!(next.authorities[&le].failed.names.get("a.test"), None::<&Failures>);
    // An earlier one that there is says nothing of a renewal.
    let mut renews = shared(&[("a.test", "a")]);
    renews.take_from("m", ("a.test", &le), done, NOW).unwrap();
    renews.learn_of_gone(&at_it(NOW + 5), NOW + 5);
    assert_eq!(renews.authorities[&le].failed.names["a.test"].n, 1);
}

#[test]
fn nothing_is_given_that_this_nodes_own_table_does_not_want_from_there() {
    let mut state = shared(&[("a.test", "a"), ("none.test", "a")]);
    let (wanted, unwanted) = (given(&["a.test"], NOW), given(&["z.test"], NOW));
    state
        .take_from("m", ("a.test", &acme("le")), wanted.clone(), NOW)
        .unwrap();
    state.take_from("m", ("z.test", &acme("le")), unwanted, NOW).unwrap();
    assert_eq!(state.give("a.test", "le").unwrap().key, wanted.key);
    for (host, acme, expected) in [
        (
            "z.test",
            "le",
            "no route that this manager knows asks acme.le for z.test",
        ),
        (
            "a.test",
            "own",
            "no route that this manager knows asks acme.own for a.test",
        ),
        ("none.test", "le", "there is no certificate for none.test yet"),
        (
            "../account",
            "le",
            "no route that this manager knows asks acme.le for ../account",
        ),
    ] {
        assert_eq!(state.give(host, acme).unwrap_err(), expected);
    }
    assert_eq!(state.list().names.keys().collect::<Vec<_>>(), ["a.test", "none.test"]);
    assert!(!serde_json::to_string(&state.list()).unwrap().contains("PRIVATE"));
}

#[test]
fn who_takes_over_waits_as_long_as_the_one_before_and_others_show_what_failed_there() {
    let mut before = shared(&[("a.test", "a"), ("b.test", "b")]);
    let failed = |state: &mut State| {
        let of = ("no".to_owned(), super::super::order::Of::Name);
        state.failed(("a.test", &acme("le")), of, (NOW, None, 0.0))
    };
    let again = failed(&mut before);
    let list = Arc::new(before.list());
    let mut state = shared(&[("a.test", "a"), ("b.test", "b"), ("alone.test", "c")]);
    state.set_turn(Some("m".into()), Some("node1".into()), false);
    hear(&mut state, "m", &list);
    assert!(!state.is_our_turn());
    let view = state.view(|_| false);
    let (host, failure) = (view[0].host.as_str(), view[0].failure.as_deref());
    assert_eq!((host, failure, view[0].next_at), ("a.test", Some("no"), Some(again)));
    assert_eq!(view[0].ordered_by.as_deref(), Some("node1"));
    let faults = state.faults();
    assert!(
        faults[0].starts_with("acme.le: no certificate for a.test: no (failed 1 times"),
        "{faults:?}"
    );
    assert!(
        faults[1].contains("no certificate for alone.test: node1, which orders them, has no route of service c"),
        "{faults:?}"
    );
    assert_eq!(faults.len(), 2);
    state.set_turn(Some("us".into()), Some("node2".into()), true);
    assert_eq!(state.due("a.test"), Some(again));
    assert_eq!(state.authorities[&acme("le")].failed.names["a.test"].n, 1);
    // What came after that failure is no failure.
    let mut state = shared(&[("a.test", "a")]);
    state.set_turn(None, None, false);
    hear(&mut state, "m", &list);
    state
        .take_from("m", ("a.test", &acme("le")), given(&["a.test"], NOW + 1), NOW + 1)
        .unwrap();
    state.set_turn(None, None, true);
    assert_eq!(
        state.authorities[&acme("le")].failed.names.get("a.test"),
        None::<&Failures>
    );
}
