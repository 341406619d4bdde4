//! What a CA signs, and how credentials are kept.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use mesh_cluster::{
    Authority, AuthorityCertificate, Credentials, Error, NodeKey, PeerIdentity, peer_identity, read_private,
    write_private,
};
use mesh_model::{ClusterId, NodeId, Role};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tempfile::TempDir;
use x509_parser::parse_x509_certificate;

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 24 * 60 * 60;
const NODE: NodeId = NodeId::from_bits(0xb);

fn authority() -> Authority {
    Authority::generate(ClusterId::from_bits(1), NOW).unwrap()
}

fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn a_certificate_says_who_and_for_how_long() {
    let ca = authority();
    let pem = ca
        .issue(&NodeKey::generate().unwrap().request().unwrap(), NODE, Role::Worker, NOW, 90 * DAY)
        .unwrap();
    let der = certificate(&pem);
    assert_eq!(peer_identity(&der).unwrap(), PeerIdentity { node: NODE, role: Role::Worker });
    let (_, parsed) = parse_x509_certificate(&der).unwrap();
    let validity = parsed.validity();
    assert_eq!(validity.not_after.timestamp(), (NOW + 90 * DAY) as i64);
    assert_eq!(validity.not_before.timestamp(), (NOW - 3600) as i64);
    let (_, root) = parse_x509_certificate(ca.certificate().der()).unwrap();
    assert_eq!(root.validity().not_after.timestamp(), (NOW + 3650 * DAY) as i64);
    assert!(root.is_ca() && !parsed.is_ca());
}

#[test]
fn what_a_request_claims_is_not_believed() {
    let names =
        vec!["000000000000000a.node.mesh.internal".to_owned(), "manager.role.mesh.internal".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();

    let der = certificate(&authority().issue(&request, NODE, Role::Worker, NOW, 90 * DAY).unwrap());
    assert_eq!(peer_identity(&der).unwrap(), PeerIdentity { node: NODE, role: Role::Worker });
    let (_, parsed) = parse_x509_certificate(&der).unwrap();
    assert!(!parsed.is_ca());
    assert!(!parsed.extended_key_usage().unwrap().unwrap().value.server_auth, "a worker is no server");
}

#[test]
fn a_bad_request_is_refused() {
    let ca = authority();
    let other_kind = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let other_kind = CertificateParams::default().serialize_request(&other_kind).unwrap().pem().unwrap();
    let sound = NodeKey::generate().unwrap().request().unwrap();
    // One digit of the signature, which ends the request.
    let at = sound.find("\n-----END").unwrap() - 10;
    let mut forged = sound.clone();
    let digit = if &sound[at..=at] == "A" { "B" } else { "A" };
    forged.replace_range(at..=at, digit);
    for (request, why) in
        [("", "parse"), ("junk", "parse"), (&*forged, ""), (&*other_kind, "not ECDSA P-256")]
    {
        let err = ca.issue(request, NODE, Role::Worker, NOW, 90 * DAY).unwrap_err();
        assert!(matches!(err, Error::Request(_)) && err.to_string().contains(why), "{err}");
    }
    ca.issue(&sound, NODE, Role::Worker, NOW, 90 * DAY).expect("the unforged one");
}

#[test]
fn only_a_node_certificate_gives_an_identity() {
    let ca = authority();
    let sound = ["000000000000000b.node.mesh.internal", "worker.role.mesh.internal"];
    let cases: &[&[&str]] = &[
        &[],
        &sound[..1],
        &sound[1..],
        &["xyz.node.mesh.internal", sound[1]],
        &[sound[0], "root.role.mesh.internal"],
        &[sound[0], sound[1], "manager.role.mesh.internal"],
        &[sound[0], "000000000000000c.node.mesh.internal", sound[1]],
        &[sound[0], sound[1], "example.org"],
        &[sound[0], sound[1], "10.0.0.1"],
    ];
    let of = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let params = CertificateParams::new(names).unwrap();
        peer_identity(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der())
    };
    assert!(of(&sound).is_ok());
    for names in cases {
        assert!(matches!(of(names), Err(Error::NotANode(_))), "{names:?}");
    }
    assert!(matches!(peer_identity(ca.certificate().der()), Err(Error::NotANode(_))));
    assert!(matches!(peer_identity(&CertificateDer::from(vec![1, 2, 3])), Err(Error::NotANode(_))));
}

#[test]
fn credentials_are_accepted_only_if_all_of_it_fits() {
    let (ca, other) = (authority(), authority());
    let new = |signer: &Authority, now| {
        let key = NodeKey::generate().unwrap();
        let certificate = signer.issue(&key.request().unwrap(), NODE, Role::Worker, NOW, 90 * DAY).unwrap();
        Credentials::new(ca.certificate().clone(), &certificate, key, now)
    };
    assert_eq!(new(&ca, NOW).unwrap().identity(), PeerIdentity { node: NODE, role: Role::Worker });
    assert!(matches!(new(&other, NOW), Err(Error::Tls(_))), "signed by another CA");
    assert!(matches!(new(&ca, NOW + 91 * DAY), Err(Error::Clock)), "expired");
    assert!(matches!(new(&ca, NOW - DAY), Err(Error::Clock)), "of the future");

    let foreign = NodeKey::generate().unwrap().request().unwrap();
    let certificate = ca.issue(&foreign, NODE, Role::Worker, NOW, 90 * DAY).unwrap();
    let swapped = Credentials::new(ca.certificate().clone(), &certificate, NodeKey::generate().unwrap(), NOW)
        .unwrap_err();
    assert!(matches!(swapped, Error::Mismatch(_)), "{swapped}");
}

#[test]
fn credentials_survive_the_disk() {
    let temp = TempDir::new().unwrap();
    let path = temp.path().join("node.pem");
    assert!(Credentials::load(&path).unwrap().is_none());
    let ca = authority();
    let saved = Credentials::issue(&ca, NODE, Role::Manager, NOW, 90 * DAY).unwrap();
    saved.save(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let loaded = Credentials::load(&path).unwrap().expect("the file");
    assert_eq!(loaded.identity(), saved.identity());
    assert_eq!(loaded.authority(), ca.certificate());
    loaded.server_config().unwrap();

    let text = fs::read_to_string(&path).unwrap();
    let ours = text.find("-----BEGIN CERTIFICATE").unwrap();
    let last = text.rfind("-----BEGIN CERTIFICATE").unwrap();
    let other = Credentials::issue(&ca, NODE, Role::Manager, NOW, 90 * DAY).unwrap();
    other.save(&path).unwrap();
    let theirs = fs::read_to_string(&path).unwrap();
    let mixed = theirs[..theirs.find("-----BEGIN CERTIFICATE").unwrap()].to_owned() + &text[ours..];
    for broken in ["", "junk", &text[..ours], &text[..last], &text[ours..], &mixed, &text[..text.len() / 2]] {
        fs::write(&path, broken).unwrap();
        assert!(Credentials::load(&path).is_err(), "{broken}");
    }
}

#[test]
fn an_authority_survives_text() {
    let ca = authority();
    let again = Authority::from_pem(&ca.to_pem()).unwrap();
    assert_eq!(again.certificate(), ca.certificate());
    assert_eq!(AuthorityCertificate::from_pem(&ca.certificate().to_pem()).unwrap(), *ca.certificate());
    let issued = Credentials::issue(&again, NODE, Role::Worker, NOW, 90 * DAY).unwrap();
    assert_eq!(issued.authority().fingerprint(), ca.certificate().fingerprint());

    let other_key = authority().to_pem();
    let swapped = ca.certificate().to_pem() + &other_key[other_key.find("-----BEGIN PRIVATE").unwrap()..];
    assert!(matches!(Authority::from_pem(&swapped), Err(Error::Mismatch(_))));
    assert!(matches!(Authority::from_pem(&ca.certificate().to_pem()), Err(Error::Pem(_))));
    assert!(matches!(AuthorityCertificate::from_pem("junk"), Err(Error::Pem(_))));
}

#[test]
fn keys_are_not_shown_by_debug() {
    let ca = authority();
    let credentials = Credentials::issue(&ca, NODE, Role::Worker, NOW, 90 * DAY).unwrap();
    let shown = format!("{ca:?}");
    assert!(shown.contains(&ca.certificate().fingerprint().to_string()) && shown.len() < 200, "{shown}");
    assert!(format!("{credentials:?}").contains("NodeKey(…)"));
}

#[test]
fn a_private_file_is_replaced_whole() {
    let temp = TempDir::new().unwrap();
    let path = temp.path().join("secret");
    let draft = temp.path().join("secret.new");
    assert_eq!(read_private(&path).unwrap(), None);
    fs::write(&path, "old").unwrap();
    fs::write(&draft, "left behind by a crash, for all to read").unwrap();
    write_private(&path, "new").unwrap();
    assert_eq!(read_private(&path).unwrap().as_deref(), Some("new"));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!draft.exists());

    // What can't be replaced is left as it was, and nothing lies about.
    let folder = temp.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let err = write_private(&folder, "text").unwrap_err();
    assert!(err.to_string().contains("cannot write") && err.to_string().contains("folder"), "{err}");
    assert!(!temp.path().join("folder.new").exists());
    assert!(write_private(&temp.path().join("missing/file"), "text").is_err());
}

#[test]
fn a_certificate_is_renewed_in_the_last_third_of_its_life() {
    let issued = Credentials::issue(&authority(), NODE, Role::Worker, NOW, 90 * DAY).unwrap().validity();
    assert_eq!((issued.from, issued.until), (NOW - mesh_cluster::CLOCK_SKEW, NOW + 90 * DAY));
    assert_eq!((issued.renewal(0.0), issued.renewal(1.0)), (NOW + 60 * DAY, NOW + 69 * DAY));
    let brief = Credentials::issue(&authority(), NODE, Role::Worker, NOW, 30).unwrap().validity();
    assert_eq!((brief.renewal(0.0), brief.renewal(1.0)), (NOW + 20, NOW + 23));
}

#[test]
fn trust_in_two_authorities_survives_the_disk() {
    let temp = TempDir::new().unwrap();
    let path = temp.path().join("node.pem");
    let (old, other) = (authority(), authority());
    let new = old.successor(ClusterId::from_bits(1), NOW).unwrap();
    let both = vec![new.certificate().clone(), old.certificate().clone()];
    let saved = Credentials::issue(&old, NODE, Role::Worker, NOW, 90 * DAY).unwrap().trusting(both.clone());
    saved.save(&path).unwrap();
    let loaded = Credentials::load(&path).unwrap().unwrap();
    assert_eq!((loaded.authority(), loaded.trusted()), (old.certificate(), both.as_slice()));

    // A bridge is of its CA's key, or the record is damaged.
    let bridge_of = |ca: &Authority| ca.successor(ClusterId::from_bits(1), NOW).unwrap().to_pem();
    let (ours, theirs) = (bridge_of(&old), bridge_of(&other));
    let certificates = |text: &str| -> Vec<String> {
        text.split_inclusive("-----END CERTIFICATE-----\n").map(str::to_owned).collect()
    };
    let (ours, theirs) = (certificates(&ours), certificates(&theirs));
    assert!(Authority::from_pem(&[&*ours[0], &*ours[1], &*ours[2]].concat()).is_ok());
    assert!(matches!(
        Authority::from_pem(&[&*ours[0], &*theirs[1], &*ours[2]].concat()),
        Err(Error::Mismatch(_))
    ));
}
