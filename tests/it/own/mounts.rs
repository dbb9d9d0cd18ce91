//! Binds, volumes and file systems in memory of tasks that are processes: what is written lands where it was meant, nothing
//! leads elsewhere, and this host's own mounts are what they were.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::rig::{self, LONG, Own, Tasks};

/// A swarm on processes, and a directory that everybody may pass through: what is bound, and where.
struct Stage {
    own: Own,
    files: tempfile::TempDir,
    /// What this host has mounted at /dev/shm.
    n_memory: usize,
}

fn stage(name: &str) -> Option<Stage> {
    let mut own = rig::up(name, Tasks::Processes)?;
    let files = tempfile::tempdir().unwrap();
    fs::set_permissions(files.path(), fs::Permissions::from_mode(0o755)).unwrap();
    own.start();
    own.docker(&["swarm", "init"]);
    Some(Stage {
        own,
        files,
        n_memory: n_memory(&fs::read_to_string("/proc/self/mountinfo").unwrap()),
    })
}

fn n_memory(mounts: &str) -> usize {
    mounts.lines().filter(|line| line.contains(" /dev/shm ")).count()
}

/// Each look is a program of Docker's that is started.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// Whom this host need not know.
const USER: [&str; 2] = ["--user", "12345:12345"];

impl Stage {
    fn at(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    /// A directory that everybody may write to.
    fn open_dir(&self, name: &str) -> String {
        fs::create_dir_all(self.at(name)).unwrap();
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(0o777)).unwrap();
        self.shown(name)
    }

    fn create(&self, name: &str, mounts: &[String], more: &[&str], script: &str) {
        let mut words = vec!["service", "create", "--detach", "--no-resolve-image", "--name", name];
        for mount in mounts {
            words.extend(["--mount", mount]);
        }
        words.extend(["--restart-delay", "1s", "--stop-grace-period", "1s"]);
        words.extend(more);
        words.extend(["--entrypoint", "/bin/sh", "nginx:latest", "-c", script]);
        self.own.docker(&words);
    }

    fn said(&self, service: &str) -> String {
        let out = self.own.docker_out(&["service", "logs", "--raw", service]);
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn wait_said(&self, service: &str, text: &str) {
        let what = format!("{service} to say {text:?}");
        let is_so = || self.said(service).lines().any(|line| line == text);
        let errors = || {
            let words = ["service", "ps", service, "--no-trunc", "--format", "{{.Error}}"];
            self.own.docker(&words)
        };
        self.own.wait_for(&what, LONG, || {
            std::thread::sleep(BETWEEN_LOOKS);
            let errors = errors();
            assert!(!errors.contains("ContainerSpec.Mounts"), "{what}: {errors}");
            is_so()
        });
    }

    /// Why a service's task was rejected, as it must be; the service is gone then.
    fn rejected(&self, mounts: &[String], more: &[&str]) -> String {
        self.create("rejected", mounts, more, "echo began; exec sleep 1000");
        let mut error = String::new();
        self.own.wait_for(&format!("{mounts:?} to be rejected"), LONG, || {
            std::thread::sleep(BETWEEN_LOOKS);
            let format = "{{.CurrentState}}|{{.Error}}";
            let said = self
                .own
                .docker(&["service", "ps", "rejected", "--no-trunc", "--format", format]);
            assert!(!said.contains("Running"), "{mounts:?}: {said}");
            let rejected = said.lines().find(|line| line.starts_with("Rejected"));
            error = rejected
                .and_then(|line| line.split_once('|'))
                .map_or(String::new(), |(_, error)| unquoted(error));
            !error.is_empty()
        });
        self.remove("rejected");
        error
    }

    /// Nothing is left of its tasks when this returns.
    fn remove(&self, service: &str) {
        let ids = self.own.docker(&["service", "ps", service, "--no-trunc", "-q"]);
        self.own.docker(&["service", "rm", service]);
        let tasks = self.own.data_dir().join("tasks");
        self.own.wait_for(&format!("the end of {service}"), LONG, || {
            ids.lines().all(|id| !tasks.join(id).exists())
        });
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// This host has nothing mounted that is a task's.
    fn is_untouched(&self) {
        for process in ["self".to_owned(), self.own.pid().to_string()] {
            let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
            let dirs = [self.files.path(), self.own.dir()].map(|dir| dir.display().to_string());
            let is_of_task = |line: &&str| dirs.iter().any(|dir| line.contains(dir)) || line.contains("/_data ");
            assert_eq!(mounts.lines().find(is_of_task), None);
            assert_eq!(n_memory(&mounts), self.n_memory);
        }
    }
}

/// As the command line shows an error.
fn unquoted(error: &str) -> String {
    let quoted = error.strip_prefix('"').and_then(|error| error.strip_suffix('"'));
    quoted.unwrap_or(error).to_owned()
}

fn bind(source: impl AsRef<Path>, target: impl AsRef<Path>) -> String {
    let (source, target) = (source.as_ref().display(), target.as_ref().display());
    format!("type=bind,source={source},target={target}")
}

fn volume(name: &str, target: impl AsRef<Path>) -> String {
    format!("type=volume,source={name},target={}", target.as_ref().display())
}

fn n_entries(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn what_is_written_lands_where_it_was_meant_and_stays() {
    let Some(stage) = stage("mounts-write") else { return };
    let app = stage.shown("app");
    let (source, other) = (stage.open_dir("source"), stage.open_dir("other"));
    fs::write(stage.at("conf"), "read me").unwrap();
    let script = format!(
        "echo one > {app}/file && echo two > {app}/deep/er/file && echo three > {app}/node_modules/file && \
         cat {app}/etc/conf && echo && echo written; exec sleep 1000"
    );
    stage.create(
        "web",
        &[
            volume("deps", stage.at("app/node_modules")),
            bind(&other, stage.at("app/deep/er")),
            bind(stage.at("conf"), stage.at("app/etc/conf")),
            bind(&source, stage.at("app")),
        ],
        &[],
        &script,
    );
    stage.wait_said("web", "written");
    stage.wait_said("web", "read me");
    // What runs beside the task has them too.
    let container = stage.own.docker(&["ps", "-q"]);
    let there = stage.shown("app/node_modules");
    let beside = stage.own.docker(&["exec", "-w", &there, &container, "cat", "file"]);
    assert_eq!(beside, "three");
    stage.is_untouched();
    let check = || {
        assert_eq!(stage.read("source/file"), "one\n");
        assert_eq!(stage.read("other/file"), "two\n");
        assert_eq!(stage.read("conf"), "read me");
        let deps = stage.own.data_dir().join("volumes/deps/_data");
        assert_eq!(fs::read_to_string(deps.join("file")).unwrap(), "three\n");
        // Made for real, where they lie.
        for dir in ["source/deep/er", "source/node_modules", "app"] {
            let found = fs::metadata(stage.at(dir)).unwrap();
            assert_eq!((found.mode() & 0o7777, found.uid()), (0o755, 0), "{dir}");
            assert_eq!(n_entries(&stage.at(dir)), 0, "{dir}");
        }
        assert_eq!(stage.read("source/etc/conf"), "");
    };
    check();
    stage.remove("web");
    check();
    stage.is_untouched();
    // The same again finds it all.
    stage.create(
        "again",
        &[bind(&source, stage.at("app")), bind(&other, stage.at("app/deep/er"))],
        &[],
        &format!("cat {app}/file {app}/deep/er/file; exec sleep 1000"),
    );
    stage.wait_said("again", "two");
    assert!(stage.said("again").contains("one\ntwo\n"));
}

#[test]
fn what_is_read_only_stays_as_it_is() {
    let Some(stage) = stage("mounts-read") else { return };
    let (source, app) = (stage.open_dir("source"), stage.shown("app"));
    let read_only = format!("{},readonly", bind(&source, &app));
    let script = format!("if echo x > {app}/file; then echo wrote; else echo refused; fi; exec sleep 1000");
    stage.create("web", std::slice::from_ref(&read_only), &["--user", "0"], &script);
    stage.wait_said("web", "refused");
    let error = stage.rejected(&[read_only.clone(), volume("deps", stage.at("app/deep"))], &[]);
    let expected =
        format!("ContainerSpec.Mounts: {app}/deep: {app}/deep is not there, and cannot be made on what is read-only");
    assert_eq!(error, expected);
    fs::write(stage.at("app-file"), "").unwrap();
    for (mounts, said) in [
        (
            vec![bind(stage.at("none"), stage.at("x"))],
            format!(
                "invalid mount config for type \"bind\": bind source path does not exist: {}",
                stage.shown("none")
            ),
        ),
        (
            vec![bind(&source, stage.at("app-file/deep"))],
            format!("{} is no directory", stage.shown("app-file")),
        ),
        (
            vec![bind(&source, stage.at("app-file"))],
            "it is no directory, and its source is one".to_owned(),
        ),
        (
            vec!["type=tmpfs,target=/proc/x".to_owned()],
            "/proc is made for them".to_owned(),
        ),
        (
            vec!["type=volume,source=v1,target=/x,volume-driver=nfs".to_owned()],
            "\"nfs\": expected \"local\"".to_owned(),
        ),
    ] {
        let error = stage.rejected(&mounts, &[]);
        assert!(
            error.starts_with("ContainerSpec.Mounts: ") && error.contains(&said),
            "{error}"
        );
    }
    // A longer path may lead to what a shorter one lies in.
    fs::create_dir_all(stage.at("a/b")).unwrap();
    fs::create_dir(stage.at("upper")).unwrap();
    symlink(stage.at("upper"), stage.at("a/b/link")).unwrap();
    let memory = |target: &str| format!("type=tmpfs,target={}", stage.shown(target));
    let error = stage.rejected(&[memory("upper/in"), memory("a/b/link")], &[]);
    assert!(
        error.contains("upper/in: another of the task's mounts would cover it"),
        "{error}"
    );
    assert!(!stage.at("x").exists() && !Path::new("/x").exists());
    assert_eq!(n_entries(Path::new(&source)), 0);
    stage.is_untouched();
}

#[test]
fn a_named_volume_outlives_services_and_is_removed_when_nobody_has_it() {
    let Some(stage) = stage("mounts-volume") else { return };
    let own = &stage.own;
    let app = stage.shown("app");
    let script =
        |word: &str| format!("cat {app}/file; echo {word} >> {app}/file && echo {word} written; exec sleep 1000");
    stage.create("one", &[volume("data", &app)], &USER, &script("first"));
    stage.wait_said("one", "first written");
    let container = own.docker(&["ps", "-q", "--no-trunc"]);
    let format = "{{range .Mounts}}{{.Type}} {{.Name}} {{.Source}} {{.Destination}} {{.RW}}{{end}}";
    let data = own.data_dir().join("volumes/data/_data");
    assert_eq!(
        own.docker(&["inspect", "--format", format, &container]),
        format!("volume data {} {app} true", data.display())
    );
    let told = || {
        let format = "{{.Action}} {{.Actor.ID}} {{.Scope}}";
        own.docker(&[
            "events",
            "--since",
            "1h",
            "--until",
            "0s",
            "--filter",
            "type=volume",
            "--format",
            format,
        ])
    };
    own.wait_for("its events", LONG, || told() == "create data local\nmount data local");
    let used = own.docker_fails(&["volume", "rm", "data"]);
    assert!(used.contains("remove data: volume is in use - ["), "{used}");
    stage.remove("one");
    stage.create("two", &[volume("data", &app)], &USER, &script("second"));
    stage.wait_said("two", "second written");
    stage.wait_said("two", "first");
    // A user that is a service's own has nothing to write there.
    let error = stage.rejected(&[volume("data", &app)], &[]);
    assert!(
        error.contains("volume data is user 12345's") && error.contains("expected --user 12345:12345"),
        "{error}"
    );
    stage.create(
        "reader",
        &[format!("{},readonly", volume("data", &app))],
        &[],
        &format!("cat {app}/file; exec sleep 1000"),
    );
    stage.wait_said("reader", "second");
    assert_eq!(
        own.docker(&["volume", "ls", "-q", "--filter", "dangling=false"]),
        "data"
    );
    stage.remove("two");
    stage.remove("reader");
    own.docker(&["volume", "rm", "data"]);
    assert_eq!(own.docker(&["volume", "ls", "-q"]), "");
    assert!(!own.data_dir().join("volumes/data").exists());
    // Who names no user has one of its own, and again when it is made once more.
    for round in ["first", "second"] {
        stage.create("again", &[volume("kept", &app)], &[], &script(round));
        stage.wait_said("again", &format!("{round} written"));
        stage.remove("again");
    }
    assert_eq!(
        fs::read_to_string(own.data_dir().join("volumes/kept/_data/file")).unwrap(),
        "first\nsecond\n"
    );
    let error = stage.rejected(&[volume("kept", &app)], &[]);
    assert!(error.contains("volume kept is user "), "{error}");
    // Without a name it is the task's, and goes with it.
    stage.create(
        "nameless",
        &[format!("type=volume,target={app}")],
        &[],
        &format!("echo x > {app}/file && echo written; exec sleep 1000"),
    );
    stage.wait_said("nameless", "written");
    stage.remove("nameless");
    assert_eq!(n_entries(&stage.at("app")), 0);
    assert_eq!(own.docker(&["volume", "ls", "-q"]), "kept");
    stage.is_untouched();
}

#[test]
fn volumes_by_the_command_line() {
    let Some(stage) = stage("mounts-cli") else { return };
    let own = &stage.own;
    assert_eq!(own.docker(&["volume", "create", "--label", "a=b", "one"]), "one");
    assert_eq!(own.docker(&["volume", "create", "one"]), "one");
    own.docker(&["volume", "create", "two"]);
    let nameless = own.docker(&["volume", "create"]);
    assert_eq!(nameless.len(), 64);
    let list = |filter: &str| own.docker(&["volume", "ls", "--format", "{{.Name}} {{.Driver}}", "--filter", filter]);
    assert_eq!(list("name=o"), "one local\ntwo local");
    assert_eq!(list("label=a=b"), "one local");
    assert_eq!(list("label=a=c"), "");
    assert_eq!(list("driver=nfs"), "");
    assert_eq!(list("dangling=true").lines().count(), 3);
    let format = "{{.Name}} {{.Driver}} {{.Scope}} {{.Labels.a}} {{.Mountpoint}}";
    let data = own.data_dir().join("volumes/one/_data");
    assert_eq!(
        own.docker(&["volume", "inspect", "one", "--format", format]),
        format!("one local local b {}", data.display())
    );
    let missing = own.docker_fails(&["volume", "inspect", "none"]);
    assert!(missing.contains("get none: no such volume"), "{missing}");
    let missing = own.docker_fails(&["volume", "rm", "none"]);
    assert!(missing.contains("no such volume"), "{missing}");
    own.docker(&["volume", "rm", "-f", "none"]);
    for (args, said) in [
        (&["a/b"][..], "includes invalid characters"),
        (&["../x"], "includes invalid characters"),
        (&["--driver", "nfs", "x1"], "plugin \"nfs\" not found"),
        (&["--opt", "type=nfs", "x1"], "DriverOpts \"type\": expected none"),
    ] {
        let error = own.docker_fails(&[&["volume", "create"], args].concat());
        assert!(error.contains(said), "{args:?}: {error}");
    }
    fs::write(data.join("file"), "12345").unwrap();
    let pruned = own.docker(&["volume", "prune", "-f"]);
    assert!(pruned.contains(&nameless) && !pruned.contains("one"), "{pruned}");
    let pruned = own.docker(&["volume", "prune", "-a", "-f", "--filter", "label=a"]);
    assert!(pruned.contains("one") && pruned.contains("5B"), "{pruned}");
    assert_eq!(own.docker(&["volume", "ls", "-q"]), "two");
    // Its name is free when it is answered, and what it held goes by and by.
    let volumes = own.data_dir().join("volumes");
    for dir in 0..100 {
        let dir = volumes.join(format!("two/_data/{dir}"));
        fs::create_dir(&dir).unwrap();
        (0..200).for_each(|file| drop(fs::File::create(dir.join(file.to_string())).unwrap()));
    }
    own.docker(&["volume", "rm", "two"]);
    assert!(!volumes.join("two").exists());
    own.docker(&["volume", "create", "two"]);
    assert_eq!(n_entries(&volumes.join("two/_data")), 0);
    own.docker(&["volume", "rm", "two"]);
    own.wait_for("nothing to be left", LONG, || n_entries(&volumes) == 0);
}

#[test]
fn memory_has_its_size_and_is_empty_at_each_start() {
    let Some(stage) = stage("mounts-memory") else { return };
    let cache = stage.shown("cache");
    let script = format!(
        "ls {cache} | grep -q . && echo stale; echo x > {cache}/old && echo began; \
         head -c 2000000 /dev/zero > {cache}/big 2>/dev/null || echo full; \
         grep ' {cache} ' /proc/self/mountinfo | cut -d' ' -f6; stat -c %a {cache}; sleep 0.5; exit 1"
    );
    let small = format!("type=tmpfs,target={cache},tmpfs-size=1m,tmpfs-mode=1770");
    let group = ["--user", "12345:0", "--group", "0"];
    stage.create(
        "small",
        &[small, "type=tmpfs,target=/dev/shm".to_owned()],
        &group,
        &script,
    );
    stage.own.wait_for("the second start", LONG, || {
        stage.said("small").lines().filter(|line| *line == "began").count() >= 2
    });
    let said = stage.said("small");
    assert!(said.contains("full\n") && !said.contains("stale"), "{said}");
    assert!(said.contains("1770\n"), "{said}");
    assert!(said.contains("rw,nosuid,nodev,noexec"), "{said}");
    stage.remove("small");
    assert_eq!(n_entries(&stage.at("cache")), 0);
    stage.is_untouched();
}

#[test]
fn a_link_in_a_volume_leads_nowhere() {
    let Some(stage) = stage("mounts-links") else { return };
    let app = stage.shown("app");
    fs::create_dir(stage.at("outside")).unwrap();
    let outside = stage.shown("outside");
    let script = format!(
        "cd {app} && ln -s {outside} absolute && ln -s ../outside relative && ln -s ../../../../../../etc/x deep && \
         ln -s /proc/1/root kernel && echo planted; exec sleep 1000"
    );
    stage.create("planter", &[volume("shared", &app)], &["--user", "0"], &script);
    stage.wait_said("planter", "planted");
    // The kernel's own links lead root everywhere.
    let container = stage.own.docker(&["ps", "-q", "--filter", "name=planter."]);
    for dir in [format!("{app}/kernel"), "/proc/1/root".to_owned()] {
        let out = stage.own.docker_out(&["exec", "-w", &dir, &container, "ls"]);
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(
            !out.status.success() && said.starts_with("OCI runtime exec failed: "),
            "{dir}: {said}"
        );
    }
    let made_of = [
        |target: &Path| volume("other", target),
        |target: &Path| format!("type=tmpfs,target={}", target.display()),
        |target: &Path| bind(target.ancestors().nth(3).unwrap().join("outside"), target),
    ];
    for (link, made_of) in ["absolute", "relative", "deep"].iter().zip(made_of) {
        let error = stage.rejected(
            &[volume("shared", &app), made_of(&stage.at(&format!("app/{link}/new")))],
            &USER,
        );
        assert!(error.contains(&format!("{app}/{link} is a link: expected")), "{error}");
    }
    let error = stage.rejected(
        &[volume("shared", &app), volume("other", stage.at("app/absolute"))],
        &USER,
    );
    assert!(
        error.contains(&format!("{app}/absolute is a link: expected")),
        "{error}"
    );
    let subpath = format!("{},volume-subpath=absolute", volume("shared", stage.at("x")));
    let error = stage.rejected(&[subpath], &USER);
    assert!(error.contains("VolumeOptions.Subpath absolute: "), "{error}");
    // Nor does one on this host that is not root's.
    symlink(&outside, stage.at("link")).unwrap();
    std::os::unix::fs::lchown(stage.at("link"), Some(12345), Some(12345)).unwrap();
    let error = stage.rejected(&[volume("other", stage.at("link/new"))], &USER);
    assert!(error.contains("link is a link: expected"), "{error}");
    assert_eq!(n_entries(Path::new(&outside)), 0);
    stage.is_untouched();
}

#[test]
fn who_swaps_a_directory_for_a_link_gains_nothing() {
    let Some(stage) = stage("mounts-swap") else { return };
    let app = stage.shown("app");
    fs::create_dir(stage.at("outside")).unwrap();
    let outside = stage.shown("outside");
    let script = format!(
        "cd {app}; echo swapping; while :; do mkdir d; mv -T d e; ln -sT {outside} d; rm -r e; ln -sT ../outside f; \
         mv -T f d; rm -r d; done"
    );
    stage.create("swapper", &[volume("shared", &app)], &["--user", "0"], &script);
    stage.wait_said("swapper", "swapping");
    let deep = volume("other", stage.at("app/d/made/here"));
    let over = format!("{},readonly", bind(&outside, stage.at("app/d")));
    // The directory may be there, or a link, or nothing, and be another a moment later.
    for (name, mounts) in [("deep", vec![deep.clone()]), ("both", vec![over, deep])] {
        let mounts = [vec![volume("shared", &app)], mounts].concat();
        let script = format!("echo x > {app}/d/made/here/file; exec sleep 1000");
        stage.create(name, &mounts, &["--user", "12345:12345", "--replicas", "8"], &script);
    }
    let mut decided = std::collections::BTreeSet::new();
    stage.own.wait_for("twenty tasks to run or be rejected", LONG, || {
        std::thread::sleep(BETWEEN_LOOKS);
        let words = ["--no-trunc", "--format", "{{.ID}} {{.CurrentState}}"];
        let said = stage
            .own
            .docker(&[&["service", "ps", "deep", "both"], &words[..]].concat());
        let is_decided = |line: &&str| line.contains(" Running") || line.contains(" Rejected");
        let ids = said
            .lines()
            .filter(is_decided)
            .filter_map(|line| line.split(' ').next());
        decided.extend(ids.map(str::to_owned));
        decided.len() >= 20
    });
    for service in ["deep", "both", "swapper"] {
        stage.remove(service);
    }
    assert_eq!(n_entries(Path::new(&outside)), 0);
    assert!(!Path::new("/made").exists());
    stage.is_untouched();
}

#[test]
fn what_tasks_are_not_to_see_is_not_bound() {
    let Some(stage) = stage("mounts-hidden") else { return };
    let (own, data) = (&stage.own, stage.own.data_dir());
    symlink(&data, stage.at("link")).unwrap();
    stage.create("plain", &[], &[], "echo began; exec sleep 1000");
    stage.wait_said("plain", "began");
    for source in [
        data.clone(),
        data.join("tasks"),
        data.join("store"),
        own.dir().to_owned(),
        stage.at("link"),
        stage.at("link/store"),
        "/".into(),
        "/proc".into(),
        "/dev".into(),
        own.socket().parent().unwrap().to_owned(),
    ] {
        let error = stage.rejected(&[bind(&source, stage.at("app"))], &["--user", "0"]);
        assert!(
            error.contains("which tasks are not to see"),
            "{}: {error}",
            source.display()
        );
    }
    assert!(!stage.at("app").exists());
    // Nor may it be covered.
    for target in [data.clone(), own.dir().to_owned()] {
        let error = stage.rejected(&[format!("type=tmpfs,target={}", target.display())], &["--user", "0"]);
        assert!(
            error.contains("hidden from tasks") || error.contains("holds the task's own directory"),
            "{error}"
        );
    }
    let error = stage.rejected(&[volume("new", data.join("made/here"))], &["--user", "0"]);
    assert!(error.contains("hidden from tasks"), "{error}");
    assert!(!data.join("made").exists());
    stage.is_untouched();
}

#[test]
fn tasks_with_mounts_live_on_when_anynode_is_killed() {
    let Some(mut stage) = stage("mounts-kill") else { return };
    let (source, app) = (stage.open_dir("source"), stage.shown("app"));
    let script = format!(
        "n=0; while :; do n=$((n+1)); echo $n > {app}/n; echo $n > {app}/deps/n; [ $n = 1 ] && echo begun; sleep 0.05; done"
    );
    let mounts = [bind(&source, &app), volume("deps", stage.at("app/deps"))];
    let check = [
        "--health-cmd",
        &format!("test -e {app}/deps/n"),
        "--health-interval",
        "100ms",
    ]
    .map(str::to_owned);
    let check: Vec<&str> = check.iter().map(String::as_str).collect();
    stage.create("counter", &mounts, &check, &script);
    stage.wait_said("counter", "begun");
    let running = |stage: &Stage| {
        let filter = [
            "--filter",
            "desired-state=running",
            "--format",
            "{{.ID}} {{.CurrentState}}",
        ];
        stage
            .own
            .docker(&[&["service", "ps", "counter", "--no-trunc"], &filter[..]].concat())
    };
    stage
        .own
        .wait_for("it to be healthy", LONG, || running(&stage).contains("Running"));
    let before = running(&stage);
    let id = before.split_whitespace().next().unwrap().to_owned();
    let n = |stage: &Stage| stage.read("source/n").trim().parse::<u64>().unwrap_or(0);
    stage.own.kill();
    let at_kill = n(&stage);
    stage.own.wait_for("it to go on", LONG, || n(&stage) > at_kill + 2);
    stage.own.start();
    let at_start = n(&stage);
    stage
        .own
        .wait_for("it to go on after the start", LONG, || n(&stage) > at_start + 2);
    assert!(running(&stage).starts_with(&id), "{before}\n{}", running(&stage));
    let used = stage.own.docker_fails(&["volume", "rm", "deps"]);
    assert!(used.contains(&format!("volume is in use - [{id}]")), "{used}");
    stage.remove("counter");
    stage.own.docker(&["volume", "rm", "deps"]);
    // It may have been killed between emptying it and writing.
    assert!(stage.at("source/n").exists());
    stage.is_untouched();
}
