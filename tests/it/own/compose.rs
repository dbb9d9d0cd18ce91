//! A project of docker-compose, which knows nothing of swarms, on an attachable network of one: it talks to services, and they to it.

use std::path::PathBuf;
use std::process::{Command, Output};

use super::attached::{on_network, pid, reaches, sandboxes, up};
use super::names::{dig, inside, pid_of};
use super::rig::{LONG, Own};
use crate::harness::installed::from_pypi;

/// With what it imports, as Debian 12 has them together.
const COMPOSE: [&str; 21] = [
    "--no-deps",
    "docker-compose==1.29.2",
    "docker==5.0.3",
    "requests==2.28.2",
    "urllib3==1.26.18",
    "charset-normalizer==3.1.0",
    "idna==3.4",
    "certifi==2023.7.22",
    "dockerpty==0.4.1",
    "docopt==0.6.2",
    "jsonschema==3.2.0",
    "pyrsistent==0.19.3",
    "attrs==23.1.0",
    "six==1.16.0",
    "setuptools==68.0.0",
    "python-dotenv==0.21.1",
    "texttable==1.6.7",
    "websocket-client==0.59.0",
    "PyYAML==6.0.1",
    "distro==1.8.0",
    "packaging==23.1",
];

const PROJECT: &str = r#"
version: "3.8"
services:
  db:
    image: nginx:latest
    environment: {PORT: "80"}
    networks: [shared]
  app:
    image: nginx:latest
    environment: {PORT: "80"}
    depends_on: [db]
    restart: always
    hostname: front
    extra_hosts: ["there:192.0.2.9"]
    networks:
      shared:
        aliases: [entry]
networks:
  shared:
    external: true
"#;

struct Compose<'a> {
    own: &'a Own,
    library: PathBuf,
}

impl Compose<'_> {
    fn out(&self, file: &str, words: &[&str]) -> Output {
        let mut command = Command::new("python3");
        command
            .args(["-W", "ignore", "-c", "from compose.cli.main import main; main()"])
            .args(["-p", "p", "-f", file])
            .args(words)
            .current_dir(self.own.dir())
            .env("PYTHONPATH", &self.library)
            .env("DOCKER_HOST", format!("unix://{}", self.own.socket().display()));
        command.output().unwrap()
    }

    fn run(&self, words: &[&str]) -> String {
        let out = self.out("project.yml", words);
        assert!(out.status.success(), "{words:?}: {out:?}\n{}", self.own.log_tail());
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }
}

#[test]
fn a_project_outside_of_the_swarm_talks_to_services_and_they_to_it() {
    let Some(library) = from_pypi("compose", &COMPOSE) else {
        return;
    };
    let Some(own) = up("compose") else { return };
    std::fs::write(own.dir().join("project.yml"), PROJECT).unwrap();
    let compose = Compose { own: &own, library };
    compose.run(&["up", "-d"]);
    let web = pid_of(&own, "web").unwrap();
    let from_web = |whom: &str| inside(web, true, &["curl", "-f", &format!("http://{whom}:80/")]).0 == 0;
    for (from, to) in [
        ("p_app_1", "db"),
        ("p_app_1", "web"),
        ("p_db_1", "app"),
        ("p_db_1", "entry"),
        ("p_db_1", "web"),
    ] {
        own.wait_for(&format!("{from} to reach {to}"), LONG, || reaches(&own, from, to));
    }
    for whom in ["app", "db", "entry", "front", "p_app_1"] {
        own.wait_for(&format!("the service to reach {whom}"), LONG, || from_web(whom));
    }
    assert_eq!(compose.run(&["exec", "-T", "app", "/task", "hostname"]), "front");
    // Such a one is linked to those of its service.
    for whom in ["web", "db_1"] {
        let url = format!("http://{whom}:80/");
        compose.run(&["run", "--rm", "--entrypoint", "/bin/curl", "db", "-f", &url]);
    }

    // What is so already is left.
    let ids = || {
        own.docker(&[
            "ps",
            "-q",
            "--no-trunc",
            "--filter",
            "label=com.docker.compose.project=p",
        ])
    };
    let before = ids();
    assert_eq!(before.lines().count(), 2);
    compose.run(&["up", "-d"]);
    assert_eq!(ids(), before);
    compose.run(&["up", "-d", "--scale", "app=2"]);
    own.wait_for("both", LONG, || dig(web, "app").lines().count() == 2);
    compose.run(&["up", "-d", "--scale", "app=1"]);
    own.wait_for("one again", LONG, || dig(web, "app").lines().count() == 1);

    let was = pid(&own, "p_app_1");
    compose.run(&["restart", "-t", "1", "app"]);
    assert_ne!(pid(&own, "p_app_1"), was);
    own.wait_for("it to be reached again", LONG, || {
        from_web("entry") && reaches(&own, "p_app_1", "db")
    });
    compose.run(&["stop", "-t", "1"]);
    own.wait_for("nobody to be left there", LONG, || on_network(&own).is_empty());
    compose.run(&["start"]);
    own.wait_for("it to be reached again", LONG, || {
        from_web("app") && reaches(&own, "p_app_1", "web")
    });

    // What cannot be is said by whoever says it to its user.
    let publishing = PROJECT.replace(
        "    hostname: front\n",
        "    hostname: front\n    ports: [\"8080:80\"]\n",
    );
    std::fs::write(own.dir().join("publishing.yml"), publishing).unwrap();
    let refused = compose.out("publishing.yml", &["up", "-d", "--no-color"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("cannot publish ports"),
        "{said}"
    );

    compose.run(&["down", "-t", "1"]);
    own.wait_for("nothing but the service to be left", LONG, || sandboxes(&own) == 1);
    assert!(
        own.docker(&["network", "ls", "--format", "{{.Name}}"])
            .contains("shared")
    );
}
