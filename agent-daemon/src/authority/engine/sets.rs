//! Policy sets: made, shared, swapped by one write, retired; and what is Ambit's own.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use agent_ebpf::{Agent, MAX_CGROUP_LEVEL};

use super::{Engine, EngineError, Inner, lock_of};
use crate::{
    authority::{
        directory::{self, AgentEntry, SetEntry, Source},
        objects::{self, View},
        protect, state,
    },
    config::Config,
    kernel::{
        Backend, TableError, host,
        tables::{NewSet, Objects},
    },
    policy::{self, AgentName, Attributes, HashedTables, Lowered, Policies, Protected},
};

/// A look for objects takes at most one part in so many of the daemon's time.
const LOOK_SHARE: u32 = 20;

/// How long an agent waits for the programs to be read that its policy names by path and by content.
const AHEAD: Duration = Duration::from_secs(5);

/// What a look for objects found, when it began and how long it took.
struct Looked {
    objects: Objects,
    at: (Instant, Duration),
}

/// Tables of which there is no set yet.
struct Wanted {
    lowered: Arc<Lowered>,
    hashed: Arc<HashedTables>,
    view: View,
    looked: Looked,
}

impl Looked {
    fn nothing() -> Self {
        Self { objects: Objects::new(), at: (Instant::now(), Duration::ZERO) }
    }
}

impl Engine {
    pub(super) fn policies_of(&self, source: &Source) -> Result<Policies, EngineError> {
        match source {
            Source::Run { name, text, more } => {
                let mut sources = vec![policy::Source { name: name.clone(), text: text.clone() }];
                sources.extend_from_slice(more);
                Ok(Policies::check(&sources)?)
            }
            Source::Folder => {
                self.inner().folder.clone().ok_or_else(|| {
                    EngineError::Request("no policy folder has been read".to_owned())
                })
            }
        }
    }

    pub(super) fn lower(
        &self,
        policies: &Policies,
        entry: &AgentEntry,
    ) -> Result<Arc<Lowered>, EngineError> {
        self.lower_as(policies, entry, &entry.groups, &entry.attributes)
    }

    /// The agent's tables, were these its groups and attributes.
    fn lower_as(
        &self,
        policies: &Policies,
        entry: &AgentEntry,
        groups: &[String],
        attributes: &Attributes,
    ) -> Result<Arc<Lowered>, EngineError> {
        let Ok(name) = AgentName::parse(&entry.name) else {
            // Names were checked when the agent began; nothing is permitted to what has none.
            return Ok(Arc::default());
        };
        let (groups, attributes) = (groups.to_vec(), attributes.clone());
        let agent = policy::Agent { name, groups, attributes };
        Ok(policies.lower(&agent, &self.protected(entry))?)
    }

    pub(super) fn protected(&self, entry: &AgentEntry) -> Vec<Protected> {
        let (events, policies) = own_files(entry);
        protect::protected(&self.config, self.config_path.as_deref(), events, &policies)
    }

    /// Guards what is Ambit's own. Looked at again now and then: files rotate, policies are replaced.
    pub(super) fn guard(&self) -> Result<(), TableError> {
        let paths: BTreeSet<PathBuf> = {
            let names = self.directory.read();
            // Most agents have no files of their own, and so the same places.
            let mut seen = BTreeSet::new();
            let agents = names.agents.values().filter(|agent| !agent.ended);
            let different = agents.filter(|agent| seen.insert(own_files(agent)));
            different.flat_map(|agent| self.protected(agent)).map(|one| one.path).collect()
        };
        let objects = protect::guarded(&self.config, &paths);
        let mut inner = self.inner();
        inner.guarded = Instant::now();
        inner.tables.guard(&objects)
    }

    /// Publishes the tables of agents that are about to be bound, all at once: the kernel is waited for a few
    /// times, and not for each. What cannot be published is said when its agent is bound.
    pub(super) fn publish_ahead(&self, agents: &[(View, Arc<Lowered>)]) {
        let mut wanted: Vec<Wanted> = Vec::new();
        for (view, lowered) in agents {
            let same = |one: &Wanted| one.view == *view && one.lowered == *lowered;
            if !wanted.iter().any(same)
                && self.directory.read().shared(lowered, view).is_none()
                && let Ok(one) = self.want(lowered, view)
            {
                wanted.push(one);
            }
        }
        // One alone is published when it is bound.
        if wanted.len() > 1 {
            self.publish(&mut self.inner(), wanted);
        }
    }

    /// Lets sets go that nobody was bound to.
    pub(super) fn retire_unused(&self) {
        let mut inner = self.inner();
        let mut names = self.directory.write();
        let unused = names.sets.iter().filter(|(_, set)| !set.retired).map(|(set, _)| *set);
        for set in unused.collect::<Vec<_>>() {
            Self::retire(&mut inner, &mut names, set);
        }
    }

    /// Publishes an agent's tables if nobody has them, and swaps it to them by one write.
    pub(super) fn bind(&self, number: u32, lowered: Arc<Lowered>) -> Result<(), EngineError> {
        let view =
            View::of(self.directory.read().agents.get(&number).and_then(|a| a.root.as_ref()));
        if lowered.asks_contents() {
            // Before anything is read, so that the hooks follow what is known of it.
            self.inner().tables.ask_contents()?;
        }
        self.swap(number, &lowered, &view)?;
        if lowered.asks_contents() {
            // Until they are known, what depends on them is denied.
            let process = self.processes(&view).first().copied();
            self.contents.ahead(lowered.programs.iter(), process, AHEAD);
        }
        Ok(())
    }

    /// Binds the cgroup of an agent that has no tables: nothing is permitted to it.
    pub(super) fn confine(&self, number: u32) -> Result<(), EngineError> {
        let mut inner = self.inner();
        let mut names = self.directory.write();
        let Some(entry) = names.agents.get_mut(&number) else {
            return Ok(());
        };
        entry.set = 0;
        // Without an entry it is enforced.
        let _ =
            inner.tables.set_agent(number, &Agent { set: 0, mode: entry.mode as u8, pad: [0; 3] });
        self.bind_cgroup(&mut inner, number, entry)
    }

    fn bind_cgroup(
        &self,
        inner: &mut Inner,
        number: u32,
        entry: &AgentEntry,
    ) -> Result<(), EngineError> {
        let level = host::cgroup_level(&self.hierarchy, &entry.cgroup)
            .filter(|level| *level <= MAX_CGROUP_LEVEL)
            .ok_or_else(|| {
                EngineError::Request(format!(
                    "{} lies deeper than {MAX_CGROUP_LEVEL} levels, where agents cannot be bound",
                    entry.cgroup.display()
                ))
            })?;
        Ok(inner.tables.bind(entry.cgroup_id, level, number)?)
    }

    /// Publishes tables if nobody has them, swaps an agent to them and binds its cgroup.
    fn swap(&self, number: u32, lowered: &Arc<Lowered>, view: &View) -> Result<(), EngineError> {
        let mut found = None;
        // Who shared them may be gone by the time they are published; then they are looked up after all.
        let (mut inner, set) = loop {
            if found.is_none() && self.directory.read().shared(lowered, view).is_none() {
                found = Some(self.want(lowered, view)?);
            }
            let mut inner = self.inner();
            if let Some(set) = self.directory.read().shared(lowered, view) {
                break (inner, set);
            }
            let published = self.publish(&mut inner, found.take().into_iter().collect());
            if let Some(set) = published.into_iter().next() {
                break (inner, set?);
            }
        };
        if !lowered.hosts.is_empty()
            && let Err(error) = self.forward_names(&mut inner)
        {
            // It is bounded all the same: what is permitted by name is denied until names can be learnt.
            Self::say_unlearnt(&error);
        }
        let mut names = self.directory.write();
        Self::say_names(&mut inner, &mut names, number, set, lowered);
        let Some(entry) = names.agents.get_mut(&number) else {
            return Ok(());
        };
        let old = std::mem::replace(&mut entry.set, set);
        let agent = Agent { set, mode: entry.mode as u8, pad: [0; 3] };
        inner.tables.set_agent(number, &agent)?;
        self.bind_cgroup(&mut inner, number, entry)?;
        if old != set {
            Self::retire(&mut inner, &mut names, old);
        }
        Ok(())
    }

    /// Lets a set go, after a while, unless some agent still has it.
    pub(super) fn retire(inner: &mut Inner, names: &mut directory::Inner, set: u32) {
        if names.agents.values().any(|agent| !agent.ended && agent.set == set) {
            return;
        }
        if let Some(entry) = names.sets.get_mut(&set) {
            entry.retired = true;
            inner.retiring.push((set, Instant::now()));
        }
    }

    /// What a set of these tables is made of.
    fn want(&self, lowered: &Arc<Lowered>, view: &View) -> Result<Wanted, EngineError> {
        Ok(Wanted {
            lowered: lowered.clone(),
            hashed: Arc::new(hashed(lowered, &self.hash)?),
            view: view.clone(),
            looked: self.look(view, lowered),
        })
    }

    /// Makes sets; their numbers, in their order.
    fn publish(&self, inner: &mut Inner, wanted: Vec<Wanted>) -> Vec<Result<u32, TableError>> {
        let mut next = inner.next_set..;
        let new: Vec<NewSet<'_>> = wanted
            .iter()
            .zip(&mut next)
            .map(|(one, number)| NewSet {
                number,
                lowered: &one.lowered,
                places: one.hashed.places(),
                objects: &one.looked.objects,
                most: room(one.lowered.forbidden.len()),
            })
            .collect();
        inner.next_set = next.start;
        let published = inner.tables.publish(&new);
        let numbers: Vec<u32> = new.into_iter().map(|set| set.number).collect();
        let generation = inner.generation;
        let mut names = self.directory.write();
        let each = wanted.into_iter().zip(numbers).zip(published);
        each.map(|((one, number), published)| {
            published?;
            let Wanted { lowered, hashed, view, looked: Looked { objects, at: looked } } = one;
            let entry =
                SetEntry { lowered, hashed, view, objects, looked, generation, retired: false };
            names.sets.insert(number, entry);
            Ok(number)
        })
        .collect()
    }

    /// Looks up the objects that a policy forbids in a view.
    fn look(&self, view: &View, lowered: &policy::Lowered) -> Looked {
        if self.coverage.files != Some(Backend::Lsm) {
            return Looked::nothing();
        }
        let begun = Instant::now();
        let found = objects::look(view, &self.processes(view), lowered.forbidden.iter());
        let found = found.unwrap_or_default();
        if let Some(folder) = &found.cut {
            eprintln!(
                "ambitd: {} has more than {} entries, or more than {} hard links and files of overlays' layers; \
                 not every other name of what is forbidden there is known",
                folder.display(),
                objects::ENTRIES,
                objects::LINKS
            );
        }
        if let Some((place, error)) = &found.unseen {
            eprintln!(
                "ambitd: cannot look at {}, which a policy forbids: {error}; it is forbidden by that name only",
                place.display()
            );
        }
        Looked { objects: found.objects, at: (begun, begun.elapsed()) }
    }

    /// The processes through which a view may be looked into.
    fn processes(&self, view: &View) -> Vec<u32> {
        if *view == View::Own {
            return Vec::new();
        }
        let tasks = self.inner().tables.tasks();
        let names = self.directory.read();
        let agents = names.agents.iter().filter(|(_, agent)| !agent.ended);
        let own = agents.filter(|(_, agent)| View::of(agent.root.as_ref()) == *view);
        let own: Vec<(u32, Option<u32>)> =
            own.map(|(number, agent)| (*number, agent.holder)).collect();
        let living = tasks
            .iter()
            .filter(|(_, task)| own.iter().any(|(number, _)| *number == task.agent))
            .map(|(pid, _)| *pid);
        own.iter().filter_map(|(_, holder)| *holder).chain(living).collect()
    }

    /// Looks up anew what lies at the places that are forbidden: files rotate, and are replaced.
    pub(super) fn look_again(&self) {
        if self.coverage.files != Some(Backend::Lsm) {
            return;
        }
        let due: Vec<_> = {
            let names = self.directory.read();
            let sets = names.sets.iter().filter(|(_, set)| {
                let (at, took) = set.looked;
                !set.retired && at.elapsed() > LOOK_SHARE * took
            });
            sets.map(|(number, set)| (*number, set.view.clone(), set.lowered.forbidden.clone()))
                .collect()
        };
        for (number, view, forbidden) in due {
            let begun = Instant::now();
            let processes = self.processes(&view);
            let Some(mut found) = objects::look(&view, &processes, forbidden.iter()) else {
                continue;
            };
            let mut inner = self.inner();
            let mut names = self.directory.write();
            let Some(set) = names.sets.get_mut(&number).filter(|set| !set.retired) else {
                continue;
            };
            set.looked = (begun, begun.elapsed());
            if found.unseen.is_some() {
                // What could not be looked at this time may be where it was.
                let most = room(forbidden.len());
                let mut left_out = 0;
                for (object, cell) in &set.objects {
                    if found.objects.len() < most {
                        found.objects.entry(*object).or_insert(*cell);
                    } else if !found.objects.contains_key(object) {
                        left_out += 1;
                    }
                }
                if left_out > 0 {
                    eprintln!(
                        "ambitd: policy set {number} has room for {most} objects; {left_out} from before, at places that \
                         cannot be looked at, are forbidden by name only"
                    );
                }
            }
            if set.objects == found.objects {
                continue;
            }
            match inner.tables.forbid(number, &found.objects) {
                Ok(()) => set.objects = found.objects,
                Err(error) => eprintln!("ambitd: objects of policy set {number}: {error}"),
            }
        }
    }

    /// Takes the pinned set of an agent for what it is when it was made from the same tables, so that it
    /// need not be swapped and its rules keep their names.
    pub(super) fn recognise(
        &self,
        view: View,
        set: u32,
        digest: u64,
        lowered: &Arc<Lowered>,
    ) -> Result<(), EngineError> {
        if state::digest(lowered) != digest {
            return Ok(());
        }
        let hashed = Arc::new(hashed(lowered, &self.hash)?);
        let generation = self.inner().generation;
        let Looked { objects, at: looked } = Looked::nothing();
        let lowered = lowered.clone();
        let entry = SetEntry { lowered, hashed, view, objects, looked, generation, retired: false };
        self.directory.write().sets.insert(set, entry);
        Ok(())
    }

    /// Takes the policy folder, and the configuration's agents, anew. On any error what was in force
    /// stays in force.
    pub fn reload(&self) -> Result<u64, EngineError> {
        let result = self.try_reload();
        match &result {
            Ok(generation) => {
                self.show_generation(*generation);
                self.metrics.loaded(true);
            }
            Err(_) => self.metrics.loaded(false),
        }
        result
    }

    pub(super) fn try_reload(&self) -> Result<u64, EngineError> {
        let agents = match &self.config_path {
            Some(path) => Config::read(Some(path))?.agents,
            None => self.config.agents.clone(),
        };
        if agents.is_empty() && self.inner().folder.is_none() {
            return Ok(self.inner().generation);
        }
        let policies = Policies::check(&policy::read_folder(&self.config.policy.folder)?)?;
        let configured = |entry: &AgentEntry| agents.iter().find(|one| one.name == entry.name);
        // All of them before any is swapped: a policy that one agent's tables have no room for is wrong.
        let lowered: Vec<(u32, Arc<Lowered>)> = {
            let names = self.directory.read();
            let running = names.agents.iter().filter(|(_, agent)| !agent.ended);
            let folder = running.filter(|(_, agent)| agent.source == Source::Folder);
            let lowered = folder.map(|(number, entry)| {
                let (groups, attributes) = configured(entry)
                    .map_or((&entry.groups, &entry.attributes), |one| {
                        (&one.groups, &one.attributes)
                    });
                Ok((*number, self.lower_as(&policies, entry, groups, attributes)?))
            });
            lowered.collect::<Result<_, EngineError>>()?
        };
        {
            let mut names = self.directory.write();
            for entry in names.agents.values_mut().filter(|a| a.source == Source::Folder) {
                if let Some(agent) = configured(entry) {
                    entry.mode = agent.mode.into();
                    entry.groups.clone_from(&agent.groups);
                    entry.attributes.clone_from(&agent.attributes);
                }
            }
        }
        *lock_of(&self.agents) = agents;
        let generation = {
            let mut inner = self.inner();
            inner.folder = Some(policies);
            inner.generation += 1;
            inner.generation
        };
        // One that cannot be swapped keeps nobody else from it.
        let mut failed = None;
        {
            let views: Vec<_> = {
                let names = self.directory.read();
                let view =
                    |number| View::of(names.agents.get(number).and_then(|a| a.root.as_ref()));
                lowered.iter().map(|(number, lowered)| (view(number), lowered.clone())).collect()
            };
            self.publish_ahead(&views);
        }
        for (number, lowered) in lowered {
            if let Err(error) = self.bind(number, lowered) {
                failed.get_or_insert(error);
            }
        }
        self.retire_unused();
        self.scan();
        self.save_or_say();
        failed.map_or(Ok(generation), Err)
    }
}

/// Room for the objects of so many forbidden places: twice, since what is new is there before what is old goes.
const fn room(places: usize) -> usize {
    2 * (places + objects::LINKS)
}

/// Where an agent's own events go, and the policies that it was given.
fn own_files(entry: &AgentEntry) -> (Option<&Path>, Vec<&Path>) {
    let policies = match &entry.source {
        Source::Run { name, more, .. } => {
            let more = more.iter().map(|source| Path::new(&source.name));
            std::iter::once(Path::new(name)).chain(more).collect()
        }
        Source::Folder => Vec::new(),
    };
    (entry.events.as_deref(), policies)
}

fn collision(error: policy::Collision) -> EngineError {
    EngineError::Request(error.to_string())
}

fn hashed(lowered: &Lowered, config: &agent_ebpf::Config) -> Result<HashedTables, EngineError> {
    HashedTables::new(lowered, config).map_err(collision)
}
