//! Stand-in for http 1: what the tests need of it is in http 0.2 too.
pub use old::*;
