//! The walkthroughs with their own program: FastAPI on a Debian root, in images that only registries have, one of which
//! asks who is there. Makes the root with debootstrap and installs from PyPI, with what the machine has configured for both.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use super::rig::{self, Images, LONG, MIRROR, Own, Tasks};
use super::walkthrough;

/// The registry that gives nothing to strangers.
const CLOSED: &str = "127.0.0.1:5001";
const USER: &str = "swarm";
const PASSWORD: &str = "walkthrough";

const WHOAMI: &str = include_str!("seed/whoami.py");
const APP: &str = include_str!("seed/app.py");

/// Name, program, and whether it says that it is not well.
const IMAGES: [(&str, &str, bool); 4] = [
    ("library/my-fastapi-whoami:latest", WHOAMI, false),
    ("masungil/my-fastapi-app:1.0", APP, false),
    ("masungil/my-fastapi-app:2.0", APP, false),
    ("masungil/my-fastapi-app:2.0-unhealthy", APP, true),
];

fn run(command: &mut Command) -> Output {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {out:?}");
    out
}

/// A Debian of the kind of this machine's, with Python, FastAPI and curl; kept beside what is built.
fn debian() -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fastapi-root");
    let done = root.with_extension("done");
    if done.exists() {
        return root;
    }
    let _ = fs::remove_dir_all(&root);
    let os = fs::read_to_string("/etc/os-release").unwrap();
    let suite = os
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .unwrap();
    println!("making a root of {suite} by debootstrap");
    run(Command::new("debootstrap")
        .args(["--variant=minbase", "--include=python3,curl", suite])
        .arg(&root));
    for unneeded in [
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "var/cache/apt",
        "var/lib/apt/lists",
    ] {
        let _ = fs::remove_dir_all(root.join(unneeded));
    }
    let version = run(Command::new("chroot").arg(&root).args([
        "python3",
        "-c",
        "import sys; print('%d.%d' % sys.version_info[:2])",
    ]));
    let version = String::from_utf8(version.stdout).unwrap();
    println!("installing FastAPI for Python {version}");
    run(Command::new("python3")
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--only-binary=:all:",
            "--python-version",
        ])
        .args([version.trim(), "--target"])
        .arg(root.join("usr/lib/python3/dist-packages"))
        .args(["fastapi", "uvicorn"]));
    let uvicorn = root.join("usr/local/bin/uvicorn");
    fs::write(&uvicorn, "#!/usr/bin/python3\nfrom uvicorn.main import main\nmain()\n").unwrap();
    fs::set_permissions(&uvicorn, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(done, "").unwrap();
    root
}

/// Debian's docker-registry, inside.
struct Registry(Child);

impl Registry {
    /// `htpasswd`: who may have something of it.
    fn start(own: &Own, addr: &str, storage: &Path, htpasswd: Option<&Path>) -> Registry {
        let mut config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {addr}\n",
            storage.display()
        );
        if let Some(path) = htpasswd {
            config += &format!("auth:\n  htpasswd:\n    realm: closed\n    path: {}\n", path.display());
        }
        let path = own.dir().join(format!("registry-{}.yml", addr.replace(':', "-")));
        fs::write(&path, config).unwrap();
        let mut command = own.inside("docker-registry");
        command
            .arg("serve")
            .arg(path)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let registry = Registry(command.spawn().unwrap());
        own.wait_for("the registry", LONG, || {
            let out = own.inside("curl").args(["-s", &format!("http://{addr}/v2/")]).output();
            out.is_ok_and(|out| out.status.success())
        });
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Builds the images as the walkthroughs' Dockerfiles say and pushes them; the engine has none of them afterwards.
fn push(own: &Own) {
    let engine = |args: &[&str]| run(own.engine(args).env("DOCKER_BUILDKIT", "0"));
    let root = debian();
    let tar = own.dir().join("root.tar");
    run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg("."));
    engine(&["import", tar.to_str().unwrap(), "python:slim"]);
    fs::remove_file(tar).unwrap();
    for (name, program, is_unhealthy) in IMAGES {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("main.py"), program).unwrap();
        let unhealthy = if is_unhealthy { "ENV UNHEALTHY=1\n" } else { "" };
        let dockerfile = format!(
            "FROM python:slim\nWORKDIR /app\nCOPY main.py .\n{unhealthy}EXPOSE 8000\nCMD [\"uvicorn\", \"main:app\", \"--host\", \"0.0.0.0\", \"--port\", \"8000\"]\n"
        );
        fs::write(dir.path().join("Dockerfile"), dockerfile).unwrap();
        let tag = format!("{MIRROR}/{name}");
        engine(&["build", "--quiet", "-t", &tag, dir.path().to_str().unwrap()]);
        engine(&["push", "--quiet", &tag]);
    }
}

/// An engine that has to pull.
fn up(name: &str, storage: &Path) -> Option<(Own, Registry)> {
    let own = rig::up_with(name, Tasks::Containers, Images::FastApi)?;
    let registry = Registry::start(&own, MIRROR, storage, None);
    Some((own, registry))
}

#[test]
#[ignore = "a soak of ten minutes: cargo test --test it -- own::soak --ignored --nocapture"]
fn the_walkthroughs_with_their_own_program_from_a_registry() {
    for program in ["debootstrap", "docker-registry", "htpasswd"] {
        let which = Command::new("which").arg(program).output().unwrap();
        assert!(which.status.success(), "this needs {program}");
    }
    let storage = tempfile::tempdir().unwrap();
    let Some((own, registry)) = up("push", storage.path()) else {
        return;
    };
    push(&own);
    drop((own, registry));
    println!("the first walkthrough");
    let (mut own, registry) = up("first", storage.path()).unwrap();
    walkthrough::services(&mut own);
    drop((own, registry));
    println!("the second walkthrough");
    let (mut own, registry) = up("second", storage.path()).unwrap();
    walkthrough::stack(&mut own);
    drop((own, registry));
    println!("a registry that asks who is there");
    let (mut own, registry) = up("closed", storage.path()).unwrap();
    closed(&mut own, storage.path());
    drop((own, registry));
}

fn closed(own: &mut Own, storage: &Path) {
    let htpasswd = own.dir().join("htpasswd");
    let line = run(Command::new("htpasswd").args(["-Bbn", USER, PASSWORD]));
    fs::write(&htpasswd, line.stdout).unwrap();
    let _closed = Registry::start(own, CLOSED, storage, Some(&htpasswd));
    own.start();
    own.docker(&["swarm", "init"]);
    let image = format!("{CLOSED}/masungil/my-fastapi-app:1.0");
    let create = |name: &str, more: &[&str]| {
        let words = ["service", "create", "--detach", "--name", name, "--publish"];
        own.docker(&[&words[..], &["8000", "--restart-condition", "none"], more, &[&image]].concat());
    };
    let row = |name: &str| {
        own.docker(&[
            "service",
            "ps",
            name,
            "--no-trunc",
            "--format",
            "{{.CurrentState}} {{.Error}}",
        ])
    };
    create("stranger", &[]);
    own.wait_for("a refusal", LONG, || row("stranger").starts_with("Rejected "));
    assert!(
        row("stranger").contains(&format!("No such image: {image}")),
        "{}",
        row("stranger")
    );
    // Whoever has logged in, but says nothing of it, is a stranger still.
    own.docker(&["login", "-u", USER, "-p", PASSWORD, CLOSED]);
    create("silent", &[]);
    own.wait_for("a refusal", LONG, || row("silent").starts_with("Rejected "));
    create("known", &["--with-registry-auth"]);
    own.wait_for("a task", Duration::from_secs(120), || {
        row("known").starts_with("Running ")
    });
    let pull_again = |own: &Own| {
        own.docker(&["service", "scale", "--detach", "known=0"]);
        own.wait_for("no tasks", LONG, || own.living_tasks().is_empty());
        own.wait_for("the image to go", LONG, || {
            own.engine(&["rmi", "-f", &image]).output().unwrap().status.success()
        });
    };
    let n_running = |own: &Own| {
        let words = [
            "service",
            "ps",
            "known",
            "--filter",
            "desired-state=running",
            "--format",
            "{{.CurrentState}}",
        ];
        let states = own.docker(&words);
        states.lines().filter(|state| state.starts_with("Running ")).count()
    };
    // What it was declared with is used after a restart too, and is nowhere to be read.
    pull_again(own);
    own.kill();
    own.start();
    own.docker(&["service", "scale", "--detach", "known=2"]);
    own.wait_for("two tasks", Duration::from_secs(120), || n_running(own) == 2);
    let shown = own.docker(&["service", "inspect", "known"]);
    assert!(
        !shown.contains(PASSWORD) && !shown.to_lowercase().contains("registryauth"),
        "{shown}"
    );
    // An update that says nothing of it keeps it.
    pull_again(own);
    let update = [
        "service",
        "update",
        "--detach",
        "--no-resolve-image",
        "--env-add",
        "A=b",
        "--replicas",
        "1",
    ];
    own.docker(&[&update[..], &["known"]].concat());
    own.wait_for("a new task", Duration::from_secs(120), || n_running(own) == 1);
    own.docker(&["service", "rm", "known", "silent", "stranger"]);
    own.wait_for("all tasks to end", LONG, || own.living_tasks().is_empty());
}
