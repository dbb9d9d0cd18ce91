//! The services file as the source: what it says becomes the table, whole or not at all, whenever it is closed or
//! replaced, and so do addresses of names whenever they change. A broken or missing file leaves the last good table, which also
//! survives a restart.

mod endpoints;
mod guards;
pub mod keep;
mod loops;
mod parse;
mod text;
mod watch;
mod words;

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::Ipv4Net;
use tokio::sync::watch::Receiver;

pub use self::endpoints::Declared;
use self::keep::{Keeper, Kept};
pub use self::loops::Loop;
use self::loops::Ways;
pub use self::parse::{ParseError, parse};
use self::watch::{Reading, Watcher};
use super::SourceStatus;
use super::names::{Names, NamesConfig, NamesStatus};
use crate::model::{Attachment, EndpointName, EndpointSpec, EntryPointSpec, Prefer, ServiceName, ServiceSpec};
use crate::routing::{Change, TableError, TableHandle, VipPool, VipPoolError};
use crate::sys::socket::is_own_address;

/// What a services file becomes tables by.
pub struct FileSource {
    path: PathBuf,
    table: Arc<TableHandle>,
    status: Arc<SourceStatus>,
    vips: VipPool,
    /// What the file that counts declares, and the VIP of each.
    declared: Vec<Declared>,
    assigned: Vec<Ipv4Addr>,
    /// What the table now says.
    applied: BTreeMap<ServiceName, Arc<ServiceSpec>>,
    names: Names,
    keeper: Keeper,
    watcher: Watcher,
}

/// Why a services file does not become a table.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    #[error("{0}")]
    Parse(#[from] ParseError),
    #[error("{0}")]
    Table(#[from] TableError),
    #[error("{0}")]
    Vips(#[from] VipPoolError),
    #[error("{0}")]
    Loop(#[from] Loop),
}

impl FileSource {
    /// Begins with the last good table, if `data_dir` has one, and then applies the file once. Blocks for as long as
    /// reading takes; a file that is broken or missing is said in `status` and the log. Names are not waited for: until `run` has
    /// asked for one, its endpoints are those of a run before, if any.
    pub fn start(
        path: PathBuf,
        data_dir: &Path,
        vip_network: Ipv4Net,
        names: NamesConfig,
        table: Arc<TableHandle>,
        status: Arc<SourceStatus>,
    ) -> FileSource {
        let (mut keeper, kept) = Keeper::open(data_dir);
        keeper.tell(status.clone());
        let watcher = Watcher::new(path.clone());
        let mut source = FileSource {
            path,
            table,
            status,
            vips: VipPool::restore(vip_network, kept.vips),
            declared: Vec::new(),
            assigned: Vec::new(),
            applied: BTreeMap::new(),
            names: Names::new(names, kept.names),
            keeper,
            watcher,
        };
        if let Some(text) = kept.services {
            // Of a route whose entry point has gone the rest is served.
            match source.apply(&text, false) {
                Ok(()) => {
                    tracing::info!(services = source.applied.len(), "serving the last good table");
                    source
                        .status
                        .recalled(source.keeper.kept_at().unwrap_or(std::time::UNIX_EPOCH));
                }
                Err(error) => tracing::error!(%error, "the last good table cannot be used"),
            }
        }
        let reading = source.watcher.read_now();
        source.take(reading);
        source.names.forget_recalled();
        source
    }

    /// What is known of the names among endpoints.
    pub fn names(&self) -> &Arc<NamesStatus> {
        self.names.status()
    }

    /// Keeps what is to survive a restart only while `may_write` says so.
    pub fn keep_while(&mut self, may_write: Receiver<bool>) {
        self.keeper.write_while(may_write);
    }

    /// Follows the file until `shutdown`.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                reading = self.watcher.changed() => self.take(reading),
                () = self.names.changed() => self.take_names(),
                () = self.keeper.write_when_due() => {}
            }
        }
        self.keeper.write_now();
    }

    fn take(&mut self, reading: Reading) {
        let reason = match reading {
            Reading::Text(text) => match self.apply(&text, true) {
                Ok(()) => {
                    tracing::info!(path = %self.path.display(), services = self.applied.len(), "services file applied");
                    self.status.applied();
                    self.keep(Some(text));
                    return;
                }
                Err(error) => error.to_string(),
            },
            Reading::Failed(error) => error,
        };
        let reason = format!("{}: {reason}", self.path.display());
        if self.status.rejected(reason.clone()) {
            let what_is_served = match self.status.is_known() {
                true => "the last good one goes on",
                false => "nothing is served yet",
            };
            tracing::error!("services file not applied, {what_is_served}: {reason}");
        }
    }

    /// Makes the table say what `text` says. `is_whole`: all routes are to be served. Errors: nothing is changed.
    fn apply(&mut self, text: &str, is_whole: bool) -> Result<(), Rejection> {
        let declared = parse(text)?;
        if let Some(objection) = parse::objection(&declared).filter(|_| is_whole) {
            return Err(objection.into());
        }
        let mut vips = self.vips.clone();
        let names: HashSet<&ServiceName> = declared.iter().map(|it| &it.spec.name).collect();
        let mut assigned = Vec::with_capacity(declared.len());
        for Declared { spec, .. } in &declared {
            assigned.push(vips.assign(&spec.name, |name| names.contains(name))?);
        }
        let mut changes = Vec::new();
        for name in self.applied.keys().filter(|name| !names.contains(name)) {
            changes.push(Change::Remove(name.clone()));
        }
        let mut next: BTreeMap<ServiceName, Arc<ServiceSpec>> = BTreeMap::new();
        let mut left_out = BTreeMap::new();
        for (place, spec) in self.resolved(&declared, &assigned, |_| true, &mut left_out) {
            let name = spec.name.clone();
            let spec = match self.applied.get(&name) {
                Some(known) if **known == spec => known.clone(),
                _ => {
                    let spec = Arc::new(spec);
                    changes.push(Change::Upsert {
                        spec: spec.clone(),
                        vip: Some(assigned[place]),
                    });
                    spec
                }
            };
            next.insert(name, spec);
        }
        let table = self.table.load();
        if let Some(error) = next
            .values()
            .find_map(|spec| table.unserved(spec).into_iter().next())
            .filter(|_| is_whole)
        {
            return Err(error.into());
        }
        self.table.commit(&changes)?;
        self.applied = next;
        self.vips = vips;
        self.names.want(wanted(&declared));
        self.names.leave_out(left_out);
        (self.declared, self.assigned) = (declared, assigned);
        Ok(())
    }

    /// Makes the table say what is known of names now.
    fn take_names(&mut self) {
        let mut left_out = BTreeMap::new();
        let resolved = self.resolved(&self.declared, &self.assigned, Declared::has_names, &mut left_out);
        let changed: Vec<(usize, Arc<ServiceSpec>)> = resolved
            .into_iter()
            .filter(|(_, spec)| self.applied.get(&spec.name).is_none_or(|known| **known != *spec))
            .map(|(place, spec)| (place, Arc::new(spec)))
            .collect();
        let upsert = |(place, spec): &(usize, Arc<ServiceSpec>)| Change::Upsert {
            spec: spec.clone(),
            vip: Some(self.assigned[*place]),
        };
        if let Err(error) = self.table.commit(&changed.iter().map(upsert).collect::<Vec<_>>()) {
            tracing::error!(%error, "addresses of names are not taken up");
            return;
        }
        let has_changed = !changed.is_empty();
        let changed = changed.into_iter().map(|(_, spec)| (spec.name.clone(), spec));
        self.applied.extend(changed);
        self.names.leave_out(left_out);
        if has_changed {
            self.keep(None);
        }
    }

    /// The services as the table is to have them, with their places in `declared`; of those alone that `is_meant` picks. `left_out`:
    /// what cannot be endpoints of theirs, and why.
    fn resolved(
        &self,
        declared: &[Declared],
        vips: &[Ipv4Addr],
        is_meant: impl Fn(&Declared) -> bool,
        left_out: &mut BTreeMap<EndpointName, Vec<String>>,
    ) -> Vec<(usize, ServiceSpec)> {
        let has_inside = declared.iter().any(|it| has_inside(&it.spec));
        let known = self.names.all_addresses();
        let addresses_of = |name: &EndpointName| known.get(name).map(Vec::as_slice).unwrap_or_default();
        let specs: Vec<&ServiceSpec> = declared.iter().map(|it| &it.spec).collect();
        // Where there are no names there is nothing to leave out.
        let has_names = declared.iter().any(Declared::has_names);
        let mut ways = has_names.then(|| Ways::new(&specs, vips, is_own_address));
        let meant = declared.iter().enumerate().filter(|(_, it)| is_meant(it));
        let mut resolved = Vec::new();
        for (place, it) in meant {
            let mut spec = it.resolved(addresses_of, |name, addr| {
                let added = ways.as_mut().map_or(Ok(()), |ways| ways.add(place, addr));
                if let Err(way) = &added {
                    let why = format!("service {}: {way}", it.spec.name);
                    left_out.entry(name.clone()).or_default().push(why);
                }
                added.is_ok()
            });
            find_near(&mut spec);
            if has_inside {
                spec.attachments.push(attachment(vips[place], self.vips.network()));
            }
            resolved.push((place, spec));
        }
        resolved
    }

    /// `services`: the text of the file that counts; `None`: it is the same as before.
    fn keep(&mut self, services: Option<String>) {
        let vips = self.vips.assigned().map(|(name, vip)| (name.clone(), vip)).collect();
        self.keeper.keep(Kept {
            services,
            vips,
            names: self.names.addresses(),
        });
    }
}

/// Which names are needed, and by whom.
fn wanted(declared: &[Declared]) -> BTreeMap<EndpointName, Vec<ServiceName>> {
    let mut wanted: BTreeMap<EndpointName, Vec<ServiceName>> = BTreeMap::new();
    for it in declared {
        for name in it.names() {
            let services = wanted.entry(name.clone()).or_default();
            if services.last() != Some(&it.spec.name) {
                services.push(it.spec.name.clone());
            }
        }
    }
    wanted
}

/// Finds out which endpoints are of this node, where they are preferred. Addresses that it is given later are seen with the next
/// file.
fn find_near(spec: &mut ServiceSpec) {
    if spec.prefer == Prefer::Local {
        let is_near = |endpoint: &EndpointSpec| endpoint.netns.is_some() || is_own_address(endpoint.addr.ip());
        spec.near = spec.endpoints.iter().map(is_near).collect();
    }
}

/// Whether it has tasks in namespaces, which reach the services of the file from inside.
fn has_inside(spec: &ServiceSpec) -> bool {
    spec.endpoints.iter().any(|endpoint| endpoint.netns.is_some())
}

/// All services of a file are on one network.
fn attachment(vip: Ipv4Addr, network: Ipv4Net) -> Attachment {
    Attachment {
        network: NETWORK.into(),
        network_name: NETWORK.into(),
        vip: Some(vip.into()),
        aliases: Vec::new(),
        subnet: Some(network.into()),
    }
}

const NETWORK: &str = "services";

/// Reads and judges a services file as a source would on a node that has these entry points, without applying it, and without asking
/// for names: the services have the endpoints that are addresses. Errors: what is wrong with it.
pub fn check(
    text: &str,
    vip_network: Ipv4Net,
    entry_points: Vec<EntryPointSpec>,
) -> Result<Vec<Arc<ServiceSpec>>, Rejection> {
    let declared = parse(text)?;
    if let Some(objection) = parse::objection(&declared) {
        return Err(objection.into());
    }
    let specs: Vec<Arc<ServiceSpec>> = declared.into_iter().map(|it| Arc::new(it.spec)).collect();
    loops::find(&specs.iter().map(|spec| &**spec).collect::<Vec<_>>(), is_own_address)?;
    let mut vips = VipPool::new(vip_network);
    let mut changes = Vec::with_capacity(specs.len());
    for spec in specs.clone() {
        let vip = vips.assign(&spec.name, |_| true)?;
        changes.push(Change::Upsert { spec, vip: Some(vip) });
    }
    let table = TableHandle::with_entry_points(entry_points);
    table.commit(&changes)?;
    match table
        .load()
        .services()
        .find_map(|service| table.load().unserved(service.spec()).into_iter().next())
    {
        Some(error) => Err(error.into()),
        None => Ok(specs),
    }
}

#[cfg(test)]
mod tests;
