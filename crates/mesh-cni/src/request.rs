//! What the environment asks for.

use crate::{
    args::Args,
    failure::{Code, Failure},
    version::Version,
};
use std::{ffi::OsString, path::PathBuf};

/// One call.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) command: Command,
}

/// `CNI_COMMAND` with what belongs to it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Add(Attachment),
    Del(Attachment),
    Check(Attachment),
    Gc,
    Status,
    Version,
}

/// One interface of one container, in the runtime's words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    /// `CNI_CONTAINERID`.
    pub(crate) container: String,
    /// `CNI_IFNAME`.
    pub(crate) ifname: String,
    /// `CNI_NETNS`; only `DEL` may lack it.
    pub(crate) netns: Option<PathBuf>,
    /// `CNI_ARGS`.
    pub(crate) args: Args,
}

impl Request {
    /// Reads and checks every variable that the command needs. The failure names all that are missing.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        let text = |name: &str| match variable(name).map(OsString::into_string) {
            None => Ok(String::new()),
            Some(Ok(text)) => Ok(text),
            Some(Err(_)) => Err(invalid(name, "it is no UTF-8")),
        };
        let command = text("CNI_COMMAND")?;
        let needs: &[&str] = match command.as_str() {
            "ADD" | "CHECK" => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            "DEL" => &["CNI_CONTAINERID", "CNI_IFNAME"],
            "GC" => &["CNI_PATH"],
            "STATUS" | "VERSION" => &[],
            "" => return Err(missing(&["CNI_COMMAND"])),
            other => {
                return Err(invalid(
                    "CNI_COMMAND",
                    &format!("'{other}' is no command of this version of CNI"),
                ));
            }
        };
        let absent: Vec<&str> = needs
            .iter()
            .copied()
            .filter(|name| variable(name).is_none_or(|value| value.is_empty()))
            .collect();
        if !absent.is_empty() {
            return Err(missing(&absent));
        }
        let attachment = || {
            Attachment::new(
                text("CNI_CONTAINERID")?,
                text("CNI_IFNAME")?,
                &text("CNI_NETNS")?,
                &text("CNI_ARGS")?,
            )
        };
        let command = match command.as_str() {
            "ADD" => Command::Add(attachment()?),
            "CHECK" => Command::Check(attachment()?),
            "DEL" => {
                // What it was made with does not matter any more: nothing may keep an attachment from being removed.
                let args = String::new();
                Command::Del(Attachment::new(
                    text("CNI_CONTAINERID")?,
                    text("CNI_IFNAME")?,
                    &text("CNI_NETNS")?,
                    &args,
                )?)
            }
            "GC" => Command::Gc,
            "STATUS" => Command::Status,
            _ => Command::Version,
        };
        Ok(Self { command })
    }
}

impl Command {
    /// Whether the configuration's version of the protocol has this command.
    pub(crate) fn check_version(&self, version: Version) -> Result<(), Failure> {
        let (name, since) = match self {
            Self::Check(_) => ("CHECK", Version::V0_4_0),
            Self::Gc => ("GC", Version::V1_1_0),
            Self::Status => ("STATUS", Version::V1_1_0),
            Self::Add(_) | Self::Del(_) | Self::Version => return Ok(()),
        };
        if version >= since {
            return Ok(());
        }
        let text = format!("{name} is not a command of CNI {version}");
        Err(Failure::new(Code::Version, text).because(format!("set cniVersion to {since} or later")))
    }
}

impl Attachment {
    fn new(container: String, ifname: String, netns: &str, args: &str) -> Result<Self, Failure> {
        if !is_identifier(&container) {
            return Err(invalid(
                "CNI_CONTAINERID",
                "it begins with a letter or digit, and goes on with these, '_', '.' and '-'",
            ));
        }
        if !is_ifname(&ifname) {
            return Err(invalid("CNI_IFNAME", "it has up to 15 characters without '/', ':' and blanks"));
        }
        let netns = match netns {
            "" => None,
            path if path.starts_with('/') => Some(PathBuf::from(path)),
            _ => return Err(invalid("CNI_NETNS", "it is no absolute path")),
        };
        Ok(Self { container, ifname, netns, args: Args::parse(args)? })
    }
}

/// A container ID or the name of a network: what fits a path.
pub(crate) fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// As the kernel's `dev_valid_name`.
fn is_ifname(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && !matches!(text, "." | "..")
        && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
}

pub(crate) fn invalid(name: &str, why: &str) -> Failure {
    Failure::new(Code::Environment, format!("{name} is invalid: {why}"))
}

fn missing(names: &[&str]) -> Failure {
    Failure::new(Code::Environment, format!("{} must be set", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(variables: &[(&str, &str)]) -> Result<Request, Failure> {
        Request::read(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        })
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/c1"),
        ("CNI_IFNAME", "eth0"),
    ];

    #[test]
    fn every_variable_that_a_command_needs_is_named_when_it_lacks() {
        for (name, _) in ADD {
            for value in [None, Some("")] {
                let mut variables = ADD.to_vec();
                variables.retain(|(known, _)| *known != name);
                variables.extend(value.map(|value| (name, value)));
                let failure = read(&variables).unwrap_err();
                assert_eq!(failure.code, Code::Environment);
                assert!(failure.json(Version::LATEST)["msg"].as_str().unwrap().contains(name), "{failure:?}");
            }
        }
        let none = read(&ADD[..1]).unwrap_err().json(Version::LATEST);
        assert_eq!(none["msg"], "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME must be set");
    }

    #[test]
    fn del_needs_no_namespace_and_no_sensible_arguments() {
        let variables =
            [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_ARGS", "?")];
        let Command::Del(attachment) = read(&variables).unwrap().command else { panic!("not DEL") };
        assert_eq!(attachment.netns, None);
    }

    #[test]
    fn malformed_variables_are_refused() {
        for (name, value) in [
            ("CNI_COMMAND", "add"),
            ("CNI_COMMAND", "UPDATE"),
            ("CNI_CONTAINERID", "-c1"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_CONTAINERID", "../x"),
            ("CNI_IFNAME", "sixteen-letters0"),
            ("CNI_IFNAME", "a b"),
            ("CNI_IFNAME", ".."),
            ("CNI_NETNS", "netns/c1"),
            ("CNI_ARGS", "x"),
        ] {
            let mut variables = vec![(name, value)];
            variables.extend(ADD.iter().filter(|(known, _)| *known != name));
            let failure = read(&variables).unwrap_err();
            assert_eq!(failure.code, Code::Environment, "{name}={value}");
            assert!(failure.json(Version::LATEST)["msg"].as_str().unwrap().contains(name), "{failure:?}");
        }
    }

    proptest! {
        #[test]
        fn no_environment_is_the_end_of_it(values in prop::collection::vec(".{0,20}", 5), command in "ADD|DEL|CHECK|GC|STATUS") {
            let names = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];
            let mut variables = vec![("CNI_COMMAND", command.as_str())];
            variables.extend(names.into_iter().zip(values.iter().map(String::as_str)));
            match read(&variables) {
                Err(failure) => prop_assert_eq!(failure.code, Code::Environment),
                Ok(Request { command: Command::Add(attachment) }) => {
                    // What passes fits the owner's text and can be told apart in it again.
                    prop_assert!(is_identifier(&attachment.container) && !attachment.ifname.contains('/'));
                }
                Ok(_) => {}
            }
        }
    }
}
