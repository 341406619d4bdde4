//! Sysctls below `net.`, which are those of the calling thread's network namespace.

use crate::{
    error::{Error, Result},
    object::Object,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The file and the value of an object that is a sysctl.
pub(crate) fn path(object: &Object) -> Option<(PathBuf, &'static str)> {
    let (relative, value) = match object {
        Object::Sysctl(path, value) => (path.clone(), *value),
        Object::LinkSysctl(directory, link, name, value) => (format!("{directory}/{link}/{name}"), *value),
        _ => return None,
    };
    Some((file(&relative), value))
}

/// Whether a sysctl has the value that it should have.
pub(crate) fn holds(object: &Object) -> bool {
    path(object).is_some_and(|(path, value)| match fs::read_to_string(&path) {
        Ok(text) => text.trim_end() == value,
        Err(error) => error.kind() == io::ErrorKind::NotFound && is_of_module(&path),
    })
}

/// Gives a sysctl the value that it should have.
pub(crate) fn set(object: &Object) -> Result<()> {
    match path(object) {
        Some((path, _)) if is_of_module(&path) && !path.exists() => Ok(()),
        Some((path, value)) => write(path, value),
        None => Ok(()),
    }
}

/// Reads one by its path below `net`.
pub(crate) fn get(relative: &str) -> Option<String> {
    fs::read_to_string(file(relative)).ok().map(|text| text.trim_end().to_owned())
}

/// Writes one by its path below `net`.
pub(crate) fn put(relative: &str, value: &str) -> Result<()> {
    write(file(relative), value)
}

/// Bridge netfilter is a module, which Docker loads. Where it is not, no frame of a bridge passes the IP hooks: that is what is
/// wanted of its settings.
fn is_of_module(path: &Path) -> bool {
    path.starts_with("/proc/sys/net/bridge")
}

fn file(relative: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(relative)
}

fn write(path: PathBuf, value: &str) -> Result<()> {
    fs::write(&path, value).map_err(|source| {
        let below_sys = path.strip_prefix("/proc/sys").unwrap_or(&path);
        let name = below_sys.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join(".");
        let hint = match source.kind() {
            io::ErrorKind::NotFound if name.starts_with("net.ipv6") => {
                ": the kernel runs without IPv6, which next hops here need: remove ipv6.disable=1 from its command line"
            }
            io::ErrorKind::ReadOnlyFilesystem => ": /proc/sys is read-only here: run meshd privileged, outside a container",
            io::ErrorKind::PermissionDenied => ": run meshd as root",
            _ => "",
        };
        Error::Sysctl { name, value: value.to_owned(), source, hint }
    })
}
