//! Whether the host chooses routes by source addresses: then answers of published ports have to be routed as what they are asked at.

use crate::{error::Result, kernel::Kernel, object::Space};

/// What was found last.
#[derive(Default)]
pub(crate) struct SourceRules {
    any: Option<bool>,
    changed: bool,
}

impl SourceRules {
    /// Whether there are rules of somebody else's that choose by source addresses.
    pub(crate) fn any(&self) -> bool {
        self.any.unwrap_or_default()
    }

    /// Whether that is otherwise than at the look before.
    pub(crate) fn changed(&self) -> bool {
        self.changed
    }

    /// Looks again, if it is a full pass or the first.
    pub(crate) fn look(&mut self, kernel: &mut Kernel, full: bool) -> Result<bool> {
        self.changed = false;
        if full || self.any.is_none() {
            let now = kernel.has_source_rules(Space::Host)?;
            let before = self.any.replace(now);
            self.changed = before.is_some_and(|before| before != now);
            if now && before != Some(true) {
                tracing::info!(
                    "this host chooses routes by source addresses: so do answers of published ports"
                );
            }
        }
        Ok(self.any())
    }
}
