//! The life cycle of runs.
