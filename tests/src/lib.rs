//! Ambit seen from outside.
//!
//! [`stage`] makes a place where nothing can reach the machine, [`world`] starts a daemon there,
//! [`actor`] runs what an agent or a bystander does, [`events`] and [`metrics`] read what the daemon
//! tells, [`cases`] are the promises, [`demo`] is the main job, shown, and [`mod@bench`] what it costs.
//! [`watchdog`] cleans up after all of them.

pub mod actor;
pub mod bench;
pub mod cases;
pub mod demo;
pub mod events;
pub mod metrics;
pub mod name_server;
pub mod policy;
pub mod powers;
pub mod stage;
pub mod verbs;
pub mod watchdog;
pub mod world;
