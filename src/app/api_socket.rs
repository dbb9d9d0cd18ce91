//! The API's socket. Containers that mount it hold the very socket, not its path: so while there may be such, a process of its
//! own (`anynode hold`) holds it open from one run of anynode to the next, and answers 503 where none follows. Not here: what
//! is served there (`api`), and which containers mount it (`agent::containers`).

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};

use crate::agent::PinnedSocket;
use crate::sys::handoff;
use crate::sys::process::{do_not_listen, lead_session};

/// Why the API has no socket.
#[derive(Debug, thiserror::Error)]
pub enum ApiSocketError {
    #[error("api.socket = {path}: another program answers there: expected a path that is free")]
    InUse { path: PathBuf },
    #[error("api.socket = {path}: expected a path where a socket can be made")]
    Make {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
}

/// The socket, bound at `path`.
pub struct ApiSocket {
    path: PathBuf,
    /// Where the holder is asked.
    door: PathBuf,
    listener: UnixListener,
    /// The connection to the holder, which lasts as long as this process. std mutex: held while a holder is started.
    holder: Mutex<Option<UnixStream>>,
}

/// A file, whatever its name is.
type FileId = (u64, u64);

impl ApiSocket {
    /// A socket that its owner and group may use: the one of an earlier run if a holder in `data_dir` has it, else a new one.
    /// `like`: another socket, whose group it gets. Errors: another program answers at `path`, or no socket can be made there.
    pub fn open(path: &Path, data_dir: &Path, like: Option<&Path>) -> Result<ApiSocket, ApiSocketError> {
        let failed = |error: io::Error| ApiSocketError::Make {
            path: path.to_owned(),
            error,
        };
        let door = data_dir.join(DOOR);
        if let Some(Holder {
            connection,
            listener,
            file,
        }) = Holder::call(&door)
        {
            if file_of(path).is_ok_and(|found| found == file) {
                return Ok(ApiSocket {
                    path: path.to_owned(),
                    door,
                    listener,
                    holder: Mutex::new(Some(connection)),
                });
            }
            // It is not what this path leads to any more.
            end(&connection);
        }
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        let listener = bind(path, like)?;
        Ok(ApiSocket {
            path: path.to_owned(),
            door,
            listener,
            holder: Mutex::default(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Another descriptor of it. Errors: there are no more.
    pub(super) fn listener(&self) -> Result<tokio::net::UnixListener, ApiSocketError> {
        let made = self.listener.try_clone().and_then(|listener| {
            listener.set_nonblocking(true)?;
            tokio::net::UnixListener::from_std(listener)
        });
        made.map_err(|error| ApiSocketError::Make {
            path: self.path.clone(),
            error,
        })
    }

    /// This run ends. `is_in_use`: containers may have it.
    pub(super) fn close(&self, is_in_use: bool) {
        let holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner).take();
        match holder {
            Some(_) if is_in_use => return,
            Some(holder) => end(&holder),
            None => {}
        }
        // An error says that it is gone already.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl PinnedSocket for ApiSocket {
    fn path(&self) -> &Path {
        &self.path
    }

    fn pin(&self) -> io::Result<()> {
        let mut holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        if holder.as_ref().is_some_and(is_there) {
            return Ok(());
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("hold").arg(&self.door).arg(&self.path);
        command.stdin(OwnedFd::from(self.listener.try_clone()?));
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        lead_session(&mut command);
        let mut child = command.spawn()?;
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut said)?;
        }
        std::thread::spawn(move || child.wait());
        if said.trim() != READY {
            return Err(io::Error::other(format!("the holder says {said:?}")));
        }
        let called = Holder::call(&self.door);
        let called = called.ok_or_else(|| io::Error::other("the holder does not answer"))?;
        *holder = Some(called.connection);
        Ok(())
    }
}

fn bind(path: &Path, like: Option<&Path>) -> Result<UnixListener, ApiSocketError> {
    let failed = |error: io::Error| ApiSocketError::Make {
        path: path.to_owned(),
        error,
    };
    if path.exists() {
        if UnixStream::connect(path).is_ok() {
            return Err(ApiSocketError::InUse { path: path.to_owned() });
        }
        let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
        if !is_socket {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "there is something else");
            return Err(failed(error));
        }
        // Of a run that was killed.
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    if let Some(group) = like
        .and_then(|like| std::fs::metadata(like).ok())
        .map(|like| like.gid())
    {
        // An error: who may use the other one may not use this.
        let _ = std::os::unix::fs::chown(path, None, Some(group));
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

fn file_of(path: &Path) -> io::Result<FileId> {
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// A holder as a run of anynode sees it.
struct Holder {
    connection: UnixStream,
    listener: UnixListener,
    file: FileId,
}

impl Holder {
    /// `None`: there is none, or it does not answer.
    fn call(door: &Path) -> Option<Holder> {
        let connection = handoff::connect(door).ok()?;
        let mut bytes = [0; 64];
        let mut waited = Duration::ZERO;
        loop {
            match handoff::receive(&connection, &mut bytes) {
                Ok((n, fds)) => {
                    let text = std::str::from_utf8(&bytes[..n]).ok()?;
                    let (dev, inode) = text.split_once(' ')?;
                    return Some(Holder {
                        file: (dev.parse().ok()?, inode.parse().ok()?),
                        listener: fds.into_iter().next()?.into(),
                        connection,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && waited < ANSWERS_WITHIN => {
                    std::thread::sleep(LOOK_EVERY);
                    waited += LOOK_EVERY;
                }
                Err(_) => return None,
            }
        }
    }
}

/// Tells a holder to end. An error: it has ended.
fn end(holder: &UnixStream) {
    let _ = handoff::send(holder, END, &[]);
}

/// Whether a holder has not closed its end.
fn is_there(holder: &UnixStream) -> bool {
    let nothing = handoff::receive(holder, &mut [0; 8]);
    nothing.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Holds the socket that is its standard input, bound at `socket`, for whoever asks at `door`, until it is told to end.
/// Returns the exit code.
pub fn hold(door: &Path, socket: &Path) -> i32 {
    match try_hold(door, socket) {
        Ok(()) => 0,
        Err(error) => {
            // Nobody may listen.
            let _ = writeln!(io::stdout(), "{error}");
            1
        }
    }
}

fn try_hold(door: &Path, socket: &Path) -> io::Result<()> {
    do_not_listen()?;
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    let file = file_of(socket)?;
    let (path, door) = (door, handoff::listen(door)?);
    let file_of_door = file_of(path)?;
    writeln!(io::stdout(), "{READY}")?;
    rustix::stdio::dup2_stdout(std::fs::File::options().write(true).open("/dev/null")?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let door = tokio::net::UnixListener::from_std(door)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let mut run: Option<tokio::net::UnixStream> = None;
        loop {
            tokio::select! {
                biased;
                called = door.accept() => {
                    let (connection, _) = called?;
                    let text = format!("{} {}", file.0, file.1);
                    if handoff::send(&connection, text.as_bytes(), &[listener.as_fd()]).is_ok() {
                        run = Some(connection);
                    }
                }
                is_over = said(run.as_ref()) => match is_over {
                    true => return Ok(()),
                    false => run = None,
                },
                () = refuse(&listener, || file_of(path).is_ok_and(|found| found == file_of_door)), if run.is_none() => {
                    return Ok(());
                }
            }
        }
    })
}

/// Waits until a run of anynode has told to end (`true`), or has ended itself.
async fn said(run: Option<&tokio::net::UnixStream>) -> bool {
    let Some(run) = run else {
        return std::future::pending().await;
    };
    let mut bytes = [0; 8];
    loop {
        if run.readable().await.is_err() {
            return false;
        }
        match run.try_io(Interest::READABLE, || handoff::receive(run, &mut bytes)) {
            Ok((n, _)) => return &bytes[..n] == END,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
}

/// Answers that nobody is here, once nobody has been for a while: who updates anynode, or restarts it, needs no answer. Ends
/// when nobody can come any more: the data directory was removed.
async fn refuse(listener: &tokio::net::UnixListener, is_to_be_found: impl Fn() -> bool) {
    tokio::time::sleep(RESTARTS_WITHIN).await;
    while is_to_be_found() {
        match tokio::time::timeout(RESTARTS_WITHIN, listener.accept()).await {
            Ok(Ok((client, _))) => drop(tokio::time::timeout(ANSWERS_WITHIN, refuse_one(client)).await),
            Ok(Err(_)) => tokio::time::sleep(LOOK_EVERY).await,
            Err(_) => {}
        }
    }
}

async fn refuse_one(mut client: tokio::net::UnixStream) -> io::Result<()> {
    let mut bytes = [0; 4096];
    // Whatever it is.
    let _ = client.read(&mut bytes).await?;
    let body = r#"{"message":"anynode does not run on this node"}"#;
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes()).await?;
    client.write_all(body.as_bytes()).await
}

const DOOR: &str = "api.hold";
const READY: &str = "ready";
const END: &[u8] = b"end";
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// Who asks meanwhile waits.
const RESTARTS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
