//! Keeps the nftables tables of each space as they should be: replaced whole at first, patched afterwards, and
//! looked over on a full pass.

use crate::{
    dataplane::Pass,
    error::{Error, Result},
    kernel::Kernel,
    nft::{Batch, Family, Nft, NftError, Table},
    object::Space,
    ports::HostPort,
    rules::{HOST_TABLE, host_key},
};
use std::collections::BTreeMap;

/// What was last written, space by space.
#[derive(Default)]
pub(crate) struct Firewall {
    written: BTreeMap<Space, Written>,
}

struct Written {
    /// Inode of the namespace: one made anew has no tables.
    inode: u64,
    tables: Vec<Table>,
    /// The kernel's transaction count after ours; none if somebody else's came at the same moment.
    generation: Option<u32>,
    /// Whether others have tables there as well.
    shared: bool,
    /// What the kernel showed at that generation, where others may move that on. Taken when it is first needed: it costs
    /// a dump.
    fingerprints: Option<Vec<Option<u64>>>,
}

impl Firewall {
    /// Brings a space's tables to what they should be; whether anything was written.
    pub(crate) fn ensure(
        &mut self,
        kernel: &mut Kernel,
        space: Space,
        tables: Vec<Table>,
        pass: Pass,
    ) -> Result<bool> {
        let inode = kernel.inode(space)?;
        let mut before = self.written.remove(&space).filter(|written| written.inode == inode);
        let nft = kernel.nft(space)?;
        let failed = |source| failed(space, source);
        if pass == Pass::Full
            && let Some(written) = &mut before
            && !written.is_untouched(nft).map_err(failed)?
        {
            tracing::info!(%space, "somebody else changed nftables, perhaps the tables of the mesh: written anew");
            before = None;
        }
        let mut batch = Batch::default();
        for (at, table) in tables.iter().enumerate() {
            batch.update(before.as_ref().and_then(|written| written.tables.get(at)), table);
        }
        let wrote = !batch.is_empty();
        let written = match before {
            Some(written) if !wrote => written,
            _ => Written {
                inode,
                shared: space == Space::Host,
                generation: commit(nft, &batch).map_err(failed)?,
                tables,
                fingerprints: None,
            },
        };
        self.written.insert(space, written);
        Ok(wrote)
    }

    /// The same for what some records make of the tables: from what it was before to what it should be. None where that can't
    /// be done: it is not known what is written, or something of all of them changes as well.
    pub(crate) fn amend(
        &mut self,
        kernel: &mut Kernel,
        space: Space,
        [before, after]: [&[Table]; 2],
    ) -> Result<Option<bool>> {
        let inode = kernel.inode(space)?;
        let written = self.written.remove(&space).filter(|written| written.inode == inode);
        let Some(mut written) = written.filter(|written| written.tables.len() == after.len()) else {
            return Ok(None);
        };
        let parts = written.tables.iter().zip(before.iter().zip(after));
        let parts: Option<Vec<Table>> =
            parts.map(|(current, (before, after))| current.part(before, after)).collect();
        let Some(parts) = parts else {
            self.written.insert(space, written);
            return Ok(None);
        };
        let mut batch = Batch::default();
        for (current, (part, after)) in written.tables.iter_mut().zip(parts.iter().zip(after)) {
            batch.amend(current, part, after);
        }
        let wrote = !batch.is_empty();
        if wrote {
            let nft = kernel.nft(space)?;
            let committed = commit(nft, &batch);
            written.generation = committed.map_err(|source| failed(space, source))?;
            written.fingerprints = None;
        }
        self.written.insert(space, written);
        Ok(Some(wrote))
    }

    /// Whether a space's tables are known to be what was written into them.
    pub(crate) fn holds(&mut self, kernel: &mut Kernel, space: Space) -> Result<bool> {
        let inode = kernel.inode(space)?;
        match self.written.get_mut(&space).filter(|written| written.inode == inode) {
            Some(written) => written.is_untouched(kernel.nft(space)?).map_err(|source| failed(space, source)),
            None => Ok(false),
        }
    }

    /// Whether a space's tables are no longer what was written into them. Nothing is known of a space that none were
    /// written into.
    pub(crate) fn differs(&mut self, kernel: &mut Kernel, space: Space) -> Result<bool> {
        let inode = kernel.inode(space)?;
        let Some(written) = self.written.get_mut(&space).filter(|written| written.inode == inode) else {
            return Ok(false);
        };
        let differs = written.was_changed(kernel.nft(space)?);
        differs.map_err(|source| failed(space, source))
    }

    /// Removes the host's tables. Those of networks go with their namespaces.
    pub(crate) fn clear(&mut self, kernel: &mut Kernel) -> Result<()> {
        self.written.clear();
        let nft = kernel.nft(Space::Host)?;
        for family in [Family::Ip, Family::Ip6] {
            let removed = nft.delete_table(family, HOST_TABLE);
            removed.map_err(|source| failed(Space::Host, source))?;
        }
        Ok(())
    }

    /// Forgets spaces that are no more.
    pub(crate) fn retain(&mut self, keep: impl Fn(Space) -> bool) {
        self.written.retain(|space, _| keep(*space));
    }
}

/// Whether the kernel leads a port of the host to a container, whoever wrote that.
pub(crate) fn leads_elsewhere(kernel: &mut Kernel, port: HostPort) -> Result<bool> {
    let nft = kernel.nft(Space::Host)?;
    let (map, key) = host_key(port);
    for family in [Family::Ip, Family::Ip6] {
        let is_of = port.ip.is_none_or(|ip| ip.is_ipv6() == (family == Family::Ip6));
        if is_of && nft.has_element(family, HOST_TABLE, map, &key).map_err(|e| failed(Space::Host, e))? {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(crate) fn failed(space: Space, source: NftError) -> Error {
    Error::Firewall { place: space.to_string(), source: Box::new(source) }
}

/// Commits, and says which generation that was unless another transaction came in between.
fn commit(nft: &mut Nft, batch: &Batch) -> Result<Option<u32>, NftError> {
    let before = nft.generation()?;
    nft.commit(batch)?;
    let after = nft.generation()?;
    Ok((after == before.wrapping_add(1)).then_some(after))
}

impl Written {
    /// Whether the kernel still holds what was written.
    fn is_untouched(&mut self, nft: &mut Nft) -> Result<bool, NftError> {
        let now = nft.generation()?;
        if self.generation == Some(now) {
            if self.shared && self.fingerprints.is_none() {
                let fingerprints = self.fingerprints(nft)?;
                if nft.generation()? == now {
                    self.fingerprints = Some(fingerprints);
                }
            }
            return Ok(true);
        }
        // Others have tables here too: it may have been about those.
        let (Some(_), Some(expected)) = (self.generation, &self.fingerprints) else { return Ok(false) };
        let same = *expected == self.fingerprints(nft)?;
        if same {
            self.generation = Some(now);
        }
        Ok(same)
    }

    /// Whether the kernel holds something else for certain. Where others have tables, the first look after a write takes note of
    /// what was written.
    fn was_changed(&mut self, nft: &mut Nft) -> Result<bool, NftError> {
        let Some(generation) = self.generation else { return Ok(false) };
        let noted = !self.shared || self.fingerprints.is_some() || generation == nft.generation()?;
        Ok(noted && !self.is_untouched(nft)?)
    }

    fn fingerprints(&self, nft: &mut Nft) -> Result<Vec<Option<u64>>, NftError> {
        self.tables.iter().map(|table| nft.fingerprint(table.family, &table.name)).collect()
    }
}
