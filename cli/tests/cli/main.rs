//! The executable as people run it: real processes, on jobs that are small but go all the way.

mod analyze;
mod bad_input;
mod bad_teachers;
mod broken_shards;
mod by_hand;
mod cache;
mod chaos;
mod demo;
mod disk;
mod documented;
mod faults;
mod hybrid;
mod inspect;
mod isolation;
mod kills;
mod network;
mod observed;
mod preempted;
mod process;
mod reference;
mod restore;
mod retention;
mod rounds;
mod scaled;
mod service;
mod synthesis;
