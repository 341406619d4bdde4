//! Tests of the rules: as text, as properties of random clusters, and with packets.

mod balancing;
mod cluster;
mod flood;
mod lab;
mod packets;
mod shares;
mod text;
