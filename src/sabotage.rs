//! Planted defects: would the tests notice?
//!
//! A guarantee that a test holds stays when the code changes; one that none holds is a hope. Each line of
//! `tests/sabotage.list` names a way to break a guarantee, the place in the source where it is planted asks [`is_planted`],
//! and `tests/sabotage` shows for each that a test fails. A place reads as the code without the defect and one condition more.
//!
//! Only a build with the feature `sabotage` can be broken, by the environment variable `CKPT_SABOTAGE`, which is read nowhere
//! else; in every other build the answer is a constant, and nothing of this is left. The program warns of such a build.
//!
//! Deliberately not here: which defects there are, and defects of the program around the library.

/// True if this defect was asked for.
#[cfg(feature = "sabotage")]
pub(crate) fn is_planted(defect: &str) -> bool {
    static PLANTED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    PLANTED.get_or_init(|| std::env::var("CKPT_SABOTAGE").ok()).as_deref() == Some(defect)
}

/// True if this defect was asked for: never in this build.
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
pub(crate) const fn is_planted(_defect: &str) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(feature = "sabotage"))]
    #[test]
    fn nothing_is_planted_in_an_ordinary_build() {
        const { assert!(!is_planted("object-unsynced")) };
    }

    #[test]
    fn no_defect_is_planted_that_was_not_asked_for() {
        assert!(!is_planted("a-defect-that-is-in-no-table"));
    }
}
