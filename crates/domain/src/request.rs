//! A checked request for a server: who asks, for what, and where it may run.

use serde::{Deserialize, Serialize};

use crate::names::{ServerKey, SiteName};
use crate::resources::Resources;

/// A request that has been checked: the only thing placement and the life cycle take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnRequest {
    /// The server that is asked for.
    pub key: ServerKey,
    /// The user's groups, as the Hub says.
    pub groups: Vec<String>,
    /// What it needs.
    pub resources: Resources,
    /// `None` lets Glidepath choose; a name takes that site or none.
    pub site: Option<SiteName>,
}
