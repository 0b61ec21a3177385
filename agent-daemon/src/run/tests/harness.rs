//! Runs a launch in a process of its own: this test binary again, with the launch in its
//! environment, so that the launcher's signals, terminal and descriptors are not those of the tests.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Uid, fchown, setsid, ttyname};

use super::super::{Launch, RunAs, sys};

/// A user that no machine has an entry for.
pub(super) const NOBODYS_UID: &str = "54321";
const SEPARATOR: &str = "\u{1f}";
/// After this the promise is broken.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// One launch, described for the other process.
pub(super) struct Case {
    variables: Vec<(String, String)>,
}

impl Case {
    pub(super) fn new(command: &[&str]) -> Self {
        let case = Self { variables: Vec::new() };
        case.with("LAUNCH", &command.join(SEPARATOR)).with("USER", NOBODYS_UID)
    }

    pub(super) fn shell(script: &str) -> Self {
        Self::new(&["/bin/sh", "-c", script])
    }

    /// Sets `AMBIT_TEST_{name}` for the process that launches.
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((format!("AMBIT_TEST_{name}"), value.to_owned()));
        self
    }

    pub(super) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn to_command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let path = format!("{}::launches", module_path!().rsplit_once("::").unwrap().0);
        let path = path.split_once("::").unwrap().1.to_owned();
        command.args(["--exact", &path, "--nocapture", "--test-threads=1"]);
        command.env_remove("SUDO_UID").env_remove("SUDO_GID").env_remove("SUDO_USER");
        command.envs(self.variables.iter().cloned());
        command
    }

    /// Runs without a terminal.
    pub(super) fn output(&self, input: &str) -> Output {
        let mut child = self
            .to_command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    pub(super) fn code(&self) -> i32 {
        self.output("").status.code().unwrap()
    }

    /// Runs without a terminal and gives what was written to standard output.
    pub(super) fn text(&self) -> String {
        let output = self.output("");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts with a terminal as standard input, output and error, and as controlling terminal.
    pub(super) fn in_terminal(&self) -> InTerminal {
        self.start_in_terminal(true, |_| {})
    }

    pub(super) fn start_in_terminal(
        &self,
        controlling: bool,
        change: impl FnOnce(&mut Command),
    ) -> InTerminal {
        let size = Winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
        for side in [&master, &slave] {
            fcntl(side, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        // It belongs to the user, as it does when the user called sudo in it.
        let owner = Uid::from_raw(NOBODYS_UID.parse().unwrap());
        fchown(&slave, Some(owner), None).unwrap();
        let stream = || Stdio::from(slave.try_clone().unwrap());
        let mut command = self.to_command();
        command.stdin(stream()).stdout(stream()).stderr(stream());
        command.env("AMBIT_TEST_CALLER_TTY", ttyname(&slave).unwrap());
        if controlling {
            let take = || {
                setsid()?;
                sys::take_terminal(0)?;
                Ok(())
            };
            // SAFETY: two system calls, both async-signal-safe; nothing is allocated.
            unsafe { command.pre_exec(take) };
        }
        change(&mut command);
        let child = command.spawn().unwrap();
        let mut source = File::from(master.try_clone().unwrap());
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            let mut chunk = [0; 4096];
            // The end is an error here: no slave is open any more.
            while let Ok(count @ 1..) = source.read(&mut chunk) {
                all.extend_from_slice(&chunk[..count]);
            }
            String::from_utf8_lossy(&all).into_owned()
        });
        InTerminal { child, master, slave, reader }
    }
}

/// A launch under way in a terminal whose other side the test has.
pub(super) struct InTerminal {
    pub(super) child: Child,
    pub(super) master: OwnedFd,
    pub(super) slave: OwnedFd,
    reader: JoinHandle<String>,
}

impl InTerminal {
    pub(super) fn type_in(&self, text: &str) {
        nix::unistd::write(self.master.as_fd(), text.as_bytes()).unwrap();
    }

    /// Waits for the end; gives the exit code and everything that was shown.
    pub(super) fn finish(mut self) -> (i32, String) {
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > until {
                self.child.kill().unwrap();
                panic!("the launcher did not end");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        drop(self.slave);
        (status.code().unwrap_or(-1), self.reader.join().unwrap())
    }
}

/// A folder of this test, removed at the end.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("ambit-run-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        // For the launched command, which is another user.
        open_to_all(&path);
        Self(path)
    }

    pub(super) fn file(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn open_to_all(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Polls until the condition holds.
pub(super) fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What the other process does: launches what its environment describes and ends with its code.
pub(super) fn launch_described() -> Option<i32> {
    let read = |name: &str| std::env::var(format!("AMBIT_TEST_{name}")).ok();
    let list = |text: Option<String>| -> Vec<String> {
        text.map(|text| text.split(SEPARATOR).map(str::to_owned).collect()).unwrap_or_default()
    };
    let command = read("LAUNCH")?;
    if let Some(databases) = read("DATABASES") {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .unwrap();
        for name in ["passwd", "group"] {
            let from = format!("{databases}/{name}");
            let to = format!("/etc/{name}");
            mount(Some(&*from), &*to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        }
    }
    if let Some(path) = read("LEAK") {
        let leaked = File::open(path).unwrap();
        fcntl(&leaked, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        std::mem::forget(leaked);
    }
    let launch = Launch {
        command: list(Some(command)).into_iter().map(Into::into).collect(),
        user: match read("USER").as_deref() {
            Some("invoker") | None => RunAs::Invoker,
            Some(name) => RunAs::Named(name.to_owned()),
        },
        allow_root: read("ALLOW_ROOT").is_some(),
        keep_groups: list(read("KEEP")),
        cgroup_procs: list(read("CGROUPS")).into_iter().map(Into::into).collect(),
        environment: vec![("AMBIT_TEST_EXTRA".into(), "extra".into())],
        ceiling: read("CEILING")
            .map(|folders| list(Some(folders)).into_iter().map(Into::into).collect()),
    };
    let ran = launch.prepare().and_then(|prepared| {
        println!("dropped={:?}", prepared.dropped_groups());
        println!("program={}", prepared.program().display());
        prepared.start()?.wait()
    });
    Some(match ran {
        Ok(outcome) => outcome.code(),
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code()
        }
    })
}
