//! Whether a worker is alive: not whether its socket is, but whether it talks,
//! and whether it steps when it has work. Pure; the link asks it once a beat.

use std::time::{Duration, Instant};

/// What a worker showed of life, and when.
#[derive(Debug)]
pub(super) struct Liveness {
    silence_timeout: Duration,
    stall_timeout: Duration,
    last_frame: Instant,
    last_step: u64,
    /// When it last stepped or had nothing to do.
    last_progress: Instant,
}

/// Why a worker is taken for dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Death {
    Silent(Duration),
    Stalled(Duration),
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Silent(time) => write!(f, "said nothing for {} ms", time.as_millis()),
            Self::Stalled(time) => {
                write!(f, "has work and made no step for {} ms", time.as_millis())
            }
        }
    }
}

impl Liveness {
    pub(super) fn new(now: Instant, silence_timeout: Duration, stall_timeout: Duration) -> Self {
        Self { silence_timeout, stall_timeout, last_frame: now, last_step: 0, last_progress: now }
    }

    /// Any frame.
    pub(super) fn frame(&mut self, now: Instant) {
        self.last_frame = now;
    }

    /// A frame that tells the step counter and whether there is work.
    pub(super) fn step(&mut self, now: Instant, step: u64, has_work: bool) {
        if step != self.last_step || !has_work {
            self.last_step = step;
            self.last_progress = now;
        }
    }

    pub(super) fn check(&self, now: Instant) -> Result<(), Death> {
        let silent = now.saturating_duration_since(self.last_frame);
        if silent >= self.silence_timeout {
            return Err(Death::Silent(silent));
        }
        let stalled = now.saturating_duration_since(self.last_progress);
        if stalled >= self.stall_timeout {
            return Err(Death::Stalled(stalled));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_without_steps_are_no_life_while_there_is_work() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut liveness = Liveness::new(start, Duration::from_secs(5), Duration::from_secs(10));
        for second in 1..30 {
            liveness.frame(at(second));
            liveness.step(at(second), 7, false);
            assert_eq!(liveness.check(at(second)), Ok(()), "idle");
        }
        for second in 30..39 {
            liveness.frame(at(second));
            liveness.step(at(second), 7, true);
            assert_eq!(liveness.check(at(second)), Ok(()));
        }
        liveness.frame(at(39));
        assert_eq!(liveness.check(at(39)), Err(Death::Stalled(Duration::from_secs(10))));
        liveness.step(at(39), 8, true);
        assert_eq!(liveness.check(at(39)), Ok(()));
        assert_eq!(liveness.check(at(44)), Err(Death::Silent(Duration::from_secs(5))));
    }
}
