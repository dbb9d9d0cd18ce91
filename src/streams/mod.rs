//! What tasks say, and the programs beside them say and are told, on its way from whoever runs them to whoever asks. Not here: any
//! who does either.

mod exec;
mod log;

pub use exec::{Exec, ExecControl, ExecInput, ExecOutput};
pub use log::{LogLine, LogQuery, LogStream};
