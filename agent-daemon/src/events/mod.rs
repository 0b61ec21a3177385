//! The story: records decoded, enriched and written as OCSF.
