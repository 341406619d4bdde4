//! The ingress and the relay seen from outside: real sockets on the loopback, raw bytes, and Debian's nginx, curl and wrk.

mod access;
mod balancing;
mod bodies;
mod clients;
mod failures;
mod health;
mod model;
mod nginx;
mod relay;
mod relayed_datagrams;
mod rig;
mod routes;
mod smuggling;
mod upstream;
