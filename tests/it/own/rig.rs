//! A node that is a swarm by itself, in a network of its own, and the docker command line that drives it.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::agent::rig::processes_with;
use crate::swarm::rig::{rootfs, task_program};

/// What runs the tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tasks {
    Processes,
    /// A real dockerd.
    Containers,
}

/// The images of the walkthroughs, each the program of the tests with its arguments, and where it listens.
const IMAGES: &[(&str, &[&str], u16)] = &[
    (NGINX, &[], 80),
    ("httpd:latest", &[], 80),
    ("my-fastapi-whoami:latest", &[], 8000),
    ("masungil/my-fastapi-app:1.0", &[], 8000),
    ("masungil/my-fastapi-app:2.0", &[], 8000),
    ("masungil/my-fastapi-app:2.0-unhealthy", &["--unhealthy"], 8000),
];

const NGINX: &str = "nginx:latest";

/// As the configuration of nginx's own image, as far as it matters here; below `dir`. Whoever it runs as may not write elsewhere.
fn nginx_conf(dir: &str) -> String {
    format!(
        "user root;\nworker_processes 2;\nerror_log stderr notice;\npid {dir}run/nginx.pid;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; include {dir}etc/nginx/conf.d/*.conf;\n\
         client_body_temp_path {dir}run/body; proxy_temp_path {dir}run/proxy; fastcgi_temp_path {dir}run/fastcgi;\n\
         uwsgi_temp_path {dir}run/uwsgi; scgi_temp_path {dir}run/scgi; }}\n"
    )
}

/// What the walkthroughs' images hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Images {
    /// The program of the tests, in all of them.
    Program,
    /// The same, and Debian's nginx in that.
    Nginx,
    /// Debian's nginx, and FastAPI in those that are to hold it, and these are in a registry only.
    FastApi,
}

pub struct Own {
    pub tasks: Tasks,
    pub images: Images,
    name: String,
    dir: tempfile::TempDir,
    anynode: Option<Child>,
    /// The one that an update takes the place of.
    before: Option<Child>,
    updated_at: usize,
    /// Settings of its own, for the next start.
    pub env: Vec<(&'static str, &'static str)>,
    _turn: File,
}

/// Where the engine looks for images that have no registry in their names.
pub const MIRROR: &str = "127.0.0.1:5000";

pub const LONG: Duration = Duration::from_secs(60);

fn is_first_of_container(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| {
        let numbers: Vec<&str> = numbers.split_whitespace().collect();
        numbers.len() > 1 && numbers.last() == Some(&"1")
    })
}

fn is_session_leader(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    after_name.split_whitespace().nth(3) == Some(&*pid.to_string())
}

/// Debian's nginx with what it needs, as a tar.
fn nginx_rootfs() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("rootfs-{}-nginx", std::process::id()));
    let nginx = Path::new("/usr/sbin/nginx");
    let ldd = run(Command::new("ldd").arg(nginx));
    let libraries = String::from_utf8(ldd.stdout).unwrap();
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.map(Path::new).chain([nginx]) {
        let to = dir.join(file.strip_prefix("/").unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(file, to).unwrap();
    }
    for empty in ["run", "tmp", "var/log/nginx", "var/lib/nginx", "etc/nginx/conf.d"] {
        std::fs::create_dir_all(dir.join(empty)).unwrap();
    }
    std::fs::write(dir.join("etc/nginx/nginx.conf"), nginx_conf("/")).unwrap();
    std::fs::write(dir.join("etc/passwd"), "root:x:0:0::/:/none\n").unwrap();
    std::fs::write(dir.join("etc/group"), "root:x:0:\n").unwrap();
    let made = dir.with_extension("tar");
    run(Command::new("tar").arg("-C").arg(&dir).arg("-cf").arg(&made).arg("."));
    std::fs::remove_dir_all(&dir).unwrap();
    // One name, so that runs leave one file behind them and not one each.
    let tar = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rootfs-nginx.tar");
    std::fs::rename(&made, &tar).unwrap();
    tar
}

fn run(command: &mut Command) -> Output {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {out:?}");
    out
}

/// A network with nothing in it but loopback, or a dockerd; `None` where that needs more than there is.
pub fn up(name: &str, tasks: Tasks) -> Option<Own> {
    up_with(name, tasks, Images::Program)
}

pub fn up_with(name: &str, tasks: Tasks, images: Images) -> Option<Own> {
    let has = |program: &str| {
        let which = Command::new("which").arg(program).output();
        which.is_ok_and(|out| out.status.success())
    };
    let mut needed = vec!["docker", "nsenter", "ip", "curl"];
    if tasks == Tasks::Containers {
        needed.extend(["dockerd", "iptables", "python3"]);
    }
    if images != Images::Program {
        needed.push("nginx");
    }
    let missing = needed.into_iter().find(|program| !has(program));
    if !rustix::process::geteuid().is_root() || missing.is_some() {
        println!("skipped: this needs {}", missing.unwrap_or("root"));
        return None;
    }
    let own = Own {
        tasks,
        images,
        name: format!("own-{name}"),
        dir: tempfile::tempdir().unwrap(),
        anynode: None,
        before: None,
        updated_at: 0,
        env: Vec::new(),
        _turn: crate::harness::turn(),
    };
    own.network_down();
    match tasks {
        Tasks::Processes => {
            run(Command::new("ip").args(["netns", "add", &own.netns()]));
            run(Command::new("ip").args(["-n", &own.netns(), "link", "set", "lo", "up"]));
        }
        Tasks::Containers => {
            own.cluster(&["up", "--nodes", "1", "--managers", "0"]);
            let rootfs = rootfs(&task_program(), "task");
            for (image, args, port) in IMAGES {
                if images == Images::FastApi && image.contains("fastapi") {
                    continue;
                }
                if images != Images::Program && *image == NGINX {
                    let rootfs = nginx_rootfs().display().to_string();
                    let start = r#"ENTRYPOINT ["/usr/sbin/nginx","-g","daemon off;"]"#;
                    let import = ["import", "--change", start, &rootfs, image];
                    run(own.engine(&import).stdout(Stdio::null()));
                    continue;
                }
                let words: Vec<String> = ["/task", "serve"]
                    .iter()
                    .chain(*args)
                    .map(|word| format!("{word:?}"))
                    .collect();
                let change = format!("ENTRYPOINT [{}]", words.join(","));
                let rootfs = rootfs.display().to_string();
                run(own
                    .engine(&[
                        "import",
                        "--change",
                        &change,
                        "--change",
                        &format!("ENV PORT={port}"),
                        &rootfs,
                        image,
                    ])
                    .stdout(Stdio::null()));
            }
        }
    }
    Some(own)
}

impl Own {
    pub fn start(&mut self) {
        self.start_as(None);
    }

    fn command(&self, user: Option<u32>) -> Command {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let mut command = match user {
            None => self.inside(env!("CARGO_BIN_EXE_anynode")),
            Some(user) => {
                std::os::unix::fs::chown(self.dir.path(), Some(user), Some(user)).unwrap();
                let mut command = self.inside("setpriv");
                let (uid, gid) = (format!("--reuid={user}"), format!("--regid={user}"));
                command.args([&uid, &gid, "--clear-groups", "--no-new-privs"]);
                // Where the project lies may be closed to others.
                let program = self.dir.path().join("anynode");
                std::fs::copy(env!("CARGO_BIN_EXE_anynode"), &program).unwrap();
                command.arg(program);
                command
            }
        };
        command
            .args(["up", "--api"])
            .arg(self.socket())
            .arg("--data-dir")
            .arg(self.data_dir());
        command.arg("--config").arg(self.config());
        command
            .env("ANYNODE_LOG", "info,anynode::control=debug,anynode::agent=debug")
            .envs(self.env.iter().copied())
            .stderr(log);
        match self.tasks {
            Tasks::Processes => command.args(["--engine", "none"]),
            Tasks::Containers => command.arg("--engine").arg(self.engine_socket()),
        };
        command
    }

    /// What it says when it does not start, which it must not.
    pub fn start_fails(&mut self) -> String {
        let out = self.command(None).stderr(Stdio::piped()).output().unwrap();
        assert!(!out.status.success(), "{out:?}");
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    /// As a user without privileges, if one is named.
    pub fn start_as(&mut self, user: Option<u32>) {
        assert!(self.anynode.is_none());
        self.anynode = Some(self.command(user).spawn().unwrap());
        self.wait_for("the API", LONG, || self.docker_out(&["version"]).status.success());
    }

    /// By somebody who leaves it descriptors 8 and 9 open without meaning to.
    pub fn start_with_descriptors_left_open(&mut self) {
        assert!(self.anynode.is_none());
        let plain = self.command(None);
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "exec 8>>\"$0\" 9<\"$0\"; exec \"$@\""])
            .arg(self.dir.path().join("left-open"))
            .arg(plain.get_program())
            .args(plain.get_args());
        for (name, value) in plain.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        self.anynode = Some(command.spawn().unwrap());
        self.wait_for("the API", LONG, || self.docker_out(&["version"]).status.success());
    }

    /// With `variables`, and no more than `n_files` descriptors.
    pub fn start_within(&mut self, n_files: u64, variables: &[(&str, &str)]) {
        assert!(self.anynode.is_none());
        let plain = self.command(None);
        let mut command = Command::new("prlimit");
        command
            .arg(format!("--nofile={n_files}:{n_files}"))
            .arg(plain.get_program())
            .args(plain.get_args());
        let own = plain.get_envs().filter_map(|(name, value)| Some((name, value?)));
        command.envs(own).envs(variables.iter().copied());
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.dir.path().join("log"));
        self.anynode = Some(command.stderr(log.unwrap()).spawn().unwrap());
        self.wait_for("the API", LONG, || self.docker_out(&["version"]).status.success());
    }

    fn config(&self) -> PathBuf {
        let path = self.dir.path().join("anynode.toml");
        let task = task_program();
        let mut text = "[process.images]\n".to_owned();
        for (image, args, port) in IMAGES {
            if self.images != Images::Program && *image == NGINX {
                let conf = nginx_conf("").replace('\n', "\\n");
                let start = format!(
                    "cd $ANYNODE_TASK_DIR; mkdir -p run; printf '{conf}' > nginx.conf; \
                     exec nginx -p $ANYNODE_TASK_DIR/ -c $ANYNODE_TASK_DIR/nginx.conf -g 'daemon off;'"
                );
                text += &format!("{image:?} = [\"/bin/sh\", \"-c\", {start:?}]\n");
                continue;
            }
            // The images with programs of their own know where they listen.
            let port = format!("PORT={port}");
            let own_port = if *image == NGINX { &[][..] } else { &["env", &port][..] };
            let words: Vec<String> = own_port
                .iter()
                .chain(&[task.to_str().unwrap(), "serve"])
                .chain(*args)
                .map(|word| format!("{word:?}"))
                .collect();
            text += &format!("{image:?} = [{}]\n", words.join(", "));
        }
        std::fs::write(&path, text).unwrap();
        path
    }

    /// At once and without a word; its tasks live on.
    pub fn kill(&mut self) {
        let mut anynode = self.anynode.take().unwrap();
        anynode.kill().unwrap();
        anynode.wait().unwrap();
    }

    /// As a service manager does.
    pub fn stop(&mut self) {
        let mut anynode = self.anynode.take().unwrap();
        run(Command::new("kill").arg(anynode.id().to_string()));
        let started = Instant::now();
        while anynode.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < LONG, "it does not end\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts another one, which takes over; the one before ends by itself.
    pub fn update(&mut self) {
        self.update_without_waiting();
        self.wait_for_end_of_before();
        self.wait_for("the API", LONG, || self.docker_out(&["version"]).status.success());
    }

    /// The same; the one before may have connections yet.
    pub fn update_without_waiting(&mut self) {
        assert!(self.before.is_none());
        self.updated_at = self.log().len();
        self.before = self.anynode.replace(self.command(None).spawn().unwrap());
    }

    /// Whether the one whose place was taken still has something to do.
    pub fn is_before_there(&mut self) -> bool {
        self.before.as_mut().unwrap().try_wait().unwrap().is_none()
    }

    pub fn wait_for_end_of_before(&mut self) {
        let mut before = self.before.take().unwrap();
        let started = Instant::now();
        while before.try_wait().unwrap().is_none() {
            if started.elapsed() > LONG {
                drop((before.kill(), before.wait()));
                panic!("the one before does not end\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What was said since the last update.
    pub fn log_since_update(&self) -> String {
        self.log()[self.updated_at..].to_owned()
    }

    pub fn pid(&self) -> u32 {
        self.anynode.as_ref().unwrap().id()
    }

    fn netns(&self) -> String {
        match self.tasks {
            Tasks::Processes => format!("an-{}", self.name),
            Tasks::Containers => format!("an-{}-1", self.name),
        }
    }

    /// Where the network that it runs in is to be found.
    pub fn netns_path(&self) -> PathBuf {
        Path::new("/run/netns").join(self.netns())
    }

    pub fn inside(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.netns_path().display()))
            .arg(program);
        command
    }

    /// Outside of the machine that it runs on, where that has a network.
    pub fn client(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/an-{}-client", self.name))
            .arg(program);
        command
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    pub fn engine_socket(&self) -> PathBuf {
        PathBuf::from(format!("/tmp/anynode-cluster-{}/node1/docker.sock", self.name))
    }

    /// The docker command line, driving the engine itself.
    pub fn engine(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .env("DOCKER_HOST", format!("unix://{}", self.engine_socket().display()))
            .args(args);
        command
    }

    pub fn cluster(&self, args: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/cluster");
        let mut command = Command::new(script);
        let mut args_of_dockerd = "--log-opt max-size=7m".to_owned();
        if self.images == Images::FastApi {
            args_of_dockerd += &format!(" --registry-mirror http://{MIRROR}");
        }
        command.env("ANYNODE_DOCKERD_ARGS", args_of_dockerd);
        run(command.args(["--name", &self.name]).args(args))
    }

    /// The docker command line, driving anynode; its working directory is the test's.
    pub fn docker_command(&self, args: &[&str]) -> Command {
        let mut command = self.inside("docker");
        let host = format!("unix://{}", self.socket().display());
        command
            .env("DOCKER_HOST", host)
            .env("HOME", self.dir.path())
            .current_dir(self.dir.path())
            .args(args);
        command
    }

    pub fn docker_out(&self, args: &[&str]) -> Output {
        self.docker_command(args).output().unwrap()
    }

    /// What the command says on its standard output, which must succeed.
    pub fn docker(&self, args: &[&str]) -> String {
        let out = self.docker_out(args);
        let (stdout, stderr) = (
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
        );
        assert!(
            out.status.success(),
            "docker {args:?}\n{stdout}\n{stderr}\n{}",
            self.log_tail()
        );
        stdout.trim_end().to_owned()
    }

    /// What anynode's own command line says.
    pub fn anynode(&self, args: &[&str]) -> String {
        let out = run(self.inside(env!("CARGO_BIN_EXE_anynode")).args(args));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// What the command says on its standard error, which must fail.
    pub fn docker_fails(&self, args: &[&str]) -> String {
        let out = self.docker_out(args);
        assert!(!out.status.success(), "docker {args:?}: {out:?}");
        String::from_utf8_lossy(&out.stderr).trim_end().to_owned()
    }

    /// `curl -s` inside.
    pub fn curl(&self, url: &str) -> Option<String> {
        let out = self
            .inside("curl")
            .args(["-s", "-f", "-m", "10", url])
            .output()
            .unwrap();
        out.status
            .success()
            .then(|| String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// All that it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    pub fn wait_for(&self, what: &str, patience: Duration, mut is_so: impl FnMut() -> bool) {
        let started = Instant::now();
        while !is_so() {
            if started.elapsed() > patience {
                panic!("waited in vain for {what}\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Processes and containers that are tasks, by what the machine says: their pids.
    pub fn living_tasks(&self) -> Vec<u32> {
        let task = std::fs::canonicalize(task_program()).unwrap();
        let is_task = |pid: u32| match self.tasks {
            Tasks::Processes => {
                let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
                let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
                exe.ends_with("nginx") && cwd.starts_with(self.dir.path()) && is_session_leader(pid)
                    || exe == task
                        && std::fs::read_to_string(format!("/proc/{pid}/environ"))
                            .is_ok_and(|environ| environ.contains(&self.dir.path().display().to_string()))
            }
            Tasks::Containers => {
                std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
                    .is_ok_and(|cgroup| cgroup.contains(&format!("anynode-cluster-{}/", self.name)))
                    && is_first_of_container(pid)
                    // What holds a task's network.
                    && std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name != "pause\n")
            }
        };
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| is_task(*pid)).collect()
    }

    fn network_down(&self) {
        match self.tasks {
            Tasks::Processes => {
                let _ = Command::new("ip").args(["netns", "del", &self.netns()]).output();
            }
            Tasks::Containers => drop(self.cluster(&["down"])),
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        for mut anynode in self.anynode.take().into_iter().chain(self.before.take()) {
            let _ = anynode.kill();
            let _ = anynode.wait();
        }
        // Tasks that are processes outlive anynode: that is what they are for.
        if self.tasks == Tasks::Processes {
            let in_here = Command::new("ip").args(["netns", "pids", &self.netns()]).output();
            let in_here = String::from_utf8(in_here.map(|out| out.stdout).unwrap_or_default()).unwrap_or_default();
            let in_here = in_here.split_whitespace().filter_map(|pid| pid.parse().ok());
            // Those that have networks of their own.
            let of_tasks = processes_with(self.dir.path());
            for pid in in_here.chain(of_tasks).collect::<BTreeSet<u32>>() {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).output();
            }
        }
        self.network_down();
    }
}
