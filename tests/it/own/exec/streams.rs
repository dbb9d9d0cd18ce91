//! What a program reads and says, by pipes and at a terminal.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::api::{hijack, is_running, made};
use super::{a_while, exec, running, up, words};
use crate::own::rig::LONG;

#[test]
fn what_the_client_sends_is_what_the_program_reads() {
    let Some((own, web)) = up("exec-stdin") else { return };
    let sent: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(3 << 20).collect();
    let mut client = own.docker_command(&["exec", "-i", &web, "cat"]);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut to, bytes) = (client.stdin.take().unwrap(), sent.clone());
    let sends = std::thread::spawn(move || to.write_all(&bytes).unwrap());
    let out = client.wait_with_output().unwrap();
    sends.join().unwrap();
    assert!(
        out.status.success() && out.stdout == sent,
        "{} of {} bytes",
        out.stdout.len(),
        sent.len()
    );
    // The end of what is sent is not the end of what is said.
    let late = "cat; echo said after it; exit 3";
    let mut client = own.docker_command(&["exec", "-i", &web, "sh", "-c", late]);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    client.stdin.take().unwrap().write_all(b"sent\n").unwrap();
    let out = client.wait_with_output().unwrap();
    assert_eq!(
        (&*out.stdout, out.status.code()),
        (&b"sent\nsaid after it\n"[..], Some(3))
    );
    // A program that reads nothing ends as it ends.
    let mut client = own.docker_command(&["exec", "-i", &web, "true"]);
    let mut client = client.stdin(Stdio::piped()).spawn().unwrap();
    assert!(client.wait().unwrap().success());
}

#[test]
fn who_does_not_read_is_waited_for_and_who_has_gone_is_not() {
    let Some((own, web)) = up("exec-slow") else { return };
    let peak = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", own.pid())).unwrap();
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap()
            .trim();
        peak.trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = peak();
    let n_bytes = 200 << 20;
    let (script, done) = (
        format!("head -c {n_bytes} /dev/zero; echo > $ANYNODE_TASK_DIR/done"),
        "test -e $ANYNODE_TASK_DIR/done",
    );
    let is_done = || exec(&own, &[&web, "sh", "-c", done]).status.success();
    let mut client = own.docker_command(&["exec", &web, "sh", "-c", &script]);
    let mut client = client.stdout(Stdio::piped()).spawn().unwrap();
    let mut from = client.stdout.take().unwrap();
    let mut first = [0; 1 << 16];
    from.read_exact(&mut first).unwrap();
    // Whoever could run ahead would have by now.
    std::thread::sleep(Duration::from_millis(500));
    assert!(!is_done());
    let grown = peak() - before;
    assert!(grown < 24 << 10, "{grown} kB");
    let rest = std::io::copy(&mut from, &mut std::io::sink()).unwrap();
    assert_eq!(rest + first.len() as u64, n_bytes);
    assert!(client.wait().unwrap().success() && is_done());
    // One that has gone keeps its program from nothing.
    words(&own, &[&web, "sh", "-c", "rm $ANYNODE_TASK_DIR/done"]);
    let mut client = own.docker_command(&["exec", &web, "sh", "-c", &script]);
    let mut client = client.stdout(Stdio::piped()).spawn().unwrap();
    client.stdout.take().unwrap().read_exact(&mut first).unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    own.wait_for("the program to go on", LONG, is_done);
    // What it was sending ends.
    let word = a_while();
    let script = format!("cat > /dev/null; echo > $ANYNODE_TASK_DIR/{word}");
    let mut client = own.docker_command(&["exec", "-i", &web, "sh", "-c", &script]);
    let mut client = client.stdin(Stdio::piped()).spawn().unwrap();
    own.wait_for("the program", LONG, || !running(&script).is_empty());
    client.kill().unwrap();
    client.wait().unwrap();
    let done = format!("test -e $ANYNODE_TASK_DIR/{word}");
    own.wait_for("its end", LONG, || {
        exec(&own, &[&web, "sh", "-c", &done]).status.success()
    });
}

/// A terminal of 24 rows and 80 columns with the command at it, which is made larger, and where Ctrl-C is typed.
const AT_TERMINAL: &str = r#"
import fcntl, os, pty, select, struct, subprocess, sys, termios, time

def size(rows, columns):
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

ours, its = pty.openpty()
size(24, 80)
lead = lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)
client = subprocess.Popen(sys.argv[1:], stdin=its, stdout=its, stderr=its, start_new_session=True, preexec_fn=lead)
os.close(its)
said = b""

def wait(what):
    global said
    until = time.time() + 60
    while what not in said:
        if not select.select([ours], [], [], max(0, until - time.time()))[0]:
            sys.exit(f"waited in vain for {what}: {said}")
        try:
            said += os.read(ours, 4096)
        except OSError:
            sys.exit(f"it ended before {what}: {said}")

wait(b"ready")
size(30, 100)
wait(b"30 100")
os.write(ours, b"typed\r")
wait(b"read typed")
os.write(ours, b"\x03")
wait(b"interrupted")
print(said.decode(), client.wait())
"#;

#[test]
fn at_a_terminal() {
    let Some((own, web)) = up("exec-tty") else { return };
    let script = "tty; stty size; echo $TERM; trap 'stty size; read word; echo read $word' WINCH; \
                  trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.02; done";
    let client = own.docker_command(&["exec", "-it", "-e", "TERM=vt100", &web, "sh", "-c", script]);
    let mut command = Command::new("python3");
    command
        .args(["-c", AT_TERMINAL])
        .arg(client.get_program())
        .args(client.get_args());
    for (name, value) in client.get_envs() {
        command.env(name, value.unwrap());
    }
    let out = command.output().unwrap();
    let (said, error) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    assert!(out.status.success(), "{said}{error}\n{}", own.log_tail());
    let lines: Vec<&str> = said.lines().map(str::trim_end).collect();
    assert!(lines[0].starts_with("/dev/pts/"), "{said}");
    assert_eq!(lines[1..3], ["24 80", "vt100"], "{said}");
    assert_eq!(lines.last().copied(), Some(" 5"), "{said}");
}

#[test]
fn who_goes_from_a_terminal_leaves_it_to_the_program() {
    let Some((own, web)) = up("exec-detach") else { return };
    let word = a_while();
    // The end of its input would be told.
    let script = format!("echo ready; read line || echo > {word}; exec sleep 1000");
    let asks = |keys: &str| {
        json!({
            "Cmd": ["sh", "-c", script], "Tty": true, "AttachStdin": true, "AttachStdout": true, "DetachKeys": keys,
        })
    };
    let detached = |id: &str| {
        let said = own.docker(&[
            "events",
            "--since",
            "1h",
            "--until",
            "0s",
            "--filter",
            "event=exec_detach",
        ]);
        said.lines().any(|line| line.contains(id))
    };
    for (keys, typed) in [("", "\x10\x11"), ("ctrl-x,x", "\x18x")] {
        let (status, id) = made(&own, &web, asks(keys));
        assert_eq!(status, "201", "{id}");
        let mut client = hijack(&own, &id, true);
        let mut said = [0; 7];
        client.read_exact(&mut said).unwrap();
        client.write_all(typed.as_bytes()).unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        own.wait_for("an event of it", LONG, || detached(&id));
        assert!(is_running(&own, &id) && !exec(&own, &[&web, "test", "-e", &word]).status.success());
    }
    let (_, refused) = made(&own, &web, asks("ctrl-P"));
    assert_eq!(refused, "Invalid escape keys (ctrl-P) provided");
    // The command line knows the keys itself, and is only gone then.
    let (_, id) = made(&own, &web, asks(""));
    let mut client = hijack(&own, &id, true);
    client.read_exact(&mut [0; 7]).unwrap();
    client.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(exec(&own, &[&web, "true"]).status.success());
    assert!(is_running(&own, &id) && !exec(&own, &[&web, "test", "-e", &word]).status.success());
}
