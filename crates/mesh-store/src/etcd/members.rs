//! The members of the etcd cluster itself: who they are, who leads, and how they come and go.
//!
//! A new member is a *learner* first (etcd 3.4 or newer): it is sent everything and has no vote, so that one that never
//! starts can't cost the quorum. Add, start it with `--initial-cluster-state=existing`, then promote.

use std::collections::BTreeSet;
use std::time::Duration;

use etcd_client::{Client, Member as PbMember, MemberAddOptions};
use tokio::time::{Instant, sleep};

use super::EtcdStore;
use super::fault::EtcdRefusal;
use crate::Error;

/// How long etcd is left alone before it is asked again for a change of members that it refuses for now.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a removal is tried: etcd removes nobody before the others have been connected for 5 seconds.
const SETTLES: Duration = Duration::from_secs(10);

/// A member of the etcd cluster, as the members know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdMember {
    /// etcd's number for it.
    pub id: u64,
    /// What it was started with as `--name`; empty as long as it never started.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Has no vote yet.
    pub learner: bool,
}

/// A change of who votes, by the member's [`id`](EtcdMember::id).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtcdMembersChange {
    /// The learner gets a vote.
    Promote(u64),
    /// The member goes.
    Remove(u64),
}

impl EtcdMembersChange {
    /// Whether the cluster would take no more changes after this one, `healthy` being the members that work now: fewer
    /// of those would vote than a majority.
    pub fn loses_quorum(self, members: &[EtcdMember], healthy: &BTreeSet<u64>) -> bool {
        let votes = |member: &&EtcdMember| match self {
            Self::Promote(id) => !member.learner || member.id == id,
            Self::Remove(id) => !member.learner && member.id != id,
        };
        let voters: Vec<_> = members.iter().filter(votes).collect();
        let working = voters.iter().filter(|member| healthy.contains(&member.id)).count();
        working < voters.len() / 2 + 1
    }
}

impl EtcdStore {
    /// All members, as the member that answers knows them.
    ///
    /// Errors: [`Error::Unreachable`], [`Error::Refused`].
    pub async fn members(&self) -> Result<Vec<EtcdMember>, Error> {
        let listed = self.shared.etcd.read(|mut client| async move { client.member_list().await }).await?;
        Ok(listed.members().iter().map(EtcdMember::of).collect())
    }

    /// The member that leads; none during an election.
    ///
    /// Errors: as [`members`](Self::members).
    pub async fn leader(&self) -> Result<Option<EtcdMember>, Error> {
        let status = self.shared.etcd.read(|mut client| async move { client.status().await }).await?;
        Ok(self.members().await?.into_iter().find(|member| member.id == status.leader()))
    }

    /// Adds the member that others will reach at `peer_url`, as a learner, and waits as long as `patience` for one that
    /// is on its way already: etcd takes one at a time. One that was added before and never started is returned as it is,
    /// so that an addition that failed half-way can be repeated.
    ///
    /// Errors: [`Error::Refused`] when a member has this URL, when there was another learner or members were lost all
    /// the time; [`Error::Unreachable`], [`Error::Unknown`].
    pub async fn add_learner(&self, peer_url: &str, patience: Duration) -> Result<EtcdMember, Error> {
        let unstarted = |member: &EtcdMember| {
            member.learner && member.name.is_empty() && member.peer_urls.iter().any(|url| url == peer_url)
        };
        if let Some(member) = self.members().await?.into_iter().find(unstarted) {
            return Ok(member);
        }
        // etcd makes a member's number of its URL and the second: one that was removed within it is "not found" until it is over.
        let passing = [EtcdRefusal::TooManyLearners, EtcdRefusal::Unhealthy, EtcdRefusal::NoSuchMember];
        let added = self.patiently(&passing, patience, |mut client| {
            let url = peer_url.to_owned();
            async move { client.member_add([url], Some(MemberAddOptions::new().with_is_learner())).await }
        });
        added.await?.member().map(EtcdMember::of).ok_or_else(|| self.senseless("no member in its answer"))
    }

    /// Gives a learner its vote as soon as it has caught up, and waits for that as long as `patience`. One that votes
    /// already is fine.
    ///
    /// Errors: [`Error::Refused`] when it did not catch up in time, or is no member; [`Error::Unreachable`],
    /// [`Error::Unknown`].
    pub async fn promote_learner(&self, id: u64, patience: Duration) -> Result<(), Error> {
        let promoted = self.patiently(&[EtcdRefusal::LearnerLags], patience, |mut client| async move {
            client.member_promote(id).await
        });
        match promoted.await {
            Err(Error::Refused { why: EtcdRefusal::NoLearner, .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Removes a member; one that is gone already is fine. Its process ends by itself.
    ///
    /// Errors: [`Error::Refused`] when etcd sees that the rest would be no quorum; [`Error::Unreachable`],
    /// [`Error::Unknown`].
    pub async fn remove_member(&self, id: u64) -> Result<(), Error> {
        let removed = self.patiently(&[EtcdRefusal::Unhealthy], SETTLES, |mut client| async move {
            client.member_remove(id).await
        });
        match removed.await {
            Err(Error::Refused { why: EtcdRefusal::NoSuchMember, .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Asks for a change of members again and again as long as etcd refuses it for one of the reasons `passing`, until
    /// `patience` is over.
    async fn patiently<T, F>(
        &self,
        passing: &[EtcdRefusal],
        patience: Duration,
        change: impl Fn(Client) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let deadline = Instant::now() + patience;
        loop {
            match self.shared.etcd.write(&change).await.map_err(Error::from) {
                Err(Error::Refused { why, .. }) if passing.contains(&why) && Instant::now() < deadline => {
                    sleep(PAUSE).await;
                }
                other => return other,
            }
        }
    }

    fn senseless(&self, reason: &str) -> Error {
        Error::Refused {
            endpoint: self.shared.etcd.names(),
            why: EtcdRefusal::Other,
            reason: reason.to_owned(),
        }
    }
}

impl EtcdMember {
    fn of(member: &PbMember) -> Self {
        Self {
            id: member.id(),
            name: member.name().to_owned(),
            peer_urls: member.peer_urls().to_vec(),
            learner: member.is_learner(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(voters: u64, learners: u64) -> Vec<EtcdMember> {
        let member =
            |id| EtcdMember { id, name: id.to_string(), peer_urls: Vec::new(), learner: id > voters };
        (1..=voters + learners).map(member).collect()
    }

    #[test]
    fn a_majority_of_those_left_must_work() {
        use EtcdMembersChange::{Promote, Remove};
        let cases: [(_, u64, u64, &[u64], bool); 12] = [
            (Remove(1), 1, 0, &[1], true),
            (Remove(1), 2, 0, &[1, 2], false),
            (Remove(1), 2, 0, &[1], true),
            (Remove(3), 3, 0, &[1, 2], false),
            (Remove(1), 3, 0, &[1, 2], true),
            (Remove(1), 3, 0, &[1, 2, 3], false),
            (Remove(5), 5, 0, &[1, 2, 3], false),
            (Remove(1), 5, 0, &[1, 2, 3], true),
            (Remove(2), 1, 1, &[1], false),
            (Promote(2), 1, 1, &[1, 2], false),
            (Promote(2), 1, 1, &[1], true),
            (Promote(4), 3, 1, &[1, 2, 4], false),
        ];
        for (change, voters, learners, healthy, expected) in cases {
            let members = members(voters, learners);
            let lost = change.loses_quorum(&members, &healthy.iter().copied().collect());
            assert_eq!(lost, expected, "{change:?} of {voters}+{learners}, working: {healthy:?}");
        }
    }
}
