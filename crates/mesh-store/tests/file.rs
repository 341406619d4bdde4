//! The embedded store as a file: who may read it, who may open it, and what happens to a broken one.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use mesh_store::{Error, Options, RedbStore, Store, Txn};
use tempfile::TempDir;

/// Set in the child process of [`an_acknowledged_commit_survives_sigkill`]: the directory to write to.
const CHILD_DIR: &str = "MESH_STORE_TEST_DIR";
/// The same for [`a_full_disk_is_got_over`].
const LIMITED_DIR: &str = "MESH_STORE_LIMITED_DIR";

async fn open(dir: &Path) -> Result<RedbStore, Error> {
    RedbStore::open(dir, Options::default()).await
}

fn refusal(result: Result<RedbStore, Error>) -> Error {
    match result {
        Ok(_) => panic!("the store was opened"),
        Err(err) => err,
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn only_the_owner_can_read_it() {
    let temp = TempDir::new().unwrap();
    let dir = temp.path().join("deep/store");
    drop(open(&dir).await.unwrap());
    assert_eq!((mode(&dir), mode(&RedbStore::path(&dir))), (0o700, 0o600));

    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(RedbStore::path(&dir), fs::Permissions::from_mode(0o644)).unwrap();
    drop(open(&dir).await.unwrap());
    assert_eq!((mode(&dir), mode(&RedbStore::path(&dir))), (0o700, 0o600), "tightened when opened");
}

#[tokio::test]
async fn it_is_opened_once() {
    let temp = TempDir::new().unwrap();
    let first = open(temp.path()).await.unwrap();
    let err = refusal(open(temp.path()).await);
    assert!(matches!(err, Error::InUse { .. }), "{err}");
    assert!(err.to_string().contains("in use by another process"), "{err}");
    drop(first);
    open(temp.path()).await.expect("free again");
}

#[tokio::test]
async fn a_watch_ends_with_its_store() {
    let temp = TempDir::new().unwrap();
    let store = open(temp.path()).await.unwrap();
    let (_, revision) = store.range("").await.unwrap();
    let mut watch = store.watch("", revision).await.unwrap();
    drop(store);
    let err = watch.next().await.unwrap_err();
    assert!(matches!(err, Error::Closed), "{err}");
}

#[tokio::test]
async fn another_kind_of_file_is_left_alone() {
    let temp = TempDir::new().unwrap();
    let path = RedbStore::path(temp.path());
    for content in [b"SQLite format 3\0".repeat(512), b"x".to_vec(), vec![0; 8192]] {
        fs::write(&path, &content).unwrap();
        let err = refusal(open(temp.path()).await);
        assert!(matches!(err, Error::Damaged { .. }), "{err}");
        assert_eq!(err.to_string().lines().count(), 1);
        assert_eq!(fs::read(&path).unwrap(), content, "unchanged");
    }
    fs::remove_file(&path).unwrap();
    let foreign = redb::Database::create(&path).unwrap();
    let write = foreign.begin_write().unwrap();
    write.open_table(redb::TableDefinition::<u64, u64>::new("other")).unwrap().insert(1, 1).unwrap();
    write.commit().unwrap();
    drop(foreign);
    let err = refusal(open(temp.path()).await);
    assert!(err.to_string().contains("another program's database"), "{err}");
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let temp = TempDir::new().unwrap();
    drop(open(temp.path()).await.unwrap());
    let database = redb::Database::open(RedbStore::path(temp.path())).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(redb::TableDefinition::<&str, u64>::new("marks")).unwrap().insert("format", 2).unwrap();
    write.commit().unwrap();
    drop(database);
    let err = refusal(open(temp.path()).await);
    assert!(matches!(err, Error::Format { found: 2, known: 1, .. }), "{err}");
}

/// Flips one byte, or cuts the file, at many places: the store either opens whole or says one clear line.
#[tokio::test]
async fn damage_is_found_when_it_is_opened() {
    let temp = TempDir::new().unwrap();
    let store = open(temp.path()).await.unwrap();
    for index in 0..50 {
        store.commit(Txn::new().put(format!("key/{index}"), vec![index; 500])).await.unwrap();
    }
    let whole = store.range("").await.unwrap();
    drop(store);
    let path = RedbStore::path(temp.path());
    let sound = fs::read(&path).unwrap();
    let mut found = 0;
    for place in (0..sound.len()).step_by(sound.len() / 200 + 1) {
        let mut flipped = sound.clone();
        flipped[place] ^= 0x55;
        let cut = sound[..place].to_vec();
        for (damage, content) in [("flipped", flipped), ("cut", cut)] {
            if content.is_empty() {
                continue; // an empty file is a new store
            }
            fs::write(&path, &content).unwrap();
            match open(temp.path()).await {
                Ok(store) => assert_eq!(store.range("").await.unwrap(), whole, "{damage} at {place}"),
                Err(err) => {
                    assert!(matches!(err, Error::Damaged { .. }), "{damage} at {place}: {err:?}");
                    found += 1;
                }
            }
        }
    }
    assert!(found > 50, "only {found} damaged files were found out");
}

/// The child half of the next test: commits and says so, until it is killed.
#[tokio::test]
async fn child_commits_until_killed() {
    let Ok(dir) = std::env::var(CHILD_DIR) else { return };
    let store = open(Path::new(&dir)).await.unwrap();
    for number in 0_u64.. {
        let revision = store.commit(Txn::new().put("counter", number.to_string())).await.unwrap();
        // Past the test harness's capture: the parent reads this.
        writeln!(std::io::stdout(), "committed {revision} {number}").unwrap();
    }
}

#[tokio::test]
async fn an_acknowledged_commit_survives_sigkill() {
    let temp = TempDir::new().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_commits_until_killed", "--nocapture", "--test-threads=1"])
        .env(CHILD_DIR, temp.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut acknowledged = None;
    for line in lines {
        if let Some(commit) = line.split_once("committed ").map(|(_, rest)| rest.to_owned()) {
            acknowledged = Some(commit);
        }
        if acknowledged.as_ref().is_some_and(|commit| commit.ends_with(" 100")) {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    let acknowledged = acknowledged.expect("the child committed");
    let (revision, number) = acknowledged.split_once(' ').unwrap();
    let (revision, number): (u64, u64) = (revision.parse().unwrap(), number.parse().unwrap());

    let store = open(temp.path()).await.expect("a killed store opens");
    let entry = store.get("counter").await.unwrap().expect("the key");
    let value: u64 = String::from_utf8(entry.value).unwrap().parse().unwrap();
    assert!(
        entry.mod_revision >= revision && value >= number,
        "lost: {value} after {number} was acknowledged"
    );
    let mut watch = store.watch("", 1).await.unwrap();
    for revision in 2..=entry.mod_revision {
        assert_eq!(watch.next().await.unwrap().revision, revision, "the history has no gap");
    }
}

/// The child half of the next test: meets a limit to the file's size, as a full disk is one, and goes on without it.
#[tokio::test]
async fn child_meets_a_limit() {
    let Ok(dir) = std::env::var(LIMITED_DIR) else { return };
    let limit = |size: &str| {
        let me = std::process::id().to_string();
        let set = Command::new("prlimit").args(["--pid", &me, &format!("--fsize={size}:unlimited")]).status();
        assert!(set.expect("this test needs prlimit").success());
    };
    let store = open(Path::new(&dir)).await.unwrap();
    let mut watch = store.watch("", 1).await.unwrap();
    let put = |number: u64| store.commit(Txn::new().put(format!("key/{number}"), vec![7; 50_000]));
    let length = fs::metadata(RedbStore::path(Path::new(&dir))).unwrap().len();
    limit(&length.to_string());
    let mut stored = 0;
    let err = loop {
        match put(stored).await {
            Ok(_) => stored += 1,
            Err(err) => break err,
        }
    };
    assert!(err.to_string().contains("File too large"), "{err}");
    let err = put(stored).await.unwrap_err();
    assert!(err.to_string().contains("File too large"), "said each time: {err}");
    assert_eq!(store.range("key/").await.unwrap().0.len() as u64, stored, "what is there can be read");

    limit("unlimited");
    let revision = put(stored).await.expect("goes on when there is room again");
    assert_eq!(revision, stored + 2);
    for expected in 2..=revision {
        assert_eq!(watch.next().await.unwrap().revision, expected, "watches go on as well");
    }
    println!("went on");
}

#[test]
fn a_full_disk_is_got_over() {
    let temp = TempDir::new().unwrap();
    let child = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\" --exact child_meets_a_limit --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .env(LIMITED_DIR, temp.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stdout);
    assert!(told.contains("went on"), "{told}\n{}", String::from_utf8_lossy(&child.stderr));
}
