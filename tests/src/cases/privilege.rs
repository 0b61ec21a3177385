//! Privileges: what reaches beyond an agent's own processes and files, by root and by a plain user.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Case, case, fresh, shared};
use crate::actor::{AgentRun, EPERM, Output};
use crate::events::{DENIED, Event, OBSERVED};
use crate::policy::with_base;
use crate::stage::USER;
use crate::world::{Settings, World, agent_table, find_action, ground, tool};

/// One way to use a privilege.
#[derive(Clone, Copy)]
struct Deed {
    name: &'static str,
    privilege: &'static str,
    row: &'static str,
    /// Only root can do it at all: to others the kernel itself says no.
    root: bool,
    step: fn(&Setting) -> Vec<String>,
}

/// What a step is done to.
struct Setting {
    /// A process of nobody's.
    bystander: u32,
    ground: String,
}

const fn deed(
    name: &'static str,
    privilege: &'static str,
    row: &'static str,
    root: bool,
    step: fn(&Setting) -> Vec<String>,
) -> Deed {
    Deed { name, privilege, row, root, step }
}

fn words(step: &[&str]) -> Vec<String> {
    step.iter().map(ToString::to_string).collect()
}

/// What `/proc/PID/mem` answers where the kernel may not look.
const EACCES: i64 = 13;

const TRACE: &str = "ptrace, signal";
const SPACES: &str = "mount, namespace";
/// Of which only what is denied is told.
const CODE: &str = "execmem";
const POWERS: &str = "capability, module, kexec";

const DEEDS: &[Deed] = &[
    deed("tracing", "ptrace", TRACE, false, |at| words(&["trace", &at.bystander.to_string()])),
    deed("reading_memory", "ptrace", TRACE, false, |at| {
        words(&["peek", &at.bystander.to_string()])
    }),
    deed("opening_proc_mem", "ptrace", TRACE, false, |at| {
        words(&["open-read", &format!("/proc/{}/mem", at.bystander)])
    }),
    deed("taking_a_descriptor", "ptrace", TRACE, false, |at| {
        words(&["take-descriptor", &at.bystander.to_string()])
    }),
    // SIGCONT does nothing to one that runs.
    deed("signalling", "signal", TRACE, false, |at| {
        words(&["kill", "18", &at.bystander.to_string()])
    }),
    deed("a_user_namespace", "namespace", SPACES, false, |_| words(&["unshare", "user"])),
    deed("a_mount_namespace", "namespace", SPACES, true, |_| words(&["unshare", "mount"])),
    deed("a_network_namespace", "namespace", SPACES, true, |_| words(&["unshare", "network"])),
    deed("entering_a_namespace", "namespace", SPACES, true, |_| words(&["enter-own", "uts"])),
    deed("mounting", "mount", SPACES, true, |at| words(&["mount-tmpfs", &at.ground])),
    deed("binding_a_mount", "mount", SPACES, true, |at| words(&["bind-mount", "/etc", &at.ground])),
    deed("moving_a_mount", "mount", SPACES, true, |at| words(&["move-mount", "/etc", &at.ground])),
    deed("making_a_device", "capability", POWERS, true, |at| {
        words(&["make-device", &format!("{}/null", at.ground)])
    }),
    deed("setting_up_the_network", "capability", POWERS, true, |_| words(&["set-mtu"])),
    deed("loading_a_module", "module", POWERS, true, |_| words(&["load-module"])),
    deed("loading_a_kernel", "kexec", POWERS, true, |_| words(&["load-kernel"])),
    deed("making_memory_code", CODE, CODE, false, |_| words(&["memory-to-code"])),
    deed("mapping_memory_as_code", CODE, CODE, false, |_| words(&["memory-of-code"])),
    deed("mapping_a_memfd_as_code", CODE, CODE, false, |_| words(&["memfd-of-code"])),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for deed in DEEDS {
        for (promise, test) in [
            ("allows_permitted", allows as fn(&Deed, &World) -> Result<()>),
            ("denies_unpermitted", denies),
            ("audit_mode_lets_go_and_tells", observes),
        ] {
            let audited = ["tracing", "signalling", "mounting", "a_user_namespace"];
            if promise == "audit_mode_lets_go_and_tells" && !audited.contains(&deed.name) {
                continue;
            }
            let name = format!("{promise}_{}", deed.name);
            let case = case(&name, move || shared(|world| test(deed, world)));
            // What the verifier knows of a hook's file differs between kernels.
            cases.push(if deed.row == CODE { case.in_subset() } else { case });
        }
    }
    cases.push(case("agents_signal_and_trace_their_own", || shared(own_processes)).in_subset());
    cases.push(case("ambit_is_out_of_reach_of_privileges", || shared(ambit_itself)).in_subset());
    cases.push(
        case("set_uid_programs_gain_nothing", || fresh(Settings::default(), set_uid)).alone(),
    );
    cases
}

/// A process that no agent has, ended when dropped.
struct Bystander(Child);

impl Bystander {
    fn start() -> Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new("/bin/sleep");
        command.arg("600").stdin(Stdio::null()).stdout(Stdio::null());
        // As the agents' user, so that only Ambit stands between.
        Ok(Self(command.uid(USER).gid(USER).spawn().context("no bystander")?))
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn covered(row: &str, world: &World) -> Result<bool> {
    let doctor = world.doctor()?;
    let row = find_action(&doctor, row)?;
    let covered = row["enforced_by"].is_string();
    ensure!(
        covered || row["why"].as_str().is_some_and(|why| why.contains("not covered")),
        "the doctor does not say so: {row}"
    );
    Ok(covered)
}

fn agent(deed: &Deed, world: &World, name: &str, more: &str) -> Result<AgentRun> {
    // What the deed is done with is readable and writable: only the privilege counts.
    let files = "permit (principal, action in [Action::\"read\", Action::\"write\"], \
                 resource in Dir::\"/\");\n";
    let agent = world.agent(name).policy(&with_base(&format!("{files}{more}")))?;
    Ok(if deed.root { agent.as_root() } else { agent })
}

fn permit(deed: &Deed) -> String {
    format!(
        "@id(\"granted\") permit (principal, action == Action::\"privilege\", \
         resource == Privilege::{:?});\n",
        deed.privilege
    )
}

fn name_of(promise: &str, deed: &Deed) -> String {
    format!("{promise}-{}", deed.name.replace('_', "-"))
}

fn setting(name: &str) -> Result<(Setting, Bystander)> {
    let bystander = Bystander::start()?;
    let ground = ground(name)?.display().to_string();
    Ok((Setting { bystander: bystander.0.id(), ground }, bystander))
}

fn is_told(deed: &Deed, event: &Event, agent: &str) -> bool {
    event.agent() == agent
        && event.action() == "privilege"
        && event.text(&["unmapped", "privilege"]) == deed.privilege
}

fn run(deed: &Deed, agent: &AgentRun, at: &Setting) -> Result<(Output, String)> {
    let step = (deed.step)(at);
    let step: Vec<&str> = step.iter().map(String::as_str).collect();
    Ok((agent.act(&step)?, step[0].to_owned()))
}

fn allows(deed: &Deed, world: &World) -> Result<()> {
    let name = name_of("may", deed);
    let (at, bystander) = setting(&name)?;
    let events = world.events();
    // Making a namespace needs CAP_SYS_ADMIN for nothing else; a kernel may still refuse on its own.
    let (output, step) = run(deed, &agent(deed, world, &name, &permit(deed))?, &at)?;
    drop(bystander);
    output.expect(&step, 0)?;
    if !covered(deed.row, world)? || deed.row == CODE {
        return Ok(());
    }
    let event = events.wait("that it was allowed", |event| is_told(deed, event, &name))?;
    ensure!(event.policy() == "granted", "the event says otherwise: {}", event.brief());
    world.wait("the metric counts it", || counted(world, &name, "allowed"))
}

fn denies(deed: &Deed, world: &World) -> Result<()> {
    let name = name_of("may-not", deed);
    let (at, bystander) = setting(&name)?;
    let events = world.events();
    let (output, step) = run(deed, &agent(deed, world, &name, "")?, &at)?;
    drop(bystander);
    if !covered(deed.row, world)? {
        // The ceiling refuses some of it, and tells nobody.
        let ceiling =
            world.doctor()?["ceiling"].as_str().is_some_and(|text| text.starts_with("Landlock"));
        return match deed.name {
            "making_a_device" if ceiling => output.expect(&step, EACCES),
            _ if ceiling && ["ptrace", "mount"].contains(&deed.privilege) => {
                refused(&output, &step)
            }
            _ => output.expect(&step, 0),
        };
    }
    refused(&output, &step)?;
    let event = events.wait("that it was denied", |event| is_told(deed, event, &name))?;
    ensure!(event.verdict() == DENIED, "the event says otherwise: {}", event.brief());
    world.wait("the metric counts it", || counted(world, &name, "denied"))
}

fn observes(deed: &Deed, world: &World) -> Result<()> {
    if !covered(deed.row, world)? {
        return Ok(());
    }
    let name = name_of("would", deed);
    let (at, bystander) = setting(&name)?;
    let events = world.events();
    let agent = agent(deed, world, &name, "")?.option("--audit");
    let (output, step) = run(deed, &agent, &at)?;
    drop(bystander);
    output.expect(&step, 0)?;
    let event = events.wait("that it would be denied", |event| is_told(deed, event, &name))?;
    ensure!(event.verdict() == OBSERVED, "the event says otherwise: {}", event.brief());
    world.wait("the metric counts it", || counted(world, &name, "audit"))
}

/// Asserts a denial. `/proc/PID/mem` answers EACCES to those who may not trace (fs/proc/base.c).
fn refused(output: &Output, step: &str) -> Result<()> {
    output.expect(step, if step == "open-read" { EACCES } else { EPERM })
}

fn own_processes(world: &World) -> Result<()> {
    let script = "sleep 60 & kill -STOP $! && kill -CONT $! && kill $! && wait $!; echo ended $?";
    let output = world.agent("boss").policy(&with_base(""))?.run(&["/bin/sh", "-c", script])?;
    ensure!(output.stdout.contains("ended 143"), "its own child: {}", output.whole());
    let script = "sleep 60 & exec /usr/bin/ambit-actor trace $! then peek $! then \
                  kill 18 $! then kill 9 $!";
    let output = world.agent("boss").policy(&with_base(""))?.run(&["/bin/sh", "-c", script])?;
    for step in ["trace", "peek", "kill 18", "kill 9"] {
        output.expect(step, 0)?;
    }
    Ok(())
}

/// Its processes and its maps stay out of reach when every privilege is permitted.
fn ambit_itself(world: &World) -> Result<()> {
    if !covered(TRACE, world)? {
        return Ok(());
    }
    let daemon = world.daemon_pid()?.to_string();
    let all = "permit (principal, action, resource);";
    let agent = world.agent("titan").policy(&with_base(all))?.as_root();
    let events = world.events();
    let output = agent.act(&[
        "kill",
        "18",
        &daemon,
        "then",
        "peek",
        &daemon,
        "then",
        "trace",
        &daemon,
        "then",
        "open-read",
        &format!("/proc/{daemon}/mem"),
    ])?;
    for step in ["kill", "peek", "trace", "open-read"] {
        refused(&output, step)?;
    }
    events
        .wait("the denial, by the built-in rule", |event| {
            event.agent() == "titan"
                && event.action() == "privilege"
                && event.verdict() == DENIED
                && event.policy() == "ambit:protected"
        })
        .map(drop)
}

/// An agent that `ambit run` did not start may gain privileges: a set-uid program asks for one.
fn set_uid(world: &mut World) -> Result<()> {
    use std::os::unix::fs::{PermissionsExt, chown};
    let cell = world.attach.join("cell-suid");
    crate::stage::make_folder(&cell)?;
    let tables = agent_table("gainer", "cell-suid", "enforce")
        + &agent_table("gainer-may", "cell-suid-may", "enforce");
    crate::stage::make_folder(&world.attach.join("cell-suid-may"))?;
    world.configure(&tables)?;
    let place = ground("suid")?.join("tool");
    let path = tool(&place)?;
    chown(&place, Some(0), Some(0))?;
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o4755))?;
    let exec = "permit (principal, action in [Action::\"exec\", Action::\"read\"], \
                resource in Dir::\"/ground/suid\");\n\
                @id(\"granted\") permit (principal == Agent::\"gainer-may\", \
                action == Action::\"privilege\", resource == Privilege::\"setuid\");\n";
    world.policy("suid", &with_base(exec))?;
    world.start()?;
    let events = world.events();
    let steps = ["exec", path.as_str(), "nothing"];
    let output = world.in_cgroup(&cell, USER, &steps)?;
    if !covered("setuid", world)? {
        return output.expect("exec", 0);
    }
    output.expect("exec", EPERM)?;
    events.wait("the denial", |event| {
        event.agent() == "gainer"
            && event.text(&["unmapped", "privilege"]) == "setuid"
            && event.verdict() == DENIED
    })?;
    let output = world.in_cgroup(&world.attach.join("cell-suid-may"), USER, &steps)?;
    output.expect("exec", 0)
}

fn counted(world: &World, agent: &str, verdict: &str) -> Result<bool> {
    let labels = [("agent", agent), ("action", "privilege"), ("verdict", verdict)];
    Ok(world.metrics()?.value("ambit_actions_total", &labels).unwrap_or(0.0) > 0.0)
}
