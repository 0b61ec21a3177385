//! A line of JSON back into a line for people: `ambit events`.
//!
//! Paths and command lines come from agents. What could move a terminal's cursor or change its
//! colours is shown as an escape, never sent.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use jiff::tz::TimeZone;
use serde_json::Value;

/// Which events are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this agent's, by name. Records of loss belong to every agent.
    pub agent: Option<String>,
    /// Only what was denied.
    pub denied: bool,
}

/// What came of it, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Allowed,
    Denied,
    Audit,
    Lost,
    Told,
}

impl Word {
    const fn text(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "DENIED",
            Self::Audit => "audit",
            Self::Lost => "LOST",
            Self::Told => "-",
        }
    }

    const fn style(self) -> Style {
        match self {
            Self::Allowed => AnsiColor::Green.on_default(),
            Self::Denied | Self::Lost => AnsiColor::Red.on_default().bold(),
            Self::Audit => AnsiColor::Yellow.on_default(),
            Self::Told => Style::new().dimmed(),
        }
    }
}

/// Renders line after line, so that columns stay where they are.
#[derive(Clone, Debug)]
pub struct Renderer {
    filter: Filter,
    colour: bool,
    zone: TimeZone,
    agent_width: usize,
    target_width: usize,
    policy_width: usize,
}

/// Widest that the agent and policy columns grow to; longer names push the rest to the right.
const NAME_WIDTH_MAX: usize = 24;

/// Widest that the target column grows to.
const TARGET_WIDTH_MAX: usize = 60;

impl Renderer {
    /// Renders in this machine's time zone.
    #[must_use]
    pub fn new(filter: Filter, colour: bool) -> Self {
        Self::in_zone(filter, colour, TimeZone::system())
    }

    /// Renders in a given time zone.
    #[must_use]
    pub const fn in_zone(filter: Filter, colour: bool, zone: TimeZone) -> Self {
        Self { filter, colour, zone, agent_width: 8, target_width: 40, policy_width: 12 }
    }

    /// The line for people, without a line end; `None` when the filter leaves it out, and of heartbeats.
    /// What is not an event of Ambit is shown as it is, marked with `?`.
    #[must_use]
    pub fn line(&mut self, json: &[u8]) -> Option<String> {
        let Ok(event) = serde_json::from_slice::<Value>(json) else {
            return Some(format!("? {}", shown(&String::from_utf8_lossy(json))));
        };
        let at = |pointer: &str| event.pointer(pointer);
        // For machines, which wait for it.
        if at("/unmapped/heartbeat").is_some() {
            return None;
        }
        let text = |pointer: &str| at(pointer).and_then(Value::as_str);
        let class = at("/class_uid").and_then(Value::as_u64).unwrap_or(0);
        let word = word(&event, class);
        let agent = text("/unmapped/ai_agent/name").or_else(|| text("/unmapped/ai_agent/uid"));
        if self.filter.denied && word != Word::Denied && word != Word::Lost {
            return None;
        }
        if let Some(wanted) = &self.filter.agent
            && word != Word::Lost
            && agent != Some(wanted)
        {
            return None;
        }
        let time = self.time(&event);
        let agent = shown(agent.unwrap_or("-"));
        let action = action(&event, class);
        let target = shown(&target(&event, class));
        let policy = match text("/policy/uid") {
            Some(policy) => shown(policy),
            None => match (word, text("/unmapped/reason")) {
                (Word::Denied | Word::Audit, Some(reason)) => format!("({reason})"),
                (Word::Allowed | Word::Denied | Word::Audit | Word::Lost | Word::Told, _) => {
                    "-".to_owned()
                }
            },
        };
        let actor = actor(&event);
        grow(&mut self.agent_width, &agent, NAME_WIDTH_MAX);
        grow(&mut self.policy_width, &policy, NAME_WIDTH_MAX);
        grow(&mut self.target_width, &target, TARGET_WIDTH_MAX);
        let (on, off) = if self.colour {
            let style = word.style();
            (style.render().to_string(), style.render_reset().to_string())
        } else {
            (String::new(), String::new())
        };
        let mut line = format!(
            "{time}  {agent:aw$}  {on}{:7}{off}  {action:9}  {target:tw$}  {policy:pw$}  {actor}",
            word.text(),
            aw = self.agent_width,
            tw = self.target_width,
            pw = self.policy_width,
        );
        line.truncate(line.trim_end().len());
        Some(line)
    }

    fn time(&self, event: &Value) -> String {
        let stamp =
            event["time"].as_i64().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        match stamp {
            Some(stamp) => {
                stamp.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string()
            }
            None => format!("{:23}", "?"),
        }
    }
}

fn grow(width: &mut usize, text: &str, limit: usize) {
    *width = (*width).max(text.chars().count().min(limit));
}

fn word(event: &Value, class: u64) -> Word {
    match (event["action_id"].as_u64(), class) {
        (_, 1008) => Word::Lost,
        (Some(1), _) => Word::Allowed,
        (Some(2), _) => Word::Denied,
        (Some(3), _) => Word::Audit,
        (_, _) => Word::Told,
    }
}

fn action(event: &Value, class: u64) -> String {
    let activity = event["activity_id"].as_u64().unwrap_or(0);
    let told = |name: &str| event["unmapped"][name].as_str().map(shown);
    if class == 1001 {
        let changed = told("operation").filter(|operation| operation != "open");
        return changed.or_else(|| told("action")).unwrap_or_else(|| "?".to_owned());
    }
    let name = match (class, activity) {
        (1003, 1) => "socket",
        (1003, _) => "privilege",
        (1007, 1) => "exec",
        (1007, 2) => "exit",
        (4001, 1) => "connect",
        (4001, 6) => "send",
        (4001, 7) => "listen",
        _ => return shown(event["activity_name"].as_str().unwrap_or("?")).to_lowercase(),
    };
    name.to_owned()
}

fn target(event: &Value, class: u64) -> String {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or("");
    let file = |at: &str| {
        // The exact bytes, where the path is not UTF-8.
        let uri = text(&format!("{at}/uri"));
        let path = text(&format!("{at}/path"));
        let path = if path.is_empty() { text(&format!("{at}/name")) } else { path };
        if uri.is_empty() { path } else { uri }.to_owned()
    };
    match class {
        1001 if event["file_result"].is_object() => {
            format!("{} -> {}", file("/file"), file("/file_result"))
        }
        1001 => file("/file"),
        1003 => {
            let (name, privilege) = (text("/kernel/name"), text("/unmapped/privilege"));
            let mut said = match privilege {
                "" => name.to_owned(),
                _ if privilege == name => name.to_owned(),
                _ => format!("{privilege} {name}"),
            };
            if let Some(pid) = event.pointer("/unmapped/target_pid") {
                let _ = write!(said, " pid {pid}");
            }
            said
        }
        1007 => match event["activity_id"].as_u64() {
            Some(2) => {
                let code = &event["exit_code"];
                match event.pointer("/unmapped/signal") {
                    Some(signal) => format!("signal {signal}"),
                    None => format!("code {code}"),
                }
            }
            _ => {
                let path = file("/process/file");
                match text("/process/cmd_line") {
                    "" => path,
                    line => match line.split_once(' ') {
                        Some((_, rest)) => format!("{path} {rest}"),
                        None => path,
                    },
                }
            }
        },
        1008 => lost(event),
        4001 => {
            let side =
                if event["dst_endpoint"].is_object() { "/dst_endpoint" } else { "/src_endpoint" };
            let ip = text(&format!("{side}/ip"));
            let ip = if ip.is_empty() { text(&format!("{side}/name")) } else { ip };
            let port = event.pointer(&format!("{side}/port")).and_then(Value::as_u64).unwrap_or(0);
            let name = text("/connection_info/protocol_name");
            if name == "unix" {
                return format!("unix {ip}");
            }
            let address =
                if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
            let host = text(&format!("{side}/hostname"));
            let address = if host.is_empty() { address } else { format!("{host} ({address})") };
            if name.is_empty() { address } else { format!("{name} {address}") }
        }
        _ => String::new(),
    }
}

fn lost(event: &Value) -> String {
    let count = &event["count"];
    let Some(gap) = event.pointer("/unmapped/gap") else {
        let why = event["status_detail"].as_str().unwrap_or("");
        return format!("{count} records could not be read: {why}");
    };
    let mut out = format!("{count} records (");
    if let Some(kinds) = gap["lost"].as_object() {
        for (at, (kind, lost)) in kinds.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            // Writing to a `String` cannot fail.
            let _ = write!(out, "{comma}{lost} {kind}");
        }
    }
    let _ = write!(
        out,
        ") on CPU {} between {} and {}",
        gap["cpu"], gap["last_before"], gap["first_after"]
    );
    out
}

fn actor(event: &Value) -> String {
    let Some(process) = event.pointer("/actor/process") else {
        return String::new();
    };
    let pid = &process["pid"];
    let exe = process
        .pointer("/file/path")
        .or_else(|| event.pointer("/unmapped/comm"))
        .and_then(Value::as_str)
        .unwrap_or("?");
    format!("{pid} {}", shown(exe))
}

/// The text with what a terminal would act on, or a reader could not see, written as an escape.
#[must_use]
pub fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Among the second are marks that reverse the order of what follows them.
        let hidden = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if c.is_control() || hidden {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(action_id: u64, path: &str) -> Value {
        json!({
            "time": 1_700_000_000_123_i64, "class_uid": 1001, "activity_id": 2,
            "action_id": action_id, "file": {"path": path, "name": "n"},
            "policy": {"uid": "no-keys"},
            "actor": {"process": {"pid": 42, "file": {"path": "/usr/bin/cat"}}},
            "unmapped": {
                "ai_agent": {"name": "coder"}, "action": "read", "operation": "open",
                "reason": "forbidden",
            },
        })
    }

    fn renderer(filter: Filter) -> Renderer {
        Renderer::in_zone(filter, false, TimeZone::UTC)
    }

    fn line(event: &Value) -> String {
        renderer(Filter::default()).line(event.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_line_has_every_column_in_order() {
        assert_eq!(
            line(&event(2, "/home/u/.ssh/id_ed25519")),
            "2023-11-14 22:13:20.123  coder     DENIED   read       \
             /home/u/.ssh/id_ed25519                   no-keys       42 /usr/bin/cat"
        );
    }

    #[test]
    fn a_change_shows_what_was_done_and_both_names() {
        let mut event = event(2, "/a");
        event["unmapped"]["operation"] = json!("rename");
        event["file_result"] = json!({"path": "/b", "name": "b"});
        let line = line(&event);
        assert!(line.contains("  rename     /a -> /b  "), "{line}");
    }

    #[test]
    fn columns_line_up() {
        let mut renderer = renderer(Filter::default());
        let lines: Vec<String> = [(1, "/a"), (2, "/b/c/d"), (3, "/e")]
            .iter()
            .map(|(action, path)| {
                renderer.line(event(*action, path).to_string().as_bytes()).unwrap()
            })
            .collect();
        let column = |line: &String| line.find("no-keys");
        assert!(lines.iter().all(|line| column(line) == column(&lines[0])), "{lines:#?}");
        assert!(lines[0].contains("  allowed  ") && lines[2].contains("  audit    "));
    }

    #[test]
    fn a_default_denial_says_why_where_the_policy_would_stand() {
        let mut event = event(2, "/a");
        event["policy"] = Value::Null;
        event["unmapped"]["reason"] = json!("no_permit");
        assert!(line(&event).contains("(no_permit)"));
    }

    #[test]
    fn what_an_agent_names_a_file_cannot_drive_the_terminal() {
        let shown = line(&event(1, "/tmp/\u{1b}[2J\n\u{202e}x\u{9b}31m"));
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
        assert!(shown.contains(r"\u{1b}[2J\n\u{202e}x\u{9b}31m"), "{shown}");
        let broken = renderer(Filter::default()).line(b"not \x1b json").unwrap();
        assert_eq!(broken, r"? not \u{1b} json");
    }

    #[test]
    fn filters_keep_what_was_asked_for_and_every_loss() {
        let gap = json!({
            "time": 1, "class_uid": 1008, "activity_id": 99, "activity_name": "Lose", "count": 5,
            "unmapped": {"gap": {"cpu": 1, "lost": {"exec": 1, "file": 4}, "last_before": 7, "first_after": 13}},
        });
        let denied = Filter { denied: true, ..Filter::default() };
        let other = Filter { agent: Some("other".into()), ..Filter::default() };
        let kept = |filter: &Filter, event: &Value| {
            renderer(filter.clone()).line(event.to_string().as_bytes()).is_some()
        };
        assert!(kept(&denied, &event(2, "/a")) && !kept(&denied, &event(1, "/a")));
        assert!(!kept(&denied, &event(3, "/a")));
        assert!(!kept(&other, &event(2, "/a")));
        assert!(kept(&denied, &gap) && kept(&other, &gap));
        assert!(
            line(&gap).contains(
                "LOST     lose       5 records (1 exec, 4 file) on CPU 1 between 7 and 13"
            ),
            "{}",
            line(&gap)
        );
    }

    #[test]
    fn heartbeats_are_not_for_people() {
        let beat = json!({
            "time": 1, "class_uid": 1008, "activity_id": 99, "activity_name": "Heartbeat",
            "unmapped": {"heartbeat": {"number": 1, "agents": 2, "policy_generation": 3}},
        });
        assert_eq!(renderer(Filter::default()).line(beat.to_string().as_bytes()), None);
    }

    #[test]
    fn colour_comes_only_when_asked_for() {
        let json = event(2, "/a").to_string();
        let plain = renderer(Filter::default()).line(json.as_bytes()).unwrap();
        let colour = Renderer::in_zone(Filter::default(), true, TimeZone::UTC)
            .line(json.as_bytes())
            .unwrap();
        assert!(!plain.contains('\u{1b}'));
        assert!(colour.contains("\u{1b}[1m\u{1b}[31mDENIED \u{1b}[0m"), "{colour:?}");
    }

    #[test]
    fn peers_programs_and_exits_are_named() {
        let peer = json!({"class_uid": 4001, "activity_id": 1, "dst_endpoint": {"ip": "::1", "port": 80},
            "connection_info": {"protocol_name": "tcp"}});
        assert_eq!(target(&peer, 4001), "tcp [::1]:80");
        let named = json!({"class_uid": 4001, "activity_id": 1, "connection_info": {"protocol_name": "tcp"},
            "dst_endpoint": {"ip": "192.0.2.7", "port": 443, "hostname": "api.example.com"}});
        assert_eq!(target(&named, 4001), "tcp api.example.com (192.0.2.7:443)");
        let exec = json!({"activity_id": 1, "process": {"cmd_line": "sh -c x", "file": {"path": "/bin/sh"}}});
        assert_eq!(target(&exec, 1007), "/bin/sh -c x");
        let exit = json!({"activity_id": 2, "exit_code": 3});
        assert_eq!(target(&exit, 1007), "code 3");
    }
}
