//! A network between a far machine and the rest, which can be cut: packets vanish in both directions, and nobody is told.
//!
//! Where the test has namespaces of its own, the far machine is a network namespace behind a pair of virtual interfaces, and
//! a cut takes the near one down: the kernel's own TCP meets it, with all that the far machine talks to. Elsewhere the far
//! machine's calls to the coordinator go through a proxy in the test, which stops to pass anything on.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use rustix::process::Pid;

use crate::process::{Running, said, until};

/// Where the near machine's services listen: on an interface that no cut takes down.
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 1);
const NEAR_END: &str = "10.213.1.1";
const FAR_END: &str = "10.213.1.2";
const NEAR_LINK: &str = "near";
const FAR_LINK: &str = "far";

/// The network.
pub(crate) enum Network {
    /// With the process that keeps the far namespace.
    Namespaces(Running),
    /// With the address that it listens at.
    Proxy(Arc<Passage>, SocketAddr),
}

impl Network {
    /// A far machine in a namespace of its own; the test has to be in such itself.
    pub(crate) fn of_namespaces(folder: &Path) -> Self {
        let mut keeper = Command::new("unshare");
        keeper.args(["--net", "sh", "-c", "echo there; exec cat"]);
        let keeper = Running::start(&mut keeper, folder, "far-namespace");
        until("the far namespace", || keeper.stdout().contains("there").then_some(()));
        let pid = keeper.pid();
        let far = pid.as_raw_nonzero().to_string();
        let route = ["route", "add", "default", "via", NEAR_END];
        run(&mut ip(&["address", "add", &format!("{NEAR}/32"), "dev", "lo"]));
        run(&mut ip(&["link", "add", NEAR_LINK, "type", "veth", "peer", "name", FAR_LINK, "netns", &far]));
        run(&mut ip(&["address", "add", &format!("{NEAR_END}/24"), "dev", NEAR_LINK]));
        run(&mut ip(&["link", "set", NEAR_LINK, "up"]));
        run(&mut inside(pid, &ip(&["address", "add", &format!("{FAR_END}/24"), "dev", FAR_LINK])));
        run(&mut inside(pid, &ip(&["link", "set", FAR_LINK, "up"])));
        run(&mut inside(pid, &ip(&route)));
        Self::Namespaces(keeper)
    }

    /// A far machine that is this one, but for its way to the coordinator; see [`Network::lead_to`].
    pub(crate) fn of_proxy() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let passage = Arc::new(Passage::default());
        let served = passage.clone();
        // It ends with the process of the tests.
        thread::spawn(move || listener.incoming().flatten().for_each(|far| served.clone().serve(far)));
        Self::Proxy(passage, address)
    }

    /// Where services are to listen that the far machine has to reach.
    pub(crate) fn near(&self) -> IpAddr {
        match self {
            Self::Namespaces(_) => NEAR.into(),
            Self::Proxy(..) => Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// The URL at which the far machine reaches the coordinator that listens at `url`.
    pub(crate) fn lead_to(&self, url: &str) -> String {
        match self {
            Self::Namespaces(_) => url.to_owned(),
            Self::Proxy(passage, address) => {
                let coordinator = url.trim_start_matches("http://").parse().expect("an address");
                *passage.coordinator.lock().expect("no panic") = Some(coordinator);
                format!("http://{address}")
            }
        }
    }

    /// A command as it runs on the far machine.
    pub(crate) fn far(&self, command: Command) -> Command {
        match self {
            Self::Namespaces(keeper) => inside(keeper.pid(), &command),
            Self::Proxy(..) => command,
        }
    }

    /// From now on nothing comes through.
    pub(crate) fn cut(&self) {
        match self {
            Self::Namespaces(_) => run(&mut ip(&["link", "set", NEAR_LINK, "down"])),
            Self::Proxy(passage, _) => passage.set_cut(true),
        }
    }

    /// From now on everything does.
    pub(crate) fn mend(&self) {
        match self {
            Self::Namespaces(_) => run(&mut ip(&["link", "set", NEAR_LINK, "up"])),
            Self::Proxy(passage, _) => passage.set_cut(false),
        }
    }
}

fn ip(arguments: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(arguments);
    command
}

/// The command in the network namespace of a process.
fn inside(pid: Pid, command: &Command) -> Command {
    let mut entered = Command::new("nsenter");
    entered.arg("--net").arg("--target").arg(pid.as_raw_nonzero().to_string());
    entered.arg("--").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => entered.env(name, value),
            None => entered.env_remove(name),
        };
    }
    entered
}

fn run(command: &mut Command) {
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{command:?}: {}", said(&output));
}

/// What connections pass through on their way to the coordinator.
#[derive(Default)]
pub(crate) struct Passage {
    coordinator: Mutex<Option<SocketAddr>>,
    is_cut: Mutex<bool>,
    mended: Condvar,
}

impl Passage {
    fn set_cut(&self, is_cut: bool) {
        *self.is_cut.lock().expect("no panic") = is_cut;
        self.mended.notify_all();
    }

    fn wait_while_cut(&self) {
        drop(self.mended.wait_while(self.is_cut.lock().expect("no panic"), |is_cut| *is_cut));
    }

    /// Connects the far machine's connection, if somebody listens.
    fn serve(self: Arc<Self>, far: TcpStream) {
        thread::spawn(move || {
            self.wait_while_cut();
            let coordinator = self.coordinator.lock().expect("no panic").expect("the coordinator was named");
            let Ok(near) = TcpStream::connect(coordinator) else { return };
            let (Ok(from_far), Ok(to_near)) = (far.try_clone(), near.try_clone()) else { return };
            thread::scope(|scope| {
                scope.spawn(|| self.pass(from_far, to_near));
                self.pass(near, far);
            });
        });
    }

    /// Passes on what one end says until it is silent for good, which is passed on, too.
    fn pass(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 16 * 1024];
        loop {
            let read = from.read(&mut buffer).unwrap_or(0);
            self.wait_while_cut();
            if read == 0 || to.write_all(&buffer[..read]).is_err() {
                // Either may be closed already.
                let _ = (from.shutdown(Shutdown::Read), to.shutdown(Shutdown::Write));
                return;
            }
        }
    }
}
