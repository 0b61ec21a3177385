//! `ambitd`: arguments in, the engine started, errors printed.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use agent_daemon::{
    api::{
        self,
        control::{self, Order},
    },
    authority::Engine,
    config::{Config, DEFAULT_PATH},
    kernel::host,
};
use anyhow::{Context as _, Result};
use clap::Parser;
use notify::Watcher as _;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

/// Keeps AI agents on this host within their bounds, in the kernel, and tells what they did.
///
/// Agents are the cgroups and units that the configuration names, and those that `ambit run` starts.
/// SIGHUP, or a change in the policy folder, loads the policy anew; a policy that is wrong changes
/// nothing. SIGTERM ends the daemon; while agents run, its programs stay pinned and go on enforcing.
#[derive(Parser)]
#[command(
    name = "ambitd",
    version,
    after_help = "Examples:\n  ambitd --config /etc/ambit/ambit.toml\n  systemctl reload ambitd        # the policy anew"
)]
struct Arguments {
    /// Configuration file [default: /etc/ambit/ambit.toml, where there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// End with the last agent (how `ambit run` starts it)
    #[arg(long)]
    on_demand: bool,
    /// Say on standard output that everything is in place, or why not, then leave it alone
    #[arg(long, hide = true)]
    say_ready: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if arguments.say_ready {
                println!("{error:#}");
            } else {
                eprintln!("ambitd: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    host::require_root("ambitd")?;
    let config = Config::read(arguments.config.as_deref())?;
    let path = arguments
        .config
        .clone()
        .or_else(|| Some(PathBuf::from(DEFAULT_PATH)).filter(|path| path.exists()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(arguments, config, path))
}

/// What others ask for by signals.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

async fn serve(arguments: &Arguments, config: Config, path: Option<PathBuf>) -> Result<()> {
    // Before anything is in place: a signal that comes early waits, and then ends it cleanly.
    let signals = Signals {
        hangup: signal(SignalKind::hangup())?,
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
    };
    let lock = Engine::lock(&config)?;
    // Taken before anything is loaded: a port that is taken must not disturb what runs.
    let listener = match config.metrics().map_err(anyhow::Error::msg)? {
        Some(address) => Some(TcpListener::bind(address).await.with_context(|| {
            format!(
                "cannot serve metrics at {address}; free it, or set `daemon.metrics` to another \
                 address or to \"\""
            )
        })?),
        None => None,
    };
    let socket = config.socket();
    let engine = tokio::task::spawn_blocking(move || Engine::start(config, path, lock)).await??;
    let result = serve_engine(arguments, &engine, signals, listener, &socket).await;
    if result.is_err() {
        engine.shut_down(false);
    }
    result
}

async fn serve_engine(
    arguments: &Arguments,
    engine: &Arc<Engine>,
    mut signals: Signals,
    listener: Option<TcpListener>,
    socket: &std::path::Path,
) -> Result<()> {
    let control = control::listen(socket)
        .with_context(|| format!("cannot listen at {}", socket.display()))?;
    let (orders, mut ordered) = mpsc::channel(4);
    tokio::spawn(control::serve(control, engine.clone(), orders));
    if let Some(listener) = listener {
        let address = listener.local_addr().context("the metrics socket has no address")?;
        engine.set_metrics_address(address.to_string());
        let measured = engine.clone();
        tokio::spawn(api::serve(listener, Arc::new(move || measured.scrape())));
    }
    let (changed, mut changes) = mpsc::channel(1);
    let _watcher = watch(engine, changed.clone());
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    if arguments.say_ready {
        println!("ready");
        let null = std::fs::File::open("/dev/null").context("cannot open /dev/null")?;
        nix::unistd::dup2_stdout(null).context("cannot leave standard output")?;
    } else {
        eprintln!("ambitd: in place; {}", engine.headline());
    }
    let mut idle_since: Option<tokio::time::Instant> = None;
    // `changed` lives as long as this, so that a folder that is not watched is only quiet.
    let detach = loop {
        tokio::select! {
            _ = signals.terminate.recv() => break false,
            _ = signals.interrupt.recv() => break false,
            order = ordered.recv() => if order == Some(Order::Detach) { break true },
            _ = signals.hangup.recv() => reload(engine).await,
            Some(()) = changes.recv() => {
                // Editors and rotations write more than once.
                tokio::time::sleep(Duration::from_millis(200)).await;
                while changes.try_recv().is_ok() {}
                reload(engine).await;
            }
            _ = tick.tick() => {
                let ticked = engine.clone();
                let _ = tokio::task::spawn_blocking(move || ticked.tick()).await;
                if arguments.on_demand && engine.idle() {
                    // A moment, so that what ran last can still be asked about.
                    let since = *idle_since.get_or_insert_with(tokio::time::Instant::now);
                    if since.elapsed() > Duration::from_secs(1) && engine.close_if_idle() { break true }
                } else {
                    idle_since = None;
                }
            }
        }
    };
    let _ = std::fs::remove_file(socket);
    let engine = engine.clone();
    tokio::task::spawn_blocking(move || engine.shut_down(detach)).await?;
    Ok(())
}

async fn reload(engine: &Arc<Engine>) {
    let engine = engine.clone();
    let done = tokio::task::spawn_blocking(move || engine.reload()).await;
    match done {
        Ok(Ok(generation)) => eprintln!("ambitd: policy loaded, generation {generation}"),
        Ok(Err(error)) => eprintln!("ambitd: policy not loaded, the one before stays:\n{error}"),
        Err(error) => eprintln!("ambitd: policy not loaded: {error}"),
    }
}

/// Watches the policy folder, where there is one.
fn watch(engine: &Arc<Engine>, changed: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let folder = &engine.config.policy.folder;
    if !folder.is_dir() {
        return None;
    }
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is no change: the daemon itself reads the folder.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = changed.try_send(());
        }
    })
    .ok()?;
    watcher.watch(folder, notify::RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}
