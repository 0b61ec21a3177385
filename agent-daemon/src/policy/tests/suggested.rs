//! What is suggested after an audited run.

use agent_ebpf::Action;

use super::super::{Attempt, Target, suggest};
use super::{coder, file, folder, known_as, lowered, says, v4, v6};

fn attempts(tried: Vec<(Action, Target)>) -> Vec<Attempt> {
    tried
        .into_iter()
        .map(|(action, target)| Attempt { agent: coder().name, action, target })
        .collect()
}

/// The suggestion is a policy that is taken and permits everything that was tried.
fn permits(tried: &[Attempt]) -> String {
    let text = suggest(tried);
    let tables = lowered(&text);
    for one in tried {
        let said = says(&tables, one.action, &one.target);
        assert!(said.starts_with('+'), "{said} for {one:?} in\n{text}");
    }
    text
}

#[test]
fn nothing_tried_is_nothing_suggested() {
    assert_eq!(suggest(&[]), "");
}

#[test]
fn one_line_for_each_object_whatever_was_tried_how_often() {
    let tried = attempts(vec![
        (Action::Read, file("/etc/hosts")),
        (Action::Read, file("/etc/hosts")),
        (Action::Write, file("/etc/hosts")),
        (Action::Read, folder("/etc")),
        (Action::Exec, file("/bin/sh")),
        (Action::Connect, v4(6, [192, 0, 2, 7], 443)),
        (Action::Connect, v6(17, "2001:db8::7", 53)),
        (Action::Connect, known_as("api.example.com", v4(6, [192, 0, 2, 7], 443))),
        (Action::Connect, known_as("api.example.com", v4(6, [192, 0, 2, 8], 443))),
        (Action::Bind, v6(17, "::1", 0)),
        (Action::Connect, Target::UnixSocket("@bus".into())),
        (Action::Bind, Target::UnixSocket("/run/s".into())),
        (Action::Socket, Target::Socket(agent_ebpf::SocketKind::Netlink)),
        (Action::Privilege, Target::Privilege(agent_ebpf::Privilege::Mount)),
        (Action::Read, file("/odd \"name\"\n\\x")),
    ]);
    let text = permits(&tried);
    assert_eq!(
        text,
        r#"@id("coder exec: /bin/sh")
permit(principal == Agent::"coder", action == Action::"exec", resource == Program::"/bin/sh");
@id("coder read: folder /etc")
permit(principal == Agent::"coder", action == Action::"read", resource == Dir::"/etc");
@id("coder read+write: /etc/hosts")
permit(principal == Agent::"coder", action in [Action::"read", Action::"write"], resource == File::"/etc/hosts");
@id("coder read: /odd \"name\"\n\\x")
permit(principal == Agent::"coder", action == Action::"read", resource == File::"/odd \"name\"\n\\x");
@id("coder bind: /run/s")
permit(principal == Agent::"coder", action == Action::"bind", resource == UnixSocket::"/run/s");
@id("coder connect: @bus")
permit(principal == Agent::"coder", action == Action::"connect", resource == UnixSocket::"@bus");
@id("coder privilege: mount")
permit(principal == Agent::"coder", action == Action::"privilege", resource == Privilege::"mount");
@id("coder socket: netlink")
permit(principal == Agent::"coder", action == Action::"socket", resource == SocketFamily::"netlink");
@id("coder connect: api.example.com port 443 tcp")
permit(principal == Agent::"coder", action == Action::"connect", resource is Peer) when { resource has host && resource.host == "api.example.com" && resource.port == 443 && resource.protocol == "tcp" };
@id("coder connect: 192.0.2.7 port 443 tcp")
permit(principal == Agent::"coder", action == Action::"connect", resource is Peer) when { resource.ip == ip("192.0.2.7") && resource.port == 443 && resource.protocol == "tcp" };
// Port 0 is where the kernel chooses one.
@id("coder bind: ::1 port 0 udp")
permit(principal == Agent::"coder", action == Action::"bind", resource is Peer) when { resource.ip == ip("::1") && resource.port == 0 && resource.protocol == "udp" };
@id("coder connect: 2001:db8::7 port 53 udp")
permit(principal == Agent::"coder", action == Action::"connect", resource is Peer) when { resource.ip == ip("2001:db8::7") && resource.port == 53 && resource.protocol == "udp" };
"#
    );
}

#[test]
fn many_files_of_one_folder_become_the_folder() {
    let mut tried: Vec<(Action, Target)> =
        (0..8).map(|n| (Action::Read, file(&format!("/w/{n}")))).collect();
    tried.extend((0..9).map(|n| (Action::Read, file(&format!("/w/deep/{n}")))));
    tried.extend((0..7).map(|n| (Action::Write, file(&format!("/v/{n}")))));
    tried.push((Action::Write, file("/w/0")));
    tried.extend((0..9).map(|n| (Action::Exec, file(&format!("/top{n}")))));
    let text = permits(&attempts(tried));
    assert!(text.starts_with(
        "// 17 places in this folder were tried; this permits everything beneath it.\n@id(\"coder read: all of /w\")\npermit(principal == Agent::\"coder\", action == Action::\"read\", resource in Dir::\"/w\");\n"
    ), "{text}");
    assert_eq!(text.matches("@id").count(), 1 + 7 + 1 + 9, "{text}");
    assert!(!text.contains("Dir::\"/\""), "{text}");
}

#[test]
fn what_no_line_can_permit_is_said() {
    use std::os::unix::ffi::OsStringExt;
    let odd = std::ffi::OsString::from_vec(b"/w/\xff".to_vec());
    let text =
        suggest(&attempts(vec![(Action::Read, Target::File { path: odd.into(), is_dir: false })]));
    assert!(text.contains(r"// Not permitted by any line: /w/\xff cannot be named"), "{text}");
    assert!(!text.contains("permit("), "{text}");
}
