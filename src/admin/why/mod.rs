//! Why a client's connection or request goes where it goes: the listener, the rule, the service, each endpoint for or against,
//! and how others ended. It looks, and takes no turn.

mod answer;
mod elsewhere;
mod question;

pub use self::answer::Answer;
pub(super) use self::elsewhere::ask;
pub use self::elsewhere::{WHY, why_here};
pub use self::question::Question;
