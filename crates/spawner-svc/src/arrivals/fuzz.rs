//! The door of the fuzz target: any text as a ticket. Not for use.
#![allow(clippy::expect_used, reason = "for tests and the fuzzer alone: this is how they fail")]

use std::sync::OnceLock;

use glidepath_domain::names::{Attempt, InstanceId, RunId};
use glidepath_domain::run::Moment;
use secrecy::ExposeSecret as _;

use super::ticket::Tickets;

/// The only ticket that was ever signed with a key that everybody may know.
struct Signed {
    tickets: Tickets,
    attempt: Attempt,
    until: Moment,
    raw: String,
}

fn signed() -> &'static Signed {
    static SIGNED: OnceLock<Signed> = OnceLock::new();
    SIGNED.get_or_init(|| {
        let instance = InstanceId::parse("fuzz").expect("a name");
        let tickets = Tickets::from_seed(&[7; 32], instance).expect("a key");
        let attempt = Attempt { run: RunId::from_parts(1_700_000_000_000, 3), number: 2 };
        let until = Moment(2_000);
        let raw = tickets.issue(attempt, Moment(1_000), until).expect("a ticket").expose_secret().to_owned();
        Signed { tickets, attempt, until, raw }
    })
}

/// What reads as a ticket is the one that was signed, to the letter.
pub fn ticket(input: &[u8]) {
    let Ok(raw) = std::str::from_utf8(input) else { return };
    let signed = signed();
    if let Some(ticket) = signed.tickets.read(raw) {
        assert_eq!(raw, signed.raw, "a ticket that was never signed");
        assert_eq!((ticket.attempt, ticket.until), (signed.attempt, signed.until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_that_was_kept_or_changed_is_a_ticket_but_the_signed_one() {
        assert!(signed().tickets.read(&signed().raw).is_some());
        glidepath_testkit::corpus::replay("ticket", 5_000, ticket);
    }

    /// Writes the inputs anew. Run it by hand when tickets change.
    #[test]
    #[ignore = "writes files"]
    fn write_the_inputs() {
        use base64::Engine as _;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let raw = &signed().raw;
        let parts: Vec<&str> = raw.split('.').collect();
        let none = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"none"}"#);
        let hs256 = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"HS256"}"#);
        let with_key = URL_SAFE_NO_PAD
            .encode(r#"{"alg":"EdDSA","jwk":{"kty":"OKP","crv":"Ed25519","x":"AA"},"kid":"../x"}"#);
        let other = URL_SAFE_NO_PAD.encode(
            r#"{"iss":"fuzz","sub":"01HF7YAT00000000000000000Z","attempt":9,"iat":0,"exp":99999999999}"#,
        );
        let odd = URL_SAFE_NO_PAD.encode(r#"{"iss":["fuzz"],"sub":null,"attempt":-1,"exp":1e400}"#);
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/ticket");
        std::fs::create_dir_all(&folder).unwrap();
        for (name, text) in [
            ("signed", raw.clone()),
            ("none", format!("{none}.{}.", parts[1])),
            ("hs256", format!("{hs256}.{}.{}", parts[1], parts[2])),
            ("with-key", format!("{with_key}.{}.{}", parts[1], parts[2])),
            ("other-claims", format!("{}.{other}.{}", parts[0], parts[2])),
            ("odd-claims", format!("{}.{odd}.{}", parts[0], parts[2])),
            ("no-signature", format!("{}.{}.", parts[0], parts[1])),
            ("padded", format!("{raw}==")),
            ("four-parts", format!("{raw}.{}", parts[2])),
        ] {
            std::fs::write(folder.join(name), text).unwrap();
        }
    }
}
