//! What a front process may do: it talks to anybody who reaches a published port, so it keeps one capability.

use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_name, set_no_new_privs,
};
use std::io;

/// To open sockets inside the namespaces of networks (setns(2)).
const KEPT: CapabilitySet = CapabilitySet::SYS_ADMIN;

/// Gives up everything else, for good. To be called before there are other threads.
pub(super) fn confine() -> io::Result<()> {
    set_name(c"meshd-front")?;
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    for capability in CapabilitySet::all().difference(KEPT).iter() {
        match remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know, or a caller that may not do so: what counts comes next.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: none })?;
    Ok(())
}
