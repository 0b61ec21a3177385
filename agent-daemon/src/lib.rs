//! Ambit's daemon half: the rooms that `ambitd` and `ambit` are made of.
//!
//! The way of an action is one street, `hook -> decide -> ring -> decode -> enrich -> sink`; the way
//! of a rule is the other, `cedar -> check -> lower -> tables -> decide`.

pub mod api;
pub mod authority;
pub mod config;
pub mod events;
pub mod identity;
pub mod kernel;
pub mod policy;
pub mod run;
pub mod sinks;
