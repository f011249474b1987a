//! Who is where: every run that is not settled, every server's last run, and the places that are taken at sites.
//!
//! One lock, never held across a wait. Placement counts and reserves under it, so that many starts at once cannot
//! take more than there is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use glidepath_domain::names::{Attempt, HubName, RunId, ServerKey, SiteName};
use glidepath_domain::placement::{Candidate, Policy, Verdict, choose};
use glidepath_domain::request::SpawnRequest;
use glidepath_domain::run::State;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::driver::Message;
use super::view::RunView;
use crate::sites::Sites;

/// The door of one run's driver.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) run: RunId,
    pub(super) mailbox: mpsc::Sender<Message>,
}

/// One server's last run.
pub(super) struct Current {
    pub(super) view: Arc<RunView>,
    pub(super) spawn_id: String,
    pub(super) views: watch::Receiver<Arc<RunView>>,
}

struct Active {
    key: ServerKey,
    door: Door,
    place: Option<Place>,
    /// Attempts that may have something left at a site.
    watched: Vec<(u32, SiteName)>,
    moving: bool,
}

#[derive(Clone)]
struct Place {
    site: SiteName,
    since: Instant,
}

/// What the list loop of a site needs to know.
pub(super) struct Watched {
    pub(super) attempts: Vec<(Attempt, Door)>,
    pub(super) moving: bool,
}

#[derive(Default)]
pub(super) struct Book {
    active: HashMap<RunId, Active>,
    /// Grows with the servers that ever were; each entry is one view.
    current: HashMap<ServerKey, Current>,
    /// Places of starts that are not written down yet.
    reserved: HashMap<RunId, (ServerKey, Place)>,
}

impl Book {
    /// Ranks the sites for this request as they stand, places taken since their snapshots counted in.
    pub(super) fn verdicts(&self, request: &SpawnRequest, sites: &Sites, policy: &Policy) -> Vec<Verdict> {
        let candidates: Vec<Candidate> = sites
            .all()
            .into_iter()
            .map(|now| {
                let name = &now.setup.site.name;
                let taken = sites.snapshot_taken(name);
                let mut here = 0_u32;
                let mut fresh = 0_u32;
                let mut of_user = 0_u32;
                for (key, place) in self.places().filter(|(_, place)| place.site == *name) {
                    here += 1;
                    fresh += u32::from(taken.is_none_or(|taken| place.since >= taken));
                    of_user += u32::from(key.hub == request.key.hub && key.user == request.key.user);
                }
                let snapshot = now.snapshot.map(|mut snapshot| {
                    snapshot.servers = snapshot.servers.max(here);
                    if let Some(free) = &mut snapshot.free_slots {
                        snapshot.waiting += fresh.saturating_sub(*free);
                        *free = free.saturating_sub(fresh);
                    }
                    snapshot
                });
                Candidate { site: now.setup.site, snapshot, servers_of_user: of_user }
            })
            .collect();
        choose(request, &candidates, policy)
    }

    /// Takes a place for a start that is about to be written down.
    pub(super) fn reserve(&mut self, run: RunId, key: &ServerKey, site: &SiteName) {
        self.reserved.insert(run, (key.clone(), Place { site: site.clone(), since: Instant::now() }));
    }

    /// Gives the place of a start back that came to nothing.
    pub(super) fn release(&mut self, run: RunId) {
        self.reserved.remove(&run);
    }

    /// Whether this run, which has no place there yet, may take one without breaking a limit. Takes it if so.
    pub(super) fn take_place(&mut self, run: RunId, name: &SiteName, sites: &Sites) -> bool {
        let Some(active) = self.active.get(&run) else { return false };
        if active.place.as_ref().is_some_and(|place| place.site == *name) {
            return true;
        }
        let Some(setup) = sites.get(name) else { return false };
        let others = || self.places().filter(|(_, place)| place.site == *name);
        let same_user = |key: &ServerKey| key.hub == active.key.hub && key.user == active.key.user;
        let here = others().count();
        let of_user = others().filter(|(key, _)| same_user(key)).count();
        let within = |count: usize, limit: Option<u32>| limit.is_none_or(|limit| count < limit as usize);
        let limits = &setup.site.limits;
        let fits = within(here, limits.servers) && within(of_user, limits.servers_per_user);
        if fits && let Some(active) = self.active.get_mut(&run) {
            active.place = Some(Place { site: name.clone(), since: Instant::now() });
        }
        fits
    }

    /// A run begins, or is read from the store.
    pub(super) fn open(
        &mut self,
        door: Door,
        view: RunView,
        spawn_id: String,
        views: watch::Receiver<Arc<RunView>>,
        site: Option<SiteName>,
    ) {
        let place = self.reserved.remove(&door.run).map(|(_, place)| place);
        let place = place.or_else(|| site.map(|site| Place { site, since: Instant::now() }));
        let watched = place.iter().map(|place| (view.attempt.unwrap_or(1), place.site.clone())).collect();
        let (run, key) = (door.run, view.key.clone());
        let active = Active { key, door, place, watched, moving: true };
        self.active.insert(run, active);
        self.show(Arc::new(view), spawn_id, views);
    }

    /// Shows a server's last run.
    pub(super) fn show(
        &mut self,
        view: Arc<RunView>,
        spawn_id: String,
        views: watch::Receiver<Arc<RunView>>,
    ) {
        let newer = self.current.get(&view.key).is_none_or(|current| current.view.run <= view.run);
        if newer {
            self.current.insert(view.key.clone(), Current { view, spawn_id, views });
        }
    }

    /// A run moved on. True when its sites should be looked at soon.
    pub(super) fn update(
        &mut self,
        view: &Arc<RunView>,
        site: Option<&SiteName>,
        watched: Vec<(u32, SiteName)>,
        moving: bool,
    ) -> bool {
        let mut wakes = false;
        if let Some(active) = self.active.get_mut(&view.run) {
            if site.is_none() {
                active.place = None; // one at another site is taken by `take_place`, within that site's limits
            }
            wakes = moving && (!active.moving || active.watched != watched);
            (active.watched, active.moving) = (watched, moving);
        }
        if let Some(current) = self.current.get_mut(&view.key).filter(|current| current.view.run == view.run)
        {
            current.view = Arc::clone(view);
        }
        wakes
    }

    /// A run is settled: nobody drives it any more.
    pub(super) fn close(&mut self, run: RunId) {
        self.active.remove(&run);
    }

    pub(super) fn current(&self, key: &ServerKey) -> Option<&Current> {
        self.current.get(key)
    }

    pub(super) fn door(&self, run: RunId) -> Option<Door> {
        self.active.get(&run).map(|active| active.door.clone())
    }

    pub(super) fn list(&self, hub: &HubName) -> Vec<RunView> {
        let of_hub = self.current.values().filter(|current| current.view.key.hub == *hub);
        let mut views: Vec<RunView> = of_hub.map(|current| RunView::clone(&current.view)).collect();
        views.sort_by(|a, b| a.key.cmp(&b.key));
        views
    }

    pub(super) fn watched(&self, site: &SiteName) -> Watched {
        let mut watched = Watched { attempts: Vec::new(), moving: false };
        for (run, active) in &self.active {
            for (number, _) in active.watched.iter().filter(|(_, at)| at == site) {
                watched.attempts.push((Attempt { run: *run, number: *number }, active.door.clone()));
                watched.moving |= active.moving;
            }
        }
        watched
    }

    pub(super) fn lives_of_user(&self, key: &ServerKey) -> bool {
        self.current.values().any(|current| {
            current.view.state != State::Ended
                && current.view.key.hub == key.hub
                && current.view.key.user == key.user
        })
    }

    pub(super) fn counts(&self) -> BTreeMap<(String, State), u64> {
        let mut counts = BTreeMap::new();
        for current in self.current.values().filter(|current| current.view.state != State::Ended) {
            let site = current.view.site.as_ref().map(ToString::to_string).unwrap_or_default();
            *counts.entry((site, current.view.state)).or_insert(0) += 1;
        }
        counts
    }

    fn places(&self) -> impl Iterator<Item = (&ServerKey, &Place)> {
        let active = self.active.values().filter_map(|active| Some((&active.key, active.place.as_ref()?)));
        active.chain(self.reserved.values().map(|(key, place)| (key, place)))
    }
}
