//! Whoever started this process is told that it is ready, as systemd's `Type=notify` has it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// To be called once the coordinator listens. Says so where `NOTIFY_SOCKET` names somebody to tell.
pub fn ready() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = tell(&socket, b"READY=1") {
        tracing::warn!(%error, ?socket, "who started this process can't be told that it is ready");
    }
}

/// The name is a path, or on Linux one without a file, after an `@`.
fn tell(socket: &OsStr, message: &[u8]) -> io::Result<()> {
    UnixDatagram::unbound()?.send_to_addr(message, &address(socket)?).map(drop)
}

fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStrExt;
        if let Some(name) = socket.as_bytes().strip_prefix(b"@") {
            return SocketAddr::from_abstract_name(name);
        }
    }
    SocketAddr::from_pathname(socket)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn heard(name: &OsStr) -> Vec<u8> {
        let listener = UnixDatagram::bind_addr(&address(name).expect("an address")).expect("bound");
        tell(name, b"READY=1").expect("told");
        let mut said = [0; 16];
        let length = listener.recv(&mut said).expect("received");
        said[..length].to_vec()
    }

    #[test]
    fn a_socket_with_a_file_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(heard(folder.path().join("notify").as_os_str()), b"READY=1");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_socket_without_a_file_is_told() {
        assert_eq!(heard(&OsString::from(format!("@deltaconv-test-{}", std::process::id()))), b"READY=1");
    }

    #[test]
    fn nobody_who_listens_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(tell(folder.path().join("nobody").as_os_str(), b"READY=1").is_err());
    }
}
