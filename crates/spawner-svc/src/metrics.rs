//! What operators can count.
