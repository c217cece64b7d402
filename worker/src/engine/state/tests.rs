//! Random schedules against a straight-line oracle.
