//! Labels of places: what `*.entities.json` files beside the policies say, in Cedar's JSON form of
//! entities. They are known when policies are loaded, so that a policy about a label is lowered as the
//! same policy about each place that has it.
//!
//! A label that a `Dir` has is that of whatever is found there and of everything beneath. One that a
//! `File`, a `Program` or a `UnixSocket` has is that of the object at this very path, as whichever of
//! the three it is asked for: what is secret to readers is so to those who run it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::diagnostic::{Diagnostic, Severity, Text, nearest};
use super::formula::Test;
use super::scope::{TYPES, abstract_address, path};
use super::syntax::{Kind, Words, tokens};

/// How the name of a file of entities ends.
pub(super) const SUFFIX: &str = ".entities.json";

/// The most entities that one file may have: none of [`super::MAX_FILE_BYTES`] has many more.
const ENTITIES_MAX: usize = 250_000;

/// The most places that all labels may have together of which policies speak, each with those of the
/// labels that are in it.
const PLACES_MAX: usize = 1_000_000;

const FORM: &str = "write as in\n\
    [{\"uid\": {\"type\": \"Dir\", \"id\": \"/etc/ssh\"}, \"attrs\": {}, \
    \"parents\": [{\"type\": \"Label\", \"id\": \"secret\"}]}]";

/// What may have labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Holder {
    /// Whatever is found at this path and beneath it.
    Dir(String),
    /// The object at this path, or of this abstract address, that is no folder.
    Object(String),
    Label(String),
}

/// A label that something has.
#[derive(Clone, Debug)]
struct Given {
    label: String,
    /// The entity, as policies write it.
    by: String,
    /// Where it is written: for people, and the number of the file with the bytes in it.
    place: String,
    at: (usize, Range<usize>),
}

/// The labels of places.
#[derive(Debug, Default)]
pub struct Labels {
    given: HashMap<Holder, Vec<Given>>,
    /// What has each label.
    holders: BTreeMap<String, Vec<Holder>>,
    known: Mutex<Known>,
}

/// The places of labels that were asked for.
#[derive(Debug, Default)]
struct Known {
    labelled: HashMap<String, Arc<Labelled>>,
    places: usize,
}

/// The places of one label, and of all labels in it.
#[derive(Debug)]
pub(super) struct Labelled {
    pub(super) label: String,
    pub(super) dirs: BTreeSet<String>,
    /// Those that are not among the former.
    pub(super) objects: BTreeSet<String>,
}

/// Of the same policies no two labels have one name.
impl PartialEq for Labelled {
    fn eq(&self, other: &Self) -> bool {
        self.label == other.label
    }
}

impl Eq for Labelled {}

impl Hash for Labelled {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.label.hash(state);
    }
}

impl Labelled {
    /// Its folders; and, where these are meant too, the objects that are none.
    pub(super) fn places(&self, objects: bool) -> impl Iterator<Item = (&str, bool)> {
        let dirs = self.dirs.iter().map(|path| (path.as_str(), true));
        let objects = self.objects.iter().filter(move |_| objects);
        dirs.chain(objects.map(|path| (path.as_str(), false)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.dirs.is_empty() && self.objects.is_empty()
    }
}

/// A label that something has, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Held {
    /// The label.
    pub label: String,
    /// The labels through which it has it, from the one that is given to it on.
    pub through: Vec<String>,
    /// The entity to which that one is given, as policies write it.
    pub by: String,
    /// `file:line:column` of where that is written.
    pub place: String,
}

/// A problem, with the number of its file and where it begins there.
pub(super) type Found = (usize, usize, Diagnostic);

impl Labels {
    /// Reads the files of entities among these.
    pub(super) fn read(texts: &[Text<'_>], problems: &mut Vec<Found>) -> Self {
        let mut reader = Reader { labels: Self::default(), known: HashMap::new(), problems };
        for (index, text) in texts.iter().enumerate() {
            if text.source.is_entities() {
                reader.file(index, text);
            }
        }
        reader.circles(texts);
        reader.labels
    }

    /// Remarks on labels of which nobody speaks, when these are those of which policies do.
    pub(super) fn unspoken(
        &self,
        texts: &[Text<'_>],
        spoken: &BTreeSet<String>,
    ) -> Vec<Diagnostic> {
        let mut heard: HashSet<&str> = HashSet::new();
        let mut left: Vec<&str> = spoken.iter().map(String::as_str).collect();
        while let Some(label) = left.pop() {
            if heard.insert(label) {
                let holders = self.holders.get(label).into_iter().flatten();
                left.extend(holders.filter_map(|holder| match holder {
                    Holder::Label(inner) => Some(inner.as_str()),
                    Holder::Dir(_) | Holder::Object(_) => None,
                }));
            }
        }
        let unheard = self.holders.iter().filter(|(label, _)| !heard.contains(label.as_str()));
        let remark = |(label, holders): (&String, &Vec<Holder>)| {
            let given = self.given.get(holders.first()?)?;
            let given = given.iter().find(|given| given.label == *label)?;
            let help = match nearest(label, spoken.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "write it in a policy, or leave it out".to_owned(),
            };
            let message = format!("no policy speaks of the label `{label}`");
            let (_, _, mut found) = at(texts, given, message, &help);
            found.severity = Severity::Warning;
            Some(found)
        };
        unheard.filter_map(remark).collect()
    }

    /// The labels that something has.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.holders.keys().map(String::as_str)
    }

    /// The places that have a label.
    fn labelled(&self, label: &str) -> Option<Arc<Labelled>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.labelled.get(label) {
            return Some(found.clone());
        }
        let mut found =
            Labelled { label: label.to_owned(), dirs: BTreeSet::new(), objects: BTreeSet::new() };
        let mut seen = HashSet::from([label]);
        let mut left = vec![label];
        while let Some(label) = left.pop() {
            for holder in self.holders.get(label).into_iter().flatten() {
                match holder {
                    Holder::Dir(path) => drop(found.dirs.insert(path.clone())),
                    Holder::Object(path) => drop(found.objects.insert(path.clone())),
                    Holder::Label(inner) if seen.insert(inner) => left.push(inner),
                    Holder::Label(_) => {}
                }
            }
        }
        found.objects.retain(|path| !found.dirs.contains(path));
        let places = found.dirs.len() + found.objects.len() + seen.len();
        known.places = known.places.saturating_add(places);
        if known.places > PLACES_MAX {
            return None;
        }
        let found = Arc::new(found);
        known.labelled.insert(label.to_owned(), found.clone());
        Some(found)
    }

    /// `resource in Label::"…"`, or `resource.labels.contains("…")`.
    ///
    /// # Errors
    /// A label without a name, or more places than can be kept.
    pub(super) fn test(
        &self,
        text: &Text<'_>,
        label: &str,
        range: Range<usize>,
        warnings: &mut Vec<Diagnostic>,
    ) -> Result<Test, Box<Diagnostic>> {
        if label.is_empty() {
            let help = "write the name of a label, as in `resource in Label::\"secret\"`";
            return Err(Box::new(text.error(range, "a label without a name", help)));
        }
        let Some(found) = self.labelled(label) else {
            return Err(Box::new(text.error(
                range,
                format!("the labels of which policies speak have more than {PLACES_MAX} places"),
                "give labels to folders instead of to what lies in them",
            )));
        };
        if found.is_empty() {
            let help = match nearest(label, self.names().filter(|name| *name != label)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!(
                    "give it to places in a file beside the policies whose name ends with `{SUFFIX}`:\n{FORM}"
                ),
            };
            let message = format!("no place has the label `{label}`, so nothing is ever in it");
            warnings.push(text.warning(range, message, help));
        }
        Ok(Test::Labelled(found))
    }

    /// All that is said of something: what it is given, and what that is in.
    fn all_of<'a>(&'a self, holders: impl IntoIterator<Item = Holder>) -> Vec<Held> {
        let mut found: BTreeMap<&'a str, Held> = BTreeMap::new();
        for holder in holders {
            let mut left: VecDeque<(&'a Given, Vec<String>, &'a Given)> = VecDeque::new();
            let own = self.given.get(&holder).into_iter().flatten();
            left.extend(own.map(|given| (given, vec![given.label.clone()], given)));
            while let Some((given, through, first)) = left.pop_front() {
                let label = given.label.as_str();
                if found.contains_key(label) {
                    continue;
                }
                let above = self.given.get(&Holder::Label(given.label.clone()));
                left.extend(above.into_iter().flatten().map(|above| {
                    let mut through = through.clone();
                    through.push(above.label.clone());
                    (above, through, first)
                }));
                let (by, place) = (first.by.clone(), first.place.clone());
                found.insert(label, Held { label: label.to_owned(), through, by, place });
            }
        }
        found.into_values().collect()
    }

    /// The labels of what is at a path, or has an abstract address; those of the place nearest to it first
    /// where it has one twice.
    #[must_use]
    pub fn of(&self, name: &str, is_dir: bool) -> Vec<Held> {
        if self.given.is_empty() {
            return Vec::new();
        }
        let own = (!is_dir).then(|| Holder::Object(name.to_owned()));
        let folders = name.starts_with('/').then(|| folders(name)).into_iter().flatten();
        self.all_of(own.into_iter().chain(folders.map(|folder| Holder::Dir(folder.to_owned()))))
    }

    /// The labels that are given to an object itself, or to a folder itself: in Cedar's terms, its parents.
    pub(super) fn parents(&self, name: &str, is_dir: bool) -> Vec<&str> {
        let name = name.to_owned();
        let holder = if is_dir { Holder::Dir(name) } else { Holder::Object(name) };
        let given = self.given.get(&holder).into_iter().flatten();
        given.map(|given| given.label.as_str()).collect()
    }

    /// Every label that is in labels, with these.
    pub(super) fn hierarchy(&self) -> impl Iterator<Item = (&str, Vec<&str>)> {
        self.given.iter().filter_map(|(holder, given)| match holder {
            Holder::Label(label) => {
                Some((label.as_str(), given.iter().map(|one| one.label.as_str()).collect()))
            }
            Holder::Dir(_) | Holder::Object(_) => None,
        })
    }

    /// All places that have a label, and abstract addresses.
    pub(super) fn places(&self) -> impl Iterator<Item = &str> {
        self.given.keys().filter_map(|holder| match holder {
            Holder::Dir(name) | Holder::Object(name) => Some(name.as_str()),
            Holder::Label(_) => None,
        })
    }
}

/// A path and the folders above it, the root folder last.
fn folders(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| match path.rsplit_once('/') {
        None | Some(("", "")) => None,
        Some(("", _)) => Some("/"),
        Some((above, _)) => Some(above),
    })
}

struct Reader<'a> {
    labels: Labels,
    /// The entities so far, with their parents and where they stand.
    known: HashMap<(String, String), (BTreeSet<String>, String)>,
    problems: &'a mut Vec<Found>,
}

/// What is wrong with an entity, or nothing more is to be said of it.
type Read<T> = Result<T, Box<Diagnostic>>;

impl Reader<'_> {
    fn file(&mut self, index: usize, text: &Text<'_>) {
        let whole = text.source.text.as_str();
        let mut refuse = |one: Diagnostic| self.problems.push((index, 0, one));
        if whole.starts_with('\u{feff}') {
            let help = "save the file as UTF-8 without a byte order mark";
            refuse(text.error(0..1, "the file begins with a byte order mark", help));
            return;
        }
        if whole.trim().is_empty() {
            return;
        }
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(whole) {
            let at = text.byte(error.line(), error.column());
            let said = error.to_string();
            let said = said.split(" at line ").next().unwrap_or(&said);
            refuse(text.error(at..at + 1, format!("this is not JSON: {said}"), FORM));
            return;
        }
        let found = tokens(whole);
        let words = Words::new(whole, &found);
        if words.text(0) != "[" {
            refuse(text.error(words.range(), "the entities are not a list", FORM));
            return;
        }
        let entities = parts(words);
        if let Some(more) = entities.get(ENTITIES_MAX) {
            let help = format!("split it into several `*{SUFFIX}` files in one folder");
            let message = format!("more than {ENTITIES_MAX} entities in one file");
            refuse(text.error(more.range(), message, help));
            return;
        }
        for entity in entities {
            if let Err(problem) = self.entity(index, text, entity) {
                self.problems.push((index, entity.range().start, *problem));
            }
        }
    }

    fn entity(&mut self, index: usize, text: &Text<'_>, words: Words<'_>) -> Read<()> {
        let refuse = |at: Words<'_>, message: String, help: &str| {
            Err(Box::new(text.error(at.range(), message, help)))
        };
        let members = members(text, words, &["uid", "attrs", "parents", "tags"], "an entity")?;
        let member = |name: &str| members.iter().find(|(known, _)| known == name);
        for name in ["uid", "attrs", "parents"] {
            if member(name).is_none() {
                let message = format!("an entity without `{name}`");
                return refuse(words, message, FORM);
            }
        }
        for name in ["attrs", "tags"] {
            if let Some((_, value)) = member(name)
                && (value.text(0), value.text(1)) != ("{", "}")
            {
                return refuse(
                    *value,
                    format!("`{name}` of an entity are not for policies: only its labels are"),
                    &format!(
                        "write `\"{name}\": {{}}`, and what is meant as a Label among the parents"
                    ),
                );
            }
        }
        let Some((_, uid)) = member("uid") else { return Ok(()) };
        let (kind, id, at) = entity_uid(text, *uid)?;
        let holder = holder(text, &kind, &id, at)?;
        let Some((_, parents)) = member("parents") else { return Ok(()) };
        if parents.text(0) != "[" {
            return refuse(*parents, "`parents` are not a list".to_owned(), FORM);
        }
        let by = format!("{kind}::\"{}\"", id.escape_debug());
        let mut own: Vec<Given> = Vec::new();
        for parent in parts(*parents) {
            let (of, label, at) = entity_uid(text, parent)?;
            if of != "Label" {
                let help = match of.as_str() {
                    "Dir" => {
                        "leave it out: a path says by itself in which folders it lies; parents are labels"
                    }
                    _ => "name a label: {\"type\": \"Label\", \"id\": \"secret\"}",
                };
                return refuse(parent, format!("here no {kind} is in a {of}"), help);
            }
            if label.is_empty() {
                return refuse(at, "a label without a name".to_owned(), "write its name");
            }
            if own.iter().all(|known| known.label != label) {
                let range = parent.range();
                let place = text.place(range.start);
                own.push(Given { label, by: by.clone(), place, at: (index, range) });
            }
        }
        let labels: BTreeSet<String> = own.iter().map(|given| given.label.clone()).collect();
        if let Some((known, place)) = self.known.get(&(kind.clone(), id.clone())) {
            if *known == labels {
                return Ok(());
            }
            return refuse(
                *uid,
                format!("{by} has other parents at {place}"),
                "write it once, with all of its parents",
            );
        }
        self.known.insert((kind, id), (labels, text.place(words.range().start)));
        // A File and a Program may be the same object.
        let given = self.labels.given.entry(holder.clone()).or_default();
        for one in own {
            if given.iter().all(|known| known.label != one.label) {
                let holders = self.labels.holders.entry(one.label.clone()).or_default();
                holders.push(holder.clone());
                given.push(one);
            }
        }
        Ok(())
    }

    /// Refuses labels that are in themselves.
    fn circles(&mut self, texts: &[Text<'_>]) {
        let labels = &self.labels;
        let given = |label: &str| labels.given.get(&Holder::Label(label.to_owned()));
        let mut names: Vec<&str> = labels.hierarchy().map(|(label, _)| label).collect();
        names.sort_unstable();
        let mut done: HashSet<&str> = HashSet::new();
        for name in names {
            // The labels on the way, and which of the parents of each is next.
            let mut way: Vec<(&str, usize)> = vec![(name, 0)];
            let mut on_way: HashSet<&str> = HashSet::from([name]);
            while let Some((label, next)) = way.last_mut() {
                let parent = given(label).and_then(|given| given.get(*next));
                *next += 1;
                let Some(parent) = parent.filter(|_| !done.contains(*label)) else {
                    let label = *label;
                    done.insert(label);
                    on_way.remove(label);
                    way.pop();
                    continue;
                };
                let above = parent.label.as_str();
                if !on_way.insert(above) {
                    let from = way.iter().position(|(label, _)| *label == above).unwrap_or(0);
                    let circle = way.iter().skip(from).map(|(label, _)| *label);
                    let circle: Vec<&str> = circle.chain([above]).collect();
                    let message =
                        format!("the label `{above}` is in itself: {}", circle.join(" in "));
                    let help = "leave one of these parents out";
                    self.problems.push(at(texts, parent, message, help));
                    // One is told at a time: others may be the same circle.
                    return;
                }
                if !done.contains(above) {
                    way.push((above, 0));
                } else {
                    on_way.remove(above);
                }
            }
        }
    }
}

/// A problem where a label is given.
fn at(texts: &[Text<'_>], given: &Given, message: String, help: &str) -> Found {
    let (index, range) = given.at.clone();
    let start = range.start;
    match texts.get(index) {
        Some(text) => (index, start, text.error(range, message, help)),
        None => (index, start, Diagnostic::of_file(&given.place, message, help)),
    }
}

/// The parts of a list or an object.
fn parts(words: Words<'_>) -> Vec<Words<'_>> {
    let mut parts = words.sub(1..words.len().saturating_sub(1)).split(",");
    parts.retain(|part| !part.is_empty());
    parts
}

/// The members of an object, each with its value: any of `fields`, and each once.
fn members<'a>(
    text: &Text<'_>,
    words: Words<'a>,
    fields: &[&str],
    what: &str,
) -> Read<Vec<(String, Words<'a>)>> {
    if words.text(0) != "{" {
        return Err(Box::new(text.error(words.range(), format!("{what} is an object"), FORM)));
    }
    let mut found: Vec<(String, Words<'a>)> = Vec::new();
    for part in parts(words) {
        let (name, at) = (string(text, part.sub(0..1))?, part.sub(0..1).range());
        if !fields.contains(&name.as_str()) {
            let list = fields.join("`, `");
            let help = match nearest(&name, fields.iter().copied()) {
                Some(near) => format!("did you mean `{near}`? {what} has `{list}`"),
                None => format!("{what} has `{list}`"),
            };
            return Err(Box::new(text.error(at, format!("{what} has no `{name}`"), help)));
        }
        if found.iter().any(|(known, _)| *known == name) {
            let help = "write it once";
            return Err(Box::new(text.error(at, format!("`{name}` is given twice"), help)));
        }
        found.push((name, part.sub(2..part.len())));
    }
    Ok(found)
}

fn string(text: &Text<'_>, word: Words<'_>) -> Read<String> {
    let found = match (word.len(), word.kind(0)) {
        (1, Some(Kind::Str)) => serde_json::from_str(word.text(0)).ok(),
        _ => None,
    };
    found.ok_or_else(|| Box::new(text.error(word.range(), "this is no string", FORM)))
}

/// The type and id of an entity, and where the id stands.
fn entity_uid<'a>(text: &Text<'_>, words: Words<'a>) -> Read<(String, String, Words<'a>)> {
    let mut inner = words;
    if (words.text(0), words.text(1)) == ("{", "\"__entity\"") {
        let explicit = members(text, words, &["__entity"], "an explicit entity")?;
        inner = explicit.first().map_or(words, |(_, value)| *value);
    }
    let found = members(text, inner, &["type", "id"], "an entity's name")?;
    let member = |name: &str| {
        let found = found.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        found.ok_or_else(|| {
            let message = format!("an entity's name without `{name}`");
            Box::new(text.error(inner.range(), message, FORM))
        })
    };
    let (kind, id) = (member("type")?, member("id")?);
    let name = string(text, kind)?;
    let known = match name.as_str() {
        "Dir" | "File" | "Program" | "UnixSocket" | "Label" => None,
        "Agent" | "AgentGroup" => Some((
            format!("no {name} stands in a file of entities"),
            "name agents, their groups and their labels where they are configured, as `[[agent]]`"
                .to_owned(),
        )),
        "Peer" | "SocketFamily" | "Privilege" | "Action" => Some((
            format!("a {name} has no labels"),
            "labels are for Dir, File, Program and UnixSocket".to_owned(),
        )),
        _ => {
            let list = "here may stand: Dir, File, Program, UnixSocket, Label";
            let help = match nearest(&name, TYPES) {
                Some(near) => format!("did you mean `{near}`? {list}"),
                None => list.to_owned(),
            };
            Some((format!("there is no entity type `{name}`"), help))
        }
    };
    if let Some((message, help)) = known {
        return Err(Box::new(text.error(kind.range(), message, help)));
    }
    Ok((name, string(text, id)?, id))
}

/// What an entity is for labels.
fn holder(text: &Text<'_>, kind: &str, id: &str, at: Words<'_>) -> Read<Holder> {
    let range = at.range();
    match kind {
        "Label" if id.is_empty() => {
            Err(Box::new(text.error(range, "a label without a name", "write its name")))
        }
        "Label" => Ok(Holder::Label(id.to_owned())),
        "Dir" => Ok(Holder::Dir(path(text, id, "path", true, range)?)),
        "UnixSocket" if id.starts_with('@') => {
            Ok(Holder::Object(abstract_address(text, id, range)?))
        }
        _ if id == "/" => Err(Box::new(text.error(
            range,
            format!("the root folder is no {kind}"),
            "for everything write the type Dir",
        ))),
        _ => Ok(Holder::Object(path(text, id, "path", false, range)?)),
    }
}
