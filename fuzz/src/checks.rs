//! What is promised of whatever comes in.

pub(crate) mod answer;
pub(crate) mod framing;
pub(crate) mod key;
pub(crate) mod loops;
pub(crate) mod reply;
pub(crate) mod resolv_conf;
