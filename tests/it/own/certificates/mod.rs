//! Certificates of TLS from the swarm's secrets and configs, by the docker command line and the API: taken up and given up while others
//! ask, paired, refused, after a start, an update, and behind a lock.

mod stage;

use std::time::Duration;

use serde_json::{Value, json};

use self::stage::{LABEL, SOON, bundle, stage, stage_with};
use super::lock::{key_in, unlocks};
use super::rig::LONG;

#[test]
fn a_secret_with_certificate_and_key_is_shown_renewed_and_withdrawn_while_others_ask() {
    let Some((mut stage, _)) = stage("cert", &[]) else {
        return;
    };
    // One that is nobody's yet: it is refused, and said.
    assert_eq!(stage.shown("site.test"), None);
    let none = "entry point websecure: no certificate can be used";
    assert!(stage.ready().contains(none), "{}", stage.ready());
    assert!(stage.status().contains(&format!("! {none}")));

    let first = stage.authority.issue(&["site.test"], 5);
    // Without the label, or with it saying no, it is nobody's but its services'.
    for (name, labels) in [("plain", &[][..]), ("false", &["anynode.certificate=false"])] {
        let out = stage.create_out("secret", name, labels, &bundle(&first));
        assert!(out.status.success(), "{out:?}");
    }
    assert_eq!(stage.shown("site.test"), None);
    stage.create("secret", "site.pem", &bundle(&first));
    stage.shows_soon("site.test", Some(&first.0));
    assert!(stage.is_served("site.test"));
    assert_eq!(stage.ready(), "serving\n");
    let status = stage.status();
    assert!(
        status.contains("! certificate secret:site.pem expires at 20")
            && status.contains("\ncertificate secret:site.pem until 20")
            && status.contains(": site.test\n"),
        "{status}"
    );
    let until = |name: &str| {
        let until = stage.metric(&format!(
            "anynode_tls_certificate_not_after_seconds{{file=\"secret:{name}\"}}"
        ));
        until.map(|seconds| seconds.parse::<u64>().unwrap())
    };
    let first_until = until("site.pem").unwrap();
    stage.own.wait_for("the warning", LONG, || {
        let log = stage.own.log();
        log.lines()
            .any(|line| line.contains("secret:site.pem") && line.contains("expires soon"))
    });

    // Another for the same host, which lasts longer, and the end of the one before.
    let load = stage.load("site.test");
    let second = stage.authority.issue(&["site.test"], 90);
    stage.create("secret", "site-2.pem", &bundle(&second));
    stage.shows_soon("site.test", Some(&second.0));
    assert!(until("site-2.pem").unwrap() > first_until);
    // One that lasts shorter changes nothing.
    let short = stage.authority.issue(&["site.test"], 3);
    stage.create("secret", "a-short.pem", &bundle(&short));
    std::thread::sleep(Duration::from_millis(300));
    stage.shows_soon("site.test", Some(&second.0));
    stage.remove("secret", "a-short.pem");
    stage.remove("secret", "site.pem");
    std::thread::sleep(Duration::from_millis(500));
    stage.shows_soon("site.test", Some(&second.0));
    assert_eq!(until("site.pem"), None);
    let said = load.end(&stage.own);
    assert_eq!(said["kept_connections"], 1, "no connection is touched: {said}");
    assert_eq!(said["away"], 0, "{said}");
    assert!(!stage.status().contains("secret:site.pem"));

    // An update of anynode, and a start, have it at once.
    let load = stage.load("site.test");
    stage.own.update();
    stage.shows_soon("site.test", Some(&second.0));
    std::thread::sleep(Duration::from_secs(1));
    let said = load.end(&stage.own);
    assert_eq!(said["away"], 0, "{said}");
    let load = stage.load("site.test");
    stage.own.stop();
    stage.own.start();
    stage.own.wait_for("an answer", LONG, || stage.is_served("site.test"));
    std::thread::sleep(Duration::from_secs(1));
    let said = load.cut_off();
    let failed = said["failed"].as_array().unwrap().iter();
    let refused: Vec<&Value> = failed.filter(|why| why.as_str().unwrap().contains("ALERT")).collect();
    assert!(refused.is_empty(), "{said}");

    // The last one goes: nothing is shown, what is open goes on.
    stage.remove("secret", "site-2.pem");
    stage.shows_soon("site.test", None);
    assert!(stage.ready().contains(none), "{}", stage.ready());
    assert!(stage.own.curl("http://127.0.0.1/").is_some());
}

#[test]
fn each_chain_goes_with_its_key_whatever_they_are_called_and_whichever_comes_first() {
    let Some((stage, _)) = stage("pair", &[]) else { return };
    let (a, b) = (
        stage.authority.issue(&["a.test"], 90),
        stage.authority.issue(&["*.b.test"], 90),
    );
    let no_key = |name: &str| {
        format!(
            "label anynode.certificate: {name}: its key is not there: expected a secret with the same label that holds it"
        )
    };
    let no_chain = |name: &str| {
        format!(
            "label anynode.certificate: {name}: its certificate is not there: expected a secret or config with the same \
             label that holds it"
        )
    };
    // Who follows the store is told after docker is answered.
    let says = |what: &str| {
        let (in_ready, in_status) = (format!("{what} in /readyz"), format!("{what} in status"));
        stage.own.wait_for(&in_ready, SOON, || stage.ready().contains(what));
        stage
            .own
            .wait_for(&in_status, SOON, || stage.status().contains(&format!("! {what}")));
        assert!(stage.own.log().contains(what), "{what}");
    };
    stage.create("config", "site.pem", &a.0);
    says(&no_key("config:site.pem"));
    let faulty = "anynode_tls_certificate_faulty{file=\"config:site.pem\"}";
    assert_eq!(stage.metric(faulty).as_deref(), Some("1"));
    // A key for something else.
    stage.create("secret", "site.key", &b.1);
    says(&no_key("config:site.pem"));
    says(&no_chain("secret:site.key"));
    assert_eq!(stage.shown("a.test"), None);
    stage.create("secret", "other.key", &a.1);
    stage.shows_soon("a.test", Some(&a.0));
    assert_eq!(stage.metric(faulty).as_deref(), Some("0"));
    says(&no_chain("secret:site.key"));
    // A chain may be in a secret too.
    stage.create("secret", "other.pem", &b.0);
    stage.shows_soon("x.b.test", Some(&b.0));
    stage.shows_soon("a.test", Some(&a.0));
    assert_eq!(stage.ready(), "serving\n");
    assert!(stage.is_served("a.test") && stage.is_served("x.b.test"));
    // Who names no host that there is one for is shown the first by name.
    stage.shows_soon("c.test", Some(&b.0));
    stage.remove("secret", "other.key");
    stage.shows_soon("c.test", Some(&b.0));
    stage.shows_soon("a.test", Some(&b.0));
    says(&no_key("config:site.pem"));
}

#[test]
fn what_is_no_certificate_or_key_is_refused_when_it_is_declared_and_no_key_is_ever_said() {
    let Some((stage, _)) = stage("refuse", &[]) else { return };
    let (a, b) = (
        stage.authority.issue(&["a.test"], 90),
        stage.authority.issue(&["b.test"], 90),
    );
    let expected =
        "a certificate in PEM with those of its authorities after it, a private key that is not encrypted, or both";
    let secret = |data: &str| stage.refuses("secret", &[LABEL], data);
    let of_secret = |what: &str| format!("label anynode.certificate: secret \"refused\": {what}");
    assert_eq!(
        secret("hunter2"),
        of_secret(&format!(
            "there is no certificate and no private key: expected {expected}"
        ))
    );
    assert_eq!(
        secret(&format!("{}{}", a.0, b.1)),
        of_secret(&format!(
            "the key is not the first certificate's: expected the one that is, or {expected}"
        ))
    );
    assert_eq!(
        secret(&a.1.replace("PRIVATE", "ENCRYPTED PRIVATE")),
        of_secret(&format!(
            "there is a section \"ENCRYPTED PRIVATE KEY\": expected {expected}"
        ))
    );
    assert_eq!(
        secret(&a.1.replace('\n', "")),
        of_secret(&format!("the PEM is broken: expected {expected}"))
    );
    let of_config = "label anynode.certificate: config \"refused\": there is a private key, and what a config holds is shown to \
                     everybody: expected it in a secret with the same label";
    for data in [bundle(&a), a.1.clone()] {
        assert_eq!(stage.refuses("config", &[LABEL], &data), of_config);
    }
    for kind in ["secret", "config"] {
        assert_eq!(
            stage.refuses(kind, &["anynode.certificate=yes"], &a.0),
            "label anynode.certificate: \"yes\" is not valid: expected true or false"
        );
        assert_eq!(
            stage.refuses(kind, &["anynode.certificat=true"], &a.0),
            "label anynode.certificat: no such option of a secret or config: expected anynode.certificate"
        );
        assert_eq!(stage.own.docker(&[kind, "ls", "-q"]), "");
    }
    // Of a service it is no option.
    let refused = stage.own.docker_fails(&[
        "service",
        "create",
        "-d",
        "--no-resolve-image",
        "--label",
        LABEL,
        "anynode/whoami",
    ]);
    assert!(
        refused.contains("label anynode.certificate: no such option of a service: expected on secrets and configs"),
        "{refused}"
    );

    // The same where labels are changed.
    let plain = |kind: &str, name: &str, data: &str| {
        let out = stage.create_out(kind, name, &[], data);
        assert!(out.status.success(), "{out:?}");
    };
    plain("secret", "password", "hunter2");
    plain("secret", "bundle", &bundle(&a));
    plain("config", "key", &b.1);
    let says = |said: (String, String), message: &str| assert_eq!(said, ("400".to_owned(), message.to_owned()));
    let on = json!({ "anynode.certificate": "true" });
    says(
        stage.relabel("secret", "password", on.clone()),
        &format!(
            "label anynode.certificate: secret \"password\": there is no certificate and no private key: expected {expected}"
        ),
    );
    says(
        stage.relabel("config", "key", on.clone()),
        &of_config.replace("refused", "key"),
    );
    says(
        stage.relabel("secret", "bundle", json!({ "anynode.certificate": "maybe" })),
        "label anynode.certificate: \"maybe\" is not valid: expected true or false",
    );
    assert_eq!(stage.shown("a.test"), None);
    let is_ok = |said: (String, String)| assert_eq!(said, ("200".to_owned(), String::new()));
    is_ok(stage.relabel("secret", "bundle", on));
    stage.shows_soon("a.test", Some(&a.0));
    is_ok(stage.relabel("secret", "bundle", json!({})));
    stage.shows_soon("a.test", None);

    let key_lines = [&a.1, &b.1].map(|key| key.lines().nth(1).unwrap().to_owned());
    let log = stage.own.log();
    key_lines.iter().for_each(|line| assert!(!log.contains(line.as_str())));
}

#[test]
fn where_no_entry_point_ends_tls_it_is_said_that_nobody_shows_them() {
    let Some((stage, _)) = stage_with("certplain", &[], "{ web = { listen = ':80' } }") else {
        return;
    };
    let says = |names: &str| {
        let what = format!(
            "label anynode.certificate: no entry point ends TLS (entrypoints.NAME.tls), so that nothing is shown of {names}\n"
        );
        let is_said = || stage.ready().contains(&what) && stage.status().contains(&format!("! {what}"));
        stage.own.wait_for(&what, SOON, is_said);
        assert!(stage.own.log().contains(what.trim_end()), "{what}");
    };
    let site = bundle(&stage.authority.issue(&["site.test"], 90));
    stage.create("secret", "site.pem", &site);
    says("secret:site.pem");
    for n in 0..9 {
        stage.create("secret", &format!("site-{n}.pem"), &site);
    }
    let first: Vec<String> = (0..8).map(|n| format!("secret:site-{n}.pem")).collect();
    says(&format!("{} and 2 more", first.join(", ")));
    for n in 0..9 {
        stage.remove("secret", &format!("site-{n}.pem"));
    }
    stage.remove("secret", "site.pem");
    stage
        .own
        .wait_for("nothing to be wrong", SOON, || stage.ready() == "serving\n");
}

#[test]
fn a_locked_swarm_shows_them_once_it_is_unlocked() {
    let Some((mut stage, said)) = stage("certlock", &["--autolock"]) else {
        return;
    };
    let key = key_in(&said);
    let pair = stage.authority.issue(&["site.test"], 90);
    stage.create("secret", "site.pem", &bundle(&pair));
    stage.shows_soon("site.test", Some(&pair.0));
    // The key is known to the one that takes over.
    stage.own.update();
    stage.shows_soon("site.test", Some(&pair.0));
    stage.own.kill();
    stage.own.start();
    stage
        .own
        .wait_for("traffic", LONG, || stage.own.curl("http://127.0.0.1/").is_some());
    assert_eq!(stage.shown("site.test"), None);
    let waits = "label anynode.certificate: the swarm is locked: certificates of secrets and configs are shown after \"docker swarm \
                 unlock\"";
    assert!(stage.ready().contains(waits), "{}", stage.ready());
    assert!(stage.status().contains(&format!("! {waits}")));
    unlocks(&stage.own, &key);
    stage.shows_soon("site.test", Some(&pair.0));
    assert!(stage.is_served("site.test"));
    stage
        .own
        .wait_for("nothing to be wrong", LONG, || stage.ready() == "serving\n");
    // Who leaves it behind has none.
    stage.own.docker(&["swarm", "leave", "--force"]);
    stage.shows_soon("site.test", None);
}
