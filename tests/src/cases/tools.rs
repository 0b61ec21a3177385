//! What must not break: a policy that permits everything leaves the tools of every day as they are.
//!
//! Only on the machine itself: test guests have none of these tools.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{Case, case, shared};
use crate::actor::{Output, entering, run_limited};
use crate::events::{DENIED, Event};
use crate::stage::USER;
use crate::world::{World, ground};

/// A tool, and a script that uses it and says the same each time.
const TOOLS: &[(&str, &str)] = &[
    (
        "git",
        "git init -q repo && cd repo && git config user.name a && git config user.email a@b && \
         echo text >file && git add file && git commit -q -m first && git checkout -q -b other && \
         echo more >>file && git commit -q -a -m second && git clone -q . ../clone && \
         git gc -q && git log --format=%s && git status --short",
    ),
    (
        "tar",
        "mkdir -p tree/deep && echo a >tree/a && ln -s a tree/link && ln tree/a tree/deep/b && \
         tar czf tree.tgz tree && mkdir out && tar xzf tree.tgz -C out && ls -R out && cat out/tree/deep/b",
    ),
    (
        "python3",
        "python3 -m venv --without-pip venv && venv/bin/python -c 'import subprocess, threading; \
         print(subprocess.check_output([\"echo\", \"child\"]))'",
    ),
    (
        "make",
        "printf 'all: a b c d e f\\n%%: ; @sleep 0.1; echo $@ >$@\\n' >Makefile && \
         make -s -j4 all && cat a b c d e f",
    ),
    (
        "ssh-keygen",
        "ssh-keygen -q -t ed25519 -N '' -C '' -f key && ssh-keygen -y -f key >again && \
         cut -d' ' -f1,2 key.pub | cmp - again && stat -c %a key",
    ),
    (
        "cargo",
        "cargo init -q --vcs none --name tiny tiny && cd tiny && \
         cargo build -q --offline && target/debug/tiny",
    ),
];

pub(super) fn cases() -> Vec<Case> {
    let test = |(tool, script): &'static (&'static str, &'static str)| {
        let name =
            format!("a_policy_that_permits_everything_leaves_{}_alone", tool.replace('-', "_"));
        case(&name, move || shared(|world| unchanged(world, tool, script)))
    };
    TOOLS.iter().map(test).collect()
}

/// The script in a folder of its own, with an environment of its own.
fn in_folder(folder: &Path, script: &str) -> String {
    format!(
        "cd {0} && export HOME={0} PATH=/usr/bin:/bin LC_ALL=C && {{ {script}; }} 2>&1",
        folder.display()
    )
}

fn unchanged(world: &World, tool: &str, script: &str) -> Result<()> {
    if !Path::new("/usr/bin").join(tool).exists() {
        return Ok(());
    }
    let name = format!("everyday-{tool}");
    let [own, other] = [format!("{name}-agent"), format!("{name}-beside")];
    let (own, other) = (ground(&own)?, ground(&other)?);
    let events = world.events();
    let agent = world.agent(&name).policy("permit (principal, action, resource);\n")?;
    let agents = agent.run(&["/bin/sh", "-c", &in_folder(&own, script)])?;
    let beside = world.attach.join("bystanders");
    let steps = in_folder(&other, script);
    let steps = ["become", "/bin/sh", "-c", &steps];
    let limit = world.stage.patience(std::time::Duration::from_secs(60));
    let bystanders = run_limited(&mut entering(&beside, USER, &steps), limit)?;
    bystanders.expect_code(0)?;
    let said = |output: &Output, folder: &Path| -> String {
        // What the actor says of its own steps is no part of it.
        let lines = output.stdout.lines().filter(|line| !line.contains("\"errno\":"));
        let text: Vec<&str> = lines.collect();
        text.join("\n").replace(&folder.display().to_string(), "FOLDER")
    };
    let (agents_said, bystanders_said) = (said(&agents, &own), said(&bystanders, &other));
    ensure!(
        agents.code == bystanders.code && agents_said == bystanders_said,
        "{tool} is not what it is to a bystander:\n{}\nbut\n{}",
        agents.whole(),
        bystanders.whole()
    );
    events.wait("that the agent ran", |event| event.agent() == name)?;
    std::thread::sleep(world.stage.patience(std::time::Duration::from_millis(300)));
    let denied: Vec<String> = events
        .so_far()?
        .iter()
        .filter(|event| event.agent() == name && event.verdict() == DENIED)
        .map(Event::brief)
        .collect();
    ensure!(denied.is_empty(), "{tool} was denied what is permitted: {denied:#?}");
    Ok(())
}
