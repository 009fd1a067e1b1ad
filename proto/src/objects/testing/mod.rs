//! What tests of stores need, in this crate and in others: a server that speaks S3, and faults. No build that does work has it.

mod faults;
mod s3_server;

pub use faults::{Fault, Faulty};
pub use s3_server::S3Server;
