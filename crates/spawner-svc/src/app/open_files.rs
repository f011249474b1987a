//! As many open files as the machine allows this process: each connection of an agent, a browser or a Hub is one.
//!
//! Only the soft limit is raised, to the hard one. Jobs do not inherit it: their backend gives them the former one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What the listeners may need together, rounded. Below it some thousand sessions may find no place.
const PLENTY: u64 = 65_536;

/// Raises the limit, and tells the operator when what is allowed may be too little.
pub(super) fn raise() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(hard)
    });
    match raised {
        Ok(limit) if limit < PLENTY => tracing::warn!(
            limit,
            "few open files are allowed, and each connection is one: with many servers raise the limit to {PLENTY}, \
             LimitNOFILE in the unit or ulimit -Hn"
        ),
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "the limit of open files could not be raised"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn afterwards_the_soft_limit_is_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(512), hard).unwrap();
        raise();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
