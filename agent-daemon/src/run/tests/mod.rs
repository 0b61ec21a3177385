//! Promises of the launcher, kept with real processes, cgroups and terminals. They need root and
//! say so; nothing outside of what they made is changed.

mod harness;
mod terminal;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::{RunError, Step};
use super::{Launch, Outcome, RunAs, sys};
use harness::{Case, Folder, NOBODYS_UID, until};

/// Not a test of its own: the other process of the tests here.
#[test]
fn launches() {
    if let Some(code) = harness::launch_described() {
        std::process::exit(code);
    }
}

/// Whether this process may do what the promise is about.
fn is_root() -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    if !root {
        let launch = Launch {
            command: vec!["true".into()],
            user: RunAs::Invoker,
            allow_root: false,
            keep_groups: Vec::new(),
            cgroup_procs: Vec::new(),
            environment: Vec::new(),
            ceiling: None,
        };
        assert!(matches!(launch.prepare(), Err(RunError::NotRoot)));
        eprintln!("skipping: needs root");
    }
    root
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
}

#[test]
fn exit_codes_are_those_of_a_shell() {
    if !is_root() {
        return;
    }
    assert_eq!(Case::new(&["true"]).code(), 0);
    assert_eq!(Case::shell("exit 3").code(), 3);
    assert_eq!(Case::shell("kill -TERM $$").code(), 128 + 15);
    assert_eq!(Case::shell("kill -KILL $$").code(), 128 + 9);
    assert_eq!(Outcome::Signaled(15).code(), 143);
}

#[test]
fn a_command_that_does_not_exist_is_127_with_the_path_that_was_searched() {
    if !is_root() {
        return;
    }
    for command in ["no-such-command-of-ambit", "/no/such/command", ""] {
        let output = Case::new(&[command]).output("");
        assert_eq!(output.status.code(), Some(127), "{output:?}");
    }
    let output = Case::new(&["no-such-command"]).variable("PATH", "/usr/bin:/bin").output("");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("command not found in PATH=/usr/bin:/bin"), "{message}");
}

#[test]
fn a_command_that_cannot_be_executed_is_126() {
    if !is_root() {
        return;
    }
    let folder = Folder::new();
    let plain = folder.file("plain", "text");
    let no_interpreter = folder.file("no-interpreter", "#!/no/such/interpreter\n");
    let no_program = folder.file("no-program", "text");
    let others = folder.file("others", "#!/bin/sh\n");
    for (path, mode) in [(&no_interpreter, 0o755), (&no_program, 0o755), (&others, 0o700)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let folder = folder.0.to_str().unwrap();
    for (command, message) in [
        (plain.as_str(), "nobody may execute it"),
        (no_interpreter.as_str(), "interpreter does not exist"),
        (no_program.as_str(), "begins with `#!`"),
        (others.as_str(), "permission denied: the user"),
        (folder, "is a folder"),
    ] {
        let output = Case::new(&[command]).output("");
        assert_eq!(output.status.code(), Some(126), "{command}: {output:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(message), "{text}");
    }
}

#[test]
fn a_program_that_only_others_may_execute_does_not_hide_a_later_one() {
    if !is_root() {
        return;
    }
    let folders = [Folder::new(), Folder::new()];
    for (folder, mode) in folders.iter().zip([0o700, 0o755]) {
        let program = folder.file("found", "#!/bin/sh\necho \"in=$0\"\n");
        fs::set_permissions(program, fs::Permissions::from_mode(mode)).unwrap();
    }
    let path = format!("{}:{}", folders[0].0.display(), folders[1].0.display());
    let text = Case::new(&["found"]).variable("PATH", &path).text();
    assert!(text.contains(&format!("in={}/found", folders[1].0.display())), "{text}");
}

#[test]
fn a_policy_that_denies_the_command_itself_is_126_and_says_so() {
    let error = RunError::from_exec(PathBuf::from("/bin/sh"), "sh".into(), Errno::EPERM);
    assert_eq!(error.exit_code(), 126);
    assert!(
        error.to_string().starts_with("the policy of the agent does not permit running /bin/sh")
    );
}

#[test]
fn a_launch_can_be_handed_to_another_thread() {
    fn sent<T: Send>() {}
    sent::<super::Prepared>();
    sent::<super::Running>();
}

#[test]
fn every_step_has_its_number() {
    for step in Step::ALL {
        assert_eq!(Step::from_number(step as u8), Some(step));
    }
    assert_eq!(Step::from_number(0), None);
    assert_eq!(Step::from_number(Step::Exec as u8 + 1), None);
}

#[test]
fn the_command_is_the_user_and_cannot_become_more() {
    if !is_root() {
        return;
    }
    let ids = [NOBODYS_UID; 4].join("\t");
    for case in [Case::new(&["cat", "/proc/self/status"]), {
        let case = Case::new(&["cat", "/proc/self/status"]).with("USER", "invoker");
        case.variable("SUDO_UID", NOBODYS_UID).variable("SUDO_GID", NOBODYS_UID)
    }] {
        let status = case.text();
        assert_eq!(field(&status, "Uid"), ids);
        assert_eq!(field(&status, "Gid"), ids);
        assert_eq!(field(&status, "Groups"), NOBODYS_UID);
        assert_eq!(field(&status, "NoNewPrivs"), "1");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb", "SigBlk", "SigIgn"] {
            assert_eq!(field(&status, set), "0000000000000000", "{set}");
        }
    }
}

#[test]
fn root_is_refused_unless_allowed() {
    if !is_root() {
        return;
    }
    let refused = Case::new(&["id"]).with("USER", "invoker").variable("SUDO_UID", "0").output("");
    assert_eq!(refused.status.code(), Some(125));
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains("--user") && message.contains("--allow-root"), "{message}");

    let allowed = Case::new(&["cat", "/proc/self/status"]);
    let status = allowed.with("USER", "root").with("ALLOW_ROOT", "1").text();
    assert_eq!(field(&status, "Uid"), ["0"; 4].join("\t"));
    assert_eq!(field(&status, "NoNewPrivs"), "1");
}

#[test]
fn dangerous_groups_are_dropped_unless_asked_for() {
    if !is_root() {
        return;
    }
    let folder = Folder::new();
    folder.file(
        "passwd",
        "root:x:0:0:root:/root:/bin/sh\n\
         ada:x:54321:54321::/home/ada:/bin/sh\n\
         bob:x:54322:990::/home/bob:/bin/sh\n",
    );
    // `harbour` is the group of docker by another name, and comes first.
    folder.file(
        "group",
        "root:x:0:\nada:x:54321:\nharbour:x:990:\ndocker:x:990:ada\nplain:x:991:ada\nsudo:x:27:ada\n",
    );
    let databases = folder.0.to_str().unwrap();
    let case = |user: &str| {
        Case::new(&["cat", "/proc/self/status"]).with("DATABASES", databases).with("USER", user)
    };

    let text = case("ada").text();
    assert_eq!(field(&text, "Groups"), "991 54321");
    assert!(text.contains(r#"dropped=["harbour", "sudo"]"#), "{text}");

    let text = case("ada").with("KEEP", "docker").text();
    assert_eq!(field(&text, "Groups"), "990 991 54321");
    assert!(text.contains(r#"dropped=["sudo"]"#), "{text}");

    let refused = case("bob").output("");
    assert_eq!(refused.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--group harbour"), "{refused:?}");
    assert_eq!(field(&case("bob").with("KEEP", "harbour").text(), "Gid"), ["990"; 4].join("\t"));
}

#[test]
fn the_environment_is_the_users_without_a_trace_of_sudo() {
    if !is_root() {
        return;
    }
    let case = Case::new(&["env"]).variable("SUDO_COMMAND", "x").variable("HOME", "/root");
    let text = case.variable("TERM", "vt100").variable("MAIL", "/var/mail/root").text();
    for line in [
        "HOME=/",
        &format!("USER={NOBODYS_UID}"),
        &format!("LOGNAME={NOBODYS_UID}"),
        "SHELL=/bin/sh",
        "TERM=vt100",
        "AMBIT_TEST_EXTRA=extra",
    ] {
        assert!(text.lines().any(|present| present == line), "{line} in {text}");
    }
    assert!(!text.contains("\nSUDO_") && !text.contains("\nMAIL="), "{text}");
}

#[test]
fn nothing_but_the_standard_streams_is_inherited() {
    if !is_root() {
        return;
    }
    let folder = Folder::new();
    let secret = folder.file("leaked", "");
    let text = Case::new(&["ls", "-l", "/proc/self/fd"]).with("LEAK", &secret).text();
    assert!(!text.contains("leaked"), "{text}");
    // `ls` itself has the folder open.
    assert_eq!(text.matches(" -> ").count(), 4, "{text}");
}

#[test]
fn a_pipe_as_standard_input_passes_through_and_no_terminal_is_made() {
    if !is_root() {
        return;
    }
    let output = Case::shell("cat; tty; cut -d' ' -f7 /proc/self/stat").output("from the pipe\n");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("from the pipe\nnot a tty\n0\n"), "{text}");
}

#[test]
fn signals_to_the_launcher_reach_the_command() {
    if !is_root() {
        return;
    }
    for (name, signal) in
        [("TERM", Signal::SIGTERM), ("HUP", Signal::SIGHUP), ("USR1", Signal::SIGUSR1)]
    {
        let folder = Folder::new();
        fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).unwrap();
        let ready = folder.0.join("ready");
        let script = format!(
            "trap 'exit 7' {name}; : >{}; i=0; while [ $i -lt 200 ]; do sleep 0.1; i=$((i+1)); done",
            ready.display()
        );
        let mut command = Case::shell(&script).to_command();
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // Whoever runs the tests may ignore some (`nohup`), which the launcher would keep to.
        // SAFETY: only async-signal-safe calls.
        unsafe { command.pre_exec(|| Ok(sys::default_all_signals()?)) };
        let mut launcher = command.spawn().unwrap();
        until("the command runs", || ready.exists());
        kill(Pid::from_raw(launcher.id() as i32), signal).unwrap();
        assert_eq!(launcher.wait().unwrap().code(), Some(7), "{name}");
    }
}

#[test]
fn the_command_is_in_the_cgroup_before_it_executes() {
    if !is_root() {
        return;
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let Some(root) = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4))?
    }) else {
        eprintln!("skipping: no cgroup2 is mounted");
        return;
    };
    let name = format!("ambit-run-test-{}", std::process::id());
    let cgroup = Path::new(root).join(&name);
    fs::create_dir(&cgroup).unwrap();
    let procs = cgroup.join("cgroup.procs");
    let output = Case::new(&["cat", "/proc/self/cgroup"])
        .with("CGROUPS", procs.to_str().unwrap())
        .output("");
    let missing = Case::new(&["true"]).with("CGROUPS", "/no/such/cgroup.procs").output("");
    fs::remove_dir(&cgroup).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.lines().any(|line| line.starts_with("0::") && line.ends_with(&name)), "{text}");

    assert_eq!(missing.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such/cgroup.procs"));
}

#[test]
fn a_cgroup_that_cannot_be_joined_stops_the_launch_and_is_named() {
    if !is_root() {
        return;
    }
    // Full at every write, so joining fails in the child.
    let output = Case::shell("echo ran").with("CGROUPS", "/dev/full").output("");
    assert_eq!(output.status.code(), Some(125));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("joining the cgroup on /dev/full failed: ENOSPC"), "{message}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("\nran"));
}

#[test]
fn strings_that_no_program_can_get_are_refused() {
    if !is_root() {
        return;
    }
    let launch = |command: &[&str], name: &str| Launch {
        command: command.iter().map(OsString::from).collect(),
        user: RunAs::Named(NOBODYS_UID.to_owned()),
        allow_root: false,
        keep_groups: Vec::new(),
        cgroup_procs: Vec::new(),
        environment: vec![(name.into(), "value".into())],
        ceiling: None,
    };
    assert!(matches!(launch(&[], "A").prepare(), Err(RunError::NoCommand)));
    for refused in [launch(&["true", "a\0b"], "A"), launch(&["true"], "A=B"), launch(&["true"], "")]
    {
        assert!(matches!(refused.prepare(), Err(RunError::BadString { .. })));
    }
    let prepared = launch(&["true"], "A").prepare().unwrap();
    assert!(prepared.program().is_absolute());
    assert_eq!((prepared.uid().as_raw(), prepared.user_name()), (54321, NOBODYS_UID));
}

#[test]
fn a_ceiling_keeps_changes_beneath_its_folders() {
    if !is_root() {
        return;
    }
    if !super::ceiling_is_available() {
        let run = Case::new(&["true"]).with("CEILING", "/nowhere").output("");
        assert!(run.status.success(), "{run:?}");
        eprintln!("skipping: this kernel has no Landlock");
        return;
    }
    let ground = Folder::new();
    fs::set_permissions(&ground.0, fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["in", "out"] {
        let folder = ground.0.join(name);
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        for name in ["file", "other"] {
            fs::write(folder.join(name), "text").unwrap();
            fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o666)).unwrap();
        }
        fs::create_dir(folder.join("folder")).unwrap();
        fs::set_permissions(folder.join("folder"), fs::Permissions::from_mode(0o777)).unwrap();
    }
    let inside = ground.0.join("in").display().to_string();
    let script = "cd $0; for deed in \
        'mkdir made' 'ln -s x symlink' 'mkfifo fifo' 'ln file folder/linked' 'mv file folder/moved' \
        'truncate -s 0 other' 'rm other' 'rmdir made'; \
        do $deed 2>/dev/null && echo \"did $deed\"; done; echo x > new && cat new; true";
    let deeds = |name: &str| {
        let folder = ground.0.join(name).display().to_string();
        let case = Case::new(&["sh", "-c", script, &folder]).with("CEILING", &inside);
        case.text().lines().filter(|line| line.starts_with("did ") || *line == "x").count()
    };
    // Opens are the backend's to judge, so a file is made and written outside as well.
    assert_eq!(deeds("out"), 1);
    assert_eq!(deeds("in"), 9);
    assert!(ground.0.join("out/file").exists() && ground.0.join("out/other").exists());
    // A folder that does not exist yet is there for its maker to make.
    let missing = ground.0.join("in/missing").display().to_string();
    let text = Case::new(&["sh", "-c", "mkdir $0 && mkdir $0/x && echo made=yes", &missing])
        .with("CEILING", &missing)
        .text();
    assert!(text.contains("made=yes"), "{text}");
}
