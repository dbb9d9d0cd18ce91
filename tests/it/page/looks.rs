//! The page in a real browser: what a person sees of what happens.

use std::net::SocketAddr;

use super::Home;
use super::browser::Browser;
use crate::harness::{Origin, ask, free_port, wait_until};

impl Browser {
    /// Nothing is wrong in the console: no refusal of the Content-Security-Policy, no exception.
    fn is_quiet(&self) {
        assert_eq!(self.errors(), Vec::<String>::new());
    }
}

#[test]
fn what_happens_is_on_the_page_in_every_view() {
    let (a, b) = (Origin::named("a"), Origin::named("b"));
    let gone = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let home = Home::with(&[a.addr, gone]);
    let Some(browser) = Browser::new() else { return };
    let page = |view: &str| format!("http://{}/#/{view}", home.admin);
    for (width, is_dark) in [(1280, false), (390, true)] {
        browser.view(width, 800, is_dark);
        browser.open(&page(""));
        browser.until_text("1 services, 2 tasks");
        browser.is_quiet();
        let wide = browser.run("document.documentElement.scrollWidth <= innerWidth");
        assert_eq!(wide, true, "nothing is wider than {width} pixels");
    }
    browser.view(1280, 800, false);
    browser.open(&page(""));
    browser.until_text("Nothing is known to be wrong.");
    for _ in 0..8 {
        assert_eq!(ask(home.door()), "a");
    }
    browser.until_text("1 / 2");
    home.declare(
        &[a.addr, b.addr],
        "  api:\n    expose: [80]\n    endpoints: [\"127.0.0.1:9\"]\n",
    );
    browser.until_text("2 services, 3 tasks");
    browser.until_text("2 / 2");
    // By keys alone: to the cells, along them, and what they say.
    browser.run("document.querySelector('.nodes li:last-child canvas').focus()");
    browser.press("ArrowRight");
    browser.until_text("of api\nuntried since");
    browser.press("Enter");
    browser.until_text("As ");
    assert!(
        browser
            .run("location.hash")
            .as_str()
            .unwrap()
            .ends_with("#/service/api")
    );

    browser.open(&page("service/web"));
    browser.until_text(&a.addr.to_string());
    browser.until_text("upstream_fin");
    browser.open(&page("events"));
    browser.until_text("service api is declared");
    browser.until_text(&format!("{gone} of web is resting"));
    browser.open(&page(&format!("why?ask={}", home.door())));
    browser.until_text("service web: 2 of 2 endpoints get traffic");
    browser.open(&page("why"));
    browser.type_into("input[name=ask]", "nothing");
    browser.press("Enter");
    browser.until_text("ask = \"nothing\": expected HOST:PORT");
    let errors = browser.errors();
    assert!(
        errors.iter().all(|error| error.contains("400")),
        "that answer alone: {errors:?}"
    );
}

#[test]
fn a_node_that_is_gone_is_said_to_be_and_the_page_goes_on_with_the_next_run() {
    let a = Origin::named("a");
    let mut home = Home::with(&[a.addr]);
    let Some(browser) = Browser::new() else { return };
    browser.open(&format!("http://{}/", home.admin));
    browser.until_text("1 services, 1 tasks");
    let mut node = home.node.take().unwrap();
    node.kill().unwrap();
    node.wait().unwrap();
    browser.until_text("was lost");
    browser.until_text("1 services, 1 tasks");
    home.declare(
        &[a.addr],
        "  api:\n    expose: [80]\n    endpoints: [\"127.0.0.1:9\"]\n",
    );
    home.node = Some(home.up());
    browser.until_text("2 services, 2 tasks");
    wait_until("nothing to be lost", || !browser.text().contains("was lost"));
}
