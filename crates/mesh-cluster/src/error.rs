use std::path::PathBuf;

/// Why trust was not made, or not given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no join token at all.
    #[error("this is no join token: it must read MESH-1-…, as `meshctl cluster join-token worker` prints it")]
    NotAToken,

    /// The token has a layout that this program does not know.
    #[error(
        "join token of version {0}, but this meshd knows version 1 only: use the version the managers run"
    )]
    TokenVersion(u32),

    /// A join token that lost something on its way.
    #[error("the join token is damaged (its {0} is not whole): copy all of it, from MESH to the end")]
    TokenDamaged(&'static str),

    /// The token pins another CA.
    #[error("the join token belongs to another cluster: ask a manager of this one for its token")]
    TokenOfAnotherCluster,

    /// No record has the token's secret.
    #[error("the join token is unknown or was rotated: ask a manager for the current one")]
    TokenUnknown,

    /// The token's time is over.
    #[error("the join token has expired: ask a manager for a new one")]
    TokenExpired,

    /// The server did not prove to be of the cluster whose fingerprint the token holds.
    #[error(
        "the manager's certificate is not of the CA that the join token names: the token is of another cluster, or older than its last 'cluster ca --rotate': ask this cluster's manager for the current one"
    )]
    WrongAuthority,

    /// A certificate is not of this time.
    #[error(
        "the certificates are not valid at this time: compare 'date' here and on the manager, and set the clocks"
    )]
    Clock,

    /// The server is of no CA that this node trusts.
    #[error(
        "a manager of another cluster answers there, or the CA was replaced while this node was away: check the address"
    )]
    ForeignManager,

    /// The manager does not know the CA of this node's certificate.
    #[error(
        "the manager does not accept this node's certificate: it is of another cluster, or its CA was replaced while this node was away: leave and join again"
    )]
    Unknown,

    /// A certificate request that can't be signed.
    #[error("the certificate request is refused: {0}")]
    Request(String),

    /// A certificate that does not say what ours say.
    #[error("the certificate is not one of a mesh node: {0}")]
    NotANode(String),

    /// Key, certificate and CA that do not belong together.
    #[error("the credentials do not fit together: {0}")]
    Mismatch(&'static str),

    /// A PEM text without what was looked for.
    #[error("no {0} found in the PEM text")]
    Pem(&'static str),

    /// A certificate or key could not be made or read.
    #[error("certificate or key: {0}")]
    Certificate(#[from] rcgen::Error),

    /// A TLS configuration or a verification failed.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),

    /// A credential file can't be read or written.
    #[error("cannot {action} {}: {reason}", .path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        reason: std::io::Error,
    },

    /// The membership's UDP socket failed.
    #[error("membership: the UDP socket failed: {0}")]
    MembershipSocket(std::io::Error),

    /// The system gave no random numbers.
    #[error("no random numbers from the system: {0}")]
    Random(#[from] rand::rand_core::OsError),
}
