//! `ambit`: arguments in, rooms called, errors printed.

#[path = "ambit/policies.rs"]
mod policies;

use std::{
    ffi::OsString,
    fs,
    io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _},
    os::unix::{
        fs::{DirBuilderExt as _, OpenOptionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use agent_daemon::{
    api::{
        control::{Client, ControlError, Request},
        doctor::{Facts, Report},
    },
    authority::{self, Finished, RunRequest, Running, Started},
    config::{BackendChoice, Config},
    events::{render, tail},
    kernel::{Host, host, load},
    policy::{self, Agent, AgentName, Policies, ceiling::ceiling as ceiling_of},
    run::{Launch, RunAs, RunError, ceiling_is_available},
};
use anyhow::{Context as _, Result, bail};
use clap::{Args, CommandFactory as _, Parser, Subcommand};

/// Runs AI agents within bounds that the kernel keeps, and tells what they did.
#[derive(Parser)]
#[command(
    name = "ambit",
    version,
    after_help = "Examples:\n  \
      sudo ambit run --agent coder --policy coder.cedar -- claude\n  \
      sudo ambit run --agent coder --policy coder.cedar --audit -- make test\n  \
      sudo ambit events --follow --denied\n  \
      sudo ambit doctor"
)]
struct Cli {
    /// Configuration file [default: /etc/ambit/ambit.toml, where there is one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a command as an agent, bounded by a policy
    Run(RunArguments),
    /// End every process of an agent
    Stop {
        /// The agent's name
        agent: String,
    },
    /// Who is running now
    Agents {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show events, one line each
    Events(EventsArguments),
    /// What this kernel enforces, what it only observes, what it cannot see
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check policies, explain a verdict, compare two, test expectations, or show the schema
    Policy {
        #[command(subcommand)]
        command: policies::Verb,
    },
    /// Take the policy folder anew; a policy that is wrong changes nothing
    Reload,
    /// Remove every program, pin, mark and cgroup of Ambit; agents that run become unbounded
    Detach {
        /// All of it; there is no other way yet
        #[arg(long, required = true)]
        all: bool,
    },
    /// Print shell completions
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder
    Man {
        /// The folder
        folder: PathBuf,
    },
}

#[derive(Args)]
#[command(
    after_help = "The command runs as the user who called sudo, in a session and a pseudo-terminal of its \
    own, with no_new_privs. Its exit code is passed on; 126 and 127 say that it could not be run, and 125 \
    that Ambit itself failed.\n\nExamples:\n  \
    sudo ambit run --agent coder --policy coder.cedar -- claude\n  \
    sudo ambit run --agent ci --policy ci.cedar --user nobody -- ./build.sh\n  \
    sudo ambit run --agent new --policy empty.cedar --audit -- ./tool > lines.cedar"
)]
struct RunArguments {
    /// The agent's name in policies and events: letters, digits, `.`, `_`, `-`, at most 63
    #[arg(long, value_name = "NAME")]
    agent: String,
    /// Its Cedar policy, read once; may be repeated, also for files of entities (`*.entities.json`)
    #[arg(long = "policy", value_name = "FILE", required = true)]
    policies: Vec<PathBuf>,
    /// Write its events to this file [default: the configuration's]
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Deny nothing, mark what would have been denied, and end with the lines that would permit it
    #[arg(long)]
    audit: bool,
    /// Run as this user [default: who called sudo]
    #[arg(long, value_name = "NAME|UID")]
    user: Option<String>,
    /// Let it run as root
    #[arg(long)]
    allow_root: bool,
    /// Keep this group, though it gives power over the host (docker, disk, ...); may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// Bound on its processes and threads
    #[arg(long, value_name = "COUNT", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..=4_194_304))]
    pids_max: u64,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Args)]
struct EventsArguments {
    /// Wait for more
    #[arg(long, short)]
    follow: bool,
    /// Only this agent's
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Only what was denied, or would have been
    #[arg(long)]
    denied: bool,
    /// Print the events as they are, JSON
    #[arg(long)]
    json: bool,
    /// The file [default: the configuration's]
    file: Option<PathBuf>,
}

/// What `ambit run` exits with when Ambit itself failed, as `env` and `timeout` do.
const OWN_FAILURE: u8 = 125;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let running = matches!(cli.command, Verb::Run(_));
    let asking = matches!(&cli.command, Verb::Policy { command } if command.has_an_answer());
    match perform(cli) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ambit: {error:#}");
            match error.downcast_ref::<RunError>() {
                Some(run) => code(run.exit_code()),
                None if running => ExitCode::from(OWN_FAILURE),
                None if asking => ExitCode::from(policies::REFUSED),
                None => ExitCode::FAILURE,
            }
        }
    }
}

fn code(number: i32) -> ExitCode {
    ExitCode::from(u8::try_from(number).unwrap_or(OWN_FAILURE))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn perform(cli: Cli) -> Result<ExitCode> {
    let named = cli.config;
    let config = || Config::read(named.as_deref());
    match cli.command {
        Verb::Run(arguments) => return run(&config()?, named.as_deref(), arguments),
        Verb::Stop { agent } => {
            let _: usize = connect(&config()?)?.ask(&Request::Stop { agent })?;
        }
        Verb::Agents { json } => agents(&config()?, json)?,
        Verb::Events(arguments) => events(&config()?, &arguments)?,
        Verb::Doctor { json } => doctor(&config()?, json)?,
        Verb::Policy { command } => return command.perform(named.as_deref()),
        Verb::Reload => {
            let generation: u64 = connect(&config()?)?.ask(&Request::Reload)?;
            println!("policy generation {generation}");
        }
        Verb::Detach { .. } => detach(&config()?)?,
        Verb::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "ambit", &mut io::stdout());
        }
        Verb::Man { folder } => {
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
            clap_mangen::generate_to(Cli::command(), &folder)
                .with_context(|| format!("cannot write manual pages to {}", folder.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn connect(config: &Config) -> Result<Client> {
    host::require_root("ambit")?;
    Ok(Client::connect(&config.socket())?)
}

fn run(config: &Config, named: Option<&Path>, arguments: RunArguments) -> Result<ExitCode> {
    host::require_root("ambit run")?;
    let name = AgentName::parse(&arguments.agent)?;
    let mut sources = Vec::new();
    for file in &arguments.policies {
        sources.push(policy::read_source(file)?);
    }
    let policies = Policies::check(&sources)?;
    let absolute = |path: &Path| {
        std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()))
    };
    for (source, file) in sources.iter_mut().zip(&arguments.policies) {
        source.name = absolute(file)?.display().to_string();
    }
    // One of them is a policy: else they would have been refused.
    sources.sort_by_key(policy::Source::is_entities);
    let source = sources.remove(0);
    let events = arguments.events.as_deref().map(absolute).transpose()?;
    let subject = Agent::named(name.clone());
    let launch = |procs: Vec<PathBuf>, instance: &str, ceiling: bool| Launch {
        command: arguments.command.clone(),
        user: arguments.user.clone().map_or(RunAs::Invoker, RunAs::Named),
        allow_root: arguments.allow_root,
        keep_groups: arguments.groups.clone(),
        cgroup_procs: procs,
        environment: vec![
            ("AMBIT_AGENT".into(), name.as_str().into()),
            ("AMBIT_INSTANCE".into(), instance.into()),
        ],
        ceiling: if ceiling { ceiling_of(&policies, &subject) } else { None },
    };
    // Whatever can be wrong with the command is found before anything is made for it.
    launch(Vec::new(), "", false).prepare()?;

    let request = Request::Run(RunRequest {
        name: name.to_string(),
        policy: source.name.into(),
        text: source.text,
        more: sources,
        audit: arguments.audit,
        events,
        pids_max: arguments.pids_max,
    });
    let (mut client, started) = begin(config, named, &request)?;
    let prepared = launch(started.procs.clone(), &started.instance, started.ceiling).prepare()?;
    if started.ceiling && !prepared.has_ceiling() {
        eprintln!(
            "ambit: there is no Landlock ceiling over what the agent changes: {}; `ambit doctor` says \
             what is not kept",
            if ceiling_is_available() {
                "the policy permits to trace, to mount or to make devices, which it would refuse"
            } else {
                "this kernel has none"
            }
        );
    }
    for (missing, above) in prepared.widened() {
        let (missing, above) = (missing.display(), above.display());
        eprintln!(
            "ambit: there is no {missing}, so anything beneath {above} may be removed or renamed"
        );
    }
    let dropped = prepared.dropped_groups().join(", ");
    if !dropped.is_empty() {
        eprintln!("ambit: without the groups {dropped}; --group keeps one");
    }
    if !started.pids_bounded {
        eprintln!("ambit: this host has no pids controller; --pids-max has no effect");
    }
    let outcome = prepared.start()?.wait()?;
    if arguments.audit {
        let finished: Finished = client.ask(&Request::Finish { number: started.number })?;
        let mut out = io::stderr().lock();
        writeln!(
            out,
            "ambit: {} allowed, {} would have been denied; events: {}",
            finished.allowed,
            finished.audited,
            started.events.display()
        )?;
        out.write_all(finished.suggestion.as_bytes())?;
    }
    Ok(code(outcome.code()))
}

/// How long a daemon that begins or ends is waited for.
const PATIENCE: Duration = Duration::from_secs(15);

/// Has the running daemon begin the agent, or one that is started for this run and those that join it. One
/// that is just beginning or ending, for another run, is waited for.
fn begin(config: &Config, named: Option<&Path>, request: &Request) -> Result<(Client, Started)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let error = match Client::connect(&config.socket()) {
            Ok(mut client) => match client.ask(request) {
                Ok(started) => return Ok((client, started)),
                Err(ControlError::Refused(why)) if why != authority::CLOSING => bail!(why),
                Err(error) => error.into(),
            },
            Err(ControlError::Absent { .. }) => match start_engine(config, named) {
                Ok(()) => continue,
                Err(error) if error.to_string().contains("another ambitd runs") => error,
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error.into()),
        };
        if Instant::now() > deadline {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Starts a detached daemon that ends with its last agent; returns when it listens.
fn start_engine(config: &Config, named: Option<&Path>) -> Result<()> {
    let daemon =
        std::env::current_exe().context("cannot find out where ambit is")?.with_file_name("ambitd");
    let run = &config.daemon.run;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run)
        .with_context(|| format!("cannot make {}", run.display()))?;
    let log_path = run.join("engine.log");
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
        .open(&log_path)
        .with_context(|| format!("cannot write {}", log_path.display()))?;
    let mut command = Command::new(&daemon);
    command.args(["--on-demand", "--say-ready"]);
    if let Some(path) = named {
        let path = std::path::absolute(path)
            .with_context(|| format!("cannot resolve {}", path.display()))?;
        command.arg("--config").arg(path);
    }
    let mut child = command
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", daemon.display()))?;
    let mut said = String::new();
    if let Some(out) = child.stdout.take() {
        let mut out = BufReader::new(out);
        while out.read_line(&mut said)? > 0 && said != "ready\n" {}
    }
    if said == "ready\n" {
        return Ok(());
    }
    bail!("the engine did not start: {}", said.trim_end())
}

fn agents(config: &Config, json: bool) -> Result<()> {
    let agents: Vec<Running> = match connect(config) {
        Err(error) if matches!(error.downcast_ref(), Some(ControlError::Absent { .. })) => {
            eprintln!("ambit: no ambitd runs, so no agent does");
            Vec::new()
        }
        client => client?.ask(&Request::Agents)?,
    };
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &agents)?;
        writeln!(out)?;
        return Ok(());
    }
    let width = agents.iter().map(|agent| agent.name.len()).max().unwrap_or(0).max("AGENT".len());
    writeln!(
        out,
        "{:<width$}  {:<7}  {:>8}  {:>9}  {:>8}  {:>8}  PIDS",
        "AGENT", "MODE", "SINCE", "ALLOWED", "DENIED", "AUDIT"
    )?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    for agent in agents {
        let pids: Vec<String> = agent.pids.iter().map(u32::to_string).collect();
        writeln!(
            out,
            "{:<width$}  {:<7}  {:>8}  {:>9}  {:>8}  {:>8}  {}",
            agent.name,
            agent.mode,
            ago(now.saturating_sub(agent.since)),
            agent.allowed,
            agent.denied,
            agent.audited,
            pids.join(" ")
        )?;
    }
    Ok(())
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..=59 => format!("{seconds}s"),
        60..=3599 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

fn events(config: &Config, arguments: &EventsArguments) -> Result<()> {
    let file = arguments.file.as_ref().unwrap_or(&config.events.file);
    let missing = || format!("cannot read the events in {}", file.display());
    let filter = render::Filter { agent: arguments.agent.clone(), denied: arguments.denied };
    let mut out = io::stdout();
    let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut renderer = render::Renderer::new(filter, colour);
    while arguments.follow && !file.exists() {
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut tail = tail::Tail::open(file, tail::From::Oldest).with_context(missing)?;
    let mut lines = Vec::new();
    loop {
        while tail.read(&mut lines).with_context(missing)? {
            for line in lines.split_inclusive(|byte| *byte == b'\n') {
                match renderer.line(line) {
                    Some(_) if arguments.json => out.write_all(line)?,
                    Some(text) => writeln!(out, "{text}")?,
                    None => {}
                }
            }
            lines.clear();
        }
        out.flush()?;
        if !arguments.follow {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn doctor(config: &Config, json: bool) -> Result<()> {
    let report = match connect(config) {
        Ok(mut client) => {
            let facts: Facts = client.ask(&Request::Doctor)?;
            Report::of(facts, true)
        }
        Err(error) if matches!(error.downcast_ref(), Some(ControlError::Absent { .. })) => {
            let settings = load::Settings {
                pins: config.kernel.pins.clone(),
                attach: config.kernel.attach.clone().unwrap_or_default(),
                denied_bytes: 4096,
                told_bytes: 4096,
                processes: config.kernel.processes,
                lsm: config.kernel.backend != BackendChoice::Fanotify,
            };
            let coverage = load::probe(&Host::read()?, &settings)?;
            let landlock = ceiling_is_available();
            let facts = serde_json::json!({ "coverage": coverage, "landlock": landlock });
            Report::of(serde_json::from_value(facts)?, false)
        }
        Err(error) => return Err(error),
    };
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        out.write_all(report.text().as_bytes())?;
    }
    Ok(())
}

fn detach(config: &Config) -> Result<()> {
    match connect(config) {
        Ok(mut client) => {
            let pid: u32 = client.ask(&Request::Detach)?;
            for _ in 0..300 {
                if !config.socket().exists() && !Path::new("/proc").join(pid.to_string()).exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Err(error) if matches!(error.downcast_ref(), Some(ControlError::Absent { .. })) => {}
        Err(error) => return Err(error),
    }
    // Whatever a daemon that died left behind, too.
    let attach = match &config.kernel.attach {
        Some(attach) => attach.clone(),
        None => host::cgroup2()?,
    };
    authority::remove_all(config, &attach)?;
    println!("nothing of Ambit is left in the kernel");
    Ok(())
}
