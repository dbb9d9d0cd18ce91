//! TLS of entry points: certificates by name, taken up when their files change or others are declared, and what each entry point asks of its clients. And
//! whom endpoints that speak TLS are believed to be (`trust`).
//! Certificates come from files, are declared (`declared`), or are ordered (`acme`). Built on rustls with ring. Not here: who has the files
//! written, where declared ones are kept, and the bytes of connections (`proxy::sealed`).

mod acme;
mod certificates;
mod challenges;
mod declared;
mod expiry;
mod judge;
mod names;
mod pair;
mod policy;
mod shown;
mod terminate;
mod tickets;
mod trust;

pub use acme::{
    Acme, AcmeConfig, Certificate, ChallengeKind, ExternalAccount, List, NameView, Orders, Wanted, WantedBy, is_host,
};
pub use certificates::{Certificates, PairFiles, now};
pub use challenges::{ACME_TLS, Challenge, Challenges, Elsewhere, Own};
pub use declared::{Declared, DeclaredError};
pub use judge::TlsFault;
pub use pair::{Pair, PairError};
pub use policy::{ClientAuth, MinVersion, Policy, TlsConfig};
pub use shown::Shown;
pub use terminate::{Handshake, Handshakes, Terminator, Terminators};
pub use trust::{Seal, Sessions, Towards, Trust};
