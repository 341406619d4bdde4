//! The command line, and tables as people see them.

mod arguments;
mod tables;
