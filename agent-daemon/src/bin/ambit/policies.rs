//! `ambit policy`: what policies say, before any kernel is asked to keep them.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use agent_daemon::{
    authority,
    config::Config,
    policy::{
        self, Agent, AgentName, Policies, Target,
        compare::{self, compare},
        expect,
        explain::{Explanation, Judge, explain, parse_target},
        object::{Object, run_along},
    },
};
use agent_ebpf::Action;
use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Subcommand};
use serde::Serialize;

/// What `explain`, `diff` and `test` exit with when there is no answer; 0 and 1 are answers.
pub const REFUSED: u8 = 2;

#[derive(Subcommand)]
pub enum Verb {
    /// Say of each policy whether it is kept exactly, or what is wrong with it
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Policy files, files of entities (`*.entities.json`), or folders of them
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Say whether an agent may do something, which policies decide, and what comes near
    #[command(
        after_help = "The path is followed on this machine to the object that is judged; what is run \
        along with a program (interpreter, loader) is judged too.\n\n\
        Exit code: 0 it is allowed, 1 it is denied, 2 there is no answer.\n\nExamples:\n  \
        ambit policy explain --agent coder read /etc/shadow\n  \
        ambit policy explain --agent coder --policy coder.cedar exec /usr/bin/git\n  \
        ambit policy explain --agent coder --policy coder.cedar connect 192.0.2.7:443\n  \
        ambit policy explain --agent coder --group builders bind '[::]:8080/udp'"
    )]
    Explain(ExplainArguments),
    /// List what becomes reachable by a change of policy, and what ceases to be
    #[command(
        after_help = "Each line says what changed, and in brackets which policy decided before and which \
        decides now. The comparison is exact.\n\n\
        Exit code, as of diff(1): 0 both permit the same, 1 they differ, 2 there is no answer.\n\nExamples:\n  \
        ambit policy diff /etc/ambit/policy new/\n  \
        ambit policy diff --agent coder coder.cedar coder-new.cedar"
    )]
    Diff(DiffArguments),
    /// Run the expectations in a file against the policies that it names
    #[command(after_help = "The file is TOML, kept beside the policy:\n\n  \
        policy = \"coder.cedar\"\n\n  \
        [[agent]]\n  \
        name = \"coder\"\n  \
        allow = [{ read = \"/etc/passwd\" }, { connect = \"127.0.0.1:8080/tcp\", by = \"registry\" }]\n  \
        deny = [{ read = \"/work/.secrets/key\", by = \"keys\" }]\n\n\
        A row is one action with its target, and perhaps the policy that is to decide, as events name it. \
        A path that ends with `/` is a folder.\n\n\
        Exit code: 0 all came true, 1 some did not, 2 the file or a policy is refused.")]
    Test {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The expectations
        file: PathBuf,
    },
    /// Print the Cedar schema
    Schema,
}

#[derive(Args)]
pub struct ExplainArguments {
    /// The agent's name
    #[arg(long, value_name = "NAME")]
    agent: String,
    /// A group that it is in; may be repeated [default: what the configuration says]
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// A policy file, or a folder of them; may be repeated [default: the configuration's folder]
    #[arg(long = "policy", value_name = "FILE")]
    policies: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// What is done: exec, read, write, connect, bind, listen, socket, privilege
    action: String,
    /// To what: an absolute path, or an address (IPv6 in brackets), a port and perhaps /udp
    target: String,
}

#[derive(Args)]
pub struct DiffArguments {
    /// Only this agent [default: every agent that the policies can tell from others]
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// A group that it is in; may be repeated
    #[arg(long = "group", value_name = "GROUP", requires = "agent")]
    groups: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The policy as it was: a file, or a folder
    old: PathBuf,
    /// The policy as it is to be
    new: PathBuf,
}

impl Verb {
    /// Whether its exit code 1 is an answer, and not a failure.
    pub fn has_an_answer(&self) -> bool {
        match self {
            Self::Explain(_) | Self::Diff(_) | Self::Test { .. } => true,
            Self::Check { .. } | Self::Schema => false,
        }
    }

    /// Does it. The configuration is read only where it is needed.
    pub fn perform(self, config: Option<&Path>) -> Result<ExitCode> {
        match self {
            Self::Check { json, files } => check(&files, json),
            Self::Explain(arguments) => explained(config, &arguments),
            Self::Diff(arguments) => diff(config, &arguments),
            Self::Test { json, file } => {
                let outcome = expect::run(&file)?;
                print(json, &outcome, || outcome.text())?;
                Ok(answer(outcome.failed.is_empty()))
            }
            Self::Schema => {
                io::stdout().write_all(policy::SCHEMA.as_bytes())?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn answer(yes: bool) -> ExitCode {
    if yes { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, value)?;
        writeln!(out)?;
    } else {
        out.write_all(text().as_bytes())?;
    }
    Ok(())
}

fn sources(files: &[PathBuf]) -> Result<Vec<policy::Source>> {
    let mut sources = Vec::new();
    for file in files {
        if file.is_dir() {
            sources.extend(policy::read_folder(file)?);
        } else {
            sources.push(policy::read_source(file)?);
        }
    }
    Ok(sources)
}

fn check(files: &[PathBuf], json: bool) -> Result<ExitCode> {
    // What the kernel has no room for is found when an agent's tables are made.
    let checked = Policies::check(&sources(files)?);
    match checked.and_then(|policies| compare::bounds(&policies).map(|_| policies)) {
        Ok(policies) => {
            let report = policies.report();
            print(json, &report, || {
                let width = report.iter().map(|kept| kept.rule.id.len()).max().unwrap_or(0);
                let line = |kept: &policy::Kept| {
                    let (id, place) = (&kept.rule.id, &kept.rule.place);
                    let warnings = kept.warnings.iter().map(|warning| format!("{warning}\n"));
                    format!(
                        "{id:<width$}  {}  ({place})\n{}",
                        kept.kept,
                        warnings.collect::<String>()
                    )
                };
                report.iter().map(line).collect()
            })?;
            for remark in policies.remarks() {
                eprintln!("{remark}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if json => {
            print(true, &error.diagnostics(), String::new)?;
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error.into()),
    }
}

/// What `explain` prints as JSON.
#[derive(Serialize)]
struct Explained {
    #[serde(flatten)]
    subject: Agent,
    action: &'static str,
    target: String,
    allowed: bool,
    /// What the path leads to, where it is one.
    object: Option<Object>,
    /// The target first, then what is run along with it.
    judged: Vec<Judged>,
    /// Programs that policies ask the content of, and why nobody knows it.
    unread: Vec<String>,
}

#[derive(Serialize)]
struct Judged {
    what: &'static str,
    #[serde(flatten)]
    explanation: Explanation,
}

fn explained(config: Option<&Path>, arguments: &ExplainArguments) -> Result<ExitCode> {
    let config_path = config;
    let config = Config::read(config)?;
    let name = AgentName::parse(&arguments.agent)?;
    let mut actions = Action::ALL.iter();
    let Some(action) = actions.clone().find(|action| action.name() == arguments.action) else {
        let names: Vec<&str> = actions.by_ref().map(|action| action.name()).collect();
        bail!("`{}` is no action: write one of {}", arguments.action, names.join(", "));
    };
    let subject = subject(&config, name, &arguments.groups);
    let files = match arguments.policies.as_slice() {
        [] => std::slice::from_ref(&config.policy.folder),
        files => files,
    };
    let policies = Policies::check(&sources(files)?)?;
    let mut target = parse_target(*action, &arguments.target).map_err(|error| anyhow!(error))?;
    let mut object = None;
    if let Target::File { path, is_dir } = &mut target {
        let found = Object::find(Path::new(&arguments.target))
            .with_context(|| format!("cannot follow {}", arguments.target))?;
        path.clone_from(&found.path);
        *is_dir = found.is_dir;
        object = Some(found);
    }
    let own = arguments.policies.iter().filter(|file| file.is_file());
    let own = own.map(std::path::absolute).collect::<std::io::Result<Vec<PathBuf>>>()?;
    let own: Vec<&Path> = own.iter().map(PathBuf::as_path).collect();
    let protected = authority::protected(&config, config_path, None, &own);
    let mut judge = Judge::new(&policies, subject.clone(), &protected)?;
    let mut unread = Vec::new();
    let mut ask = |what: &'static str, target: &Target| -> Result<Judged> {
        let path = match target {
            Target::File { path, .. } if *action == Action::Exec && judge.asks_contents() => path,
            _ => {
                return Ok(Judged {
                    what,
                    explanation: explain(&policies, &judge, *action, target)?,
                });
            }
        };
        let content = authority::content_of(path);
        let path = path.display();
        match &content {
            Ok((_, true)) => {}
            Ok((_, false)) => unread.push(format!(
                "the content of {path} is known only where IMA is asked for it; `ambit doctor` says whether it \
                 is here"
            )),
            Err(why) => unread.push(format!("the content of {path} stays unknown: {why}")),
        }
        judge.set_content(content.ok().map(|(digest, _)| digest));
        Ok(Judged { what, explanation: explain(&policies, &judge, *action, target)? })
    };
    let mut judged = vec![ask("target", &target)?];
    if let (Action::Exec, Some(object)) = (action, &object) {
        for (what, path) in run_along(&object.path) {
            let target = Target::File { path, is_dir: false };
            judged.push(ask(what, &target)?);
        }
    }
    let explained = Explained {
        subject,
        action: action.name(),
        target: arguments.target.clone(),
        allowed: judged.iter().all(|one| one.explanation.allowed),
        object,
        judged,
        unread,
    };
    print(arguments.json, &explained, || explained.text())?;
    Ok(answer(explained.allowed))
}

impl Explained {
    fn text(&self) -> String {
        let mut text = String::new();
        for one in &self.judged {
            if one.what != "target" {
                text.push_str(&format!("its {} is run along with it:\n", one.what));
            }
            text.push_str(&one.explanation.text());
        }
        for one in &self.unread {
            text.push_str(&format!("{one}\n"));
        }
        if let Some(object) = &self.object {
            let path = object.path.display();
            if object.path != Path::new(&self.target.trim_end_matches('/')) && self.target != "/" {
                text.push_str(&format!(
                    "{} leads to {path}, which is what is judged\n",
                    self.target
                ));
            }
            if !object.exists {
                text.push_str(&format!("there is no {path} on this machine now\n"));
            }
            if object.names > 1 {
                text.push_str(&format!(
                    "it has {} names (hard links); this is the verdict under this one\n",
                    object.names
                ));
            }
        }
        text
    }
}

/// An agent with what the configuration says of it, in the groups given or else in those that it says.
fn subject(config: &Config, name: AgentName, groups: &[String]) -> Agent {
    let mut subject = Agent::named(name);
    if let Some(agent) = config.agents.iter().find(|agent| agent.name == subject.name.as_str()) {
        subject.groups.clone_from(&agent.groups);
        subject.attributes.clone_from(&agent.attributes);
    }
    if !groups.is_empty() {
        subject.groups = groups.to_vec();
    }
    subject
}

fn diff(config: Option<&Path>, arguments: &DiffArguments) -> Result<ExitCode> {
    let taken = |path: &PathBuf| -> Result<Policies> {
        Ok(Policies::check(&sources(std::slice::from_ref(path))?)?)
    };
    let only = match &arguments.agent {
        Some(name) => {
            Some(subject(&Config::read(config)?, AgentName::parse(name)?, &arguments.groups))
        }
        None => None,
    };
    let changes = compare(&taken(&arguments.old)?, &taken(&arguments.new)?, only.as_ref())?;
    print(arguments.json, &changes, || compare::text(&changes))?;
    Ok(answer(changes.is_empty()))
}
