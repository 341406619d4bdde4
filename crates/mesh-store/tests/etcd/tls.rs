//! Who may speak with etcd, and to which etcd we speak.

use std::fs;
use std::net::IpAddr;

use mesh_store::{Error, EtcdClientCertificate, EtcdOptions, EtcdStore, EtcdTls, Store, Txn};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use tempfile::TempDir;

use crate::member::{Member, answers};
use crate::{open, refusal};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn certificate(authority: &Authority, address: IpAddr) -> EtcdClientCertificate {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress(address)];
    // etcd is its own client, for its gateway.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    EtcdClientCertificate { certificate: certificate.pem(), key: key.serialize_pem() }
}

/// A member that speaks TLS only, and with clients of its authority only.
fn guarded(dir: &TempDir, authority: &Authority) -> Member {
    let member = Member::new();
    let server = certificate(authority, member.address().into());
    let mut arguments = vec!["--client-cert-auth".to_owned()];
    for (name, pem) in [("trusted-ca", authority.pem()), ("cert", server.certificate), ("key", server.key)] {
        let path = dir.path().join(name);
        fs::write(&path, pem).unwrap();
        arguments.push(format!("--{name}-file={}", path.display()));
    }
    member.with_arguments("https", arguments)
}

#[tokio::test]
async fn both_sides_prove_who_they_are() {
    let dir = TempDir::new().unwrap();
    let authority = authority("ours");
    let mut member = guarded(&dir, &authority);
    let client = certificate(&authority, member.address().into());
    let options = |ca: String, client: Option<EtcdClientCertificate>| EtcdOptions {
        tls: Some(EtcdTls { ca, client }),
        ..member.options()
    };
    let good = options(authority.pem(), Some(client.clone()));
    let nameless = options(authority.pem(), None);
    let stranger = options(self::authority("another").pem(), Some(client));
    member.spawn();
    answers(&good).await;

    let store = open(good).await;
    let revision = store.commit(Txn::new().put("a", "1")).await.unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().mod_revision, revision);

    // In TLS 1.3 a client is turned away after it believes itself connected: all it may see is a closed connection.
    for (options, why) in [(nameless, ""), (stranger, "UnknownIssuer")] {
        let err = refusal(EtcdStore::open(options).await);
        assert!(matches!(&err, Error::Unreachable { .. }), "{err}");
        let text = err.to_string();
        assert!(text.contains(why) && text.lines().count() == 1, "{text}");
    }
}
