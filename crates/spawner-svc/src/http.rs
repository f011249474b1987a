//! The HTTP API: all routes on one page.
