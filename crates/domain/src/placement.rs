//! Chooses the site for a request.
