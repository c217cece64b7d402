//! Where the server listens: TCP or a Unix socket, one stream of connections.
//!
//! Accepting never ends: an error of one connection is that connection's, and
//! when the process is out of file descriptors, waiting is all that helps.
//! Connections beyond [`MAX_CONNECTIONS`] wait in the kernel's queue.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::Connected;

use crate::error::WorkerError;

/// Most connections at a time; a gateway needs one.
pub const MAX_CONNECTIONS: usize = 128;

/// Pause after a failed accept.
const BACK_OFF: Duration = Duration::from_millis(100);

/// `IP:PORT` or `unix:/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A socket in the file system, for this user only.
    Unix(PathBuf),
}

impl ListenAddress {
    /// Whether only this host can reach it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("is \"unix:\", a path must follow".to_owned()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => match text.parse() {
                Ok(address) => Ok(Self::Tcp(address)),
                Err(_) => Err(format!("is {text:?}, it must be IP:PORT or unix:/path")),
            },
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound address.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: ListenAddress,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    /// With the name, which goes when the listener does.
    Unix {
        listener: UnixListener,
        _file: SocketFile,
    },
}

impl Listener {
    /// Binds. A stale Unix socket is replaced; one that answers is not.
    ///
    /// # Errors
    /// The address is taken, or the operating system refuses it.
    pub async fn bind(address: &ListenAddress) -> Result<Self, WorkerError> {
        let failed = |source| WorkerError::Listen { address: address.to_string(), source };
        match address {
            ListenAddress::Tcp(wanted) => {
                let listener = TcpListener::bind(wanted).await.map_err(failed)?;
                let bound = listener.local_addr().map_err(failed)?;
                Ok(Self { socket: Socket::Tcp(listener), address: ListenAddress::Tcp(bound) })
            }
            ListenAddress::Unix(path) => {
                refuse_unless_replaceable(path)?;
                let (listener, file) = bind_private(path).map_err(failed)?;
                Ok(Self {
                    socket: Socket::Unix { listener, _file: file },
                    address: address.clone(),
                })
            }
        }
    }

    /// The bound address: with the real port, where port 0 was asked for.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// Connections, for ever.
    pub fn into_incoming(self) -> impl Stream<Item = io::Result<Connection>> {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        futures::stream::unfold((self.socket, permits), async |(socket, permits)| {
            let permit =
                Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
            let io = socket.accept().await;
            Some((Ok(Connection { io, _permit: permit }), (socket, permits)))
        })
    }
}

impl Socket {
    async fn accept(&self) -> Io {
        loop {
            let accepted = match self {
                Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    // Frames are whole messages; waiting to fill packets only
                    // delays tokens.
                    let _ = stream.set_nodelay(true);
                    Io::Tcp(stream)
                }),
                Self::Unix { listener, .. } => {
                    listener.accept().await.map(|(stream, _)| Io::Unix(stream))
                }
            };
            match accepted {
                Ok(io) => return io,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
    }
}

/// The socket's name, removed with the value if it is still ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

fn refuse_unless_replaceable(path: &Path) -> Result<(), WorkerError> {
    let refuse = |reason| Err(WorkerError::Socket { path: path.to_owned(), reason });
    match std::fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            refuse("something that is not a socket is there")
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            refuse("another process listens there")
        }
        Ok(_) => Ok(()),
    }
}

/// Under a name of its own first, so that nobody can connect before the mode is
/// set, and so that a stale socket is replaced in one step.
fn bind_private(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(name);
    // Left over from a killed process that had this number.
    let _ = std::fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary)?;
    let placed = std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| std::fs::symlink_metadata(path));
    match placed {
        Ok(metadata) => Ok((listener, SocketFile { path: path.to_owned(), inode: metadata.ino() })),
        Err(error) => {
            let _ = std::fs::remove_file(&temporary);
            Err(error)
        }
    }
}

/// An accepted connection.
#[derive(Debug)]
pub struct Connection {
    io: Io,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

macro_rules! each_io {
    ($self:ident, $io:ident => $call:expr) => {
        match &mut $self.get_mut().io {
            Io::Tcp($io) => $call,
            Io::Unix($io) => $call,
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each_io!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each_io!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_io!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_io!(self, io => Pin::new(io).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each_io!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Tcp(io) => io.is_write_vectored(),
            Io::Unix(io) => io.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["127.0.0.1:50051", "[::1]:0", "unix:/run/w.sock"] {
            let address: ListenAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert!(address.is_local());
        }
        for text in ["", "localhost:1", "127.0.0.1", "unix:", ":50051"] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
        for text in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1"] {
            assert!(!text.parse::<ListenAddress>().unwrap().is_local(), "{text}");
        }
    }

    #[tokio::test]
    async fn port_zero_becomes_a_real_one() {
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        assert!(matches!(listener.address(), ListenAddress::Tcp(bound) if bound.port() != 0));
    }

    #[tokio::test]
    async fn a_socket_is_private_replaced_when_stale_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.sock");
        // A socket that nobody listens on any more.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let address = ListenAddress::Unix(path.clone());
        let listener = Listener::bind(&address).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
        let taken = Listener::bind(&address).await.unwrap_err();
        assert!(taken.to_string().contains("another process"), "{taken}");
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(Listener::bind(&address).await.is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left over");
    }
}
