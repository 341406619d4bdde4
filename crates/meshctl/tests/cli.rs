//! `meshctl` as a process, against a daemon that only plays its part.

#[path = "cli/answers.rs"]
mod answers;
#[path = "cli/daemon.rs"]
mod daemon;
#[path = "cli/run.rs"]
mod run;
#[path = "cli/views.rs"]
mod views;
