//! Finding the command before anything is made for it.

use crate::failure::complain;
use nix::unistd::{AccessFlags, access};
use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Where execvp(3) looks without PATH.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// A command that can be run.
#[derive(Debug)]
pub(super) struct Program<'a> {
    /// The file.
    pub(super) path: PathBuf,
    /// As it was called.
    pub(super) name: &'a OsStr,
    /// Its arguments.
    pub(super) arguments: &'a [OsString],
}

/// A command that can't be run; exit codes as of a shell.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unrunnable {
    #[error("{0}: command not found")]
    NotFound(String),
    #[error("{0}: cannot be executed: {1}")]
    NotExecutable(String, String),
}

impl Unrunnable {
    /// Says so on stderr.
    pub(super) fn told(&self) -> ExitCode {
        complain(&self.to_string());
        ExitCode::from(self.code())
    }

    const fn code(&self) -> u8 {
        match self {
            Self::NotFound(_) => 127,
            Self::NotExecutable(..) => 126,
        }
    }
}

impl<'a> Program<'a> {
    /// Looks for it as execvp(3) does.
    pub(super) fn find(command: &'a [OsString]) -> Result<Self, Unrunnable> {
        let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
        Self::find_in(command, &path)
    }

    fn find_in(command: &'a [OsString], path: &OsStr) -> Result<Self, Unrunnable> {
        let (name, arguments) = match command.split_first() {
            Some((name, arguments)) if !name.is_empty() => (name.as_os_str(), arguments),
            _ => return Err(Unrunnable::NotFound("''".to_owned())),
        };
        let candidates: Vec<PathBuf> = if name.as_bytes().contains(&b'/') {
            vec![name.into()]
        } else {
            env::split_paths(path).map(|directory| directory.join(name)).collect()
        };
        let mut refusal = None;
        for path in candidates {
            match executable(&path) {
                Ok(()) => return Ok(Self { path, name, arguments }),
                Err(error) if absent(&error) => {}
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        let name = name.to_string_lossy().into_owned();
        Err(refusal
            .map_or(Unrunnable::NotFound(name.clone()), |e| Unrunnable::NotExecutable(name, e.to_string())))
    }

    /// What it means that the kernel did not run it all the same.
    pub(super) fn refused(&self, error: &io::Error) -> Unrunnable {
        let name = self.name.to_string_lossy().into_owned();
        if absent(error) {
            Unrunnable::NotFound(name)
        } else {
            Unrunnable::NotExecutable(name, error.to_string())
        }
    }
}

fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn executable(path: &Path) -> io::Result<()> {
    if path.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(access(path, AccessFlags::X_OK)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[test]
    fn the_first_executable_of_the_path_is_found() {
        let directories =
            [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let path = env::join_paths(directories.iter().map(|d| d.path())).unwrap();
        for (directory, mode) in directories.iter().zip([0o644, 0o755, 0o755]) {
            let file = directory.path().join("tool");
            fs::write(&file, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        let command = ["tool".into(), "-x".into()];
        let found = Program::find_in(&command, &path).unwrap();
        assert_eq!(found.path, directories[1].path().join("tool"));
        assert_eq!(found.arguments, ["-x"]);

        let only = Program::find_in(&command, directories[0].path().as_os_str());
        assert_eq!(only.unwrap_err().code(), 126);
        for missing in ["another", "", "/nowhere/tool"] {
            assert_eq!(Program::find_in(&[missing.into()], &path).unwrap_err().code(), 127, "{missing}");
        }
        let directory = [directories[0].path().as_os_str().to_owned()];
        assert_eq!(Program::find_in(&directory, &path).unwrap_err().code(), 126);
    }
}
