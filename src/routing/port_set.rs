//! A set of port numbers that every connection may ask: one load and one test. Clones share it until one is changed.

use std::sync::Arc;

/// One bit for each port: 8 KiB.
#[derive(Clone)]
pub(super) struct PortSet(Arc<[u64; N_WORDS]>);

const N_WORDS: usize = (u16::MAX as usize + 1) / u64::BITS as usize;

impl PortSet {
    pub(super) fn contains(&self, port: u16) -> bool {
        let (word, bit) = place(port);
        self.0[word] & bit != 0
    }

    /// Has it contain the port, or not.
    pub(super) fn set(&mut self, port: u16, is_in: bool) {
        if self.contains(port) != is_in {
            let (word, bit) = place(port);
            Arc::make_mut(&mut self.0)[word] ^= bit;
        }
    }
}

fn place(port: u16) -> (usize, u64) {
    (
        usize::from(port) / u64::BITS as usize,
        1 << (u32::from(port) % u64::BITS),
    )
}

impl Default for PortSet {
    fn default() -> Self {
        PortSet(Arc::new([0; N_WORDS]))
    }
}

impl std::fmt::Debug for PortSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set()
            .entries((0..=u16::MAX).filter(|port| self.contains(*port)))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_differ_once_one_is_changed() {
        let mut one = PortSet::default();
        for port in [0, 63, 64, 8080, u16::MAX] {
            one.set(port, true);
        }
        let mut other = one.clone();
        other.set(64, false);
        other.set(64, false);
        assert_eq!(format!("{one:?}"), "{0, 63, 64, 8080, 65535}");
        assert_eq!(format!("{other:?}"), "{0, 63, 8080, 65535}");
    }
}
