//! Container engines on this host, as far as they are more than clients of the local API.

pub(crate) mod docker;
