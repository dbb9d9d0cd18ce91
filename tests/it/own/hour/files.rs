//! The disk that is full for a while, and a services file that is not what it should be.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use fastrand::Rng;
use serde_json::json;

use super::super::rig::LONG;
use super::stage::{Stage, Until, services_text};

/// Full to the last byte; what changes is refused in words meanwhile, and goes on afterwards.
pub fn fills_the_disk(stage: &Stage, _: &mut Rng, until: Until) {
    let _turn = stage.filling.lock().unwrap_or_else(|poison| poison.into_inner());
    let path = stage.disk().join("filler");
    let network = |name: &str| json!({ "Name": name, "Driver": "overlay" });
    let mut made = Vec::new();
    {
        let mut filler = File::create(&path).unwrap();
        while !until.is_over() {
            // Whoever ends meanwhile leaves room, which is filled too.
            for size in [1 << 20, 4096, 1] {
                while filler.write(&vec![1; size]).is_ok_and(|n| n == size) {}
            }
            let name = stage.name("full");
            match stage.api("POST", "/networks/create", &network(&name)) {
                Ok((201, _)) => made.push(name),
                Ok((status, said)) => {
                    let is_said = said.contains("the store cannot be written") && said.contains("No space left");
                    assert!(status >= 500 && is_said, "{status} {said}");
                }
                Err(_) => made.push(name),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    fs::remove_file(&path).unwrap();
    let name = stage.name("room");
    stage.own.wait_for("the store to be written again", LONG, || {
        matches!(
            stage.api("POST", "/networks/create", &network(&name)),
            Ok((201 | 409, _))
        )
    });
    made.push(name);
    for name in made {
        stage.remove(&format!("/networks/{name}"));
    }
}

/// What was served is served; at the end the file is as it was.
pub fn services_file(stage: &Stage, rng: &mut Rng, until: Until) {
    let good = services_text();
    let path = stage.services_file();
    while !until.is_over() {
        match rng.u8(..6) {
            0 => stage.write_services(&std::iter::repeat_with(|| rng.u8(..)).take(5000).collect::<Vec<_>>()),
            1 => {
                // As a program that writes in place and is slow: cut within the service's braces.
                let cut = rng.usize(b"services:\n  origin: {".len()..good.len() - 2);
                let mut file = File::create(&path).unwrap();
                file.write_all(&good[..cut]).unwrap();
                drop(file);
                std::thread::sleep(Duration::from_millis(rng.u64(..50)));
                fs::write(&path, &good).unwrap();
            }
            2 => stage.write_services(&b"services: [".repeat(400_000)),
            3 => {
                stage.write_services(&good);
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            }
            4 => drop(fs::remove_file(&path)),
            _ => {
                drop(fs::remove_file(&path));
                fs::create_dir(&path).unwrap();
                std::thread::sleep(Duration::from_millis(20));
                fs::remove_dir(&path).unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(rng.u64(..100)));
        stage.write_services(&good);
        std::thread::sleep(Duration::from_millis(rng.u64(..100)));
    }
}
