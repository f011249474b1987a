//! Who is where: every run that is not settled, every server's last run, and the places that are taken at sites.
//!
//! One lock, never held across a wait. Placement counts and reserves under it, so that many starts at once cannot
//! take more than there is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use glidepath_domain::names::{Attempt, HubName, RunId, ServerKey, SiteName};
use glidepath_domain::placement::{Candidate, Policy, Verdict, choose};
use glidepath_domain::request::SpawnRequest;
use glidepath_domain::run::State;
use tokio::sync::{mpsc, watch};

use super::driver::Message;
use super::places::Places;
use super::view::RunView;
use crate::sites::{SiteNow, Sites};

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
    /// Attempts that may have something left at a site.
    watched: Vec<(u32, SiteName)>,
    moving: bool,
}

/// Runs that may have something left at one site.
#[derive(Default)]
struct AtSite {
    runs: HashSet<RunId>,
    moving: usize,
}

/// How often a site should be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Something starts or ends there.
    Moving,
    /// Something is there.
    Calm,
    /// Nothing is.
    Idle,
}

#[derive(Default)]
pub(super) struct Book {
    active: HashMap<RunId, Active>,
    /// The same runs by site: each site's list loop asks for its own alone.
    at: HashMap<SiteName, AtSite>,
    /// Grows with the servers that ever were; each entry is one view.
    current: HashMap<ServerKey, Current>,
    /// Of runs that live, and of starts that are not written down yet.
    places: Places,
}

impl Book {
    /// Ranks the sites for this request as they stand, places taken since their snapshots counted in.
    pub(super) fn verdicts(&self, request: &SpawnRequest, sites: &Sites, policy: &Policy) -> Vec<Verdict> {
        let candidate = |now: SiteNow| {
            let (mut here, mut fresh, mut of_user) = (0_u32, 0_u32, 0_u32);
            for held in self.places.at(&now.setup.site.name) {
                here += 1;
                fresh += u32::from(now.taken.is_none_or(|taken| held.since >= taken));
                of_user += u32::from(held.is_of_user(&request.key));
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
        };
        let candidates: Vec<Candidate> = sites.all().into_iter().map(candidate).collect();
        choose(request, &candidates, policy)
    }

    /// Takes a place for a start that is about to be written down.
    pub(super) fn reserve(&mut self, run: RunId, key: &ServerKey, site: &SiteName) {
        self.places.take(run, key, site);
    }

    /// Gives the place of a start back, unless its run has begun.
    pub(super) fn release(&mut self, run: RunId) {
        if !self.active.contains_key(&run) {
            self.places.give_back(run);
        }
    }

    /// Whether this run, which has no place there yet, may take one without breaking a limit. Takes it if so.
    pub(super) fn take_place(&mut self, run: RunId, name: &SiteName, sites: &Sites) -> bool {
        let Some(active) = self.active.get(&run) else { return false };
        if self.places.of(run) == Some(name) {
            return true;
        }
        let Some(setup) = sites.get(name) else { return false };
        let here = self.places.at(name).count();
        let of_user = self.places.at(name).filter(|held| held.is_of_user(&active.key)).count();
        let within = |count: usize, limit: Option<u32>| limit.is_none_or(|limit| count < limit as usize);
        let limits = &setup.site.limits;
        let fits = within(here, limits.servers) && within(of_user, limits.servers_per_user);
        if fits {
            self.places.take(run, &active.key, name);
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
        let (run, key) = (door.run, view.key.clone());
        match &site {
            Some(site) if self.places.of(run) == Some(site) => {} // reserved, with the time at which it was
            Some(site) => self.places.take(run, &key, site),
            None => self.places.give_back(run),
        }
        let watched = site.map(|site| (view.attempt.unwrap_or(1), site)).into_iter().collect();
        let active = Active { key, door, watched, moving: true };
        self.put(run, active);
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
        if let Some(mut active) = self.take_out(view.run) {
            if site.is_none() {
                self.places.give_back(view.run); // one at another site is taken by `take_place`, within its limits
            }
            wakes = moving && (!active.moving || active.watched != watched);
            (active.watched, active.moving) = (watched, moving);
            self.put(view.run, active);
        }
        if let Some(current) = self.current.get_mut(&view.key).filter(|current| current.view.run == view.run)
        {
            current.view = Arc::clone(view);
        }
        wakes
    }

    /// A run is settled: nobody drives it any more.
    pub(super) fn close(&mut self, run: RunId) {
        self.take_out(run);
        self.places.give_back(run);
    }

    /// Enters a run, in the place of what was entered of it before.
    fn put(&mut self, run: RunId, active: Active) {
        self.take_out(run);
        for (_, site) in &active.watched {
            let at = self.at.entry(site.clone()).or_default();
            if at.runs.insert(run) {
                at.moving += usize::from(active.moving);
            }
        }
        self.active.insert(run, active);
    }

    fn take_out(&mut self, run: RunId) -> Option<Active> {
        let active = self.active.remove(&run)?;
        for (_, site) in &active.watched {
            let Some(at) = self.at.get_mut(site) else { continue };
            if at.runs.remove(&run) {
                at.moving -= usize::from(active.moving);
            }
        }
        Some(active)
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

    /// What may be left at this site, with whose it is.
    pub(super) fn watched(&self, site: &SiteName) -> Vec<(Attempt, Door)> {
        let runs = self.at.get(site).into_iter().flat_map(|at| &at.runs);
        let active = runs.filter_map(|run| Some((run, self.active.get(run)?)));
        let attempts = active.flat_map(|(run, active)| {
            let here = active.watched.iter().filter(|(_, at)| at == site);
            here.map(|(number, _)| (Attempt { run: *run, number: *number }, active.door.clone()))
        });
        attempts.collect()
    }

    pub(super) fn need(&self, site: &SiteName) -> Need {
        match self.at.get(site) {
            Some(at) if at.moving > 0 => Need::Moving,
            Some(at) if !at.runs.is_empty() => Need::Calm,
            _ => Need::Idle,
        }
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
}

#[cfg(test)]
mod tests {
    use glidepath_domain::names::{ServerName, UserName};
    use glidepath_domain::policy::Granted;
    use glidepath_domain::run::{Life, Moment};

    use super::*;

    /// The book with one run, as its driver entered it.
    struct Entered {
        book: Book,
        view: Arc<RunView>,
    }

    impl Entered {
        fn at(name: &str) -> Self {
            let user = UserName::parse("ada").unwrap();
            let hub = HubName::parse("main").unwrap();
            let key = ServerKey { hub, user, server: ServerName::default() };
            let view = Arc::new(RunView {
                key,
                run: RunId::after(None, 1, 1),
                attempt: Some(1),
                state: State::Queued,
                life: Life::Alive,
                site: Some(site(name)),
                message: String::new(),
                progress: 0,
                queue_position: None,
                predicted_wait_s: None,
                end: None,
                verdicts: Vec::new(),
                requested_at: Moment(0),
                since: Moment(0),
                usage: None,
                walltime_s: 0,
                lives_until: None,
                granted: Granted::default(),
                near_ends: Vec::new(),
            });
            let mut entered = Self { book: Book::default(), view };
            entered.opens(name);
            entered
        }

        fn opens(&mut self, name: &str) {
            let door = Door { run: self.view.run, mailbox: mpsc::channel(1).0 };
            let views = watch::channel(Arc::clone(&self.view)).1;
            let view = RunView::clone(&self.view);
            self.book.open(door, view, "spawn".to_owned(), views, Some(site(name)));
        }

        fn moves(&mut self, at: &[(u32, &str)], moving: bool) -> bool {
            let watched = at.iter().map(|(number, name)| (*number, site(name))).collect();
            self.book.update(&self.view, Some(&site(at[0].1)), watched, moving)
        }

        fn needs(&self, names: [&str; 2]) -> [Need; 2] {
            names.map(|name| self.book.need(&site(name)))
        }
    }

    fn site(name: &str) -> SiteName {
        SiteName::parse(name).unwrap()
    }

    #[test]
    fn a_site_is_looked_at_for_what_may_be_left_there() {
        let mut run = Entered::at("here");
        assert_eq!(run.needs(["here", "there"]), [Need::Moving, Need::Idle]);
        assert!(!run.moves(&[(1, "here")], false));
        assert_eq!(run.needs(["here", "there"]), [Need::Calm, Need::Idle]);
        assert!(run.moves(&[(1, "here"), (2, "there"), (3, "there")], true));
        assert_eq!(run.needs(["here", "there"]), [Need::Moving, Need::Moving]);
        assert_eq!(run.book.watched(&site("there")).len(), 2);
        assert!(!run.moves(&[(3, "there")], false));
        assert_eq!(run.needs(["here", "there"]), [Need::Idle, Need::Calm]);
        run.book.close(run.view.run);
        assert_eq!(run.needs(["here", "there"]), [Need::Idle, Need::Idle]);
    }

    #[test]
    fn a_run_that_is_taken_up_again_is_counted_once_and_where_it_is() {
        let mut run = Entered::at("here");
        run.moves(&[(1, "here")], false);
        run.opens("there");
        assert_eq!(run.needs(["here", "there"]), [Need::Idle, Need::Moving]);
        let places = ["here", "there"].map(|name| run.book.places.at(&site(name)).count());
        assert_eq!(places, [0, 1]);
        run.moves(&[(1, "there")], false);
        run.book.close(run.view.run);
        assert_eq!(run.needs(["here", "there"]), [Need::Idle, Need::Idle]);
        assert_eq!(run.book.places.at(&site("there")).count(), 0);
    }
}
