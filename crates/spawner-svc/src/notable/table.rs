//! Everything notable, one row each: labels, level, pace, what happened, what the service does, what the operator does.

use tracing::Level;

use super::{Entry, Kind, Notable, Pace};

macro_rules! table {
    ($(#[$about:meta])* $kind:ident {
        $($name:ident: $what:literal $reason:literal $level:ident $pace:ident
            $sentence:literal, $next:literal, $remedy:literal;)*
    }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $kind {
            $(#[doc = $sentence] $name,)*
        }

        impl $kind {
            /// All of this kind.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }

        impl Notable for $kind {
            fn entry(self) -> &'static Entry {
                match self {
                    $(Self::$name => {
                        const ENTRY: Entry = Entry {
                            kind: Kind::$kind,
                            what: $what,
                            reason: $reason,
                            level: Level::$level,
                            pace: Pace::$pace,
                            sentence: $sentence,
                            next: $next,
                            remedy: $remedy,
                        };
                        &ENTRY
                    })*
                }
            }
        }
    };
}

table! {
    /// Somebody asked, and was told no.
    Refusal {
        StartInvalid: "start" "invalid" INFO Each
            "a start was refused: it asks for what cannot be", "the user reads each wrong field", "look at `defaults` and `presets` if many ask so";
        StartNoSite: "start" "no_site" INFO Each
            "a start was refused: no site can take it", "the user reads each site's sentence", "read `why`: limits, groups, closed or resting sites";
        StartStillStopping: "start" "still_stopping" INFO Each
            "a start was refused: the server's last run is still ending", "the Hub asks again", "`run ULID` of the last run tells what is left of it";
        StartStillStarting: "start" "still_starting" WARN Each
            "a start was refused: the store has not taken it yet", "the Hub asks again", "look at the disk of the state folder";
        StartStore: "start" "store" ERROR Each
            "a start was refused: it could not be written down", "nothing was started; the Hub asks again", "make the state folder writable: space, rights; see `doctor`";
        StartClosing: "start" "closing" INFO Each
            "a start was refused: the service is stopping", "the Hub asks again", "nothing";
        ApiUnauthenticated: "api" "unauthenticated" WARN Calm
            "a call without a valid secret was refused", "nothing", "give the Hub the secret that `hub.secret_file` has; else find out who calls";
        ApiNotFound: "api" "not_found" INFO Calm
            "a call to what is not there was refused", "nothing", "compare the versions of the Hub's package and of the service";
        ApiMalformed: "api" "malformed" INFO Calm
            "a call that cannot be read was refused", "nothing", "compare the versions of the Hub's package and of the service";
        ApiAlive: "api" "alive" INFO Each
            "the removal of a user's files was refused: a server of theirs lives", "nothing is removed", "stop the user's servers first";
        ApiSites: "api" "sites" WARN Each
            "a user's files were not removed everywhere", "the Hub asks again", "see to the sites that `why` names";
        ApiClosing: "api" "closing" INFO Calm
            "a call was refused: the service is stopping", "the Hub asks again", "nothing";
        ApiTimeout: "api" "timeout" ERROR Each
            "a call was given up: it was not finished in time", "the Hub asks again", "look at the machine's load and at the disk of the state folder";
        ApiForm: "api" "form" ERROR Each
            "the options form could not be drawn", "the Hub shows a plain form", "report it: this is a fault of the program";
        ApiOther: "api" "other" WARN Each
            "a call was refused", "nothing", "read `why`";
        SubmitRefused: "submit" "refused" WARN Each
            "a site refused a server", "the next site is tried, or the run ends", "read `why`: the site's accounts, limits, command";
        SubmitNoPlace: "submit" "no_place" INFO Each
            "a site had no place left for a server", "the next site is tried, or the run ends", "raise `site.limits` if there is room";
        KnockNoTicket: "knock" "no_ticket" INFO Calm
            "a dial without a ticket of this service was refused", "that agent gives up", "nothing, or find out who dials; after a lost state folder, end the old jobs";
        KnockOtherKey: "knock" "other_key" WARN Each
            "a ticket was shown again with another key and was refused: somebody at the site may have copied it", "that agent gives up; the first one stays", "ask the site who could read the job's files";
        KnockOver: "knock" "over" INFO Each
            "an agent of an attempt that is over was refused", "that agent ends its server and its job", "nothing";
        KnockLate: "knock" "late" WARN Each
            "an agent came after its ticket's time and was refused", "that agent ends its job", "compare the clocks of the site and of this machine";
        KnockUnknown: "knock" "unknown_run" WARN Each
            "an agent of a run that is not known was refused", "that agent ends its job", "a state folder that was restored from a backup does this";
        KnockStore: "knock" "store" WARN Calm
            "a ticket could not be looked up", "the agent comes again", "make the state folder readable and writable; see `doctor`";
        KnockRecord: "knock" "record" ERROR Each
            "an agent was refused: the record of its server does not read", "that agent gives up", "restore the state folder from a backup";
        KnockRunOver: "knock" "run_over" WARN Each
            "an agent's arrival came to nothing: nobody waits for it", "its link is closed", "nothing, unless it comes often: then report it";
        KnockProof: "knock" "proof" WARN Calm
            "an agent could not prove that it holds its key", "that agent gives up", "look for a proxy at the site that changes what passes";
        KnockVersion: "knock" "version" WARN Calm
            "an agent of another version or for another home was refused", "that agent gives up", "give `agent.*` the binary of this version";
        KnockFull: "knock" "full" WARN Calm
            "an agent was sent away: as many come as are served at a time", "the agent comes again", "nothing after a restart; else look who dials";
        KnockFlood: "knock" "flood" WARN Calm
            "connections of one address were turned away: too many in a short time", "its agents come again", "nothing after a restart; else look who dials";
        KnockTrust: "knock" "trust" WARN Calm
            "a peer does not accept the link's certificate", "its agent comes again", "give agents the authority: `link.ca`, and renew the certificate in time";
        PageStarting: "page" "starting" DEBUG Calm
            "a page was asked for while its server starts", "the page comes again", "nothing";
        PageEnded: "page" "ended" INFO Calm
            "a page of a server that ended was asked for", "the reader is told why it ended", "nothing";
        PageUnknown: "page" "unknown" INFO Calm
            "a page of a server that is not known was asked for", "the reader is sent to the Hub", "nothing, or look for an old route in the Hub's proxy";
        PageAway: "page" "away" INFO Calm
            "a page was not served: the server cannot be reached now", "the page comes again; the server is kept", "see to the site and to the way from it to this machine";
        PageNoStream: "page" "no_stream" WARN Calm
            "a page was not served: its link takes no further stream", "the page comes again", "nothing, unless it lasts: then report it";
        PageConnect: "page" "connect" WARN Calm
            "a page was not served: nobody listens at the server's address", "the page comes again", "`run ULID` tells what the server last wrote";
        PageWrongOwner: "page" "wrong_owner" ERROR Calm
            "a server's address is taken by another account; nothing was sent there", "nothing is sent there", "find out who listens there: this looks like an attack";
        PageBroken: "page" "broken" INFO Calm
            "a server's answer broke off or cannot be understood", "the reader is told", "`run ULID` tells what the server last wrote";
        PageMalformed: "page" "malformed" INFO Calm
            "a request that no server can be asked was refused", "nothing", "nothing, or find out who asks the relay directly";
        HubCallPath: "hub_call" "path" INFO Calm
            "a server's call was refused: only its Hub's API is served", "nothing", "nothing, or look what the server of this user tries";
        HubCallTooMany: "hub_call" "too_many" WARN Calm
            "a server's call was refused: too many at once from this server", "the server may ask again", "look what the server of this user does";
        HubCallTooLarge: "hub_call" "too_large" INFO Calm
            "a server's call or its reply was longer than is carried", "nothing", "nothing";
        HubCallBroken: "hub_call" "broken" INFO Calm
            "a server's call broke off", "nothing", "nothing";
        HubCallUnreachable: "hub_call" "unreachable" WARN Calm
            "a server's call did not reach its Hub", "the server asks again", "see whether the Hub runs and `hub.api_url` leads to it";
        HubCallSlow: "hub_call" "slow" WARN Calm
            "a server's call was not answered by its Hub in time", "the server asks again", "look at the Hub's load";
        HubCallNoHub: "hub_call" "no_hub" WARN Each
            "an agent arrived for a Hub that is not in the config", "its calls are not carried", "bring the Hub back, or end its servers";
        HubCallStream: "hub_call" "stream" INFO Calm
            "a stream of an agent was reset: for no known purpose, or too many at once", "nothing", "compare the versions of the agent and of the service";
        RecordUnreadable: "record" "unreadable" ERROR Calm
            "a run is left alone: its record does not read", "its job is neither driven nor ended", "restore the state folder, or use the version that wrote it";
        RecordUntold: "record" "untold" ERROR Calm
            "a run is left out of what its Hub is told: its record does not read", "all others are told", "restore the state folder, or use the version that wrote it";
        RecordRoute: "record" "route" ERROR Each
            "a server cannot be given a route", "its pages are not served", "report it: this is a fault of the program";
    }
}

table! {
    /// Something did not work, and is done again or elsewhere.
    Retry {
        SubmitAgain: "submit" "unsure" WARN Calm
            "a site did not say what became of a submit", "the same is submitted again; there will be one job", "see whether the site's batch system answers";
        NextRefused: "attempt" "refused" INFO Each
            "an attempt is fenced: the site refused it", "the next site is tried", "see the line `submit`, `refused` before it";
        NextSilent: "attempt" "silent" WARN Each
            "an attempt is fenced: the site did not answer", "the next site is tried", "see whether the site's batch system answers";
        NextLost: "attempt" "lost" WARN Each
            "an attempt is fenced: its job ended too early", "the next site is tried", "look at the job's log at the site";
        NextNotHome: "attempt" "not_home" WARN Each
            "an attempt is fenced: its agent did not call home in time", "the next site is tried", "try the link's URL from a node of the site: firewall, proxy, name";
        NextNotStarted: "attempt" "not_started" WARN Each
            "an attempt is fenced: its server could not be started", "the next site is tried", "see that the command is there at the site: `site.process.path`";
        SiteRests: "site" "rests" WARN Each
            "a site failed repeatedly and rests", "no new server goes there for a while", "read `why`, and see to the site";
        RemovalAgain: "removal" "unsure" INFO Calm
            "what an attempt left at a site is not removed yet", "it is asked for again", "if it lasts, see whether the site's batch system answers";
        StoreAgain: "store" "write" ERROR Calm
            "a run waits: its state cannot be written down", "it is written again each second; nothing is done before", "make the state folder writable: space, rights; see `doctor`";
        StorePrune: "store" "prune" WARN Calm
            "what is too old could not be removed from the store", "it is tried again in ten minutes", "make the state folder writable: space, rights; see `doctor`";
        DriverAgain: "driver" "broke_off" ERROR Each
            "the driver of a run broke off", "the run is taken up again from the store", "report it: this is a fault of the program";
        DriverUnread: "driver" "unread" WARN Calm
            "a run cannot be taken up again yet", "it is tried again", "make the state folder readable; see `doctor`";
        ActAgain: "driver" "act" ERROR Each
            "an act of a run broke off", "the run goes on from what is known", "report it: this is a fault of the program";
        OrderAgain: "order" "unreadable" ERROR Each
            "a launch order cannot be read", "it is read again with the agent's next link", "restore the keys of the state folder";
        WordAgain: "agent" "busy" WARN Calm
            "an agent takes no words", "they are said again with its next link or stream", "nothing, unless it lasts";
        EventsAgain: "events" "stream" WARN Calm
            "a stream of events ended early", "its reader comes again and misses nothing", "make the state folder readable; see `doctor`";
        CertificateAgain: "certificate" "renewal" WARN Calm
            "the link listener keeps its old certificate", "it is tried again each minute", "put a right pair of certificate and key in place";
        AcceptAgain: "listener" "accept" WARN Calm
            "connections cannot be accepted", "it is tried again", "raise the limit of open files: `LimitNOFILE`";
    }
}

table! {
    /// Nobody can tell how something is, until that is over.
    Doubt {
        SiteSilent: "site" "silent" WARN Each
            "a site does not say what it can take", "it is asked again; its servers are kept", "see whether the site's batch system answers";
        SiteUnlisted: "site" "unlisted" WARN Each
            "a site does not list its jobs", "it is asked again; no server ends for that", "see whether the site's batch system answers";
        RunUnknown: "run" "unknown" WARN Each
            "nobody can tell whether a run lives", "it is kept", "see to the site and to the way from it to this machine";
        AgentUnheard: "agent" "unheard" INFO Each
            "an agent is not heard", "its server is kept; the agent dials again", "if it lasts, see to the way from the site to this machine";
    }
}

table! {
    /// Something half-done or left over was put right.
    Repair {
        RunTakenUp: "run" "taken_up" INFO Each
            "a run of before the start is taken up again", "what was half-done is finished or undone", "nothing";
        Orphan: "job" "orphan" WARN Each
            "a job that no run wants is removed", "it is ended until the site lists it no more", "nothing, unless another service has the same `instance`";
        Rerouted: "route" "again" INFO Each
            "a server has a new way home", "its pages go that way", "nothing";
        OrderErased: "order" "erased" DEBUG Each
            "a launch order was erased: no attempt needs it again", "nothing", "nothing";
        CertificateRenewed: "certificate" "renewed" INFO Each
            "the link listener has a new certificate", "new links see it", "nothing";
    }
}
