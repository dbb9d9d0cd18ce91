//! Templates against Go's own: the docker command line fills in the same ones.

use std::collections::BTreeMap;
use std::process::Command;

use anynode::gotemplate::{Template, Value};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// What docker makes of a template, if it makes anything of it.
fn by_docker(template: &str) -> Option<String> {
    let home = tempfile::tempdir().unwrap();
    let out = Command::new("docker")
        .args(["context", "inspect", "default", "--format", template])
        .env("DOCKER_CONFIG", home.path())
        .env_remove("DOCKER_HOST")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    out.status
        .success()
        .then(|| text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

fn by_us(template: &str) -> Result<String, String> {
    let dot = Value::Struct(vec![("Name", Value::text("default"))]);
    let no_more = |name: &str, _: &[Value]| Err(format!("{name} is not known"));
    let made = Template::parse(template, &[]).and_then(|template| template.fill_in(&dot, &no_more));
    made.map_err(|error| error.to_string())
}

fn assert_same(template: &str) {
    let (docker, ours) = (by_docker(template), by_us(template));
    match docker {
        Some(docker) => assert_eq!(ours.as_deref(), Ok(docker.as_str()), "{template}"),
        None => assert!(ours.is_err(), "{template}: docker refuses it, we make {ours:?}"),
    }
}

/// Each of them was wrong once, or shows one thing.
const TEMPLATES: &[&str] = &[
    "plain",
    "{{.Name}}",
    "{{ .Name -}}  x",
    "x  {{- .Name }}",
    "a {{- /* none */ -}} b",
    "a{{/* none */}}b",
    "{{/* none }}",
    "{{-3}}",
    "{{- 3}}",
    "{{3 -}} x",
    "{{\"a}}b\"}}",
    "{{`raw \\n`}}{{\"\\n\\t\\x41\\u00e9\\101\"}}",
    "{{'a'}} {{'\\n'}} {{0x1F}} {{0b11}} {{0o17}} {{017}} {{1_000}} {{1e3}} {{1.5}} {{.5}} {{1e21}} {{1e-7}} {{100000.0}}",
    "{{true}} {{false}} {{nil}}",
    "{{print nil}}",
    "{{print 1 2 \"a\" 3 4 true false}}",
    "{{println 1 \"a\"}}.",
    "{{printf \"%d %5d|%-5d|%05d|%+d|% d|%x|%X|%o|%b|%c\" 1 2 3 4 5 6 255 255 8 5 65}}",
    "{{printf \"%s|%10s|%-10s|%.2s|%q|%x|%X\" \"a\" \"b\" \"c\" \"defg\" \"h\\\"i\\n\" \"jk\" \"lm\"}}",
    "{{printf \"%v %v %v %v\" 1 \"a\" true 1.5}}",
    "{{printf \"%f|%.2f|%8.3f|%08.3f|%e|%g|%.3g|%+.1f\" 1.5 2.345 3.14159 3.14159 12345.678 1e21 12345.678 2.0}}",
    "{{printf \"%t %T %T %T\" true 1 \"a\" 1.5}}",
    "{{printf \"%d\" \"a\"}}",
    "{{printf \"%s\" 5}}",
    "{{printf \"%d %d\" 1}}",
    "{{printf \"%d\" 1 2 \"x\"}}",
    "{{printf \"100%%\"}}",
    "{{printf \"%\"}}",
    "{{printf 5}}",
    "{{printf}}",
    "{{.Name | printf \"%s-%s\" \"x\"}}",
    "{{\"x\" | print}}",
    "{{1 | 2}}",
    "{{.Name | .Name}}",
    "{{.Name \"x\"}}",
    "{{\"x\" .Name}}",
    "{{len \"häh\"}} {{index \"abc\" 1}} {{slice \"abcdef\" 1 3}} {{slice \"abc\" 1}}",
    "{{index \"abc\" 3}}",
    "{{slice \"abc\" 2 1}}",
    "{{len 3}}",
    "{{html \"<a href='x'>&\\\"\"}} {{js \"a'b<c\"}} {{urlquery \"a b/c?d=é\"}}",
    "{{and 1 0 2}} {{or 0 \"\" 3}} {{not 0}} {{and true}} {{or false}}",
    "{{or 1 (index \"a\" 9)}}",
    "{{and}}",
    "{{eq 1 1}} {{eq 1 2 3 1}} {{ne 1 2}} {{lt 1 2}} {{le 2 2}} {{gt \"b\" \"a\"}} {{ge 1.5 1.5}} {{eq true true}}",
    "{{eq 1 1.0}}",
    "{{eq 1 \"1\"}}",
    "{{lt true false}}",
    "{{eq 1}}",
    "{{lt 1}}",
    "{{if .Name}}yes{{else}}no{{end}}",
    "{{if \"\"}}yes{{else if 1}}one{{else}}no{{end}}",
    "{{if 0}}a{{else if 0}}b{{else if 0}}c{{else}}d{{end}}",
    "{{with .Name}}{{.}}{{end}}{{with \"\"}}x{{else}}y{{end}}",
    "{{with $x := 5}}{{$x}}{{.}}{{end}}",
    "{{$x := 1}}{{$x}}{{$x = 2}}{{$x}}{{if true}}{{$x = 3}}{{$y := 4}}{{$y}}{{end}}{{$x}}",
    "{{$y}}",
    "{{if true}}{{$y := 1}}{{end}}{{$y}}",
    "{{$x = 1}}",
    "{{$.Name}}",
    "{{range 3}}{{.}}{{end}}",
    "{{range $i := 3}}{{$i}},{{end}}",
    "{{range 0}}x{{else}}none{{end}}",
    "{{range \"abc\"}}x{{end}}",
    "{{(print 1 2)}} {{printf \"%d\" (len \"abc\")}} {{((1))}}",
    "{{(.Name)}}",
    "{{print (1}}",
    "{{print 1)}}",
    "{{}}",
    "{{ }}",
    "{{",
    "{{.Name",
    "}}",
    "{{end}}",
    "{{else}}",
    "{{if 1}}",
    "{{if}}x{{end}}",
    "{{if 1}}{{else}}{{else}}{{end}}",
    "{{end 1}}",
    "{{nothing}}",
    "{{.Nothing}}",
    "{{.Name.More}}",
    "{{.Name.}}",
    "{{..Name}}",
    "{{ . Name}}",
    "{{\"a}}",
    "{{'ab'}}",
    "{{1a}}",
    "{{0x}}",
    "{{08}}",
    "{{99999999999999999999}}",
    "{{1 2}}",
    "{{.Name|print|len}}",
    "{{ .Name\n| print }}",
    "{{print\t1}}",
    "{{print 1,2}}",
    "{{a := 1}}",
    "{{$x : = 1}}",
    "{{#}}",
    "{{true.Name}}",
    "{{\"a\".Name}}",
    "{{1.Name}}",
    "{{print 1|}}",
    "{{|print}}",
    "{{if $x := 1}}{{$x}}{{else}}{{$x}}{{end}}",
    "{{with 1}}a{{else with 2}}b{{end}}",
    "{{with 0}}a{{else with 2}}{{.}}{{end}}",
];

#[test]
fn known_templates_come_to_what_docker_makes_of_them() {
    let wrong: Vec<String> = TEMPLATES
        .iter()
        .filter_map(|template| {
            std::panic::catch_unwind(|| assert_same(template))
                .err()
                .map(|_| (*template).to_owned())
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn word() -> impl Strategy<Value = String> {
    let literals = prop::sample::select(vec![
        "0", "1", "-7", "65", "1.5", "-0.25", "1e6", "\"\"", "\"a b\"", "\"<x>\"", "`é`", "'x'", "true", "false",
        ".Name", "$.Name",
    ]);
    literals.prop_map(str::to_owned)
}

fn pipeline() -> impl Strategy<Value = String> {
    let function = prop::sample::select(vec![
        "print",
        "println",
        "len",
        "not",
        "and",
        "or",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "html",
        "urlquery",
        "index",
        "slice",
        "printf \"%v|%5v|%-5v\"",
        "printf \"%s,%q\"",
        "printf \"%d;%03d\"",
        "printf \"%x\"",
        "printf \"%6.2f\"",
        "printf \"%t\"",
    ]);
    word().prop_recursive(3, 12, 3, move |inner| {
        let call = (function.clone(), prop::collection::vec(inner.clone(), 0..3))
            .prop_map(|(function, arguments)| format!("({function} {})", arguments.join(" ")));
        let piped = (inner, function.clone()).prop_map(|(first, function)| format!("({first} | {function})"));
        prop_oneof![call, piped]
    })
}

fn template() -> impl Strategy<Value = String> {
    let text = prop::sample::select(vec!["", " ", "x ", "\n", "- "]);
    let action = pipeline().prop_map(|pipeline| format!("{{{{{pipeline}}}}}"));
    let trimmed = pipeline().prop_map(|pipeline| format!("{{{{- {pipeline} -}}}}"));
    let chosen = (pipeline(), pipeline())
        .prop_map(|(one, other)| format!("{{{{if {one}}}}}a{{{{else}}}}{{{{{other}}}}}{{{{end}}}}"));
    let with = pipeline().prop_map(|pipeline| format!("{{{{with $v := {pipeline}}}}}{{{{$v}}}}{{{{.}}}}{{{{end}}}}"));
    let piece = (text, prop_oneof![action, trimmed, chosen, with]).prop_map(|(text, action)| format!("{text}{action}"));
    prop::collection::vec(piece, 1..4).prop_map(|pieces| pieces.concat())
}

/// `ANYNODE_TEMPLATES`: how many.
#[test]
fn random_templates_come_to_what_docker_makes_of_them() {
    let cases = std::env::var("ANYNODE_TEMPLATES").map_or(60, |text| text.parse().unwrap());
    let is_long = cases > 60;
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = match is_long {
        true => TestRunner::new(config),
        // The same ones each time.
        false => TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32])),
    };
    let result = runner.run(&template(), |template| {
        let (docker, ours) = (by_docker(&template), by_us(&template));
        match docker {
            // It is said to be left out.
            Some(_) if ours.as_ref().is_err_and(|error| error.contains("is not known here")) => {}
            Some(docker) => prop_assert_eq!(ours.as_deref(), Ok(docker.as_str())),
            None => prop_assert!(ours.is_err(), "docker refuses it, we make {:?}", ours),
        }
        Ok(())
    });
    assert!(result.is_ok(), "{}", result.unwrap_err());
}

#[test]
fn no_template_takes_all_there_is() {
    let labels: BTreeMap<String, String> = (0..200).map(|i| (i.to_string(), "x".repeat(100))).collect();
    let dot = Value::Struct(vec![("Labels", Value::Map(labels))]);
    let none = |name: &str, _: &[Value]| Err(name.to_owned());
    let nested = "{{range .Labels}}{{range $.Labels}}{{range $.Labels}}{{.}}{{end}}{{end}}{{end}}";
    let deep = format!("{{{{{}1{}}}}}", "(".repeat(5_000), ")".repeat(5_000));
    let wide = "{{printf \"%1000d%1000d\" 1 1 | printf \"%s\"}}{{range 99999999999}}{{end}}";
    for template in [nested, deep.as_str(), wide, "{{printf \"%99999999d\" 1}}"] {
        let made = Template::parse(template, &[]).and_then(|template| template.fill_in(&dot, &none));
        assert!(made.is_err(), "{}", &template[..40]);
    }
}
