//! Wire shapes, nothing else: what travels between Hub and service ([`spawner`]) and between agent and home
//! ([`agent`]). Names and numbers are raw here; `domain` parses them. The OpenAPI document is made from these types.

pub mod agent;
pub mod spawner;
