//! What fuzz targets have in common.
//!
//! A target gives an input to the code under test (`subject`, the only module that knows its interface) and has what becomes of
//! it checked (`checks`, which know the wire format and what is promised). `seeds` are what inputs grow from.

mod checks;
mod fixture;
pub mod seeds;
mod subject;
mod wire;

pub use checks::{
    answer::answer, framing::framing, key::key, loops::loops, reply::reply, resolv_conf::resolv_conf,
};
