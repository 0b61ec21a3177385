//! From the kernel's clock to people's: `CLOCK_BOOTTIME` nanoseconds to wall-clock time.

use nix::time::{ClockId, clock_gettime};

/// The offset between the two clocks, measured at start and again when asked.
///
/// It is measured, not assumed, because wall-clock time is stepped and slewed; between two
/// measurements the order of events is that of the kernel's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    offset: i64,
}

fn nanos(id: ClockId) -> i64 {
    // Both clocks exist since Linux 2.6.39; a failure leaves 0, so that times are visibly wrong
    // rather than the daemon gone.
    clock_gettime(id).map_or(0, |t| t.tv_sec() * 1_000_000_000 + t.tv_nsec())
}

impl Clock {
    /// Measures now.
    #[must_use]
    pub fn measure() -> Self {
        // The tightest of a few tries: a preemption between the two readings would shift all times.
        let mut best = (i64::MAX, 0);
        for _ in 0..5 {
            let before = nanos(ClockId::CLOCK_BOOTTIME);
            let wall = nanos(ClockId::CLOCK_REALTIME);
            let after = nanos(ClockId::CLOCK_BOOTTIME);
            let width = after - before;
            if width < best.0 {
                best = (width, wall - before - width / 2);
            }
        }
        Self { offset: best.1 }
    }

    /// A clock with this offset, for tests and replays.
    #[must_use]
    pub const fn with_offset(nanoseconds: i64) -> Self {
        Self { offset: nanoseconds }
    }

    /// Nanoseconds since the epoch at this time since boot.
    #[must_use]
    pub const fn wall(&self, boot: u64) -> i64 {
        self.offset.saturating_add_unsigned(boot)
    }

    /// Nanoseconds since boot, now.
    #[must_use]
    pub fn boot_now() -> u64 {
        u64::try_from(nanos(ClockId::CLOCK_BOOTTIME)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_now_is_wall_time_now() {
        let wall = Clock::measure().wall(Clock::boot_now());
        let real = nanos(ClockId::CLOCK_REALTIME);
        assert!((real - wall).abs() < 50_000_000, "{wall} against {real}");
    }
}
