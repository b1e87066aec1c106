//! The members of an ordeal, and what is allowed to end them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate::clock;
use quorate::pb::etcdserverpb::StatusRequest;
use rustix::process::Signal;
use tempfile::TempDir;

use super::disk::Disk;
use super::machine::{compile, is_root, scratch, sweep};
use super::network::Network;
use super::page::Page;
use crate::support::client;
use crate::support::server::{Launch, Place, Server, program_under_test};

/// Small segments and few entries kept, so that logs are purged and who was away gets a snapshot.
const FLAGS: [&str; 3] = [
    "--quorate-wal-segment-bytes=1048576",
    "--snapshot-count=500",
    "--snapshot-catchup-entries=200",
];

/// The size of each member's disk; the file below it grows only by what is written.
const DISK_MIB: u64 = 512;

/// How long a member may take to answer who leads.
const STATUS_DEADLINE: Duration = Duration::from_millis(300);

/// How long a member may take to end after it was asked to.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Exit code of a member whose storage failed while it ran.
const EXIT_STORAGE_FAILED: i32 = 3;

/// What a member says that waits for space or ends for lack of it.
const NO_SPACE_LINE: &str = "free some disk space";

/// One member with its surroundings.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) server: Server,
    pub(crate) page: Page,
    pub(crate) disk: Option<Disk>,
    /// It was ended on purpose, or ended for lack of space.
    is_down: bool,
    /// It was started and has not been seen ready since.
    is_starting: bool,
    /// Its disk was full at some time of this life.
    had_full_disk: bool,
}

/// What became of full disks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct NoSpace {
    /// Members that said that they lack space and went on.
    pub(crate) waited: usize,
    /// Members that said so and ended.
    pub(crate) ended: usize,
}

/// Members of one cluster. Dropping it ends the processes first, then takes away the rest.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) members: Vec<Member>,
    /// `None` without root.
    pub(crate) network: Option<Network>,
    pub(crate) no_space: NoSpace,
    library: PathBuf,
    _scratch: TempDir,
}

impl Fleet {
    /// Starts a new cluster of `count` members and waits until each one serves.
    pub(crate) async fn start(count: usize) -> Fleet {
        sweep();
        let scratch = scratch();
        let shared = ["-shared", "-fPIC"];
        let library = compile(scratch.path(), "meddle.so", include_str!("meddle.c"), &shared);
        let network = build_network(count, scratch.path());
        let place = |at| match &network {
            Some(network) => place_inside(network, at),
            None => Place::free(&name(at)),
        };
        let all: Vec<Place> = (0..count).map(place).collect();
        let no_space = NoSpace::default();
        let mut fleet =
            Fleet { members: Vec::new(), network, no_space, library, _scratch: scratch };
        for at in 0..count {
            let member = fleet.launch(at, &all);
            fleet.members.push(member);
        }
        fleet.until_ready().await;
        fleet
    }

    fn launch(&self, at: usize, all: &[Place]) -> Member {
        let home = self._scratch.path().join(name(at));
        std::fs::create_dir(&home).expect("make a directory");
        let disk = self.network.is_some().then(|| Disk::mount(&home, DISK_MIB));
        let disk = disk.and_then(|disk| {
            disk.inspect_err(|error| eprintln!("skipped: no small disks here: {error}")).ok()
        });
        let page = Page::new(&home);
        let into = self.network.as_ref().map(|network| network.within(at)).unwrap_or_default();
        let within: Vec<OsString> = into.into_iter().chain(page.within(&self.library)).collect();
        let server = Server::launch(Launch {
            program: program_under_test(),
            within,
            place: all[at].clone(),
            all: all.to_vec(),
            data_dir: disk.as_ref().map_or(&*home, Disk::place).join("data"),
            extra: FLAGS.map(str::to_owned).to_vec(),
            environment: Vec::new(),
        });
        Member { server, page, disk, is_down: false, is_starting: true, had_full_disk: false }
    }

    /// The client URLs of all members.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.server.endpoint().to_owned()).collect()
    }

    /// The command that meddles with what follows as with the member.
    pub(crate) fn meddle_with(&self, at: usize) -> Vec<OsString> {
        self.members[at].page.within(&self.library)
    }

    /// The network, which faults that need one may rely on.
    pub(crate) fn network(&mut self) -> &mut Network {
        self.network.as_mut().expect("this fault is only drawn where there is a network")
    }

    /// Which member most members take for the leader; the first one if none answers.
    pub(crate) async fn leader(&self) -> usize {
        let asked = self.members.iter().map(|member| status(member.server.endpoint()));
        let told = futures_util::future::join_all(asked).await;
        let votes = |id: u64| told.iter().flatten().filter(|(_, leader)| *leader == id).count();
        let by_votes =
            told.iter().enumerate().filter_map(|(at, told)| Some((votes(told.as_ref()?.0), at)));
        by_votes.max().map_or(0, |(_, at)| at)
    }

    /// Ends the member by SIGKILL; false if it was down already.
    pub(crate) async fn kill(&mut self, at: usize) -> bool {
        self.look_around();
        let member = &mut self.members[at];
        let was_up = !std::mem::replace(&mut member.is_down, true);
        if was_up {
            member.server.kill().await;
        }
        was_up
    }

    /// Asks the member to end; false if it was down already.
    pub(crate) fn ask_to_stop(&mut self, at: usize) -> bool {
        self.look_around();
        let member = &mut self.members[at];
        let was_up = !std::mem::replace(&mut member.is_down, true);
        if was_up {
            member.server.signal(Signal::TERM);
        }
        was_up
    }

    /// Starts the member again if it is down; does not wait until it serves.
    pub(crate) async fn revive(&mut self, at: usize) {
        self.look_around();
        let member = &mut self.members[at];
        if !member.is_down {
            return;
        }
        // It may have been stopped as well as asked to end.
        if member.server.ended().is_none() {
            member.server.signal(Signal::CONT);
            let deadline = clock::now() + STOP_PATIENCE;
            while member.server.ended().is_none() {
                if clock::now() >= deadline {
                    assert!(
                        member.had_full_disk,
                        "member {at} was asked to end and does not:\n{}",
                        member.server.last_words()
                    );
                    member.server.kill().await;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        member.server.restart();
        (member.is_down, member.is_starting, member.had_full_disk) = (false, true, false);
    }

    /// Stops the process for a while, or lets it go on; false if it is down.
    pub(crate) fn pause(&mut self, at: usize, is_paused: bool) -> bool {
        self.look_around();
        let member = &mut self.members[at];
        if !member.is_down {
            member.server.signal(if is_paused { Signal::STOP } else { Signal::CONT });
        }
        !member.is_down
    }

    /// Takes all space but `left` bytes from the member's disk; false if the member is down or has no
    /// disk of its own.
    pub(crate) fn fill_disk(&mut self, at: usize, left: u64) -> bool {
        let member = &mut self.members[at];
        let Some(disk) = member.disk.as_ref().filter(|_| !member.is_down) else { return false };
        member.had_full_disk = true;
        disk.fill(left);
        true
    }

    /// Gives the space back.
    pub(crate) fn free_disk(&mut self, at: usize) {
        self.look_around();
        let member = &self.members[at];
        if let Some(disk) = &member.disk {
            let waits = !member.is_down && member.server.line(NO_SPACE_LINE).is_some();
            let was_full = disk.free();
            self.no_space.waited += usize::from(was_full && waits);
        }
    }

    /// Panics if a member has ended that had no reason to.
    pub(crate) fn look_around(&mut self) {
        for (at, member) in self.members.iter_mut().enumerate() {
            let Some(status) = member.server.ended().filter(|_| !member.is_down) else { continue };
            let lacks_space = status.code() == Some(EXIT_STORAGE_FAILED)
                && member.had_full_disk
                && member.server.line(NO_SPACE_LINE).is_some();
            let words = member.server.last_words();
            assert!(lacks_space, "violation: member {at} ended by itself with {status}:\n{words}");
            member.is_down = true;
            self.no_space.ended += 1;
        }
    }

    /// Mends everything and waits until each member serves.
    pub(crate) async fn heal(&mut self) {
        for at in 0..self.members.len() {
            self.pause(at, false);
            self.free_disk(at);
            self.members[at].page.shift_clock(0);
            self.members[at].page.slow_flushes(Duration::ZERO);
        }
        if let Some(network) = &mut self.network {
            network.heal();
        }
        self.until_ready().await;
    }

    /// Starts who is down, and waits until each member serves.
    pub(crate) async fn until_ready(&mut self) {
        for at in 0..self.members.len() {
            self.revive(at).await;
        }
        for member in &mut self.members {
            if std::mem::take(&mut member.is_starting) {
                member.server.until_ready().await;
            }
        }
    }

    /// The last words of all members, for the report of a violation.
    pub(crate) fn last_words(&self) -> String {
        let words = self.members.iter().enumerate();
        words
            .map(|(at, member)| format!("-- member {at}:\n{}\n", member.server.last_words()))
            .collect()
    }
}

fn name(at: usize) -> String {
    format!("member{at}")
}

fn place_inside(network: &Network, at: usize) -> Place {
    let (client_url, peer_url) = network.urls(at);
    Place { name: name(at), client_url, peer_url }
}

/// The network, unless this user or this machine cannot have one.
fn build_network(count: usize, scratch: &Path) -> Option<Network> {
    if !is_root() {
        eprintln!("skipped: without root no faults of the network and of full disks");
        return None;
    }
    let program = compile(scratch, "wire", include_str!("wire.c"), &[]);
    let network = Network::build(count, program);
    network.inspect_err(|error| eprintln!("skipped: no faults of the network here: {error}")).ok()
}

/// The ids of the member at `endpoint` and of its leader, if it answers soon.
async fn status(endpoint: &str) -> Option<(u64, u64)> {
    let mut client = client::maintenance(client::channel(endpoint, STATUS_DEADLINE));
    let status = client.status(StatusRequest {}).await.ok()?.into_inner();
    Some((status.header?.member_id, status.leader))
}
