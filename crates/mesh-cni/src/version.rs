//! Versions of the protocol.

use crate::failure::{Code, Failure};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt;

/// A version that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// The first with results that list interfaces.
    V0_3_0,
    /// As 0.3.0.
    V0_3_1,
    /// Brought `CHECK`.
    V0_4_0,
    /// Addresses lost their `version`.
    V1_0_0,
    /// Brought `GC` and `STATUS`, and the MTU of interfaces.
    V1_1_0,
}

impl Version {
    pub(crate) const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    pub(crate) const LATEST: Self = Self::V1_1_0;

    pub(crate) fn find(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// What a configuration says; nothing said means 0.1.0, as ever.
    pub(crate) fn of(text: &str) -> Result<Self, Failure> {
        let said = if text.is_empty() { "0.1.0 (no cniVersion is given)" } else { text };
        let spoken = Self::ALL.map(Self::as_str).join(", ");
        Self::find(text).ok_or_else(|| {
            Failure::new(Code::Version, format!("CNI version {said} is not supported"))
                .because(format!("set cniVersion to one of {spoken}"))
        })
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The answer to `VERSION`, whatever version the runtime speaks.
pub(crate) fn answer(text: &[u8]) -> (Version, Result<Option<Value>, Failure>) {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Asked {
        cni_version: Option<String>,
    }
    let asked =
        if text.trim_ascii().is_empty() { Ok(Asked::default()) } else { serde_json::from_slice(text) };
    let result = asked.map_err(|e| Failure::new(Code::Decoding, "stdin is no JSON object").because(e)).map(
        |Asked { cni_version }| {
            let spoken = Version::ALL.map(Version::as_str);
            let version = cni_version.unwrap_or_else(|| Version::LATEST.to_string());
            Some(json!({ "cniVersion": version, "supportedVersions": spoken }))
        },
    );
    (Version::LATEST, result)
}
