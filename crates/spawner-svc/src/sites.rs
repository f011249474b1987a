//! The configured sites, their backends and what they can take now.
