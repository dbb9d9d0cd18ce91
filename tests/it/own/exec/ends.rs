//! When programs end: with their tasks, and with anynode; and many of them.

use std::process::{Command, Stdio};

use super::{a_while, container_of, running, said, service, up, words};
use crate::own::rig::{LONG, Own};

#[test]
fn it_ends_with_its_task_and_with_anynode() {
    let Some((mut own, web)) = up("exec-ends") else { return };
    let (one, two) = (a_while(), a_while());
    // In its group, out of its session, and deaf.
    let script = format!("trap '' TERM HUP INT; setsid sleep {one} & sleep {two} & wait");
    own.docker(&["exec", "-d", &web, "sh", "-c", &script]);
    let is_there = || !running(&one).is_empty() && !running(&two).is_empty();
    own.wait_for("both", LONG, is_there);
    // What it leaves running goes on, as in a container.
    let left = a_while();
    assert_eq!(
        said(&own, &[&web, "sh", "-c", &format!("sleep {left} & exit 6")]).2,
        Some(6)
    );
    own.wait_for("what it left", LONG, || running(&left).len() == 1);
    let third = a_while();
    let mut attached = own.docker_command(&["exec", &web, "sleep", &third]).spawn().unwrap();
    own.wait_for("the third", LONG, || !running(&third).is_empty());
    own.docker(&["service", "rm", "web"]);
    assert_eq!(attached.wait().unwrap().code(), Some(137));
    let all = |words: &[&String]| words.iter().all(|word| running(word).is_empty());
    own.wait_for("their end", LONG, || all(&[&one, &two, &left]));
    // kill -9 of anynode.
    let web = service(&own, "other", &[]);
    own.docker(&["exec", "-d", "-t", &web, "sh", "-c", &script]);
    own.wait_for("both", LONG, is_there);
    let mut attached = own.docker_command(&["exec", &web, "sleep", &left]).spawn().unwrap();
    own.wait_for("the third", LONG, || !running(&left).is_empty());
    own.kill();
    own.wait_for("their end", LONG, || all(&[&one, &two, &left]));
    assert_ne!(attached.wait().unwrap().code(), Some(0));
    own.start();
    let again = container_of(&own, "other");
    assert_eq!(again, web, "the task lived on");
    assert_eq!(words(&own, &[&web, "echo", "again"]), "again");
    // An update: the program goes on as long as the one that was asked for it, and others come to run meanwhile.
    let mut attached = own.docker_command(&["exec", &web, "sleep", &one]).spawn().unwrap();
    own.wait_for("it", LONG, || !running(&one).is_empty());
    own.update();
    own.wait_for("its end", LONG, || all(&[&one]));
    attached.wait().unwrap();
    assert_eq!(words(&own, &[&web, "echo", "again"]), "again");
}

#[test]
fn a_task_that_has_crashed_is_followed_whoever_holds_what_it_wrote_to() {
    let Some((own, web)) = up("exec-crash") else { return };
    let word = a_while();
    let pid = own.docker(&["inspect", "--format", "{{.State.Pid}}", &web]);
    // As people write to the log of a container.
    let script = format!("exec sleep {word} > /proc/{pid}/fd/1");
    own.docker(&["exec", "-d", &web, "sh", "-c", &script]);
    own.wait_for("it", LONG, || !running(&word).is_empty());
    // This may be ended with the task before it has said that all went well.
    let _ = own.docker_out(&["exec", &web, "kill", "-9", &pid]);
    let list = || own.docker(&["ps", "--quiet", "--no-trunc", "--filter", "name=web."]);
    own.wait_for("another task", LONG, || {
        let listed = list();
        !listed.is_empty() && !listed.contains(&web)
    });
    own.wait_for("its end", LONG, || running(&word).is_empty());
}

#[test]
fn many_at_once() {
    let Some((own, web)) = up("exec-many") else { return };
    let clients: Vec<_> = (0..40)
        .map(|n| {
            let script = format!("cat; echo {n}; exit {n}");
            let mut client = own.docker_command(&["exec", "-i", &web, "sh", "-c", &script]);
            client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (n, client) in clients.into_iter().enumerate() {
        let out = client.wait_with_output().unwrap();
        assert_eq!(
            (String::from_utf8(out.stdout).unwrap(), out.status.code()),
            (format!("{n}\n"), i32::try_from(n).ok())
        );
    }
    // Nothing is left of them.
    let dir = own.data_dir();
    let keeps = |pid: &u32| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains(&dir.display().to_string())
    };
    own.wait_for("those who kept them", LONG, || !running("beside").iter().any(keeps));
}

/// Starts others for as long as it may, all of which do the same.
const WITHOUT_END: &str = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n";

#[test]
fn what_starts_others_without_end_is_ended_all_the_same() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: this needs python3");
        return;
    }
    let Some((mut own, _)) = up("exec-full") else { return };
    let full = service(&own, "full", &["--limit-pids", "40"]);
    let fill = |own: &Own| {
        own.docker(&["exec", "-d", &full, "python3", "-c", WITHOUT_END]);
        own.wait_for("many", LONG, || running(WITHOUT_END).len() > 20);
    };
    let none_is_left = || running(WITHOUT_END).is_empty();
    // With anynode.
    fill(&own);
    own.kill();
    own.wait_for("their end", LONG, none_is_left);
    own.start();
    assert_eq!(container_of(&own, "full"), full, "the task lived on");
    // By whoever ends what keeps them.
    fill(&own);
    let dir = own.data_dir().join("tasks").join(&full).display().to_string();
    let keeps = |pid: &u32| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains(&dir)
    };
    let keepers: Vec<u32> = running("beside").into_iter().filter(keeps).collect();
    assert_eq!(keepers.len(), 1);
    assert!(
        Command::new("kill")
            .args(["-9", &keepers[0].to_string()])
            .status()
            .unwrap()
            .success()
    );
    own.wait_for("their end", LONG, none_is_left);
    // With the task.
    fill(&own);
    own.docker(&["service", "rm", "full"]);
    own.wait_for("their end", LONG, none_is_left);
    // And the task's own.
    let program = format!("import os, time\nif os.fork():\n    time.sleep(100000)\n{WITHOUT_END}");
    let args = [
        "service",
        "create",
        "--detach",
        "--name",
        "own",
        "--limit-pids",
        "40",
        "--entrypoint",
        "python3",
    ];
    own.docker(&[&args[..], &["nginx:latest", "-c", &program]].concat());
    own.wait_for("many", LONG, || running(&program).len() > 20);
    own.docker(&["service", "rm", "own"]);
    own.wait_for("their end", LONG, || running(&program).is_empty());
    let tasks = own.data_dir().join("tasks");
    let n_left = || {
        std::fs::read_dir(&tasks)
            .unwrap()
            .flatten()
            .filter(|task| task.path().join("job").exists())
            .count()
    };
    // That of the first service is left.
    own.wait_for("nothing to be left of it", LONG, || n_left() == 1);
}
