//! The main job, shown: an agent that does its work, and what happens when it tries more.
//!
//! A small repository, a secret, two local servers and a policy are made on the stage. The agent is
//! a script that does what coding agents do and what they must not; every action of it is shown as
//! it happens, from the event stream, and each verdict is compared with the one that was expected.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::actor::{Running, run_limited};
use crate::events::{ALLOWED, DENIED, Event, Events, FILE, LAUNCH, NETWORK, PROCESS};
use crate::stage::{ACTOR, Stage, USER, make_folder};
use crate::world::{EVENTS, Settings, World};

const HOME: &str = "/home/coder";
const ORIGIN: &str = "/srv/project";
const KEY: &str = "/home/coder/.ssh/id_ed25519";
const TOOL: &str = "/opt/tools/deploy";
const DOCS: &str = "127.0.0.1:8080";
const DROP: &str = "127.0.0.1:9090";
const METRICS: &str = "127.0.0.1:9464";

/// The policy of the demo's agent.
pub const POLICY: &str = r#"// The coder: its tools, its work, one site. All else is denied.
@id("tools")
permit (principal == Agent::"coder", action == Action::"exec", resource in Dir::"/usr");
@id("tools-bin")
permit (principal == Agent::"coder", action == Action::"exec", resource in Dir::"/bin");
@id("tools-lib")
permit (principal == Agent::"coder", action == Action::"exec", resource in Dir::"/lib");
@id("tools-lib64")
permit (principal == Agent::"coder", action == Action::"exec", resource in Dir::"/lib64");
@id("own-tests")
permit (principal == Agent::"coder", action == Action::"exec", resource in Dir::"/home/coder/project");
@id("system")
permit (principal == Agent::"coder", action == Action::"read", resource);
@id("work")
permit (principal == Agent::"coder", action == Action::"write", resource in Dir::"/home/coder");
@id("devices")
permit (principal == Agent::"coder", action == Action::"write", resource in Dir::"/dev");
@id("scratch")
permit (principal == Agent::"coder", action == Action::"write", resource in Dir::"/tmp");
@id("addresses")
permit (principal == Agent::"coder", action == Action::"socket", resource == SocketFamily::"netlink");
@id("site")
permit (principal == Agent::"coder", action == Action::"connect", resource is Peer)
when { resource.ip == ip("127.0.0.1") && resource.port == 8080 && resource.protocol == "tcp" };

// Whatever the permits say.
@id("key")
forbid (principal, action == Action::"read", resource in Dir::"/home/coder/.ssh");
@id("key-write")
forbid (principal, action == Action::"write", resource in Dir::"/home/coder/.ssh");
@id("deploy")
forbid (principal, action == Action::"exec", resource in Dir::"/opt/tools");
"#;

/// One thing that the demo's agent does, and what must come of it.
struct Expected {
    what: &'static str,
    verdict: u64,
    policy: &'static str,
    told_by: fn(&Event) -> bool,
}

const EXPECTED: &[Expected] = &[
    Expected {
        what: "clone the repository",
        verdict: ALLOWED,
        policy: "system",
        told_by: |event| event.action() == "read" && event.path().starts_with(ORIGIN),
    },
    Expected {
        what: "edit a file",
        verdict: ALLOWED,
        policy: "work",
        told_by: |event| {
            event.action() == "write" && event.path() == "/home/coder/project/greeting.txt"
        },
    },
    Expected {
        what: "run the repository's tests",
        verdict: ALLOWED,
        policy: "own-tests",
        told_by: |event| {
            event.action() == "exec" && event.0.to_string().contains("/home/coder/project/test.sh")
        },
    },
    Expected {
        what: "fetch from the permitted server",
        verdict: ALLOWED,
        policy: "site",
        told_by: |event| event.action() == "connect" && event.peer() == DOCS,
    },
    Expected {
        what: "read the private key",
        verdict: DENIED,
        policy: "key",
        told_by: |event| event.action() == "read" && event.path() == KEY,
    },
    Expected {
        what: "send it to the other server",
        verdict: DENIED,
        policy: "",
        told_by: |event| event.action() == "connect" && event.peer() == DROP,
    },
    Expected {
        what: "start a forbidden tool",
        verdict: DENIED,
        policy: "deploy",
        told_by: |event| event.action() == "exec" && event.path() == TOOL,
    },
];

/// Runs the demo; the exit code is a failure if any verdict was not the expected one.
pub fn run() -> Result<ExitCode> {
    let stage = Stage::enter()?;
    stage.limit(Duration::from_secs(120))?;
    let paint = Paint::new();
    let settings = Settings { metrics: METRICS.to_owned(), ..Settings::default() };
    let mut world = World::empty(settings)?;
    let result = play(&mut world, &paint);
    if result.is_err() && !world.log().is_empty() {
        eprintln!("ambitd said:\n{}", world.log());
    }
    drop(world);
    result
}

fn play(world: &mut World, paint: &Paint) -> Result<ExitCode> {
    let git = Path::new("/usr/bin/git").exists() || Path::new("/usr/local/bin/git").exists();
    paint.title("The stage: a repository, a secret, two servers, a policy");
    make_home()?;
    make_repository(git, world)?;
    make_tool()?;
    serve(DOCS)?;
    serve(DROP)?;
    let policy = Path::new("/etc/ambit/coder.cedar");
    fs::write(policy, POLICY)?;
    world.start()?;
    println!("  repository {ORIGIN}   key {KEY}   forbidden tool {TOOL}");
    println!("  servers http://{DOCS} (permitted) and http://{DROP} (not)");
    println!("  files judged by {}, policy:\n", world.enforced_by("read")?);
    for line in POLICY.lines().filter(|line| !line.starts_with("//")) {
        println!("    {}", paint.dim(line));
    }

    paint.title("sudo ambit run --agent coder --policy coder.cedar -- ./agent.sh");
    if !git {
        println!("  (there is no git here, so the agent copies the repository instead)\n");
    }
    let script = Path::new(HOME).join("agent.sh");
    fs::write(&script, agent_script(git))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let events = world.events();
    let mut command = world
        .agent("coder")
        .policy_file(policy)
        .command(&["/bin/sh", &script.display().to_string()]);
    command.env("HOME", HOME).env("PATH", "/usr/local/bin:/usr/bin:/bin");
    let mut running = Running::start(command, world.stage.patience(Duration::from_secs(60)))?;
    let mut shown = Shown::default();
    while !running.has_ended()? {
        shown.show(&events, paint)?;
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = running.finish()?;
    // The last events may still be on their way.
    let all_came = world.wait("every expected event", || {
        shown.show(&events, paint)?;
        Ok(EXPECTED
            .iter()
            .all(|each| shown.seen.iter().any(|event| is_coders(event) && (each.told_by)(event))))
    });
    shown.end(paint);

    paint.title("What the agent itself saw");
    for line in output.stdout.lines().chain(output.stderr.lines()) {
        println!("  {line}");
    }
    if output.stdout.lines().all(|line| !line.contains("agent: done")) {
        println!("{}", paint.bad(&format!("  the agent did not finish: {}", output.whole())));
    }
    let good = verdicts(&shown.seen, &output.stdout, paint) && all_came.is_ok();
    counts(&shown.seen, paint);
    println!("\n  metrics  http://{METRICS}/metrics, such as");
    let metrics = world.metrics()?;
    for verdict in ["allowed", "denied"] {
        let labels = [("agent", "coder"), ("verdict", verdict)];
        let value = metrics.value("ambit_actions_total", &labels).unwrap_or(0.0);
        println!("           ambit_actions_total{{agent=\"coder\",verdict=\"{verdict}\"}} {value}");
    }
    println!("  events   {EVENTS} (OCSF 1.8.0, one a line)\n");
    world.stop()?;
    if good {
        println!("{}", paint.good("demo: every verdict was the expected one"));
        Ok(ExitCode::SUCCESS)
    } else {
        println!("{}", paint.bad("demo: not every verdict was the expected one"));
        Ok(ExitCode::FAILURE)
    }
}

/// The agent: a script with the steps of one, honest and not.
fn agent_script(git: bool) -> String {
    let clone = if git {
        format!("git clone --quiet --no-hardlinks {ORIGIN} project")
    } else {
        format!("cp -r {ORIGIN} project")
    };
    let commit = if git {
        "git -C project -c user.name=coder -c user.email=coder@example.org commit --quiet --all \
         --message 'Greet the world'"
    } else {
        "echo 'commit: Greet the world'"
    };
    let fetch = |server: &str, path: &str| {
        if Path::new("/usr/bin/curl").exists() {
            format!("curl --silent --show-error --max-time 5 http://{server}{path}")
        } else {
            format!("{ACTOR} strict then fetch {server} {path}")
        }
    };
    format!(
        "#!/bin/sh
# What a coding agent does.
try() {{ \"$@\" && echo \"agent: ok: $*\" || echo \"agent: stopped: $*\"; }}
cd {HOME} || exit 1
{clone} && echo 'agent: ok: clone'
echo 'hello, world' >project/greeting.txt && echo 'agent: ok: edit'
cd project && ./test.sh && echo 'agent: ok: test'
cd ..
{commit} && echo 'agent: ok: commit'
{docs} && echo 'agent: ok: fetch'
# What it must not do.
cat {KEY} || echo 'agent: stopped: read key'
ln -s {KEY} notes.txt
cp notes.txt copy.txt || echo 'agent: stopped: copy key'
{drop} || echo 'agent: stopped: send'
{TOOL} --now || echo 'agent: stopped: tool'
echo 'agent: done'
",
        docs = fetch(DOCS, "/guide"),
        drop = fetch(DROP, "/drop"),
    )
}

/// What the script says when all goes as it should.
const SAID: &[&str] = &[
    "ok: clone",
    "ok: edit",
    "ok: test",
    "ok: commit",
    "ok: fetch",
    "stopped: read key",
    "stopped: copy key",
    "stopped: send",
    "stopped: tool",
    "done",
];

fn make_home() -> Result<()> {
    for folder in [HOME, "/home/coder/.ssh", "/opt/tools", ORIGIN] {
        make_folder(Path::new(folder))?;
    }
    fs::write(KEY, "-----BEGIN OPENSSH PRIVATE KEY-----\nnot a real one\n")?;
    own(Path::new(HOME))
}

/// Gives a tree to the agents' user.
fn own(path: &Path) -> Result<()> {
    std::os::unix::fs::lchown(path, Some(USER), Some(USER))
        .with_context(|| format!("cannot give away {}", path.display()))?;
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path)? {
            own(&entry?.path())?;
        }
    }
    Ok(())
}

fn make_repository(git: bool, world: &World) -> Result<()> {
    let at = Path::new(ORIGIN);
    fs::write(at.join("greeting.txt"), "hello\n")?;
    fs::write(at.join("README"), "A project that greets.\n")?;
    let test = at.join("test.sh");
    fs::write(
        &test,
        "#!/bin/sh\nread -r greeting <greeting.txt\n[ \"$greeting\" = 'hello, world' ] && \
         echo '1 test passed'\n",
    )?;
    fs::set_permissions(&test, fs::Permissions::from_mode(0o755))?;
    own(at)?;
    if git {
        let script = "git init --quiet --initial-branch=main . && git add . && \
                      git -c user.name=a -c user.email=a@example.org commit --quiet --message First";
        let mut command = Command::new(ACTOR);
        command
            .args(["user", &USER.to_string(), "then", "chdir", ORIGIN, "then", "exec"])
            .args(["/bin/sh", "-c", script])
            .env("HOME", HOME)
            .env("PATH", "/usr/local/bin:/usr/bin:/bin");
        let output = run_limited(&mut command, world.stage.patience(Duration::from_secs(20)))?;
        ensure!(
            at.join(".git/refs/heads/main").exists(),
            "cannot make a repository: {}",
            output.whole()
        );
    }
    Ok(())
}

fn make_tool() -> Result<()> {
    fs::copy(ACTOR, TOOL).context("cannot make the forbidden tool")?;
    fs::set_permissions(TOOL, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Serves one short page to whoever comes.
fn serve(address: &str) -> Result<()> {
    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away is no matter.
            let _ = answer(&stream);
        }
    });
    Ok(())
}

fn answer(mut stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let page = "Greet the world, not only somebody.\n";
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
        page.len()
    )?;
    Ok(())
}

fn is_coders(event: &Event) -> bool {
    event.agent() == "coder"
}

/// What of the stream has been shown.
#[derive(Default)]
struct Shown {
    seen: Vec<Event>,
    quiet: usize,
}

impl Shown {
    fn show(&mut self, events: &Events, paint: &Paint) -> Result<()> {
        let all = events.so_far()?;
        for event in all.get(self.seen.len()..).unwrap_or_default() {
            if is_noise(event) {
                self.quiet += 1;
            } else {
                self.end(paint);
                println!("  {}", line(event, paint));
            }
            self.seen.push(event.clone());
        }
        Ok(())
    }

    /// Says how many were left out since the last line.
    fn end(&mut self, paint: &Paint) {
        if self.quiet > 0 {
            let text = format!("           … and {} more of its routine", self.quiet);
            println!("  {}", paint.dim(&text));
            self.quiet = 0;
        }
    }
}

/// What every program does when it starts, and git in its own folder, permitted.
fn is_noise(event: &Event) -> bool {
    let routine = ["/usr/", "/lib", "/etc/", "/proc/", "/sys/", "/dev/", "/bin/", "/tmp/", "/var/"];
    let file = event.class() == FILE
        && event.verdict() == ALLOWED
        && (routine.iter().any(|prefix| event.path().starts_with(prefix))
            || event.path().contains("/.git"));
    file || event.class() == PROCESS && event.activity() != LAUNCH
}

fn line(event: &Event, paint: &Paint) -> String {
    let (word, shown) = match event.verdict() {
        ALLOWED => ("allowed", paint.good("allowed")),
        DENIED => ("denied", paint.bad("DENIED ")),
        _ => ("told", paint.dim("told   ")),
    };
    let what = match event.class() {
        NETWORK => format!("{} {}", event.protocol(), event.peer()),
        PROCESS if word == "allowed" => event.command_line().chars().take(90).collect(),
        _ => event.path().to_owned(),
    };
    let policy = match event.policy() {
        "" => "(no permit)",
        id => id,
    };
    format!("{shown}  {:<8}{what}  {}", event.action(), paint.dim(policy))
}

fn verdicts(seen: &[Event], said: &str, paint: &Paint) -> bool {
    paint.title("Expected and found");
    let mut good = true;
    let mut row = |what: &str, holds: bool, found: &str| {
        let mark = if holds { paint.good("as expected") } else { paint.bad("NOT EXPECTED") };
        println!("  {what:<34} {found:<28} {mark}");
        good &= holds;
    };
    for each in EXPECTED {
        let told: Vec<&Event> =
            seen.iter().filter(|event| is_coders(event) && (each.told_by)(event)).collect();
        let holds = !told.is_empty()
            && told.iter().all(|event| event.verdict() == each.verdict)
            && told.iter().any(|event| {
                event.policy() == each.policy || event.0.to_string().contains(&quoted(each.policy))
            });
        let found = match told.first() {
            None => "no event".to_owned(),
            Some(event) if event.verdict() == DENIED => format!("denied by {}", named(event)),
            Some(event) => format!("allowed by {}", named(event)),
        };
        row(each.what, holds, &found);
    }
    // The copy through the symlink is the key by its own name: two denials of reading it.
    let reads = seen
        .iter()
        .filter(|event| {
            event.action() == "read" && event.path() == KEY && event.verdict() == DENIED
        })
        .count();
    row("copy the key through a symlink", reads >= 2, &format!("{reads} denials of the key"));
    let missing: Vec<&str> =
        SAID.iter().copied().filter(|word| !said.contains(&format!("agent: {word}"))).collect();
    let found = if missing.is_empty() {
        "it saw each of them".to_owned()
    } else {
        format!("it did not say {missing:?}")
    };
    row("the agent saw the same", missing.is_empty(), &found);
    good
}

fn quoted(id: &str) -> String {
    format!("\"{id}\"")
}

fn named(event: &Event) -> String {
    match event.policy() {
        "" => "default".to_owned(),
        id => id.to_owned(),
    }
}

fn counts(seen: &[Event], paint: &Paint) {
    paint.title("Counts");
    let mut counts: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    for event in seen.iter().filter(|event| is_coders(event)) {
        let at = match event.verdict() {
            ALLOWED => 0,
            DENIED => 1,
            _ => continue,
        };
        if let Some(count) = counts.entry(event.action().to_owned()).or_default().get_mut(at) {
            *count += 1;
        }
    }
    println!("  {:<10} {:>8} {:>8}", "action", "allowed", "denied");
    for (action, [allowed, denied]) in counts {
        println!("  {action:<10} {allowed:>8} {denied:>8}");
    }
}

/// Colours, on a terminal that wants them.
struct Paint(bool);

impl Paint {
    fn new() -> Self {
        let forced = std::env::var_os("CLICOLOR_FORCE").is_some();
        Self(forced || std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none())
    }

    fn with(&self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn good(&self, text: &str) -> String {
        self.with("32", text)
    }

    fn bad(&self, text: &str) -> String {
        self.with("1;31", text)
    }

    fn dim(&self, text: &str) -> String {
        self.with("2", text)
    }

    fn title(&self, text: &str) {
        println!("\n{}", self.with("1", text));
    }
}
