//! X: ways to run what may not be run, and to gain power.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use anyhow::Result;

use super::{Place, Setup, Way, Who, attempt, way};
use crate::policy::on_path;
use crate::stage::{ACTOR, USER};
use crate::world::{World, file, tool};

/// The programs' loader.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

pub(super) fn ways() -> Vec<Way> {
    vec![
        way("X1", "copies and links of a program", Who::User, copies),
        way("X2", "loaders and interpreters", Who::User, interpreters),
        way("X3", "programs without a place", Who::User, placeless),
        way("X4", "code from libraries and memory", Who::User, code),
        way("X5", "privileges", Who::Root, privileges),
    ]
}

/// A program that may be read, written and moved, and not run.
fn forbidden(at: &Place) -> Result<(String, String)> {
    let path = tool(&at.base.join("tools/tool"))?;
    for place in ["tools/tool", "tools"] {
        chown(at.at(place), Some(USER), Some(USER))?;
    }
    let policy = on_path("tool", "forbid", "exec", "Program", &path);
    Ok((path, policy))
}

/// A script of the agents' user that may be run.
fn script(path: &str, text: &str) -> Result<String> {
    let path = file(Path::new(path), text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn copies(_: &World, at: &Place) -> Result<Setup> {
    let (tool, policy) = forbidden(at)?;
    let [copy, link, named, linked] =
        ["copy", "link", "renamed", "symlink"].map(|name| at.at(&format!("open/{name}")));
    let script = script(&at.at("open/script"), &format!("#!{tool} nothing\n"))?;
    let run = |what, path: &str| attempt(what).step(&["exec", path, "nothing"]);
    Ok(Setup::of(vec![
        run("a script with a shebang to it", &script).told_by(&[&tool, &script]),
        attempt("symlink")
            .step(&["symlink", &tool, &linked])
            .step(&["exec", &linked, "nothing"])
            .told_by(&[&tool]),
        attempt("hard link")
            .step(&["link", &tool, &link])
            .step(&["exec", &link, "nothing"])
            .told_by(&[&tool, &link]),
        attempt("copy")
            .step(&["copy", &tool, &copy])
            .step(&["run", &copy, "must", "nothing"])
            .told_by(&[&copy]),
        attempt("rename")
            .step(&["rename", &tool, &named])
            .step(&["run", &named, "must", "nothing"])
            .told_by(&[&tool, &named]),
    ])
    .policy(policy))
}

fn interpreters(_: &World, at: &Place) -> Result<Setup> {
    let (tool, policy) = forbidden(at)?;
    let script = script(&at.at("tools/script"), "#!/bin/sh\nexit 0\n")?;
    let policy = policy + &on_path("script", "forbid", "exec", "Program", &script);
    Ok(Setup::of(vec![
        attempt("the loader")
            .step(&["run", LOADER, &tool, "must", "nothing"])
            .told_by(&[&tool, LOADER]),
        attempt("a script by its interpreter")
            .step(&["run", "/bin/sh", &script])
            .told_by(&[&script]),
        attempt("a script on standard input")
            .step(&["run-fed", "/bin/sh", &script])
            .told_by(&[&script]),
    ])
    .policy(policy))
}

fn placeless(_: &World, at: &Place) -> Result<Setup> {
    let gone = at.at("open/gone");
    let outside = format!("{}-not-permitted", at.base.display());
    let elsewhere = tool(Path::new(&outside))?;
    Ok(Setup::of(vec![
        attempt("memfd and execveat").step(&["memory-exec", ACTOR]).told_by(&[
            "/memfd:tool",
            "/memfd:tool (deleted)",
            "(unresolved)",
            "exec",
        ]),
        attempt("memfd by /proc/self/fd").step(&["memory-exec-path", ACTOR]).told_by(&[
            "/memfd:tool",
            "/memfd:tool (deleted)",
            "(unresolved)",
            "exec",
        ]),
        attempt("a deleted file").step(&["deleted-exec", ACTOR, &gone]).told_by(&[
            &gone,
            &format!("{gone} (deleted)"),
            "(unresolved)",
        ]),
        attempt("a tmpfs").step(&["run", &elsewhere, "must", "nothing"]).told_by(&[&elsewhere]),
    ]))
}

fn code(_: &World, at: &Place) -> Result<Setup> {
    let library = tool(&at.base.join("tools/library.so"))?;
    let policy = on_path("library", "forbid", "exec", "Program", &library);
    Ok(Setup::of(vec![
        attempt("a library mapped to be run").step(&["map-exec", &library]).told_by(&[&library]),
        attempt("a mapped library made code")
            .step(&["protect-exec", &library])
            .told_by(&[&library]),
        attempt("code in anonymous memory").step(&["memory-of-code"]).told_by(&["execmem"]),
        attempt("anonymous memory made code").step(&["memory-to-code"]).told_by(&["execmem"]),
        attempt("code in shared memory").step(&["shared-to-code"]).told_by(&["execmem"]),
        attempt("code in a memfd").step(&["memfd-of-code"]).told_by(&["execmem"]),
        attempt("code in a device's memory").step(&["device-to-code"]).told_by(&["execmem"]),
        attempt("code written over a program's")
            .step(&["written-to-code", ACTOR])
            .told_by(&["execmem"]),
    ])
    .policy(policy))
}

fn privileges(_: &World, at: &Place) -> Result<Setup> {
    let suid = tool(&at.base.join("open/suid"))?;
    chown(&suid, Some(0), Some(0))?;
    fs::set_permissions(&suid, fs::Permissions::from_mode(0o4755))?;
    Ok(Setup::of(vec![
        attempt("a set-uid program")
            .step(&["user", &USER.to_string()])
            .step(&["run", &suid, "must", "need-root"])
            .told_by(&["setuid", "capability"]),
        attempt("unshare").step(&["unshare", "network"]).told_by(&["namespace"]),
        attempt("setns").step(&["enter-own", "uts"]).told_by(&["namespace"]),
        attempt("mount").step(&["mount-tmpfs", &at.at("open")]).told_by(&["mount"]),
        attempt("bpf").step(&["bpf"]).told_by(&["bpf"]),
        attempt("module").step(&["load-module"]).told_by(&["module"]).optional(),
        attempt("kexec").step(&["load-kernel"]).told_by(&["kexec"]).optional(),
        attempt("device setting").step(&["set-mtu"]).told_by(&["capability"]),
    ]))
}
