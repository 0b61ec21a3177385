//! A sign of life at a stated interval, so that silence means something.
//!
//! Who receives events and hears nothing of a host for longer than the interval that its last heartbeat
//! states knows that the daemon, the host or the way between them is gone. The positions say how much the
//! kernel has sent and how much of that was lost, so that a receiver can tell whether it has everything.

use std::time::{Duration, Instant};

/// What a heartbeat says beside the positions of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The first since the daemon started is 1.
    pub number: u64,
    /// When the next one is due.
    pub interval: Duration,
    /// How often a policy folder was taken.
    pub generation: u64,
    /// Agents that run.
    pub agents: usize,
}

/// When heartbeats are due.
#[derive(Debug)]
pub struct Pulse {
    interval: Duration,
    number: u64,
    last: Option<Instant>,
}

impl Pulse {
    /// The first is due at once.
    #[must_use]
    pub const fn every(interval: Duration) -> Self {
        Self { interval, number: 0, last: None }
    }

    /// The heartbeat that is due now, if one is. Those that were missed are not made up for.
    pub fn due(&mut self, now: Instant, generation: u64, agents: usize) -> Option<Heartbeat> {
        if self.last.is_some_and(|last| now.duration_since(last) < self.interval) {
            return None;
        }
        // In step, as long as it keeps up.
        let next = self.last.map(|last| last + self.interval);
        self.last = next.filter(|next| now.duration_since(*next) < self.interval).or(Some(now));
        self.number += 1;
        Some(Heartbeat { number: self.number, interval: self.interval, generation, agents })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_due_at_once_and_then_in_step() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut pulse = Pulse::every(second);
        let mut due = |after: u32| pulse.due(start + second * after / 10, 3, 2).map(|b| b.number);
        assert_eq!(due(0), Some(1));
        assert_eq!(due(9), None);
        assert_eq!(due(14), Some(2));
        // The one before came late; this one does not wait for it.
        assert_eq!(due(20), Some(3));
        assert_eq!(due(55), Some(4));
        assert_eq!(due(60), None);
        assert_eq!(due(65), Some(5));
    }
}
