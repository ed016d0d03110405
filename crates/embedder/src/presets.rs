//! Providers' published limits by name, so that nobody need look them up: `presets.json`, checked by tests, with source and
//! date. What an account really has stands on the provider's site; a preset is where to begin.

use std::sync::LazyLock;

use serde::Deserialize;

/// The limits of one usage tier. None: the provider states no such limit.
///
/// OpenAI's tables show a "batch queue limit" beside these; it bounds its Batch API and is no limit of a day.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    /// What users call it, such as `openai-tier-3`.
    pub name: String,
    /// Requests a minute.
    pub rpm: Option<u64>,
    /// Tokens a minute.
    pub tpm: Option<u64>,
    /// Requests a day.
    pub rpd: Option<u64>,
    /// Tokens a day.
    pub tpd: Option<u64>,
    /// Where the figures come from.
    pub source: String,
    /// As of when, as year and month.
    pub date: String,
}

#[derive(Deserialize)]
struct Presets {
    presets: Vec<Preset>,
}

static PRESETS: LazyLock<Vec<Preset>> = LazyLock::new(|| {
    let file: Presets =
        serde_json::from_str(include_str!("../presets.json")).expect("a test reads this very file");
    file.presets
});

/// All presets.
pub fn presets() -> &'static [Preset] {
    &PRESETS
}

/// The preset of a name, if there is one.
pub fn preset(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_found_and_states_its_source_and_date() {
        for expected in presets() {
            assert_eq!(preset(&expected.name), Some(expected));
            assert!(!expected.source.is_empty() && expected.date.len() == 7);
            assert!(expected.rpm.is_some_and(|rpm| rpm > 0));
            assert!(expected.tpm.is_some_and(|tpm| tpm > 0));
        }
        assert_eq!(preset("openai-tier-6"), None);
    }

    #[test]
    fn a_higher_tier_never_allows_less() {
        let tiers: Vec<_> = (1..=5)
            .map(|tier| preset(&format!("openai-tier-{tier}")).unwrap())
            .collect();
        for pair in tiers.windows(2) {
            assert!(pair[0].rpm <= pair[1].rpm && pair[0].tpm <= pair[1].tpm);
        }
        assert_eq!(tiers[2].rpm, Some(5_000));
        assert_eq!(tiers[2].tpm, Some(5_000_000));
    }
}
