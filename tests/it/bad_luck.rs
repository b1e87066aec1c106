//! What a member does when its surroundings are broken: it refuses to start with one sentence that
//! names the file and the remedy, or it starts and has everything it acknowledged. Nothing between.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::client::{channel, kv, put, read_all};
use crate::support::cluster::{Cluster, status};
use crate::support::server::{Launch, Place, Server, program_under_test};

/// How long a member may take to refuse, to stop, or to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Exit code of a member that cannot start.
const EXIT_CANNOT_START: i32 = 1;

/// Exit code of a member whose storage failed while it ran.
const EXIT_STORAGE_FAILED: i32 = 3;

/// A directory for a member's data, and how to start the member on it.
struct Home {
    launch: Launch,
    _dir: TempDir,
}

impl Home {
    fn new(extra: &[&str]) -> Home {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let launch = Launch::alone(&program_under_test(), &dir.path().join("data"), extra);
        Home { launch, _dir: dir }
    }

    /// A member that wrote `count` keys and was killed.
    async fn used(extra: &[&str], count: usize) -> Home {
        let home = Home::new(extra);
        let mut server = home.start().await;
        write(&server, 0..count).await;
        server.kill().await;
        home
    }

    async fn start(&self) -> Server {
        let mut server = Server::launch(self.launch.clone());
        server.until_ready().await;
        server
    }

    /// A file of the member.
    fn file(&self, path: &str) -> PathBuf {
        self.launch.data_dir.join("member").join(path)
    }

    /// The segments of the log, oldest first.
    fn segments(&self) -> Vec<PathBuf> {
        let mut found = files_below(&self.file("wal"));
        found.retain(|path| path.extension().is_some_and(|extension| extension == "wal"));
        found
    }

    /// A copy of all data, as another home at the same address.
    fn copy(&self) -> Home {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let to = dir.path().join("data");
        for file in files_below(&self.launch.data_dir) {
            let inside = file.strip_prefix(&self.launch.data_dir).expect("it is below");
            let target = to.join(inside);
            fs::create_dir_all(target.parent().expect("a file has a parent")).expect("make a dir");
            fs::copy(&file, &target).expect("copy a file");
        }
        Home { launch: Launch { data_dir: to, ..self.launch.clone() }, _dir: dir }
    }
}

/// All files below `dir`, in order.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("list {dir:?}: {error}"));
    for entry in entries {
        let path = entry.expect("a listed file").path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

fn key(number: usize) -> String {
    format!("k/{number:06}")
}

/// A value that belongs to the key `number` and cannot be compressed.
fn value(number: usize, bytes: usize) -> Vec<u8> {
    let mut value = vec![0; bytes];
    fastrand::Rng::with_seed(number as u64).fill(&mut value);
    value
}

/// Writes the keys of `numbers`; every one must be acknowledged.
async fn write(server: &Server, numbers: std::ops::Range<usize>) {
    try_write(server, numbers).await.expect("a healthy member writes");
}

/// Writes the keys of `numbers` until one is not acknowledged.
async fn try_write(server: &Server, numbers: std::ops::Range<usize>) -> Result<(), tonic::Status> {
    let mut kv = kv(channel(server.endpoint(), PATIENCE));
    for number in numbers {
        kv.put(put(key(number), value(number, 500))).await?;
    }
    Ok(())
}

/// Panics unless the member has the first `count` keys with their values, each written once.
async fn assert_has(server: &Server, count: usize) {
    let (_, pages) = read_all(server.endpoint(), "k/").await;
    let mut found = pages.iter().flat_map(|page| &page.kvs);
    for number in 0..count {
        let key = key(number);
        let kv = found.next().unwrap_or_else(|| panic!("{key} was acknowledged and is lost"));
        assert_eq!(kv.key, key.as_bytes(), "{key} was acknowledged and is lost");
        assert_eq!(kv.version, 1, "{key} was written once");
        assert!(kv.value == value(number, kv.value.len()), "{key} has the value of another write");
    }
}

/// Panics unless a member started like this ends soon with exit code 1 and a line with all `words`.
async fn assert_refuses(launch: Launch, words: &[&str]) {
    let mut server = Server::launch(launch);
    let status = server.until_exit(PATIENCE).await;
    assert_eq!(status.code(), Some(EXIT_CANNOT_START), "{}", server.last_words());
    let line = server.until_line("cannot start", PATIENCE).await;
    for word in words {
        assert!(line.contains(word), "{word:?} is not in: {line}");
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let home = Home::new(&[]);
    for url in [&home.launch.place.client_url, &home.launch.place.peer_url] {
        let address = url.strip_prefix("http://").expect("a URL of this test");
        let _taken = TcpListener::bind(address).expect("the port was free a moment ago");
        let words = ["cannot listen on", url, "is another server running there?"];
        assert_refuses(home.launch.clone(), &words).await;
    }
}

/// It has not announced itself yet, and tried to do so for ever.
#[tokio::test]
async fn a_member_without_a_majority_stops_when_it_is_asked_to() {
    let mut cluster = Cluster::start(&program_under_test(), 3);
    for member in &mut cluster.members {
        member.kill().await;
    }
    let server = &mut cluster.members[0];
    server.restart();
    // By then it has tried for some time.
    server.until_line("cannot publish this member yet", Duration::from_secs(60)).await;
    assert_stops(server).await;
}

/// Panics unless the member stops soon, and well, when it is asked to.
async fn assert_stops(server: &mut Server) {
    server.signal(Signal::TERM);
    let status = server.until_exit(PATIENCE).await;
    assert!(status.success(), "{status}");
}

/// What a member says that has no data and cannot learn why.
const WAITS_TO_LEARN: &str = "waits until other members can tell whether it is new";

#[tokio::test]
async fn a_new_member_alone_stops_when_it_is_asked_to() {
    let places = ["a", "b", "c"].map(Place::free);
    let mut server = Server::spawn(&program_under_test(), &places[0], &places, &[]);
    server.until_line(WAITS_TO_LEARN, PATIENCE).await;
    assert_stops(&mut server).await;
}

#[tokio::test]
async fn a_new_cluster_starts_without_a_minority() {
    let places = ["a", "b", "c"].map(Place::free);
    let spawn = |at: usize| Server::spawn(&program_under_test(), &places[at], &places, &[]);
    let mut first = [spawn(0), spawn(1)];
    for server in &mut first {
        server.until_ready().await;
    }
    write(&first[0], 0..3).await;
    // The last one is new, too, whatever happened meanwhile.
    let mut last = spawn(2);
    last.until_ready().await;
    assert_has(&last, 3).await;
}

/// The log of a member without a majority may lack what tells that the member that asks has run.
#[tokio::test]
async fn a_member_without_data_waits_for_a_majority() {
    let places = ["a", "b", "c"].map(Place::free);
    let spawn = |at: usize| Server::spawn(&program_under_test(), &places[at], &places, &[]);
    let mut first = [spawn(0), spawn(1)];
    for server in &mut first {
        server.until_ready().await;
    }
    let [left, away] = &mut first;
    away.kill().await;
    let mut last = spawn(2);
    last.until_line(WAITS_TO_LEARN, PATIENCE).await;
    assert_eq!(status(left.endpoint()).await.expect("it answers").leader, 0, "it has no majority");
    away.restart();
    last.until_ready().await;
}

/// It forgot its vote and what it acknowledged, and took part again as if nothing was.
#[tokio::test]
async fn a_member_that_lost_its_data_is_refused() {
    let mut cluster = Cluster::start(&program_under_test(), 3);
    write(&cluster.members[1], 0..3).await;
    let [lost, away, left] = &mut cluster.members[..] else { panic!("three members") };
    lost.kill().await;
    away.kill().await;
    fs::remove_dir_all(&lost.launched().data_dir).expect("remove the data");
    let words = ["has already been bootstrapped", "is empty"];
    assert_refuses(lost.launched().clone(), &words).await;
    away.restart();
    away.until_ready().await;
    assert_refuses(lost.launched().clone(), &words).await;
    assert_has(left, 3).await;
}

/// A leader dialed a member that was away thousands of times a second, and logged each attempt.
#[tokio::test]
async fn a_member_that_is_away_is_dialed_with_pauses() {
    let mut cluster = Cluster::start(&program_under_test(), 3);
    let away = (cluster.leader().await + 1) % 3;
    cluster.members[away].kill().await;
    let url = cluster.members[away].launched().place.peer_url.clone();
    let address = url.strip_prefix("http://").expect("an http URL");
    let listener = tokio::net::TcpListener::bind(address).await.expect("its port is free");
    let mut dialed = 0;
    let dialing = async {
        while listener.accept().await.is_ok() {
            dialed += 1;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(2), dialing).await.is_err());
    // Ten heartbeats a second, their answers, appends, and two members.
    assert!((1..=150).contains(&dialed), "dialed {dialed} times in two seconds");
}

#[tokio::test]
async fn a_data_dir_that_is_no_directory_is_named() {
    let home = Home::new(&[]);
    fs::write(&home.launch.data_dir, "a file").expect("write a file");
    let words = ["cannot use", "data", "make it a directory that this user may read and write"];
    assert_refuses(home.launch.clone(), &words).await;
}

#[tokio::test]
async fn the_data_of_another_member_or_cluster_are_refused() {
    let home = Home::used(&[], 3).await;
    let other = Place { name: "other".to_owned(), ..Place::free("other") };
    let launch = Launch { all: vec![other.clone()], place: other, ..home.launch.clone() };
    let words = ["belongs to member", "check --data-dir, --name and --initial-cluster"];
    assert_refuses(launch, &words).await;

    let extra = vec!["--initial-cluster-token=another".to_owned()];
    assert_refuses(Launch { extra, ..home.launch.clone() }, &words).await;
    assert_has(&home.start().await, 3).await;
}

#[tokio::test]
async fn data_of_a_newer_format_are_refused() {
    let home = Home::used(&[], 3).await;
    let path = home.file("IDENTITY");
    let text = fs::read_to_string(&path).expect("a member has an identity");
    let newer = text.replace("quorate-data 1\n", "quorate-data 2\n");
    assert_ne!(text, newer);
    fs::write(&path, newer).expect("write the identity");
    let words = ["IDENTITY has data format 2", "start a newer Quorate"];
    assert_refuses(home.launch.clone(), &words).await;
}

#[tokio::test]
async fn a_second_process_on_the_same_data_is_refused() {
    let home = Home::new(&[]);
    let first = home.start().await;
    let place = Place::free("alone");
    let launch = Launch { all: vec![place.clone()], place, ..home.launch.clone() };
    let pid = format!("(pid {})", first.process_id());
    let words = ["is in use by another process", &pid, "stop it or choose another directory"];
    assert_refuses(launch, &words).await;
    write(&first, 0..1).await;
}

/// The process is stopped, not ended: its lock holds, and nobody may take it for dead.
#[tokio::test]
async fn a_process_that_is_paused_keeps_its_data() {
    let home = Home::new(&[]);
    let first = home.start().await;
    first.signal(Signal::STOP);
    let place = Place::free("alone");
    let launch = Launch { all: vec![place.clone()], place, ..home.launch.clone() };
    assert_refuses(launch, &["is in use by another process"]).await;
    first.signal(Signal::CONT);
    write(&first, 0..1).await;
}

/// Where the records of a segment end: behind the last byte that is not zero.
fn records_end(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).expect("a segment has a header") + 1
}

#[tokio::test]
async fn a_bit_flipped_inside_the_log_is_refused() {
    let home = Home::used(&[], 200).await;
    let segment = home.segments().remove(0);
    let intact = fs::read(&segment).expect("read the log");
    let end = records_end(&intact);
    for at in [end / 4, end / 2, end * 3 / 4] {
        let mut flipped = intact.clone();
        flipped[at] ^= 0x10;
        fs::write(&segment, flipped).expect("write the log");
        let name = segment.to_str().expect("a path of this test");
        let words = ["log segment", name, "is damaged at byte", "restored from a snapshot"];
        assert_refuses(home.launch.clone(), &words).await;
    }
    fs::write(&segment, intact).expect("write the log");
    assert_has(&home.start().await, 200).await;
}

/// What a crash may leave behind the last record that was acknowledged.
#[tokio::test]
async fn a_torn_tail_of_the_log_is_cut() {
    let home = Home::used(&[], 200).await;
    for tail in [Tail::Garbage, Tail::Cut] {
        let home = home.copy();
        let segment = home.segments().pop().expect("a log has a segment");
        let mut bytes = fs::read(&segment).expect("read the log");
        let end = records_end(&bytes).next_multiple_of(64);
        match tail {
            Tail::Garbage => bytes[end..end + 3000].fill_with(|| fastrand::u8(..)),
            Tail::Cut => bytes.truncate(end),
        }
        fs::write(&segment, bytes).expect("write the log");
        let mut server = home.start().await;
        assert_has(&server, 200).await;
        write(&server, 200..300).await;
        server.kill().await;
        assert_has(&home.start().await, 300).await;
    }
}

#[derive(Clone, Copy, Debug)]
enum Tail {
    Garbage,
    Cut,
}

/// The log was dropped up to a checkpoint, so the state cannot be rebuilt from it.
#[tokio::test]
async fn without_a_file_of_the_state_the_member_refuses_or_has_everything() {
    let flags = ["--snapshot-count=50", "--snapshot-catchup-entries=10"];
    let home = Home::new(&flags);
    let mut server = home.start().await;
    write_past_checkpoints(&server, 300).await;
    server.kill().await;
    // sled makes a file for each size of object; most are empty.
    let mut files = files_below(&home.file("state"));
    files.retain(|file| fs::metadata(file).is_ok_and(|metadata| metadata.len() > 0));
    assert!(files.len() > 2, "{files:?}");
    for file in &files {
        let home = home.copy();
        let inside = file.strip_prefix(home_data(file)).expect("it is below");
        let victim = home.launch.data_dir.join(inside);
        fs::remove_file(&victim).expect("remove a file of the state");
        refuses_or_has(&home, 1500, &format!("without {}", inside.display())).await;
    }
    let home = home.copy();
    fs::remove_dir_all(home.file("state/state-1")).expect("remove the state");
    fs::create_dir(home.file("state/state-1")).expect("make an empty state");
    refuses_or_has(&home, 1500, "with an empty state").await;
}

/// Writes five times `count` keys, with checkpoints in between: the log in front of the first of
/// them is then dropped, if the flags allow it.
async fn write_past_checkpoints(server: &Server, count: usize) {
    for round in 0..5 {
        write(server, round * count..(round + 1) * count).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
}

/// A member that forgot its log has forgotten its vote: it must not come back as if nothing was.
#[tokio::test]
async fn without_a_segment_of_the_log_the_member_refuses() {
    let home = Home::new(&["--quorate-wal-segment-bytes=1048576"]);
    let mut server = home.start().await;
    let mut kv = kv(channel(server.endpoint(), PATIENCE));
    for number in 0..60 {
        kv.put(put(key(number), value(number, 60_000))).await.expect("a healthy member writes");
    }
    // The state is made durable by itself within a second or two.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    server.kill().await;
    assert!(home.segments().len() > 2, "{:?}", home.segments());

    let gap = home.copy();
    fs::remove_file(&gap.segments()[1]).expect("remove a segment");
    assert_refuses(gap.launch.clone(), &["log: segment 2 is missing before", "Put it back"]).await;

    let first = home.copy();
    fs::remove_file(&first.segments()[0]).expect("remove a segment");
    assert_refuses(first.launch.clone(), &["log: segment 1 is missing before"]).await;

    let empty = home.copy();
    empty.segments().iter().for_each(|file| fs::remove_file(file).expect("remove a segment"));
    let words = ["the log in", "is empty, but the state holds entries up to", "Put them back"];
    assert_refuses(empty.launch.clone(), &words).await;
    assert_has(&home.start().await, 60).await;
}

/// The data directory that `file` is in.
fn home_data(file: &Path) -> &Path {
    let member = file.ancestors().find(|path| path.ends_with("member"));
    member.and_then(Path::parent).expect("a file of a member")
}

async fn refuses_or_has(home: &Home, count: usize, what: &str) {
    let mut server = Server::launch(home.launch.clone());
    let Some(status) = until_ended_or_line(&mut server, "ready to serve client requests").await
    else {
        eprintln!("{what}: starts");
        assert_has(&server, count).await;
        return;
    };
    assert_eq!(status.code(), Some(EXIT_CANNOT_START), "{what}: {}", server.last_words());
    let line = server.until_line("cannot start", PATIENCE).await;
    eprintln!("{what}: refused: {line}");
    let place = home.file("state");
    assert!(line.contains(place.to_str().expect("a path of this test")), "{what}: {line}");
    assert!(line.contains("remove the member from the cluster"), "{what}: {line}");
    assert!(!line.contains("sled:"), "{what}: no source files of others: {line}");
}

/// How the process ended, or `None` once it says a line with `text`.
async fn until_ended_or_line(server: &mut Server, text: &str) -> Option<ExitStatus> {
    let deadline = quorate::clock::now() + PATIENCE;
    loop {
        if let Some(status) = server.ended() {
            return Some(status);
        }
        if server.line(text).is_some() {
            return None;
        }
        assert!(quorate::clock::now() < deadline, "no {text:?}: {}", server.last_words());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A file system in memory with a bound, gone when dropped.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    /// `None` if this user may not mount.
    fn mount(mib: usize) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(dir.path());
        mount.output().is_ok_and(|output| output.status.success()).then_some(SmallDisk { dir })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, because a member may still be ending.
        drop(Command::new("umount").arg("-l").arg(self.dir.path()).output());
    }
}

/// Writes until writes fail or the member ends; returns how many were acknowledged.
async fn write_until_full(server: &mut Server) -> usize {
    let mut kv = kv(channel(server.endpoint(), Duration::from_secs(10)));
    for number in 0..100_000 {
        if let Err(status) = kv.put(put(key(number), value(number, 20_000))).await {
            eprintln!("write {number} failed: {status}");
            return number;
        }
    }
    panic!("the disk is never full: {}", server.last_words());
}

#[tokio::test]
async fn a_full_disk_costs_no_acknowledged_write() {
    let Some(disk) = SmallDisk::mount(48) else {
        eprintln!("skipped: this user may not mount a small file system");
        return;
    };
    let ballast = disk.dir.path().join("ballast");
    fs::write(&ballast, vec![1; 16 << 20]).expect("there is room yet");
    let data_dir = disk.dir.path().join("data");
    let extra = ["--quorate-wal-segment-bytes=1048576"];
    let launch = Launch::alone(&program_under_test(), &data_dir, &extra);
    let mut server = Server::launch(launch);
    server.until_ready().await;
    let count = write_until_full(&mut server).await;
    assert!(count > 0);
    // The log waits for space and says so; the state may fail with its next flush, which ends it.
    until_ended_or_line(&mut server, "free some disk space").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let ended = server.ended();
    eprintln!("full after {count} writes: {}", server.last_words());
    if let Some(status) = ended {
        assert_eq!(status.code(), Some(EXIT_STORAGE_FAILED), "{}", server.last_words());
        let line = server.until_line("the member cannot go on and exits", PATIENCE).await;
        assert!(line.contains("free some disk space and start the member again"), "{line}");
        assert!(!line.contains("sled:"), "no source files of others: {line}");
    } else {
        assert_has(&server, count).await;
    }
    fs::remove_file(&ballast).expect("the ballast is there");
    if ended.is_none() {
        until_ended_or_line(&mut server, "there is space for the log again").await;
    }
    if server.ended().is_some() {
        server.restart();
        server.until_ready().await;
    }
    // The write that failed may have been written all the same. The state may have met the full disk
    // before and find out with its next flush.
    if try_write(&server, count + 1..count + 20).await.is_err() {
        let status = server.until_exit(PATIENCE).await;
        assert_eq!(status.code(), Some(EXIT_STORAGE_FAILED), "{}", server.last_words());
        server.restart();
        server.until_ready().await;
        write(&server, count + 1..count + 20).await;
    }
    assert_has(&server, count).await;
    server.kill().await;
    server.restart();
    server.until_ready().await;
    assert_has(&server, count).await;
}
