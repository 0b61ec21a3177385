//! What must not break: a policy that permits everything leaves the tools of every day as they are.
//!
//! On the machine itself they are its own tools, and those it lacks are skipped aloud. In a test guest they are
//! Debian's, from the disk of its own that the suite gives it (`xtask/src/userland.rs`), and none may be missing.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Case, Skipped, case, shared};
use crate::actor::{Output, entering, run_limited};
use crate::events::{DENIED, Event, LAUNCH, PROCESS};
use crate::stage::{PROGRAMS, USER};
use crate::world::{World, ground};

/// A use of tools that says the same each time.
struct Everyday {
    name: &'static str,
    /// What it is about, and what else may be missing of what it runs.
    programs: &'static [&'static str],
    script: &'static str,
}

const EVERYDAY: &[Everyday] = &[
    Everyday {
        name: "git",
        programs: &["git"],
        script: "git init -q repo\ncd repo\ngit config user.name a\ngit config user.email a@b\n\
                 echo text >file\ngit add file\ngit commit -q -m first\ngit checkout -q -b other\n\
                 echo more >>file\ngit commit -q -a -m second\ngit clone -q . ../clone\n\
                 git gc -q\ngit log --format=%s\ngit status --short\n",
    },
    Everyday {
        name: "tar",
        programs: &["tar", "gzip"],
        script: "mkdir -p tree/deep\necho a >tree/a\nln -s a tree/link\nln tree/a tree/deep/b\n\
                 tar czf tree.tgz tree\nmkdir out\ntar xzf tree.tgz -C out\nls -R out\n\
                 cat out/tree/deep/b\n",
    },
    Everyday {
        name: "python3",
        programs: &["python3"],
        script: "python3 -m venv --without-pip venv\n\
                 venv/bin/python -c 'import subprocess, threading; \
                 print(subprocess.check_output([\"echo\", \"child\"]))'\n",
    },
    Everyday {
        name: "make",
        programs: &["make", "cc"],
        script: "for part in a b c d; do echo \"int $part(void) { return 1; }\" >$part.c; done\n\
                 echo 'int a(void), b(void), c(void), d(void);' >sum.c\n\
                 echo 'int main(void) { return a() + b() + c() + d(); }' >>sum.c\n\
                 printf 'sum: a.o b.o c.o d.o\\n' >Makefile\nmake -j4 --output-sync sum >said\n\
                 sort said\n./sum || test $? = 4\n",
    },
    Everyday {
        name: "ssh_keygen",
        programs: &["ssh-keygen"],
        script: "ssh-keygen -q -t ed25519 -N '' -C '' -f key\nssh-keygen -y -f key >again\n\
                 cut -d' ' -f1,2 key.pub | cmp - again\nstat -c %a key\n",
    },
    Everyday {
        name: "apt_get",
        programs: &["apt-get", "dpkg-deb"],
        // From a repository made on the spot, with settings that lead nowhere else.
        script: "mkdir -p tiny/DEBIAN tiny/usr/share repository apt/lists/partial apt/archives/partial\n\
                 echo text >tiny/usr/share/text\n\
                 printf '%s: %s\\n' Package tiny Version 1 Architecture all Maintainer 'a <a@b.test>' \
                 Description tiny >tiny/DEBIAN/control\n\
                 dpkg-deb --root-owner-group -b tiny repository/tiny.deb\n\
                 cd repository\n\
                 { dpkg-deb -f tiny.deb; printf '%s: %s\\n' Filename ./tiny.deb \
                 Size $(stat -c %s tiny.deb) SHA256 $(sha256sum tiny.deb | cut -d' ' -f1); } >Packages\n\
                 cd ..\n\
                 echo \"deb [trusted=yes] copy:$PWD/repository ./\" >apt/sources\n\
                 >apt/status\n\
                 printf 'Dir::%s \"%s\";\\n' Etc::main /dev/null Etc::parts /dev/null \
                 Etc::sourcelist $PWD/apt/sources Etc::sourceparts /dev/null \
                 Etc::preferences /dev/null Etc::preferencesparts /dev/null \
                 State $PWD/apt State::status $PWD/apt/status Cache $PWD/apt >apt/conf\n\
                 export APT_CONFIG=$PWD/apt/conf\n\
                 apt-get -q=2 update\napt-get -q=2 download tiny\n\
                 dpkg-deb -x tiny_1_all.deb out\ncat out/usr/share/text\n",
    },
    Everyday {
        name: "cargo",
        programs: &["cargo", "rustc", "cc"],
        script: "cargo init -q --vcs none --name tiny tiny\ncd tiny\ncargo build -q --offline\n\
                 target/debug/tiny\n",
    },
];

pub(super) fn cases() -> Vec<Case> {
    let test = |everyday: &'static Everyday| {
        let name = format!("a_policy_that_permits_everything_leaves_{}_alone", everyday.name);
        case(&name, move || shared(|world| unchanged(world, everyday)))
    };
    EVERYDAY.iter().map(test).collect()
}

/// Where a test guest has the tools' disk, if it has one.
const LENDER: &str = "/mnt/debian";
const LENT: &str = "/mnt/debian/usr";

/// The tools of a test guest: its `/usr` is theirs for as long as this lives, with Ambit's programs in it.
struct Borrowed;

impl Borrowed {
    fn new() -> Result<Self> {
        const NONE: Option<&str> = None;
        let borrowed = Self;
        let show = |from: &Path, at: &Path| {
            mount(Some(from), at, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
                .with_context(|| format!("cannot show {from:?} at {at:?}"))
        };
        for (program, at) in Self::programs() {
            // Something to show it at; nothing is written there.
            let made = File::options().create(true).append(true).open(&at);
            made.with_context(|| format!("cannot make {at:?}"))?;
            show(&program, &at)?;
        }
        show(Path::new(LENT), Path::new("/usr"))?;
        Ok(borrowed)
    }

    /// Ambit's programs, and where they are among the tools.
    fn programs() -> impl Iterator<Item = (PathBuf, PathBuf)> {
        let place = |usr: &str, program| Path::new(usr).join("bin").join(program);
        PROGRAMS.into_iter().map(move |program| (place("/usr", program), place(LENT, program)))
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        // What was not mounted is not there to be taken off.
        let _ = umount2("/usr", MntFlags::MNT_DETACH);
        for (_, at) in Self::programs() {
            let _ = umount2(&at, MntFlags::MNT_DETACH);
        }
    }
}

/// The script in a folder of its own, with an environment of its own.
fn in_folder(folder: &Path, script: &str) -> String {
    format!(
        "set -e\nexec 2>&1\ncd {0}\nexport HOME={0} PATH=/usr/bin:/bin LC_ALL=C\n{script}",
        folder.display()
    )
}

fn unchanged(world: &World, everyday: &Everyday) -> Result<()> {
    let Everyday { name: tool, programs, script } = everyday;
    // A disk that could not be mounted leaves a folder without tools, which is an error.
    let lends = world.stage.is_guest() && Path::new(LENDER).exists();
    let borrowed = lends.then(Borrowed::new).transpose()?;
    for program in *programs {
        let missing = !Path::new("/usr/bin").join(program).exists();
        ensure!(!missing || borrowed.is_none(), "{program} is not among the guest's tools");
        if missing {
            return Err(Skipped::because(&format!("no /usr/bin/{program}")));
        }
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
    let limit = world.stage.patience(Duration::from_secs(60));
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
    events.wait("that the agent ran it", |event| {
        let launch = (event.class(), event.activity()) == (PROCESS, LAUNCH);
        launch && event.agent() == name && event.command_line().contains(programs[0])
    })?;
    std::thread::sleep(world.stage.patience(Duration::from_millis(300)));
    let denied: Vec<String> = events
        .so_far()?
        .iter()
        .filter(|event| event.agent() == name && event.verdict() == DENIED)
        .map(Event::brief)
        .collect();
    ensure!(denied.is_empty(), "{tool} was denied what is permitted: {denied:#?}");
    Ok(())
}
