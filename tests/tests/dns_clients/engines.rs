//! The same programs in real containers, with the resolv.conf that Docker and Podman make.

use anyhow::{Result, ensure};
use mesh_tests::{Docker, Lab, Outcome, Podman, scenario};

use crate::{Addresses, GATEWAY, LIBRARIES, Library, Names, set};

/// Where the programs are: glibc's with that library beside it, as the image has none.
const PROGRAMS: &str = "/run/lab/programs";
const COPIES: &str = r#"mkdir -p $0 && cp /run/lab/lookup-* $0/ && for library in $(ldd $0/lookup-glibc | grep -o '/[^ ]*'); do
    cp $library $0/ && [[ $library != */ld-* ]] || mv $0/${library##*/} $0/loader; done"#;

/// The command line in a container.
fn line<'a>(library: Library, names: &[&'a str]) -> Vec<&'a str> {
    let program: &[&str] = match library {
        Library::Glibc => &["/programs/loader", "--library-path", "/programs", "/programs/lookup-glibc"],
        Library::Musl => &["/programs/lookup-musl"],
    };
    [program, names].concat()
}

/// Runs a command in the container that asks.
type Exec<'a> = &'a dyn Fn(&[&str]) -> Outcome;

/// What the programs find of each name, in a container with this search list.
fn find(exec: Exec<'_>, conf: &str, expected: &[(String, Addresses)]) -> Result<()> {
    let names: Vec<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    for library in LIBRARIES {
        let printed = exec(&line(library, &names)).ok()?;
        let found: Vec<Addresses> =
            printed.lines().map(|line| set(line.split_whitespace().skip(1))).collect();
        ensure!(found.len() == names.len(), "{conf}: {library:?}: {printed}");
        for ((name, expected), found) in expected.iter().zip(&found) {
            ensure!(found == expected, "{conf}: {library:?}, {name}: {found:?}, expected {expected:?}");
        }
    }
    Ok(())
}

/// Names of blue written in each way, one beyond, and none.
fn expected(names: &Names) -> Vec<(String, Addresses)> {
    let mut all = Vec::new();
    for (name, v4, v6) in &names.known {
        for suffix in ["", ".blue", ".blue.mesh.internal", ".blue.mesh.internal."] {
            all.push((format!("{name}{suffix}"), v4.union(v6).cloned().collect()));
        }
    }
    all.push(("www.example.test".to_owned(), set(["192.0.2.1"])));
    all.push(("nothing.example.test".to_owned(), set(["NONAME"])));
    all.push(("nothing.blue.mesh.internal".to_owned(), set(["NONAME"])));
    all
}

/// A search list, and how many dots a name has that is asked for as it is first.
fn confs() -> impl Iterator<Item = (&'static str, u8)> {
    let searches = ["blue.mesh.internal", "corp.example"].into_iter();
    searches.flat_map(|search| [0, 1, 5].map(|ndots| (search, ndots)))
}

fn programs(lab: &Lab) -> Result<Names> {
    let names = Names::new(lab)?;
    let vm1 = names.cluster.vm1();
    Library::build(vm1)?;
    vm1.output(&["bash", "-c", COPIES, PROGRAMS]).ok()?;
    Ok(names)
}

/// By the resolver of Docker's own, which asks the gateway; but once its user says anything of `ndots`, nobody for names
/// without a dot. It says `ndots:0` by itself.
#[test]
fn c_libraries_find_every_name_in_containers_of_docker() {
    scenario("libraries in docker", |lab| {
        let names = programs(lab)?;
        let docker = Docker::start(names.cluster.vm1())?;
        docker
            .run(&[
                "network",
                "create",
                "-d",
                "meshd",
                "--ipv6",
                "--ipam-driver",
                "meshd",
                "--ipam-opt",
                "mesh.network=blue",
                "blue",
            ])
            .ok()?;
        let volume = format!("{PROGRAMS}:/programs:ro");
        for (search, ndots) in confs() {
            let (name, option) = (format!("asks-{ndots}-{search}"), format!("ndots:{ndots}"));
            let mut options = vec!["--network", "blue", "--volume", &volume, "--dns-search", search];
            if ndots > 0 {
                options.extend(["--dns-opt", &option]);
            }
            docker.container(&name, &options, &["sleep", "infinity"])?;
            let conf = docker.exec(&name, &["cat", "/etc/resolv.conf"]).ok()?;
            ensure!(conf.contains(&format!("search {search}")) && conf.contains(&option), "{conf}");
            let mut expected = expected(&names);
            if ndots > 0 && search != "blue.mesh.internal" {
                expected.retain(|(name, _)| name.contains('.'));
            }
            let exec = |command: &[&str]| docker.exec(&name, command);
            find(&exec, &conf, &expected)?;
        }
        Ok(())
    });
}

/// Without `--dns` Podman writes the host's resolvers behind the network's, and musl believes whichever answers first.
#[test]
fn c_libraries_find_every_name_in_containers_of_podman() {
    scenario("libraries in podman", |lab| {
        let names = programs(lab)?;
        let podman = Podman::new(names.cluster.vm1())?;
        podman.network("blue")?;
        let volume = format!("{PROGRAMS}:/programs:ro");
        for (search, ndots) in confs() {
            let (name, ndots) = (format!("asks-{ndots}-{search}"), format!("ndots:{ndots}"));
            let options = [
                "--network",
                "blue",
                "--dns",
                GATEWAY,
                "--volume",
                &volume,
                "--dns-search",
                search,
                "--dns-opt",
                &ndots,
            ];
            podman.sleeper(&name, &options)?;
            let conf = podman.exec(&name, &["cat", "/etc/resolv.conf"]).ok()?;
            ensure!(conf.contains(&format!("search {search}")) && conf.contains(&ndots), "{conf}");
            ensure!(conf.matches("nameserver").count() == 1, "{conf}");
            find(&|command| podman.exec(&name, command), &conf, &expected(&names))?;
        }
        Ok(())
    });
}
