//! What tests of stores need, in this crate and in others: a server that speaks S3, and faults. No build that does work has it.

mod faults;
mod faulty_service;
mod s3_server;
mod schedule;

pub use faults::Faulty;
pub use faulty_service::Faults;
pub use s3_server::S3Server;
pub use schedule::Fault;
