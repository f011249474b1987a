//! One life of a server.
