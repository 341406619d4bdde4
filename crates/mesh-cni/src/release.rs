//! `DEL` and `GC`: endpoints go, found by their owner. The namespace need not be there any more.

use crate::{
    config::Config,
    daemon::Daemon,
    failure::{Code, Failure},
    request::Attachment,
};

/// Removes an attachment; one that is unknown is gone already. Connections in flight have until the drain timeout of the
/// service: those of a container that has ended are none.
pub(crate) async fn del(daemon: &Daemon, config: &Config, attachment: &Attachment) -> Result<(), Failure> {
    let doing =
        "cannot disconnect the container now; its endpoint goes with its namespace, or by another DEL";
    let failed = |error| Failure::of_daemon(doing, &error);
    for endpoint in daemon.attached(config, attachment).await.map_err(failed)? {
        daemon.remove(&endpoint, false).await.map_err(failed)?;
    }
    Ok(())
}

/// Removes every attachment of this configuration that the runtime does not list. Goes on when one can't be removed.
pub(crate) async fn gc(daemon: &Daemon, config: &Config) -> Result<(), Failure> {
    let valid = config.valid_attachments.as_ref().ok_or_else(|| {
        Failure::new(Code::Config, "cni.dev/valid-attachments is missing")
            .because("without the list every container would be disconnected")
    })?;
    let beginning = config.owner();
    let valid: Vec<String> =
        valid.iter().map(|kept| format!("{beginning}{}/{}", kept.container, kept.ifname)).collect();
    let doing = "cannot list endpoints";
    let mut endpoints = daemon.owned(&beginning).await.map_err(|e| Failure::of_daemon(doing, &e))?;
    endpoints.retain(|endpoint| endpoint.owner.as_ref().is_some_and(|owner| !valid.contains(owner)));
    let mut failures: Option<(Code, Vec<String>)> = None;
    for endpoint in endpoints {
        if let Err(error) = daemon.remove(&endpoint, true).await {
            let failure = Failure::of_daemon("", &error);
            let (_, texts) = failures.get_or_insert((failure.code, Vec::new()));
            texts.push(format!("endpoint '{}' on '{}': {error}", endpoint.name, endpoint.network));
        }
    }
    match failures {
        None => Ok(()),
        Some((code, texts)) => {
            Err(Failure::new(code, "stale attachments are left").because(texts.join("; ")))
        }
    }
}
