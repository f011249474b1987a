//! The CA that is made once, the certificates that are made anew, and the files that are refused.

use std::os::unix::fs::MetadataExt as _;

use super::*;

fn hosts(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// True when a client with this CA accepts the certificate in use for this name at this time.
fn accepts(ca_pem: &str, tls: &ServerTls, name: &str, at: SystemTime) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let key = Arc::clone(&tls.keeper.current.read().unwrap());
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap());
    verifier.verify_server_cert(&key.cert[0], &key.cert[1..], &name, &[], at).is_ok()
}

#[test]
fn the_ca_is_made_once_and_is_private_and_its_certificates_fit_their_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let names = hosts(&["glide.example.org", "192.0.2.7", "[2001:db8::7]", "::1"]);
    let tls = own_ca(dir.path(), &names).unwrap();
    let ca = tls.ca_pem().unwrap();
    let now = SystemTime::now();
    for name in ["glide.example.org", "192.0.2.7", "2001:db8::7", "::1"] {
        assert!(accepts(ca, &tls, name, now), "{name}");
    }
    assert!(!accepts(ca, &tls, "other.example.org", now));
    assert!(accepts(ca, &tls, "::1", now - DAY / 2), "the clock of a far site may be behind");
    for (file, mode) in [("ca", 0o700), ("ca/ca.key", 0o600), ("ca/ca.pem", 0o600)] {
        assert_eq!(fs::metadata(dir.path().join(file)).unwrap().mode() & 0o777, mode, "{file}");
    }
    let again = own_ca(dir.path(), &hosts(&["moved.example.org"])).unwrap();
    assert_eq!(again.ca_pem(), tls.ca_pem());
    assert!(
        accepts(ca, &again, "moved.example.org", now),
        "agents with the old dial file trust the new certificate"
    );
    let other = tempfile::tempdir().unwrap();
    let stranger = own_ca(other.path(), &names).unwrap();
    assert!(!accepts(ca, &stranger, "glide.example.org", now));
}

#[test]
fn a_certificate_of_the_own_ca_is_renewed_before_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let tls = own_ca(dir.path(), &hosts(&["h.example"])).unwrap();
    let (ca, now) = (tls.ca_pem().unwrap(), SystemTime::now());
    assert!(!tls.refresh().unwrap());
    assert!(!tls.keeper.refresh(now + DAY * 29).unwrap());
    assert!(!accepts(ca, &tls, "h.example", now + DAY * 100));
    assert!(tls.keeper.refresh(now + DAY * 31).unwrap());
    assert!(accepts(ca, &tls, "h.example", now + DAY * 100));
    assert!(tls.keeper.refresh(now + DAY * 62).unwrap());
}

#[test]
fn a_crash_between_key_and_certificate_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    own_ca(dir.path(), &hosts(&["h.example"])).unwrap();
    fs::remove_file(dir.path().join("ca/ca.pem")).unwrap();
    let tls = own_ca(dir.path(), &hosts(&["h.example"])).unwrap();
    assert!(accepts(tls.ca_pem().unwrap(), &tls, "h.example", SystemTime::now()));
}

#[test]
fn a_damaged_ca_folder_is_refused_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    own_ca(dir.path(), &hosts(&["h.example"])).unwrap();
    let (key, cert) = (dir.path().join("ca/ca.key"), dir.path().join("ca/ca.pem"));
    let told = || own_ca(dir.path(), &hosts(&["h.example"])).unwrap_err().to_string();

    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(told().contains("can be read by other accounts (mode 644); run `chmod 600`"), "{}", told());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    let kept = fs::read(&key).unwrap();
    fs::write(&key, "scribble").unwrap();
    assert!(told().contains("is not a private key"), "{}", told());
    fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(told().contains("does not belong to the ca.key beside it"), "{}", told());
    fs::remove_file(&key).unwrap();
    assert!(told().contains("has no key beside it: restore"), "{}", told());
    fs::write(&key, kept).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&cert, "scribble").unwrap();
    assert!(told().contains("is not a PEM certificate"), "{}", told());
}

#[test]
fn a_host_without_a_certificate_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for host in ["", "has space", "ünï.example", "[::1", "a..b"] {
        let told = own_ca(dir.path(), &hosts(&[host])).unwrap_err().to_string();
        assert!(told.ends_with("change link.url") && told.contains(&format!("{host:?}")), "{told}");
    }
}

/// An operator's pair on disk.
fn pair(dir: &std::path::Path) -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(vec!["op.example".to_owned()]).unwrap();
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    (cert, key)
}

#[test]
fn the_operators_files_are_taken_and_taken_again_when_they_change() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = pair(dir.path());
    let tls = load(&cert, &key).unwrap();
    assert_eq!(tls.ca_pem(), None);
    assert!(!tls.refresh().unwrap());
    let first = tls.keeper.current.read().unwrap().cert[0].clone();

    fs::write(&cert, "half written").unwrap();
    let later = SystemTime::now() + Duration::from_secs(5);
    fs::File::open(&cert).unwrap().set_modified(later).unwrap();
    assert!(tls.refresh().is_err());
    assert_eq!(tls.keeper.current.read().unwrap().cert[0], first, "a bad pair replaces no good one");

    pair(dir.path());
    fs::File::open(&cert).unwrap().set_modified(later + DAY).unwrap();
    assert!(tls.refresh().unwrap());
    assert_ne!(tls.keeper.current.read().unwrap().cert[0], first);
}

#[test]
fn the_operators_files_are_refused_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = pair(dir.path());
    let told = |cert: &Path, key: &Path| load(cert, key).unwrap_err().to_string();
    let none = dir.path().join("none.pem");
    assert!(told(&none, &key).contains("none.pem: it does not exist"), "{}", told(&none, &key));
    assert!(told(&cert, &none).contains("none.pem: it does not exist"), "{}", told(&cert, &none));
    assert!(told(&key, &key).contains("holds no certificate"), "{}", told(&key, &key));
    assert!(told(&cert, &cert).contains("can be read by other accounts"), "{}", told(&cert, &cert));
    let open = dir.path().join("open.pem");
    fs::write(&open, "").unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(told(&cert, &open).contains("holds no private key"), "{}", told(&cert, &open));
    fs::write(&open, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(told(&cert, &open).contains("does not fit the certificate in"), "{}", told(&cert, &open));
}

#[test]
fn a_certificate_past_or_before_its_time_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (self_signed, days, why) in [
        (true, [-20, -10], "has expired; renew it"),
        (false, [-20, -10], "has expired"),
        (false, [10, 20], "is not valid yet"),
    ] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["op.example".to_owned()]).unwrap();
        let at = |days: i64| {
            rcgen::date_time_ymd(1970, 1, 1)
                + Duration::from_secs(now_days().saturating_add_signed(days) * 86_400)
        };
        (params.not_before, params.not_after) = (at(days[0]), at(days[1]));
        let authority = Issuer::new(ca_params(SystemTime::now()), KeyPair::generate().unwrap());
        let made = if self_signed { params.self_signed(&key) } else { params.signed_by(&key, &authority) };
        let (cert, key_path) = pair(dir.path());
        fs::write(&cert, made.unwrap().pem()).unwrap();
        fs::write(&key_path, key.serialize_pem()).unwrap();
        let told = load(&cert, &key_path).unwrap_err().to_string();
        assert!(told.contains(why), "{told}");
    }
}

fn now_days() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 86_400
}
