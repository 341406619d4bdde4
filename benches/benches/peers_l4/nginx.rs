//! nginx with its `stream` module, one worker.

use super::{
    Contender,
    place::{PORTS, Place},
};
use anyhow::Result;

pub(super) fn start(place: &Place<'_>) -> Result<Contender> {
    let address = place.server_address();
    let servers =
        PORTS.map(|port| format!("  server {{ listen {port}; proxy_pass {address}:{port}; }}\n")).concat();
    let config = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
master_process off;
worker_processes 1;
pid /run/lab/nginx-stream.pid;
error_log /run/lab/nginx-stream.errors;
events {{ worker_connections 4096; }}
stream {{
{servers}}}
"
    );
    place.proxy("nginx, stream", "nginx", &["nginx", "-e", "/run/lab/nginx-stream.errors", "-c"], &config)
}
