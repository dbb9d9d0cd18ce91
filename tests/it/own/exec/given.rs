//! What a program has of its task, and what it cannot have.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::Value;

use super::{container_of, exec, said, service, up, words};
use crate::own::rig::{self, LONG, Tasks};

#[test]
fn it_has_what_the_task_has() {
    let Some((own, web)) = up("exec-has") else { return };
    // Its streams and its exit code.
    let script = "echo out; echo err >&2; exit 7";
    let expected = ("out\n".to_owned(), "err\n".to_owned(), Some(7));
    assert_eq!(said(&own, &[&web, "sh", "-c", script]), expected);
    assert_eq!(exec(&own, &[&web, "sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    // By its name and by the beginning of its id.
    let name = own.docker(&["ps", "--format", "{{.Names}}"]);
    for id in [&name, &web[..12]] {
        assert_eq!(words(&own, &[id, "echo", "here"]), "here");
    }
    // Network, user, control group, directory, environment: the task's.
    let task = own.docker(&["inspect", "--format", "{{.State.Pid}}", &web]);
    let of_task = |kind: &str| {
        std::fs::read_link(format!("/proc/{task}/ns/{kind}"))
            .unwrap()
            .display()
            .to_string()
    };
    for kind in ["net", "mnt"] {
        assert_eq!(
            words(&own, &[&web, "readlink", &format!("/proc/self/ns/{kind}")]),
            of_task(kind)
        );
    }
    let status = std::fs::read_to_string(format!("/proc/{task}/status")).unwrap();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    let uid = uid.split_whitespace().next().unwrap();
    assert_eq!(words(&own, &[&web, "id", "-u"]), uid);
    let environment = "echo $OF_TASK $HOSTNAME; pwd; echo $ANYNODE_TASK_DIR";
    let of_it = words(&own, &[&web, "sh", "-c", environment]);
    let lines: Vec<&str> = of_it.lines().collect();
    assert_eq!(lines[0], format!("one {}", &web[..12]));
    assert!(
        lines[1] == lines[2] && lines[1].starts_with(&own.data_dir().display().to_string()),
        "{of_it}"
    );
    // Nothing of how anynode was begun.
    let of_anynode = "echo [$GLIBC_TUNABLES$ANYNODE_BEGAN_AGAIN]";
    assert_eq!(words(&own, &[&web, "sh", "-c", of_anynode]), "[]");
    assert_eq!(
        words(&own, &[&web, "sh", "-c", "ls /proc/self/fd | wc -l"]),
        "4",
        "and the one of ls"
    );
    // What is said otherwise.
    let otherwise = [
        "-e",
        "OF_TASK=two",
        "-e",
        "NEW=a=b",
        "-w",
        "/usr",
        &web,
        "sh",
        "-c",
        "echo $OF_TASK $NEW $PWD",
    ];
    assert_eq!(words(&own, &otherwise), "two a=b /usr");
    assert_eq!(words(&own, &["-u", "nobody", &web, "id", "-un"]), "nobody");
    assert_eq!(
        words(&own, &["-u", "33:34", &web, "sh", "-c", "id -u; id -g"]),
        "33\n34"
    );
    assert!(words(&own, &[&web, "grep", "CapEff", "/proc/self/status"]).ends_with("0000000000000000"));
}

#[test]
fn the_task_has_what_its_node_has_of_named_kinds() {
    let Some(mut own) = rig::up("exec-generic", Tasks::Processes) else {
        return;
    };
    own.start_within(4096, &[("ANYNODE_API_NODE_GENERIC_RESOURCES", "gpu=a,gpu=b,ssd=3")]);
    own.docker(&["swarm", "init"]);
    let one = service(&own, "one", &["--generic-resource", "gpu=1"]);
    let other = service(
        &own,
        "other",
        &["--generic-resource", "gpu=1", "--generic-resource", "ssd=2"],
    );
    let given = |container: &str| {
        words(
            &own,
            &[container, "sh", "-c", "echo $DOCKER_RESOURCE_GPU $DOCKER_RESOURCE_SSD"],
        )
    };
    assert_eq!((given(&one).as_str(), given(&other).as_str()), ("a", "b 2"));
    // Another start says otherwise, and what runs keeps what it has.
    own.stop();
    own.start_within(4096, &[("ANYNODE_API_NODE_GENERIC_RESOURCES", "gpu=b,gpu=c")]);
    let has = || {
        own.docker(&[
            "node",
            "inspect",
            "self",
            "--format",
            "{{json .Description.Resources.GenericResources}}",
        ])
    };
    own.wait_for("the node to say so", LONG, || {
        has().contains("\"c\"") && !has().contains("ssd")
    });
    let third = service(&own, "third", &["--generic-resource", "gpu=1"]);
    let given = |container: &str| words(&own, &[container, "sh", "-c", "echo $DOCKER_RESOURCE_GPU"]);
    assert_eq!((given(&third).as_str(), given(&other).as_str()), ("c", "b"));
}

#[test]
fn its_secrets_and_its_network_are_the_tasks() {
    let Some((own, _)) = up("exec-net") else { return };
    own.docker(&["network", "create", "-d", "overlay", "app"]);
    std::fs::write(own.dir().join("word"), "hush").unwrap();
    own.docker(&["secret", "create", "word", "word"]);
    let limited = ["--network", "app", "--secret", "word", "--limit-pids", "40"];
    let api = service(&own, "api", &limited);
    assert_eq!(words(&own, &[&api, "cat", "run/secrets/word"]), "hush");
    let networks = own.docker(&["inspect", "--format", "{{json .NetworkSettings.Networks}}", &api]);
    let networks: Value = serde_json::from_str(&networks).unwrap();
    let address = networks["app"]["IPAddress"].as_str().unwrap().to_owned();
    assert!(words(&own, &[&api, "ip", "-o", "addr"]).contains(&format!("inet {address}/")));
    let asks = [
        "curl",
        "-s",
        "-m",
        "10",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "http://api/",
    ];
    assert_eq!(words(&own, &[&[&*api][..], &asks].concat()), "200");
    // Another user may not read them, nor may anybody have more processes than the task.
    assert_ne!(
        exec(&own, &["-u", "nobody", &api, "cat", "run/secrets/word"])
            .status
            .code(),
        Some(0)
    );
    let task = own.docker(&["inspect", "--format", "{{.State.Pid}}", &api]);
    let groups = std::fs::read_to_string(format!("/proc/{task}/cgroup")).unwrap();
    let own_groups = words(&own, &[&api, "cat", "/proc/self/cgroup"]);
    assert_eq!(own_groups.lines().count(), groups.lines().count());
    for (of_it, of_task) in own_groups.lines().zip(groups.lines()) {
        // In one of them it is a part by itself, to be ended whole.
        assert!(
            of_it == of_task || of_it.starts_with(&format!("{of_task}/beside-")),
            "{own_groups}\n{groups}"
        );
    }
}

#[test]
fn it_works_where_the_task_would_come_to() {
    let Some((own, _)) = up("exec-where") else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    // Only the task has it, and a link of this host's leads there from the top.
    let api = service(
        &own,
        "api",
        &["--mount", &format!("type=tmpfs,target={}", at("memory"))],
    );
    words(&own, &[&api, "mkdir", &at("memory/of-task")]);
    symlink(at("memory/of-task"), at("link")).unwrap();
    assert_eq!(
        words(&own, &["-w", &at("link"), &api, "pwd", "-P"]),
        at("memory/of-task")
    );
}

#[test]
fn what_cannot_be_is_said() {
    let Some((own, web)) = up("exec-cannot") else { return };
    let failed = "OCI runtime exec failed: exec failed: unable to start container process: ";
    let closed = tempfile::tempdir().unwrap();
    std::fs::set_permissions(closed.path(), Permissions::from_mode(0o700)).unwrap();
    let closed = closed.path().to_str().unwrap();
    for (args, code, expected) in [
        (
            &[&web, "no-such-program"][..],
            127,
            "exec: \"no-such-program\": executable file not found in $PATH: unknown",
        ),
        (
            &[&web, "/no/such"],
            127,
            "exec: \"/no/such\": stat /no/such: no such file or directory: unknown",
        ),
        (
            &[&web, "/etc/passwd"],
            126,
            "exec: \"/etc/passwd\": permission denied: unknown",
        ),
        (
            &["-w", "/no/dir", &web, "true"],
            127,
            "chdir to cwd (\"/no/dir\") set in config.json failed: no such file or directory: unknown",
        ),
        (
            &["-w", "/etc/passwd", &web, "true"],
            127,
            "chdir to cwd (\"/etc/passwd\") set in config.json failed: not a directory: unknown",
        ),
        // Whatever the program is.
        (
            &["-w", closed, &web, "no-such-program"],
            126,
            &format!("chdir to cwd ({closed:?}) set in config.json failed: permission denied: unknown"),
        ),
    ] {
        let (stdout, _, found) = said(&own, args);
        assert_eq!(
            (stdout.trim_end(), found),
            (&*format!("{failed}{expected}"), Some(code)),
            "{args:?}"
        );
    }
    let (stdout, _, code) = said(&own, &["-u", "no-such-user", &web, "true"]);
    assert!(
        stdout.starts_with("unable to find user no-such-user: ") && code == Some(126),
        "{stdout}"
    );
    let (stdout, _, code) = said(&own, &["-u", "0", &web, "true"]);
    assert!(
        stdout.starts_with("User \"0\": the task is not one of root's") && code == Some(126),
        "{stdout}"
    );
    for (args, expected) in [
        (&["--privileged", &*web, "true"][..], "Privileged: tasks are processes"),
        (
            &["-w", "dir", &web, "true"],
            "WorkingDir \"dir\": expected an absolute path",
        ),
        (&["-d", &web, "no-such-program"], "executable file not found in $PATH"),
        (&["no-such-container", "true"], "No such container: no-such-container"),
    ] {
        let error = own.docker_fails(&[&["exec"], args].concat());
        assert!(error.contains(expected), "{error}");
    }
    // A task of root's has a program of root's beside it, which sees no more.
    let root = service(&own, "root", &["--user", "0"]);
    assert_eq!(words(&own, &[&root, "id", "-u"]), "0");
    assert_eq!(
        words(
            &own,
            &["-u", "0", &root, "sh", "-c", "ls /dev | grep -c '^[svx]*d[a-z]'; :"]
        ),
        "0"
    );
    let bounded = words(&own, &[&root, "grep", "CapBnd", "/proc/self/status"]);
    let task = own.docker(&["inspect", "--format", "{{.State.Pid}}", &root]);
    let of_task = std::fs::read_to_string(format!("/proc/{task}/status")).unwrap();
    assert!(of_task.contains(&bounded), "{bounded}");
    let store = own.data_dir().join("store").display().to_string();
    assert_ne!(exec(&own, &[&root, "ls", &store]).status.code(), Some(0));
    // One that has ended.
    own.docker(&["service", "update", "--detach", "--force", "web"]);
    let ended = format!("id={web}");
    own.wait_for("its end", LONG, || {
        own.docker(&["ps", "--all", "--filter", &ended, "--format", "{{.State}}"]) == "exited"
    });
    let error = own.docker_fails(&["exec", &web, "true"]);
    assert!(error.contains(&format!("container {web} is not running")), "{error}");
}

#[test]
fn where_anynode_is_not_root() {
    const NOBODY: u32 = 65_534;
    let Some(mut own) = rig::up("exec-user", Tasks::Processes) else {
        return;
    };
    own.start_as(Some(NOBODY));
    own.docker(&["swarm", "init"]);
    own.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        "web",
        "-e",
        "OF_TASK=one",
        "anynode/whoami",
    ]);
    let web = container_of(&own, "web");
    let script = "id -u; echo $OF_TASK; pwd";
    let said_of_it = words(&own, &[&web, "sh", "-c", script]);
    let lines: Vec<&str> = said_of_it.lines().collect();
    assert_eq!(lines[..2], ["65534", "one"]);
    assert!(
        lines[2].starts_with(&own.data_dir().display().to_string()),
        "{said_of_it}"
    );
    assert_eq!(words(&own, &["-u", "65534:65534", &web, "id", "-g"]), "65534");
    let (stdout, _, code) = said(&own, &["-u", "0", &web, "id"]);
    assert!(
        stdout.contains("expected this node to run as root") && code == Some(126),
        "{stdout}"
    );
}
