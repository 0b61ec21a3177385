use agent_ebpf::ExecBody;

use super::*;
use crate::events::proc::NoProc;

const AGENT: u32 = 3;

fn header(tgid: u32) -> Header {
    Header {
        tgid,
        tid: tgid,
        agent: AGENT,
        start: u64::from(tgid) * 1_000 + 1,
        time: 99,
        ..Header::default()
    }
}

fn table(limits: Limits) -> Processes {
    Processes::with_limits(Box::new(NoProc), limits)
}

fn fork(table: &mut Processes, parent: u32, child: u32) -> Handle {
    let body = ForkBody { child_start: header(child).start, child, pad: 0 };
    table.on_fork(&header(parent), &body)
}

fn exec(table: &mut Processes, tgid: u32, name: &str) -> Handle {
    let body = ExecBody::default();
    let launch = Launch {
        body: &body,
        filename: name.as_bytes(),
        argv: name.as_bytes(),
        exe: Some(name.as_bytes()),
        script: None,
    };
    table.on_exec(&header(tgid), &launch).0
}

fn chain(table: &Processes, handle: Handle) -> Vec<u32> {
    table.ancestors(handle).map(|p| p.tgid).collect()
}

fn small(processes: usize, graves: usize) -> Limits {
    Limits { processes, text: 1 << 20, graves }
}

#[test]
fn the_chain_goes_to_the_agents_root_through_dead_parents() {
    let mut table = table(small(100, 0));
    table.on_enrol(&header(10));
    fork(&mut table, 10, 11);
    exec(&mut table, 11, "/bin/sh");
    fork(&mut table, 11, 12);
    // A daemonising double fork: the kernel makes init its parent.
    table.on_exit(&header(11));
    let leaf = fork(&mut table, 12, 13);
    table.on_exit(&header(12));
    assert_eq!(chain(&table, leaf), [12, 11, 10]);
    assert_eq!(&*table.get(leaf).unwrap().image.command_line, "/bin/sh");
    assert_eq!(table.living().count(), 2);
    table.on_exit(&header(13));
    assert_eq!(table.held(), 1, "the dead go with their last descendant");
}

#[test]
fn a_chain_goes_no_further_than_the_agent() {
    let mut table = table(Limits::default());
    let mut launcher = header(10);
    launcher.agent = AGENT + 1;
    table.on_enrol(&launcher);
    let body = ForkBody { child_start: header(11).start, child: 11, pad: 0 };
    table.on_fork(&launcher, &body);
    // Enrolled by its own cgroup: a root, although its parent is known.
    table.on_enrol(&header(11));
    let leaf = fork(&mut table, 11, 12);
    assert_eq!(chain(&table, leaf), [11]);
}

#[test]
fn a_number_that_is_in_use_again_is_another_process() {
    let mut table = table(Limits::default());
    table.on_enrol(&header(10));
    let old = exec(&mut table, 10, "/bin/old");
    let mut again = header(10);
    again.start += 50_000_000;
    let new = table.actor(&again);
    assert_ne!(old, new);
    assert_eq!(table.get(new).unwrap().image.exe, None);
    assert!(table.get(old).unwrap().ended.is_some());
}

#[test]
fn the_recently_dead_are_still_known() {
    let mut table = table(small(100, 2));
    for tgid in [10, 11, 12] {
        table.on_enrol(&header(tgid));
        exec(&mut table, tgid, "/bin/x");
        table.on_exit(&header(tgid));
    }
    assert_eq!(table.held(), 2);
    let late = table.actor(&header(12));
    assert_eq!(table.get(late).unwrap().image.exe.as_deref(), Some(&b"/bin/x"[..]));
}

#[test]
fn the_table_is_bounded_whatever_happens() {
    let mut table = table(small(64, 8));
    table.on_enrol(&header(1));
    let mut random = 7_u64;
    for next in 2..20_000_u32 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let parent = next - 1 - (random >> 33) as u32 % next.clamp(2, 50) / 2;
        let child = fork(&mut table, parent, next);
        assert!(table.get(child).is_some());
        exec(&mut table, next, &format!("/bin/{next}"));
        if random >> 60 < 8 {
            table.on_exit(&header(parent));
        }
        assert!(table.held() <= 64);
        assert!(table.by_tgid.len() <= 64);
        for process in table.living().take(3) {
            let slot = table.by_tgid[&process.tgid];
            assert_eq!(table.slots[slot as usize].process.as_ref().unwrap().tgid, process.tgid);
        }
    }
    assert!(table.evicted() > 0);
    let images: usize = {
        let mut seen = std::collections::HashMap::new();
        for process in table.slots.iter().filter_map(|s| s.process.as_ref()) {
            seen.insert(Arc::as_ptr(&process.image), process.image.text());
        }
        seen.values().sum()
    };
    assert_eq!(table.text(), images, "text is counted exactly");
}

#[test]
fn a_chain_that_lost_its_root_says_so() {
    let mut table = table(small(2, 0));
    table.on_enrol(&header(10));
    fork(&mut table, 10, 11);
    let leaf = fork(&mut table, 11, 12);
    let mut chain = table.ancestors(leaf);
    assert_eq!(chain.by_ref().map(|p| p.tgid).collect::<Vec<_>>(), [11]);
    assert!(chain.is_cut());
}

#[test]
fn beyond_the_text_bound_command_lines_are_short() {
    let limits = Limits { text: 2_000, ..small(100, 0) };
    let mut table = table(limits);
    let long = "/".to_owned() + &"x".repeat(900);
    let first = exec(&mut table, 10, &long);
    let second = exec(&mut table, 11, &long);
    let line = |handle| table.get(handle).unwrap().image.command_line.len();
    assert_eq!(line(first), 901);
    assert!(line(second) <= SHORT_COMMAND_LINE + 3);
}

#[test]
fn adopted_processes_keep_their_parents() {
    let mut table = table(Limits::default());
    let task = |parent, start| Task { agent: AGENT, parent, start, ..Task::default() };
    table.adopt(10, &task(0, header(10).start));
    table.adopt(11, &task(10, header(11).start));
    let leaf = table.actor(&header(11));
    assert_eq!(chain(&table, leaf), [10]);
    assert_eq!(table.get(leaf).unwrap().born, Born::Adopted);
}
