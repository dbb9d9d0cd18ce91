//! Rules by their text, so that one text is compiled once however often it is read: each event of a task reads its service's labels.
//! What nobody uses any more is forgotten, but for the last few, so that what is kept is bounded by what is declared.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use super::Inner;

/// std mutex: held for a look.
static COMPILED: LazyLock<Mutex<Compiled>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Compiled {
    by_text: HashMap<Box<str>, Weak<Inner>>,
    /// Labels that are new are read several times before anybody keeps what they say.
    recent: VecDeque<Arc<Inner>>,
    /// With so many texts it is looked for those that nobody uses.
    swept_at: usize,
}

/// What was compiled of this text, if it is still in use.
pub(super) fn known(text: &str) -> Option<Arc<Inner>> {
    let compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    compiled.by_text.get(text)?.upgrade()
}

/// Keeps it while anybody uses it, and for a while after. Amortized O(1).
pub(super) fn keep(rule: &Arc<Inner>) {
    #[cfg(test)]
    COUNT.set(COUNT.get() + 1);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    compiled.put(rule);
}

impl Compiled {
    fn put(&mut self, rule: &Arc<Inner>) {
        if self.by_text.len() >= self.swept_at {
            self.by_text.retain(|_, rule| rule.strong_count() > 0);
            self.by_text.shrink_to_fit();
            self.swept_at = (2 * self.by_text.len()).max(SWEPT_AT_LEAST);
        }
        self.by_text.insert(rule.text.clone(), Arc::downgrade(rule));
        self.recent.push_back(rule.clone());
        if self.recent.len() > N_RECENT {
            self.recent.pop_front();
        }
    }
}

const SWEPT_AT_LEAST: usize = 64;
const N_RECENT: usize = 16;

#[cfg(test)]
thread_local! {
    static COUNT: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// How many rules this thread has compiled.
#[cfg(test)]
pub(crate) fn count() -> u64 {
    COUNT.get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::rule::Rule;

    fn rule(text: &str) -> Rule {
        text.parse().unwrap()
    }

    #[test]
    fn a_text_is_compiled_once_while_it_is_in_use() {
        let text = "Host(`compiled-once.test`) && PathRegexp(`^/[a-z]+$`)";
        let before = count();
        let (one, other) = (rule(text), rule(&format!(" {text} ")));
        assert!(Arc::ptr_eq(&one.0, &other.0));
        assert_eq!(count(), before + 1);
        drop((one, other));
        for i in 0..=N_RECENT {
            rule(&format!("Host(`after-it-{i}.test`)"));
        }
        assert!(known(text).is_none());
    }

    #[test]
    fn what_nobody_uses_is_forgotten() {
        let mut compiled = Compiled::default();
        let used: Vec<Rule> = (0..100).map(|i| rule(&format!("Host(`used-{i}.test`)"))).collect();
        for i in 0..10_000 {
            compiled.put(&rule(&format!("Host(`passing-{i}.test`)")).0);
            compiled.put(&used[i % used.len()].0);
        }
        let most = 2 * (used.len() + N_RECENT) + 2;
        assert!(compiled.by_text.len() <= most, "{}", compiled.by_text.len());
        let is_kept = |rule: &Rule| compiled.by_text.contains_key(rule.as_str());
        assert!(used.iter().all(is_kept));
    }
}
