//! The routing table: everything the data plane knows, immutable, numbered by revision, swapped whole.
//!
//! A source describes services (`Change`), `TableHandle::commit` makes the next table of them or refuses with nothing
//! changed, and whoever serves traffic reads the current one without a lock. Maps are persistent, so that a commit costs
//! what it changes and `RoutingTable::diff` walks only what differs.
//!
//! What must outlive a table (health, requests in flight, counters, whose turn it is) hangs on `Endpoint` and
//! `ServiceState`, which the next table takes over. Not here: who makes tables (`source`), the policy of choosing
//! (`proxy::balancer`), sockets.

mod bounded;
mod closes;
mod endpoint;
mod endpoint_id;
mod front;
mod gate;
mod guards;
mod handle;
mod inner;
mod listen;
mod lookout;
mod marks;
mod pace;
mod picks;
mod port_set;
mod ranked;
mod ranks;
mod retry_budget;
mod said;
mod service;
mod shares;
mod state;
mod stats;
mod table;
mod vip;
mod waiters;

pub use bounded::{Bounded, ClientKey};
pub use closes::{Close, LastCloses};
pub use endpoint::{Asker, Check, Endpoint, EndpointState, Outcome};
pub use endpoint_id::EndpointId;
pub use front::{EntryPoint, First, Front};
pub use gate::{Gate, GatePlace};
pub use guards::{GuardState, GuardStates, UnderWayOne};
pub use handle::TableHandle;
pub use inner::InnerNames;
pub use listen::Listen;
pub use lookout::{Able, Lookout, Lookouts, Turn};
pub use marks::Mark;
pub use pace::{Pace, Paced};
pub use picks::Picks;
pub use ranked::Routed;
pub use ranks::stable_hash;
pub use retry_budget::RetryBudget;
pub use said::Said;
pub use service::Service;
pub use state::{HealthNews, Listener, ServiceState};
pub use stats::{BytePath, CloseReason, Direction, Histogram, HttpCode, RequestRefusal, RetryOutcome, ServiceStats};
pub use table::{Change, ListenKind, Route, RoutingTable, ServiceDiff, TableError};
pub use vip::{VipPool, VipPoolError};
