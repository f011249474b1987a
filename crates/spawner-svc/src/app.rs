//! Builds the whole service and runs it.
