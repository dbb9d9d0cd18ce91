//! A program that does nothing, as an image: what holds a task's network namespace. It is a few instructions, written out
//! here, so that there is nothing to build and nothing to pull.

use bytes::Bytes;

/// `pause` for ever; whoever wants it to end kills it. `None`: not known for this processor.
fn program(architecture: &str) -> Option<(u16, Vec<u8>)> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
    match architecture {
        // mov eax, 34 (pause); syscall; jmp to the beginning.
        "x86_64" => Some((62, vec![0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7])),
        // x0 to x3 = 0, x8 = 73 (ppoll); svc 0; b to the beginning.
        "aarch64" => Some((
            183,
            words(&[
                0xd280_0000,
                0xd280_0001,
                0xd280_0002,
                0xd280_0003,
                0xd280_0928,
                0xd400_0001,
                0x17ff_fffa,
            ]),
        )),
        _ => None,
    }
}

/// A static executable of one segment.
///
/// Source: elf(5), `Elf64_Ehdr` and `Elf64_Phdr`.
fn elf(machine: u16, code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    put(&2u16.to_le_bytes()); // an executable
    put(&machine.to_le_bytes());
    put(&1u32.to_le_bytes());
    put(&(BASE + HEADERS).to_le_bytes()); // where it begins
    put(&64u64.to_le_bytes()); // the program header
    put(&0u64.to_le_bytes());
    put(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        put(&half.to_le_bytes());
    }
    put(&1u32.to_le_bytes()); // to be loaded
    put(&5u32.to_le_bytes()); // read and run
    for word in [0, BASE, BASE, size, size, 0x1000] {
        put(&word.to_le_bytes());
    }
    put(code);
    file
}

/// The image's one layer. `None`: this processor's instructions are not known here.
pub(super) fn layer() -> Option<Bytes> {
    let (machine, code) = program(std::env::consts::ARCH)?;
    let program = elf(machine, &code);
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(program.len() as u64);
    header.set_mode(0o555);
    let path = COMMAND.trim_start_matches('/');
    tar.append_data(&mut header, path, program.as_slice()).ok()?;
    Some(tar.into_inner().ok()?.into())
}

/// Its name; another version has another.
pub(super) const REPOSITORY: &str = "anynode/pause";
pub(super) const TAG: &str = "1";
pub(super) const COMMAND: &str = "/pause";

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Write};
    use std::os::unix::fs::OpenOptionsExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn it_runs_until_it_is_killed() {
        let Some((machine, code)) = program(std::env::consts::ARCH) else {
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pause");
        let mut options = std::fs::File::options();
        let mut file = options.write(true).create(true).mode(0o755).open(&path).unwrap();
        file.write_all(&elf(machine, &code)).unwrap();
        drop(file);
        let mut child = loop {
            match Command::new(&path).spawn() {
                // Another test has forked while this was written.
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {}
                spawned => break spawned.unwrap(),
            }
        };
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }

    #[test]
    fn each_known_processor_has_its_own() {
        let all = ["x86_64", "aarch64", "riscv64"].map(program);
        assert!(all[0].is_some() && all[1].is_some() && all[2].is_none());
        assert_ne!(all[0], all[1]);
    }
}
