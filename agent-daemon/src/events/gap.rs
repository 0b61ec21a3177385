//! What is missing from the story, stated exactly.
//!
//! The kernel numbers every record of a CPU and lane, those that found no room included, and counts
//! the lost by kind. A jump in the numbers shows where records are missing; how many of which kind
//! comes from the counters alone. A jump by itself is no loss: two records that raced on one CPU may
//! carry the same number, and then a number between them never appears.
//!
//! The protocol is: read the counters, then drain the rings, then [`Gaps::check`] with what was
//! read. By then every record that the counters speak of has been seen or is lost, so for each CPU
//! and lane `sent = received + lost` holds exactly up to that point.

use agent_ebpf::{KINDS, Kind, Lane, Stream};

/// CPUs that are followed; what claims to come from a higher one is not believed. Linux is built for
/// at most 8192.
pub const CPUS_MAX: usize = 8192;

const LANES: usize = Lane::ALL.len();

/// Records that the kernel had no room for, on one CPU and lane, since they were last stated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The CPU.
    pub cpu: u32,
    /// The lane.
    pub lane: Lane,
    /// How many were lost, by [`Kind`].
    pub lost: [u64; KINDS],
    /// The number of the last record before the gap; 0 when none came before.
    pub before: u64,
    /// The number of the first record after the gap; the next to be given out when none came yet.
    pub after: u64,
    /// When the last record before the gap was made, in nanoseconds since boot; 0 when none was.
    pub since: u64,
    /// When the first record after the gap was made; 0 when none came yet.
    pub until: u64,
}

impl Gap {
    /// How many were lost, of all kinds.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.lost.iter().sum()
    }

    /// The counts by kind, without the zeros.
    pub fn by_kind(&self) -> impl Iterator<Item = (Kind, u64)> + '_ {
        Kind::ALL
            .iter()
            .zip(self.lost)
            .filter(|&(_, lost)| lost != 0)
            .map(|(&kind, lost)| (kind, lost))
    }
}

/// How far one CPU and lane has come: what the kernel numbered up to here was received or stated as lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The CPU.
    pub cpu: u32,
    /// The lane.
    pub lane: Lane,
    /// The number of its last record that was seen or accounted for.
    pub sequence: u64,
    /// Records stated as lost since the kernel's counters began, by [`Kind`].
    pub lost: [u64; KINDS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Track {
    /// Highest number seen or accounted for.
    last: u64,
    /// When that record was made.
    last_time: u64,
    received: u64,
    stated: [u64; KINDS],
    /// The outermost bounds of the jumps since the last check: before, after, since, until.
    jump: Option<(u64, u64, u64, u64)>,
}

/// Follows the numbers of every CPU and lane.
#[derive(Debug, Default)]
pub struct Gaps {
    tracks: Vec<[Track; LANES]>,
}

impl Gaps {
    /// Starts with kernel counters that are all zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes on where the daemon before stopped: what it stated is not stated again.
    pub fn assume(&mut self, position: &Position) {
        if let Some(track) = self.track(position.cpu, position.lane) {
            track.last = position.sequence;
            track.stated = position.lost;
        }
    }

    fn track(&mut self, cpu: u32, lane: Lane) -> Option<&mut Track> {
        let cpu = cpu as usize;
        if cpu >= CPUS_MAX {
            return None;
        }
        if cpu >= self.tracks.len() {
            self.tracks.resize_with(cpu + 1, Default::default);
        }
        self.tracks.get_mut(cpu)?.get_mut(lane as usize)
    }

    /// A record came. Records of the daemon's own have number 0 and are not the kernel's to lose.
    pub fn saw(&mut self, cpu: u32, lane: Lane, sequence: u64, time: u64) {
        if sequence == 0 {
            return;
        }
        let Some(track) = self.track(cpu, lane) else {
            return;
        };
        track.received += 1;
        if sequence <= track.last {
            return;
        }
        if sequence > track.last + 1 {
            let (before, since) =
                track.jump.map_or((track.last, track.last_time), |jump| (jump.0, jump.2));
            track.jump = Some((before, sequence, since, time));
        }
        track.last = sequence;
        track.last_time = time;
    }

    /// Compares with the kernel's counters, as read before the last drain; a gap when they have
    /// grown.
    pub fn check(&mut self, cpu: u32, lane: Lane, counters: &Stream) -> Option<Gap> {
        let track = self.track(cpu, lane)?;
        let mut lost = [0; KINDS];
        for ((lost, now), stated) in lost.iter_mut().zip(counters.lost).zip(track.stated) {
            // Counters that shrank belong to maps that were made anew: all they hold is news.
            *lost = now.checked_sub(stated).unwrap_or(now);
        }
        if counters.sequence > track.last {
            // The newest are missing.
            let (before, since) =
                track.jump.map_or((track.last, track.last_time), |jump| (jump.0, jump.2));
            track.jump = Some((before, counters.sequence + 1, since, 0));
            track.last = counters.sequence;
        }
        let jump = track.jump.take();
        if lost.iter().all(|&lost| lost == 0) {
            return None;
        }
        track.stated = counters.lost;
        let (before, after, since, until) =
            jump.unwrap_or((track.last, track.last + 1, track.last_time, 0));
        Some(Gap { cpu, lane, lost, before, after, since, until })
    }

    /// How far every CPU and lane has come of which anything is known.
    pub fn positions(&self) -> impl Iterator<Item = Position> + '_ {
        let tracks = (0_u32..).zip(&self.tracks);
        let each = tracks.flat_map(|(cpu, lanes)| {
            Lane::ALL.iter().zip(lanes).map(move |(lane, track)| (cpu, *lane, track))
        });
        each.filter(|(.., track)| track.last != 0).map(|(cpu, lane, track)| Position {
            cpu,
            lane,
            sequence: track.last,
            lost: track.stated,
        })
    }

    /// Records received from this CPU and lane.
    #[must_use]
    pub fn received(&self, cpu: u32, lane: Lane) -> u64 {
        self.tracks.get(cpu as usize).map_or(0, |lanes| lanes[lane as usize].received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's side, as the hooks do it.
    #[derive(Default)]
    struct Kernel(Stream);

    impl Kernel {
        fn send(&mut self) -> u64 {
            self.0.sequence += 1;
            self.0.sequence
        }
        fn lose(&mut self, kind: Kind) {
            self.0.sequence += 1;
            self.0.lost[kind as usize] += 1;
        }
    }

    #[test]
    fn a_gap_states_its_bounds_and_its_counts_by_kind() {
        let (mut kernel, mut gaps) = (Kernel::default(), Gaps::new());
        gaps.saw(3, Lane::Told, kernel.send(), 10);
        for _ in 0..4 {
            kernel.lose(Kind::File);
        }
        kernel.lose(Kind::Exec);
        gaps.saw(3, Lane::Told, kernel.send(), 20);
        let gap = gaps.check(3, Lane::Told, &kernel.0).unwrap();
        assert_eq!((gap.cpu, gap.lane, gap.total()), (3, Lane::Told, 5));
        assert_eq!((gap.before, gap.after), (1, 7));
        assert_eq!((gap.since, gap.until), (10, 20));
        let kinds: Vec<_> = gap.by_kind().collect();
        assert_eq!(kinds, [(Kind::File, 4), (Kind::Exec, 1)]);
        assert_eq!(gaps.check(3, Lane::Told, &kernel.0), None);
        assert_eq!(gaps.check(3, Lane::Denied, &Stream::default()), None);
        let told = Position { cpu: 3, lane: Lane::Told, sequence: 7, lost: gap.lost };
        assert_eq!(gaps.positions().collect::<Vec<_>>(), [told]);
    }

    #[test]
    fn a_jump_without_a_loss_is_no_gap() {
        let mut gaps = Gaps::new();
        gaps.saw(0, Lane::Told, 2, 1);
        gaps.saw(0, Lane::Told, 2, 2);
        gaps.saw(0, Lane::Told, 3, 3);
        let counters = Stream { sequence: 3, ..Stream::default() };
        assert_eq!(gaps.check(0, Lane::Told, &counters), None);
        assert_eq!(gaps.received(0, Lane::Told), 3);
    }

    #[test]
    fn a_loss_that_nothing_follows_is_stated_at_once_and_not_again() {
        let (mut kernel, mut gaps) = (Kernel::default(), Gaps::new());
        gaps.saw(0, Lane::Denied, kernel.send(), 1);
        kernel.lose(Kind::Peer);
        let gap = gaps.check(0, Lane::Denied, &kernel.0).unwrap();
        assert_eq!((gap.before, gap.after, gap.total()), (1, 3, 1));
        gaps.saw(0, Lane::Denied, kernel.send(), 2);
        assert_eq!(gaps.check(0, Lane::Denied, &kernel.0), None);
    }

    #[test]
    fn sent_is_received_plus_stated_lost_whatever_the_interleaving() {
        let (mut kernel, mut gaps) = (Kernel::default(), Gaps::new());
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut stated = 0;
        let mut ring = Vec::new();
        for _ in 0..1_000 {
            let counters = kernel.0;
            for _ in 0..50 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                if random.is_multiple_of(5) {
                    kernel.lose(Kind::ALL[(random >> 8) as usize % KINDS]);
                } else {
                    ring.push(kernel.send());
                }
                if random.is_multiple_of(11) {
                    for sequence in ring.drain(..) {
                        gaps.saw(1, Lane::Told, sequence, sequence);
                    }
                }
            }
            for sequence in ring.drain(..) {
                gaps.saw(1, Lane::Told, sequence, sequence);
            }
            if let Some(gap) = gaps.check(1, Lane::Told, &counters) {
                assert!(gap.before < gap.after);
                stated += gap.total();
            }
        }
        let end = kernel.0;
        if let Some(gap) = gaps.check(1, Lane::Told, &end) {
            stated += gap.total();
        }
        assert_eq!(end.sequence, gaps.received(1, Lane::Told) + stated);
    }

    #[test]
    fn a_cpu_that_cannot_be_is_not_believed() {
        let mut gaps = Gaps::new();
        gaps.saw(u32::MAX, Lane::Told, 9, 1);
        assert_eq!(gaps.check(u32::MAX, Lane::Told, &Stream::default()), None);
    }

    #[test]
    fn an_adopting_daemon_does_not_state_old_losses_again() {
        let mut gaps = Gaps::new();
        let mut counters = Stream { sequence: 1_000, ..Stream::default() };
        counters.lost[0] = 40;
        let (sequence, lost) = (counters.sequence, counters.lost);
        gaps.assume(&Position { cpu: 0, lane: Lane::Told, sequence, lost });
        gaps.saw(0, Lane::Told, 998, 1);
        gaps.saw(0, Lane::Told, 1_001, 2);
        counters.sequence = 1_001;
        assert_eq!(gaps.check(0, Lane::Told, &counters), None);
    }
}
