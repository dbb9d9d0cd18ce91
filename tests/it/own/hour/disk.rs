//! One task that fills the disk below everything can be taken away like any other.

use super::super::rig::{self, LONG, Tasks};
use crate::harness::small_disk_at;

#[test]
fn a_task_that_fills_the_disk_is_removed_as_any_other() {
    let Some(mut own) = rig::up("filled", Tasks::Processes) else {
        return;
    };
    std::fs::create_dir(own.data_dir()).unwrap();
    let Some(_disk) = small_disk_at(&own.data_dir(), 32 << 20) else {
        println!("skipped: a small file system cannot be mounted here");
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    own.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        "web",
        "--publish",
        "8080:80",
        "nginx:latest",
    ]);
    own.wait_for_running("web", 1);
    // It takes whatever becomes free.
    let script = "cd $ANYNODE_TASK_DIR; echo begun; while :; do cat /dev/zero >>filler; sleep 0.05; done";
    let create = [
        "service",
        "create",
        "--detach",
        "--name",
        "filler",
        "--entrypoint",
        "/bin/sh",
        "nginx:latest",
    ];
    own.docker(&[&create[..], &["-c", script]].concat());
    own.wait_for("a full disk", LONG, || {
        let file = own.data_dir().join("probe");
        let is_full = std::fs::write(&file, [1; 4096]).is_err();
        let _ = std::fs::remove_file(file);
        is_full
    });
    // What room the store itself has left.
    let mut n_kept = 0;
    loop {
        let network = format!("kept-{n_kept}");
        let out = own.docker_out(&["network", "create", "-d", "overlay", &network]);
        if !out.status.success() {
            break;
        }
        n_kept += 1;
        assert!(n_kept < 200, "the disk is never full");
    }
    println!("{n_kept} changes were taken by a full disk");
    let mut n_refused = 0;
    own.wait_for("the service to be removed", LONG, || {
        let out = own.docker_out(&["service", "rm", "filler"]);
        n_refused += u32::from(!out.status.success());
        out.status.success()
    });
    println!("its removal was refused {n_refused} times");
    own.wait_for("the disk to be free", LONG, || {
        own.docker_out(&["network", "create", "-d", "overlay", "after"])
            .status
            .success()
    });
    assert!(own.curl("http://localhost:8080").is_some());
}
