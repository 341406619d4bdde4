//! With Debian's nginx behind the ingress, and curl and wrk in front.

use crate::clients::get;
use crate::rig::{Rig, eventually};
use mesh_proxy::Settings;
use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// One nginx, in one process, killed when dropped.
struct Nginx {
    process: Child,
    addr: SocketAddr,
    dir: TempDir,
}

impl Nginx {
    async fn start(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // An address that no other test binds; nginx takes the port over.
        let addr = TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap();
        let at = dir.path().display();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
             events {{ worker_connections 1024; }}
             http {{
               access_log off; keepalive_requests 100;
               client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;
               uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
               server {{
                 listen {addr};
                 location / {{ return 200 \"{name} $http_x_forwarded_for $http_host\"; }}
                 location /files/ {{ alias {at}/; }}
               }}
             }}"
        );
        std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let process = Command::new("/usr/sbin/nginx")
            .arg("-c")
            .arg(dir.path().join("nginx.conf"))
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx must be installed (apt-get install nginx-light)");
        eventually(|| async { TcpStream::connect(addr).await.is_ok() }, |open| *open).await;
        Self { process, addr, dir }
    }

    fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn run(program: &'static str, arguments: Vec<String>) -> String {
    let output = tokio::task::spawn_blocking(move || Command::new(program).args(arguments).output());
    let output = output.await.unwrap().unwrap_or_else(|e| panic!("{program} must be installed: {e}"));
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_killed_under_load_costs_no_request() {
    let mut replicas = [Nginx::start("a").await, Nginx::start("b").await, Nginx::start("c").await];
    let rig = Rig::start(&replicas.each_ref().map(|r| r.addr), Settings::default());
    let load =
        ["-t1", "-c16", "-d3s"].map(str::to_owned).into_iter().chain([format!("http://{}/", rig.addr)]);
    let load = tokio::spawn(run("wrk", load.collect()));
    eventually(|| async { rig.places.connects() }, |connects| *connects >= 16).await;
    replicas[1].kill();
    let result = load.await.unwrap();
    assert!(result.contains("requests in"), "{result}");
    assert!(!result.contains("Non-2xx") && !result.contains("Socket errors"), "{result}");
    let mut left = BTreeSet::new();
    for _ in 0..6 {
        left.insert(get(rig.addr, "/").await.text()[..1].to_owned());
    }
    assert_eq!(Vec::from_iter(left).concat(), "ac");
    replicas[0].kill();
    replicas[2].kill();
    assert_eq!(get(rig.addr, "/").await.status(), 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_downloads_100_mib_and_sees_what_nginx_says() {
    let nginx = Nginx::start("a").await;
    let file = std::fs::File::create(nginx.dir.path().join("big")).unwrap();
    file.set_len(100 << 20).unwrap();
    let rig = Rig::start(&[nginx.addr], Settings::default());
    let arguments = |rest: &[&str]| {
        let all = ["-sS", "--max-time", "20"].iter().chain(rest);
        all.map(|argument| (*argument).to_owned()).collect::<Vec<_>>()
    };
    let url = format!("http://{}", rig.addr);
    let told = run("curl", arguments(&["-H", "X-Forwarded-For: 192.0.2.9", "-H", "Host: shop", &url])).await;
    assert_eq!(told, "a 192.0.2.9, 127.0.0.1 shop");
    let format = "%{http_code} %{size_download}";
    let big = format!("{url}/files/big");
    assert_eq!(run("curl", arguments(&["-o", "/dev/null", "-w", format, &big])).await, "200 104857600");
    let range = ["-o", "/dev/null", "-w", format, "-r", "0-99", &big];
    assert_eq!(run("curl", arguments(&range)).await, "206 100");
    assert_eq!(run("curl", arguments(&["-I", "-o", "/dev/null", "-w", format, &big])).await, "200 0");
}
