//! `meshctl events`.

use crate::{
    output::{Style, utc},
    session::Session,
};
use mesh_api::{EventView, EventsQuery};

/// What to follow.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  meshctl events
  meshctl events --since 120
  meshctl -o json events | jq -r 'select(.kind == \"node\").name'")]
pub(crate) struct Args {
    /// Begin with what happened after this revision ('meshctl status' shows the last one)
    #[arg(long, value_name = "REV")]
    since: Option<u64>,
}

/// Prints until something goes wrong, or nobody reads any more.
pub(crate) async fn follow(session: &Session, args: &Args) -> anyhow::Result<()> {
    let query = EventsQuery { since: args.since };
    let mut events = session.wait("asking meshd", session.client.events(&query)).await?;
    loop {
        let event = events.next().await?;
        if !session.output.line(&event, &event.event.id, &line(&event))? {
            return Ok(());
        }
    }
}

/// Time, revision, what became of what, and how.
pub(crate) fn line(view: &EventView) -> String {
    let event = &view.event;
    let id = Style { whole: false, now: 0 }.id(&event.id);
    let name = if event.name == event.id { id } else { format!("{} ({id})", event.name) };
    let (time, revision) = (utc(view.time_ms), view.revision);
    let line =
        format!("{time}  {revision:>6}  {}  {:<8}  {name}  {}", event.action, event.kind, event.detail);
    line.trim_end().to_owned()
}
