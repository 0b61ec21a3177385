//! Promises about the terminal: its own, not the caller's, and the caller's as it was afterwards.

use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::pty::Winsize;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::super::sys;
use super::harness::{Case, Folder, InTerminal, open_to_all, until};
use super::is_root;

fn is_raw(running: &InTerminal) -> bool {
    !tcgetattr(&running.slave).unwrap().local_flags.contains(LocalFlags::ICANON)
}

fn marked<'a>(text: &'a str, mark: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(mark));
    line.unwrap_or_else(|| panic!("no {mark} in {text}")).trim()
}

#[test]
fn the_command_leads_a_session_with_a_terminal_of_its_own() {
    if !is_root() {
        return;
    }
    let script = "echo tty=$(tty); echo err=$(readlink /proc/$$/fd/2); echo pid=$$; \
                  echo stat=$(cat /proc/$$/stat); echo caller=$AMBIT_TEST_CALLER_TTY; \
                  : </dev/tty && : <$(tty) && echo opens; exit 3";
    let (code, text) = Case::shell(script).in_terminal().finish();
    assert_eq!(code, 3, "{text}");
    let stat: Vec<&str> = marked(&text, "stat=").split(' ').collect();
    let [pid, group, session, tty] = [stat[0], stat[4], stat[5], stat[6]];
    assert_eq!([pid, group, session], [marked(&text, "pid="); 3]);
    assert_ne!(tty, "0");
    assert!(marked(&text, "tty=").starts_with("/dev/pts/"), "{text}");
    assert_ne!(marked(&text, "tty="), marked(&text, "caller="));
    assert_eq!(marked(&text, "tty="), marked(&text, "err="));
    assert!(text.contains("opens"), "{text}");
}

/// Not a test of its own: what a hostile command does to the caller's terminal.
#[test]
fn pushes_into_the_callers_terminal() {
    let Ok(expected) = std::env::var("AMBIT_TEST_PUSH") else {
        return;
    };
    let caller = std::env::var("AMBIT_TEST_CALLER_TTY").unwrap();
    let terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(caller)
        .unwrap();
    assert_eq!(sys::take_terminal(terminal.as_raw_fd()), Err(Errno::EPERM));
    // SAFETY: TIOCSTI reads one byte, which outlives the call.
    let pushed = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSTI, c"x".as_ptr()) };
    assert_eq!(Errno::result(pushed).unwrap_err() as i32, expected.parse::<i32>().unwrap());
    std::process::exit(11);
}

#[test]
fn the_command_cannot_type_into_the_callers_terminal() {
    if !is_root() {
        return;
    }
    // Where the user can reach it: the build folder may be closed.
    let folder = Folder::new();
    let program = folder.0.join("tests");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    open_to_all(&program);
    // Kernels from 6.2 can refuse it to everyone, with another errno.
    let sysctl = fs::read_to_string("/proc/sys/dev/tty/legacy_tiocsti").unwrap_or("1".into());
    let expected = if sysctl.trim() == "0" { Errno::EIO } else { Errno::EPERM };
    let module = module_path!().split_once("::").unwrap().1;
    let test = format!("{module}::pushes_into_the_callers_terminal");
    let mut command = vec![program.to_str().unwrap(), "--exact", &test];
    command.extend(["--nocapture", "--test-threads=1"]);
    let case = Case::new(&command).with("PUSH", &(expected as i32).to_string());
    let running = case.in_terminal();
    let (code, text) = running.finish();
    assert_eq!(code, 11, "{text}");
}

#[test]
fn what_is_typed_reaches_the_command_and_interrupt_is_a_key_of_its_terminal() {
    if !is_root() {
        return;
    }
    let running = Case::shell("read line; echo got=$line").in_terminal();
    until("raw", || is_raw(&running));
    running.type_in("hello\r");
    let (code, text) = running.finish();
    assert_eq!((code, marked(&text, "got=")), (0, "hello"));

    let running = Case::shell("trap 'exit 9' INT; sleep 30; exit 1").in_terminal();
    until("raw", || is_raw(&running));
    std::thread::sleep(Duration::from_millis(300));
    running.type_in("\u{3}");
    assert_eq!(running.finish().0, 9);
}

#[test]
fn the_callers_terminal_is_as_it_was_however_the_command_ends() {
    if !is_root() {
        return;
    }
    for (script, code) in [("sleep 0.3", 0), ("sleep 0.3; kill -KILL $$", 137)] {
        let running = Case::shell(script).in_terminal();
        let before = tcgetattr(&running.slave).unwrap();
        until("raw", || is_raw(&running));
        let slave = running.slave.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            until("restored", || tcgetattr(&slave).unwrap() == before);
        });
        let (ended, _) = running.finish();
        assert_eq!(ended, code);
        reader.join().unwrap();
    }
    // The launcher itself is told to end.
    let running = Case::shell("exec sleep 30").in_terminal();
    let before = tcgetattr(&running.slave).unwrap();
    until("raw", || is_raw(&running));
    kill(Pid::from_raw(running.child.id() as i32), Signal::SIGTERM).unwrap();
    let slave = running.slave.try_clone().unwrap();
    until("restored", || tcgetattr(&slave).unwrap() == before);
    drop(slave);
    assert_eq!(running.finish().0, 143);
}

#[test]
fn the_window_has_the_callers_size_and_follows_it() {
    if !is_root() {
        return;
    }
    let script = "stty size; trap 'stty size; exit 0' WINCH; echo ready >&2; \
                  i=0; while [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done; exit 1";
    let running = Case::shell(script).in_terminal();
    until("raw", || is_raw(&running));
    std::thread::sleep(Duration::from_millis(300));
    let size = Winsize { ws_row: 44, ws_col: 111, ws_xpixel: 0, ws_ypixel: 0 };
    sys::set_window_size(running.master.as_fd(), &size).unwrap();
    let (code, text) = running.finish();
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("33 99") && text.contains("44 111"), "{text}");
}

#[test]
fn nothing_of_a_long_output_is_lost() {
    if !is_root() {
        return;
    }
    let (code, text) = Case::new(&["seq", "1", "60000"]).in_terminal().finish();
    assert_eq!(code, 0);
    let numbers = text.lines().filter_map(|line| line.trim().parse::<u32>().ok());
    assert!(numbers.eq(1..=60000));
}

#[test]
fn a_process_left_behind_does_not_hold_the_launcher() {
    if !is_root() {
        return;
    }
    let started = Instant::now();
    let script = "trap '' HUP; sleep 8 & (while sleep 0.01; do echo y || exit; done) & echo done";
    let (code, text) = Case::shell(script).in_terminal().finish();
    assert_eq!(code, 0);
    assert!(text.contains("done"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(6));
}

#[test]
fn only_terminals_are_replaced() {
    if !is_root() {
        return;
    }
    let folder = Folder::new();
    let path = folder.file("out", "");
    let out = OpenOptions::new().append(true).open(&path).unwrap();
    let script = "echo out=$(readlink /proc/$$/fd/1); echo err=$(readlink /proc/$$/fd/2) >&2";
    let running = Case::shell(script).start_in_terminal(true, |command| {
        command.stdout(out);
    });
    let (code, text) = running.finish();
    assert_eq!(code, 0, "{text}");
    assert_eq!(marked(&fs::read_to_string(&path).unwrap(), "out="), path);
    assert!(marked(&text, "err=").starts_with("/dev/pts/"), "{text}");
}

#[test]
fn when_the_command_stops_the_launcher_stops_with_the_terminal_restored_and_both_go_on() {
    if !is_root() {
        return;
    }
    // In a process group of its own in this session: a job that its parent could continue.
    let running =
        Case::shell("sleep 0.3; kill -STOP $$; exit 5").start_in_terminal(false, |command| {
            command.process_group(0);
        });
    let before = tcgetattr(&running.slave).unwrap();
    until("raw", || is_raw(&running));
    let launcher = Pid::from_raw(running.child.id() as i32);
    until("stopped", || {
        let flags = WaitPidFlag::WUNTRACED | WaitPidFlag::WNOHANG;
        matches!(waitpid(launcher, Some(flags)), Ok(WaitStatus::Stopped(..)))
    });
    assert_eq!(tcgetattr(&running.slave).unwrap(), before);
    kill(launcher, Signal::SIGCONT).unwrap();
    assert_eq!(running.finish().0, 5);
}
