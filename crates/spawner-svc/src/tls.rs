//! The link listener's certificate.
