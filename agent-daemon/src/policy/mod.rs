//! What: Cedar, checked and lowered to the tables that `decide` asks.
