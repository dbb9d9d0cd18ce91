//! What the operating system gives: pipes and splice, sockets with their options, limits of the process. All unsafe code
//! of the project lives in this room. Not here: what the bytes are for.

mod bpf;
pub mod bridge_port;
pub mod cgroup;
pub mod copies;
pub mod entrances;
pub mod epoll;
pub mod file;
mod group_end;
pub mod handoff;
pub mod inet_diag;
pub mod iptables;
pub mod limits;
pub mod memory;
pub mod mounts;
mod netlink;
pub mod netns;
pub mod nft;
pub mod pktinfo;
pub mod private;
pub mod process;
pub mod rtnetlink;
pub mod sk_lookup;
pub mod socket;
pub mod splice;
pub mod terminal;
pub mod transit;
pub mod transparent;
pub mod tree;
pub mod view;
pub mod vips;
