//! One route, several pools: which of them takes a request, by weight.

use super::CompileError;
use crate::{
    config::{HashOn, RouteConfig, SplitConfig},
    upstream::{self, key::mix},
};

/// Apart from what strategies make of the same key, or each pool would see a part of the keys only.
const SALT: u64 = 0x5371_6c69_7421_0001;

#[derive(Debug)]
pub(crate) struct Split {
    /// Where the stretch of each pool ends; in the order of their names.
    ends: Vec<(u64, usize)>,
    /// What a request is known by that goes to the same pool each time.
    pub(crate) sticky: Option<HashOn>,
}

impl Split {
    pub(super) fn compile(
        route: &RouteConfig,
        config: &SplitConfig,
        pool: impl Fn(&str) -> Result<usize, CompileError>,
    ) -> Result<Split, CompileError> {
        let mut weights = config.pools.clone();
        weights.sort();
        let mut end = 0;
        let ends = weights.iter().map(|(name, weight)| {
            end += u64::from(*weight);
            Ok((end, pool(name)?))
        });
        let ends = ends.collect::<Result<Vec<_>, _>>()?;
        if end == 0 {
            return Err(CompileError::NoWeight { route: route.name.clone() });
        }
        Ok(Split { ends, sticky: config.sticky.clone() })
    }

    /// Equal keys get the same pool as long as the weights stay; `random` decides for requests without one.
    pub(crate) fn choose(&self, key: Option<u64>, random: u64) -> usize {
        let total = self.ends.last().map_or(0, |(end, _)| *end);
        let point = upstream::scale(key.map_or(random, |key| mix(key ^ SALT)), total);
        let at = self.ends.partition_point(|(end, _)| *end <= point);
        self.ends[at].1
    }
}
