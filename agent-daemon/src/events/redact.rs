//! Secrets taken out of command lines, before anything is kept or written.
//!
//! Three nets, each a table: shapes (what looks like a key is one, wherever it stands), names (what
//! is given to something called a password, token or key), and the short options of known programs.
//! What is taken out becomes `[redacted]`, so that a reader sees that something was there. The nets
//! are drawn so that an option like `--max-tokens 4096` or `mkdir -p dir` stays readable.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// What stands in place of a secret.
pub const MARK: &str = "[redacted]";

/// Shapes of secrets: name, then pattern. Prefixes and lengths are those that their issuers document.
const SHAPES: &[(&str, &str)] = &[
    (
        "PEM private key",
        r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY( BLOCK)?-----.*?(-----END [A-Z ]*PRIVATE KEY( BLOCK)?-----|$)",
    ),
    ("JSON web token", r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(\.[A-Za-z0-9_-]*)?"),
    ("AWS access key id", r"\b(AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b"),
    ("GitHub token", r"\bgh[pousr]_[A-Za-z0-9]{20,}"),
    ("GitHub fine-grained token", r"\bgithub_pat_[A-Za-z0-9_]{20,}"),
    ("GitLab token", r"\bgl(pat|dt|rt|cbt|ptt|ft|soat)-[A-Za-z0-9_.-]{16,}"),
    ("OpenAI or Anthropic key", r"\bsk-[A-Za-z0-9_-]{20,}"),
    ("Slack token", r"\bx(ox[abceoprs]|app)-[A-Za-z0-9-]{10,}"),
    ("Slack webhook", r"hooks\.slack\.com/(services|workflows)/[A-Za-z0-9/_-]+"),
    ("Google API key", r"\bAIza[A-Za-z0-9_-]{30,}"),
    ("Google OAuth token", r"\bya29\.[A-Za-z0-9_-]{20,}"),
    ("Google OAuth client secret", r"\bGOCSPX-[A-Za-z0-9_-]{20,}"),
    ("Stripe key", r"\b([sr]k_(live|test)|whsec)_[A-Za-z0-9]{16,}"),
    ("npm token", r"\bnpm_[A-Za-z0-9]{30,}"),
    ("PyPI token", r"\bpypi-[A-Za-z0-9_-]{32,}"),
    ("Hugging Face token", r"\bhf_[A-Za-z0-9]{30,}"),
    ("SendGrid key", r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
    ("Vault token", r"\bhv[sbr]\.[A-Za-z0-9_-]{20,}"),
    ("DigitalOcean token", r"\bdo[opr]_v1_[a-f0-9]{40,}"),
    ("Databricks token", r"\bdapi[a-f0-9]{32}\b"),
    ("Twilio key", r"\bSK[0-9a-f]{32}\b"),
    ("crates.io token", r"\bcio[A-Za-z0-9]{32}\b"),
    ("age secret key", r"\bAGE-SECRET-KEY-1[0-9A-Z]{50,}"),
    ("xAI, Groq, Replicate or Perplexity key", r"\b(xai-|gsk_|r8_|pplx-)[A-Za-z0-9]{30,}"),
];

/// Schemes of the `Authorization` header.
const SCHEMES: &[&str] = &["bearer", "basic", "token", "digest", "negotiate", "apikey"];

/// Beginnings of shapes that an argument which was cut off may end with.
const CUT_SHAPES: &str = r"(\beyJ|\bA[KS]IA|\bgh[pousr]_|\bgithub_pat_|\bglpat-|\bsk-|\bxox[abceoprs]-|\bAIza|\bya29\.|\bnpm_|\bpypi-|\bhf_)[A-Za-z0-9_.-]*$";

/// Last words of names whose value is a secret.
const SECRET_WORDS: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "pass",
    "pw",
    "secret",
    "token",
    "apikey",
    "pat",
    "credential",
    "credentials",
    "authorization",
    "bearer",
    "sig",
    "signature",
    "jwt",
    "otp",
];

/// Last two words of names whose value is a secret.
const SECRET_PAIRS: &[(&str, &str)] = &[
    ("api", "key"),
    ("access", "key"),
    ("private", "key"),
    ("secret", "key"),
    ("auth", "key"),
    ("account", "key"),
    ("shared", "key"),
    ("signing", "key"),
    ("encryption", "key"),
    ("master", "key"),
    ("service", "key"),
    ("deploy", "key"),
    ("license", "key"),
    ("session", "key"),
    ("session", "cookie"),
    ("auth", "cookie"),
];

/// Endings that make one word without a break a secret's name, as in `PGPASSWORD` or `authtoken`.
const SECRET_ENDINGS: &[&str] = &["password", "passwd", "passphrase", "token", "apikey", "secret"];

/// Where in an option's value the secret is.
#[derive(Clone, Copy)]
enum Part {
    All,
    /// After the first of this character, as in `user:password`.
    After(char),
}

/// Options of known programs: programs, option, whether the value may be attached to a short option
/// (`-pVALUE`), and where the secret is. A value in the next argument is always looked for, except
/// where attaching is the only way.
const OPTIONS: &[(&[&str], &str, Attached, Part)] = {
    use Attached::{Both, Never, Only};
    const MYSQL: &[&str] = &[
        "mysql",
        "mysqldump",
        "mysqladmin",
        "mysqlimport",
        "mysqlshow",
        "mysqlcheck",
        "mariadb",
        "mariadb-dump",
        "mariadb-admin",
    ];
    &[
        (MYSQL, "-p", Only, Part::All),
        (&["sshpass"], "-p", Both, Part::All),
        (&["curl"], "-u", Both, Part::After(':')),
        (&["curl"], "--user", Never, Part::After(':')),
        (&["curl"], "-U", Both, Part::After(':')),
        (&["curl"], "--proxy-user", Never, Part::After(':')),
        (&["curl"], "--pass", Never, Part::All),
        (&["curl"], "-b", Both, Part::All),
        (&["curl"], "--cookie", Never, Part::All),
        (&["http", "https", "xh"], "-a", Both, Part::After(':')),
        (&["http", "https", "xh"], "--auth", Never, Part::After(':')),
        (
            &["docker", "podman", "nerdctl", "helm", "buildah", "skopeo", "oras"],
            "-p",
            Never,
            Part::All,
        ),
        (&["redis-cli"], "-a", Never, Part::All),
        (
            &["ldapsearch", "ldapadd", "ldapmodify", "ldapdelete", "ldapwhoami"],
            "-w",
            Both,
            Part::All,
        ),
        (&["smbclient", "rpcclient", "net"], "-U", Both, Part::After('%')),
        (&["mosquitto_pub", "mosquitto_sub"], "-P", Both, Part::All),
        (&["zip", "unzip"], "-P", Both, Part::All),
        (&["7z", "7za", "7zr"], "-p", Only, Part::All),
        (&["openssl"], "-k", Never, Part::All),
        (&["openssl"], "-K", Never, Part::All),
        (&["mongo", "mongosh", "mongodump", "mongorestore"], "-p", Both, Part::All),
        (&["sqlcmd", "bcp"], "-P", Both, Part::All),
        (&["snmpget", "snmpwalk", "snmpset"], "-c", Both, Part::All),
        (&["snmpget", "snmpwalk", "snmpset"], "-A", Both, Part::All),
        (&["snmpget", "snmpwalk", "snmpset"], "-X", Both, Part::All),
        (&["xfreerdp", "rdesktop"], "-p", Both, Part::All),
        (&["ipmitool"], "-P", Both, Part::All),
    ]
};

#[derive(Clone, Copy, PartialEq)]
enum Attached {
    Never,
    Both,
    Only,
}

#[allow(
    clippy::expect_used,
    reason = "the patterns are constants of this file; a test compiles every one"
)]
fn compile(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant pattern")
}

static SHAPE: LazyLock<Regex> = LazyLock::new(|| {
    let all: Vec<String> = SHAPES.iter().map(|(_, shape)| format!("(?:{shape})")).collect();
    compile(&all.join("|"))
});
static CUT_SHAPE: LazyLock<Regex> = LazyLock::new(|| compile(CUT_SHAPES));
/// A user and password in a URL; the password may hold anything but the end of the authority.
static USERINFO: LazyLock<Regex> =
    LazyLock::new(|| compile(r#"(?i)\b([a-z][a-z0-9+.-]*://[^/\s:@'"]*):([^/\s'"]+)@"#));
/// The same where the password holds a slash, which it should not; a port before a path is none.
static USERINFO_SLASH: LazyLock<Regex> = LazyLock::new(|| {
    compile(
        r#"(?i)\b([a-z][a-z0-9+.-]*://[^/\s:@'"]+):([^\s'":@/]*[^\s'":@/0-9][^\s'":@/]*/[^\s'":@]*)@"#,
    )
});
/// A header, and what follows its name up to the end of the line or quotation.
static HEADER: LazyLock<Regex> = LazyLock::new(|| {
    compile(
        r#"(?i)((?:\b|-H)(?:(?:proxy-)?authorization|cookie|set-cookie|x-[a-z-]*(?:token|key|secret|auth)|api-key|apikey|private-token|job-token))(\s*:\s*)((?:bearer|basic|token|digest|negotiate|apikey)\s+)?[^"'\r\n]+"#,
    )
});
static BEARER: LazyLock<Regex> =
    LazyLock::new(|| compile(r"(?i)\b(bearer|basic)(\s+)[A-Za-z0-9._~+/-]{8,}=*"));
/// `"name": "value"` of JSON and YAML; quotation marks may be escaped.
static FIELD: LazyLock<Regex> = LazyLock::new(|| {
    compile(r#"([A-Za-z][A-Za-z0-9_.-]*)(\\?["']\s*:\s*|:\s+)(\\?["'][^"'\\]*|[^\s"',;}\\]+)"#)
});

/// The words of a name: broken at `-`, `_`, `.` and where a capital follows a small letter.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut small = false;
    for c in name.chars() {
        let breaks = matches!(c, '-' | '_' | '.');
        if (breaks || (c.is_ascii_uppercase() && small))
            && words.last().is_some_and(|w| !w.is_empty())
        {
            words.push(String::new());
        }
        small = c.is_ascii_lowercase() || c.is_ascii_digit();
        if !breaks && let Some(word) = words.last_mut() {
            word.push(c.to_ascii_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// True when what is given to something of this name is a secret.
fn is_secret_name(name: &str) -> bool {
    let words = words(name);
    let Some(last) = words.last() else {
        return false;
    };
    if SECRET_WORDS.contains(&last.as_str()) || SECRET_ENDINGS.iter().any(|end| last.ends_with(end))
    {
        return true;
    }
    let before = words.len().checked_sub(2).map(|at| words[at].as_str());
    before.is_some_and(|before| SECRET_PAIRS.contains(&(before, last.as_str())))
}

/// The short options of a program that this argument starts, if it is one of the table.
fn program(argument: &str) -> Option<&'static str> {
    let base = argument.rsplit('/').next().unwrap_or(argument);
    OPTIONS
        .iter()
        .flat_map(|(programs, ..)| programs.iter())
        .find(|program| **program == base)
        .copied()
}

fn within(value: &str, part: Part) -> String {
    match part {
        Part::All => MARK.to_owned(),
        Part::After(mark) => match value.split_once(mark) {
            Some((user, _)) => format!("{user}{mark}{MARK}"),
            // A user without a password: it is asked for.
            None => value.to_owned(),
        },
    }
}

/// What the next argument is.
#[derive(Clone, Copy)]
enum Next {
    Plain,
    Secret(Part),
}

/// Takes secrets out of one command line, argument by argument.
struct Redactor {
    program: Option<&'static str>,
    next: Next,
    depth: u8,
}

/// Command lines within command lines (`sh -c "…"`) that are looked into.
const DEPTH_MAX: u8 = 2;

impl Redactor {
    const fn new(depth: u8) -> Self {
        Self { program: None, next: Next::Plain, depth }
    }

    fn argument<'a>(&mut self, argument: &'a str) -> Cow<'a, str> {
        if let Next::Secret(part) = std::mem::replace(&mut self.next, Next::Plain)
            // Another long option: the one before took no value, as `mysql --password --user x`.
            && !argument.starts_with("--")
        {
            return Cow::Owned(within(argument, part));
        }
        if let Some(program) = program(argument) {
            self.program = Some(program);
            return Cow::Borrowed(argument);
        }
        if let Some(redacted) = self.option(argument) {
            return redacted;
        }
        let shown = text(argument);
        if self.depth < DEPTH_MAX && shown.contains(char::is_whitespace) {
            return Cow::Owned(nested(&shown, self.depth + 1));
        }
        shown
    }

    fn option<'a>(&mut self, argument: &'a str) -> Option<Cow<'a, str>> {
        // `--name=value`, `NAME=value`, `-Dname=value`.
        if let Some((name, value)) = argument.split_once('=')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && is_secret_name(name)
            && !value.is_empty()
        {
            return Some(Cow::Owned(format!("{name}={MARK}")));
        }
        // `openssl -passin pass:value`.
        if self.program == Some("openssl") && argument.starts_with("pass:") {
            return Some(Cow::Owned(format!("pass:{MARK}")));
        }
        if let Some(program) = self.program {
            for (programs, option, attached, part) in OPTIONS {
                if !programs.contains(&program) {
                    continue;
                }
                let Some(value) = argument.strip_prefix(option) else {
                    continue;
                };
                if value.is_empty() {
                    if *attached != Attached::Only {
                        self.next = Next::Secret(*part);
                    }
                    return Some(Cow::Borrowed(argument));
                }
                if *attached != Attached::Never && !option.starts_with("--") {
                    return Some(Cow::Owned(format!("{option}{}", within(value, *part))));
                }
                if let Some(value) = value.strip_prefix('=') {
                    return Some(Cow::Owned(format!("{option}={}", within(value, *part))));
                }
            }
        }
        // `--name value`.
        if argument.starts_with('-') && !argument.contains('=') && is_secret_name(argument) {
            self.next = Next::Secret(Part::All);
            return Some(Cow::Borrowed(argument));
        }
        None
    }
}

/// A command line within an argument: its words are redacted, all between them stays as it is.
fn nested(line: &str, depth: u8) -> String {
    let mut redactor = Redactor::new(depth);
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while !rest.is_empty() {
        let gap = rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len());
        out.push_str(&rest[..gap]);
        rest = &rest[gap..];
        let end = word_end(rest);
        let word = &rest[..end];
        rest = &rest[end..];
        if word.is_empty() {
            continue;
        }
        let quote = word.chars().next().filter(|c| matches!(c, '\'' | '"'));
        match quote.and_then(|q| word.strip_prefix(q)?.strip_suffix(q).map(|w| (q, w))) {
            Some((quote, inner)) => {
                out.push(quote);
                out.push_str(&redactor.argument(inner));
                out.push(quote);
            }
            None => out.push_str(&redactor.argument(word)),
        }
    }
    out
}

/// Where the first word of a shell's line ends: at whitespace outside quotation marks.
fn word_end(line: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in line.char_indices() {
        match quote {
            _ if escaped => escaped = false,
            None | Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c.is_whitespace() => return at,
            None => {}
        }
    }
    line.len()
}

fn replace<'a>(
    text: Cow<'a, str>,
    pattern: &Regex,
    with: impl Fn(&Captures<'_>) -> String,
) -> Cow<'a, str> {
    match pattern.replace_all(&text, with) {
        Cow::Borrowed(_) => text,
        Cow::Owned(changed) => Cow::Owned(changed),
    }
}

/// Takes out what looks like a secret, and what stands beside a secret's name, anywhere in a text.
#[must_use]
pub fn text(text: &str) -> Cow<'_, str> {
    let group = |c: &Captures<'_>, at: usize| c.get(at).map_or("", |m| m.as_str()).to_owned();
    let out = replace(Cow::Borrowed(text), &SHAPE, |_| MARK.to_owned());
    if !out.contains([':', '=', ' ']) {
        return out;
    }
    let out = replace(out, &USERINFO, |c| format!("{}:{MARK}@", group(c, 1)));
    let out = replace(out, &USERINFO_SLASH, |c| format!("{}:{MARK}@", group(c, 1)));
    let out =
        replace(out, &HEADER, |c| format!("{}{}{}{MARK}", group(c, 1), group(c, 2), group(c, 3)));
    let out = replace(out, &BEARER, |c| format!("{}{}{MARK}", group(c, 1), group(c, 2)));
    let out = replace(out, &FIELD, |c| {
        let value = group(c, 3);
        // What follows a scheme in a header is gone already; the scheme says what it was.
        let scheme = SCHEMES.iter().any(|scheme| value.eq_ignore_ascii_case(scheme));
        if !is_secret_name(&group(c, 1)) || value.starts_with(MARK) || scheme {
            return group(c, 0);
        }
        let open = value.find(|c| c != '\\' && c != '"' && c != '\'').unwrap_or(value.len());
        if open == value.len() {
            return group(c, 0);
        }
        format!("{}{}{}{MARK}", group(c, 1), group(c, 2), &value[..open])
    });
    assignments(out)
}

/// `name=value` anywhere: in URLs, form data and scripts.
fn assignments(text: Cow<'_, str>) -> Cow<'_, str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let mut out = String::new();
    let mut from = 0;
    let mut search = 0;
    while let Some(found) = text[search..].find('=') {
        let at = search + found;
        search = at + 1;
        let head = text[from..at].trim_end_matches(['\\', '"', '\'']);
        let begin = from
            + head
                .rfind(|c| !is_name(c))
                .map_or(0, |p| p + head[p..].chars().next().map_or(1, char::len_utf8));
        let name = &text[begin..from + head.len()];
        if !is_secret_name(name) {
            continue;
        }
        let value = &text[at + 1..];
        let open = value.len() - value.trim_start_matches('\\').len();
        let quoted = value[open..].chars().next().filter(|c| matches!(c, '"' | '\''));
        let (skip, len) = match quoted {
            Some(quote) => {
                let inner = &value[open + 1..];
                (open + 1, inner.find(quote).unwrap_or(inner.len()))
            }
            None => {
                let end = |c: char| c.is_whitespace() || "&;,\"'}|<>)".contains(c);
                (0, value.find(end).unwrap_or(value.len()))
            }
        };
        if len == 0 || value[skip..].starts_with(MARK) {
            continue;
        }
        out.push_str(&text[from..at + 1 + skip]);
        out.push_str(MARK);
        from = at + 1 + skip + len;
        search = from;
    }
    if from == 0 {
        return text;
    }
    out.push_str(&text[from..]);
    Cow::Owned(out)
}

/// The command line of these arguments (each ended by NUL) with secrets taken out, arguments with
/// spaces in quotation marks. `cut` says that the last argument may be a part of one; what of it
/// begins like a secret goes too. Bytes that are not UTF-8 become U+FFFD.
#[must_use]
pub fn command_line(argv: &[u8], cut: bool) -> String {
    let mut out = String::with_capacity(argv.len());
    let mut redactor = Redactor::new(0);
    let argv = argv.strip_suffix(b"\0").unwrap_or(argv);
    let mut arguments = argv.split(|&b| b == 0).peekable();
    if argv.is_empty() {
        return out;
    }
    while let Some(argument) = arguments.next() {
        let argument = String::from_utf8_lossy(argument);
        let mut shown = redactor.argument(&argument);
        if cut && arguments.peek().is_none() {
            shown = replace(shown, &CUT_SHAPE, |_| MARK.to_owned());
        }
        if !out.is_empty() {
            out.push(' ');
        }
        quote(&mut out, &shown);
    }
    if cut {
        out.push_str(" …");
    }
    out
}

/// Writes an argument as a shell would take it.
fn quote(out: &mut String, argument: &str) {
    let plain = |c: char| !c.is_whitespace() && !"'\"\\$`;&|<>()*?#".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        out.push_str(argument);
        return;
    }
    out.push('\'');
    out.push_str(&argument.replace('\'', r"'\''"));
    out.push('\'');
}

#[cfg(test)]
#[path = "redact_tests.rs"]
mod tests;
