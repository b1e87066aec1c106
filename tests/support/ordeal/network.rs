//! A bridge with a network namespace for each member, and all that can break between two of them.
//!
//! Everything here is the kernel's own: links, routes, neighbours, a token bucket; only delay and
//! loss come from `wire.c`. Ports are the same in every namespace, since each has its own.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::machine::{ALIAS, BRIDGE_PREFIX, own_prefix, run, run_line};

/// How many subnets are tried before there is none.
const SUBNETS_TRIED_MAX: usize = 50;

/// An address that no network card has: the bridge shows such a packet to all, and nobody takes it.
const NOBODY: &str = "02:00:00:00:de:ad";

/// Where a member listens inside its namespace.
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

/// The network of one fleet. Dropping it removes everything.
#[derive(Debug)]
pub(crate) struct Network {
    /// The last two bytes that all its addresses share; chosen at random.
    subnet: (u8, u8),
    count: usize,
    wire_program: PathBuf,
    wires: Vec<Wire>,
}

/// How a cut shows to whom it keeps from sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// What is sent vanishes.
    Silent,
    /// Sending fails at once.
    Refused,
}

/// What a bad wire does to packets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Badness {
    pub(crate) delay_us: u64,
    /// Up to so much longer; packets then overtake each other.
    pub(crate) jitter_us: u64,
    pub(crate) lost_permille: u64,
    pub(crate) twice_permille: u64,
}

/// A running `wire`; ended when dropped, and its routes with it.
#[derive(Debug)]
struct Wire {
    from: usize,
    child: Child,
}

impl Drop for Wire {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Network {
    /// A network for `count` members, or why there can be none.
    pub(crate) fn build(count: usize, wire_program: PathBuf) -> Result<Network, String> {
        let mut problem = String::new();
        for _ in 0..SUBNETS_TRIED_MAX {
            // Addresses that are set aside for tests of networks; the bridge's name guards them.
            let subnet = (fastrand::u8(18..20), fastrand::u8(..));
            let network =
                Network { subnet, count, wire_program: wire_program.clone(), wires: Vec::new() };
            match run(&["ip", "link", "add", &network.bridge(), "type", "bridge"]) {
                Ok(_) => return network.furnish(),
                Err(error) => problem = error,
            }
            // Somebody else's bridge must stay.
            std::mem::forget(network);
        }
        Err(problem)
    }

    fn furnish(self) -> Result<Network, String> {
        let bridge = self.bridge();
        let alias = format!("{ALIAS}{}", std::process::id());
        run(&["ip", "link", "set", &bridge, "alias", &alias])?;
        run_line(&format!("ip addr add {}/24 dev {bridge}", self.host(254)))?;
        run_line(&format!("ip link set {bridge} up"))?;
        for member in 0..self.count {
            let (space, port, address) =
                (self.space(member), self.port(member), self.address(member));
            run_line(&format!("ip netns add {space}"))?;
            run_line(&format!("ip link add {port} type veth peer name eth0 netns {space}"))?;
            run_line(&format!("ip link set {port} master {bridge} up"))?;
            run_line(&format!("ip -n {space} addr add {address}/24 dev eth0"))?;
            run_line(&format!("ip -n {space} link set lo up"))?;
            run_line(&format!("ip -n {space} link set eth0 up"))?;
        }
        Ok(self)
    }

    fn host(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, self.subnet.0, self.subnet.1, last)
    }

    fn address(&self, member: usize) -> Ipv4Addr {
        self.host(u8::try_from(member + 1).expect("few members"))
    }

    fn bridge(&self) -> String {
        format!("{BRIDGE_PREFIX}{:02x}{:02x}", self.subnet.0, self.subnet.1)
    }

    /// The bridge's end of the member's link.
    fn port(&self, member: usize) -> String {
        format!("{}p{}", self.bridge(), member + 1)
    }

    fn space(&self, member: usize) -> String {
        format!("{}{}-{}", own_prefix(), self.bridge(), member + 1)
    }

    /// The member's URLs for clients and for other members.
    pub(crate) fn urls(&self, member: usize) -> (String, String) {
        let address = self.address(member);
        (format!("http://{address}:{CLIENT_PORT}"), format!("http://{address}:{PEER_PORT}"))
    }

    /// The command that goes into the member's namespace and becomes what follows.
    pub(crate) fn within(&self, member: usize) -> Vec<OsString> {
        vec!["nsenter".into(), format!("--net=/run/netns/{}", self.space(member)).into()]
    }

    /// Keeps what `from` sends from reaching `to`; the other direction stays.
    pub(crate) fn cut(&self, from: usize, to: usize, how: Cut) {
        let (space, to) = (self.space(from), self.address(to));
        self.must(&match how {
            Cut::Silent => {
                format!("ip -n {space} neigh replace {to} lladdr {NOBODY} dev eth0 nud permanent")
            }
            Cut::Refused => format!("ip -n {space} route replace blackhole {to}/32"),
        });
    }

    /// Undoes [`Network::cut`].
    pub(crate) fn join(&self, from: usize, to: usize) {
        let (space, to) = (self.space(from), self.address(to));
        // Each fails if the cut was of the other kind.
        run_line(&format!("ip -n {space} neigh del {to} dev eth0")).ok();
        run_line(&format!("ip -n {space} route del blackhole {to}/32")).ok();
    }

    /// Pulls the member's cable, or puts it back.
    pub(crate) fn plug(&self, member: usize, is_in: bool) {
        let state = if is_in { "up" } else { "down" };
        self.must(&format!("ip link set {} {state}", self.port(member)));
    }

    /// Isolated members reach everybody but each other.
    pub(crate) fn isolate(&self, member: usize, is_isolated: bool) {
        let state = if is_isolated { "on" } else { "off" };
        self.must(&format!("bridge link set dev {} isolated {state}", self.port(member)));
    }

    /// Lets the member send no more than `kbit` kilobits a second; `None` ends that.
    pub(crate) fn throttle(&self, member: usize, kbit: Option<u64>) {
        let space = self.space(member);
        match kbit {
            Some(kbit) => self.must(&format!(
                "tc -n {space} qdisc replace dev eth0 root tbf rate {kbit}kbit burst 4kb latency 1s"
            )),
            None => drop(run_line(&format!("tc -n {space} qdisc del dev eth0 root"))),
        }
    }

    /// Sends what `from` sends to the members `to` over a bad wire, until [`Network::mend`].
    pub(crate) fn spoil(&mut self, from: usize, to: &[usize], badness: Badness) {
        self.mend(from);
        let Badness { delay_us, jitter_us, lost_permille, twice_permille } = badness;
        let numbers = [delay_us, jitter_us, lost_permille, twice_permille, fastrand::u64(1..)];
        let mut command = Command::new("nsenter");
        command.args(&self.within(from)[1..]).arg(&self.wire_program).args(["wire0", "eth0"]);
        command.args(numbers.map(|number| number.to_string()));
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("nsenter");
        let mut line = String::new();
        let words = child.stdout.take().expect("stdout is piped");
        BufReader::new(words).read_line(&mut line).expect("read what the wire says");
        let wire = Wire { from, child };
        assert_eq!(line.trim(), "ready", "the wire cannot be laid");
        let (space, own) = (self.space(from), self.address(from));
        self.must(&format!("ip -n {space} link set wire0 up"));
        for &to in to {
            let to = self.address(to);
            // A cut of the same path stays stronger.
            run_line(&format!("ip -n {space} route add {to}/32 dev wire0 src {own}")).ok();
        }
        self.wires.push(wire);
    }

    /// Ends the member's bad wire, if it has one.
    pub(crate) fn mend(&mut self, from: usize) {
        self.wires.retain(|wire| wire.from != from);
    }

    /// Mends everything.
    pub(crate) fn heal(&mut self) {
        self.wires.clear();
        for from in 0..self.count {
            self.plug(from, true);
            self.isolate(from, false);
            self.throttle(from, None);
            for to in (0..self.count).filter(|to| *to != from) {
                self.join(from, to);
            }
        }
    }

    fn must(&self, line: &str) {
        run_line(line).unwrap_or_else(|error| panic!("{error}"));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.wires.clear();
        for member in 0..self.count {
            // The link goes with the namespace.
            run_line(&format!("ip netns del {}", self.space(member))).ok();
            run_line(&format!("ip link del {}", self.port(member))).ok();
        }
        run_line(&format!("ip link del {}", self.bridge())).ok();
    }
}
