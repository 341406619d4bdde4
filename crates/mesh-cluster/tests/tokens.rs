//! Join tokens: what is taken for one, what it admits, what it gives away.

use mesh_cluster::{Authority, AuthorityCertificate, Error, JoinToken, TokenRecord};
use mesh_model::{ClusterId, Role};
use proptest::prelude::*;

const NOW: u64 = 1_800_000_000;

fn authority() -> AuthorityCertificate {
    Authority::generate(ClusterId::from_bits(1), NOW).unwrap().certificate().clone()
}

fn issue(authority: &AuthorityCertificate, role: Role) -> (JoinToken, TokenRecord) {
    JoinToken::issue(authority, role, NOW, None).unwrap()
}

#[test]
fn a_token_admits_as_the_role_it_was_made_for() {
    let ca = authority();
    let issued = [issue(&ca, Role::Worker), issue(&ca, Role::Manager), issue(&ca, Role::Worker)];
    let records: Vec<_> = issued.iter().map(|(_, record)| record.clone()).collect();
    for (token, record) in &issued {
        let carried: JoinToken = token.to_string().parse().unwrap();
        assert_eq!(carried.authority(), ca.fingerprint());
        assert_eq!(carried.verify(&ca, &records, NOW).unwrap(), record.role);
    }
}

#[test]
fn rotated_expired_and_foreign_tokens_are_told_apart() {
    let (ca, other) = (authority(), authority());
    let (old, _) = issue(&ca, Role::Worker);
    let (_, current) = issue(&ca, Role::Worker);
    assert!(matches!(old.verify(&ca, [&current], NOW), Err(Error::TokenUnknown)));
    assert!(matches!(old.verify(&ca, [], NOW), Err(Error::TokenUnknown)));

    let (token, record) = JoinToken::issue(&ca, Role::Worker, NOW, Some(NOW + 60)).unwrap();
    assert_eq!(token.verify(&ca, [&record], NOW + 59).unwrap(), Role::Worker);
    assert!(matches!(token.verify(&ca, [&record], NOW + 60), Err(Error::TokenExpired)));

    assert!(matches!(token.verify(&other, [&record], NOW), Err(Error::TokenOfAnotherCluster)));
}

#[test]
fn the_secret_is_neither_kept_nor_shown() {
    let (token, record) = issue(&authority(), Role::Worker);
    let text = token.to_string();
    let (shown, secret) = text.rsplit_once('-').unwrap();
    assert_eq!(secret.len(), 32);
    assert!(shown.starts_with("MESH-1-"));
    assert_eq!(format!("{token:?}"), format!("{shown}-…"));
    let kept = serde_json::to_string(&record).unwrap();
    assert!(!kept.contains(secret));
    assert_eq!(serde_json::from_str::<TokenRecord>(&kept).unwrap(), record);
    assert_ne!(issue(&authority(), Role::Worker).1.secret, record.secret);
}

#[test]
fn what_is_no_token_is_told_in_one_line() {
    let (token, _) = issue(&authority(), Role::Worker);
    let text = token.to_string();
    assert_eq!(format!("  {text}\n").parse::<JoinToken>().unwrap(), token, "pasted with white space");
    let parse = |text: &str| text.parse::<JoinToken>().unwrap_err();
    for other in ["", "hello", "SWMTKN-1-abc-def", "MESH", "MESH-", "MESH-x-y-z"] {
        assert!(matches!(parse(other), Error::NotAToken), "{other}");
    }
    assert!(matches!(parse(&text.replace("MESH-1", "MESH-2")), Error::TokenVersion(2)));
    for end in "MESH-1-".len()..text.len() {
        let err = parse(&text[..end]);
        assert!(matches!(err, Error::TokenDamaged(_)), "cut at {end}: {err}");
        assert_eq!(err.to_string().lines().count(), 1);
    }
    assert!(matches!(parse(&format!("{text}-more")), Error::TokenDamaged("end")));
}

proptest! {
    #[test]
    fn no_text_panics_and_none_gets_in(text in ".{0,200}") {
        if let Ok(token) = text.parse::<JoinToken>() {
            prop_assert!(token.verify(&authority(), [], NOW).is_err());
        }
    }

    #[test]
    fn a_token_with_any_digit_changed_is_not_the_token(place in 7..104usize, digit in "[0-9a-f]") {
        let ca = authority();
        let (token, record) = issue(&ca, Role::Manager);
        let mut text = token.to_string();
        prop_assert_eq!(text.len(), 104);
        let changed = text[place..=place] != digit && &text[place..=place] != "-";
        if changed {
            text.replace_range(place..=place, &digit);
        }
        let admitted = text.parse::<JoinToken>().and_then(|token| token.verify(&ca, [&record], NOW));
        prop_assert_eq!(admitted.is_ok(), !changed);
    }

    #[test]
    fn a_token_like_text_round_trips(fingerprint in "[0-9a-f]{64}", secret in "[0-9a-f]{32}") {
        let text = format!("MESH-1-{fingerprint}-{secret}");
        let token: JoinToken = text.parse().unwrap();
        prop_assert_eq!(token.to_string(), text.clone());
        let shown = format!("{token:?}");
        prop_assert!(!shown.contains(&secret));
        prop_assert_eq!(text.to_uppercase().parse::<JoinToken>().unwrap(), token);
    }
}
