//! Writes what inputs grow from: `seeds DIRECTORY`, where each target gets a directory of its own.

// What is instrumented needs its runtime.
use libfuzzer_sys as _;
use std::{env, fs, io, path::Path};

fn main() -> io::Result<()> {
    let directory = env::args_os().nth(1).ok_or_else(|| io::Error::other("usage: seeds DIRECTORY"))?;
    for (target, seeds) in mesh_fuzz::seeds::all() {
        let of_target = Path::new(&directory).join(target);
        fs::create_dir_all(&of_target)?;
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(of_target.join(format!("seed-{number:02}")), seed)?;
        }
    }
    Ok(())
}
