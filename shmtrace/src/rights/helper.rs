//! The helper: a small process that keeps the rights which a watch gives up and now and then needs after all.
//!
//! It is started before the watch gives up its own, and does four things, none of which touches a traced process: reads
//! the kernel's stack of a thread, opens a `unix_diag` socket in the network namespace of a process, opens the event of a
//! tracepoint, and creates a file in the folder that was given on the command line. It ends with whoever started it: its
//! requests come through a socket, and the end of that is its own.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Component, Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sockopt::{Timeout, set_socket_timeout},
};
use serde::{Deserialize, Serialize};
use shmtrace_engine::{ProcId, Tid};

use super::{Role, give_up};
use crate::{output, probes, process::Process, sock::DiagSocket};

/// The first argument of a process that is a helper.
const ARGUMENT: &str = "internal-helper";
/// Bytes of a request or an answer: a kernel stack is the longest.
const MESSAGE: usize = 16 << 10;
/// It answers at once; this only keeps a surprise from blocking a watch.
const PATIENCE: Duration = Duration::from_secs(1);

/// The one of this process, as long as a [`Helper`] lives.
static RUNNING: Mutex<Option<Running>> = Mutex::new(None);

/// What it is asked for.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// What `/proc` says of a thread's kernel stack.
    KernelStack { proc: ProcId, tid: Tid },
    /// A `unix_diag` socket in the network namespace of a process.
    Diagnostics { proc: ProcId },
    /// The event of the tracepoint with this number.
    Event { tracepoint: u64 },
    /// A new file in the folder.
    File { name: PathBuf },
}

/// What comes back: text (empty for what is a descriptor) or the number of the error.
type Answer = Result<String, i32>;

#[derive(Debug)]
struct Running {
    child: Child,
    socket: OwnedFd,
    folder: Option<PathBuf>,
}

/// The helper lives as long as this.
#[derive(Debug)]
pub struct Helper(());

impl Helper {
    /// Starts it, with the rights that this process has now. Files may be created in `folder` only.
    pub fn start(folder: Option<&Path>) -> io::Result<Self> {
        let (socket, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("shmtrace").arg(ARGUMENT).args(folder);
        // The terminal's signals are not for it, and nobody waits for output that it could hold open.
        command
            .process_group(0)
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let running = Running {
            child: command.spawn()?,
            socket,
            folder: folder.map(Path::to_owned),
        };
        *lock() = Some(running);
        Ok(Self(()))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Some(Running {
            mut child, socket, ..
        }) = lock().take()
        {
            // Which tells it.
            drop(socket);
            let _status = child.wait();
        }
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<Running>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kernel's stack of a thread, as `/proc` shows it.
pub fn kernel_stack(proc: ProcId, tid: Tid) -> Option<String> {
    let (text, _) = ask(&Request::KernelStack { proc, tid }).ok()?;
    Some(text)
}

/// A `unix_diag` socket in the network namespace of a process.
pub fn diagnostics_in(proc: ProcId) -> io::Result<OwnedFd> {
    descriptor(&Request::Diagnostics { proc })
}

/// The event of a tracepoint, not counting yet.
pub fn open_event(tracepoint: u64) -> io::Result<OwnedFd> {
    descriptor(&Request::Event { tracepoint })
}

/// Creates a file in `folder`, which is made if it is missing: by the helper, if there is one for that folder.
pub fn create_file(folder: &Path, name: &str) -> io::Result<std::fs::File> {
    let helps = lock()
        .as_ref()
        .is_some_and(|running| running.folder.as_deref() == Some(folder));
    if helps {
        let name = name.into();
        return descriptor(&Request::File { name }).map(Into::into);
    }
    output::create_folder(folder)?;
    output::create(&folder.join(name))
}

fn descriptor(request: &Request) -> io::Result<OwnedFd> {
    let (_, descriptor) = ask(request)?;
    descriptor.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn ask(request: &Request) -> io::Result<(String, Option<OwnedFd>)> {
    let mut running = lock();
    let running = running
        .as_mut()
        .ok_or_else(|| io::Error::other("there is no helper that has the right to"))?;
    let request = serde_json::to_vec(request)?;
    rustix::net::send(&running.socket, &request, SendFlags::NOSIGNAL)?;
    let mut text = vec![0; MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        &running.socket,
        &mut [IoSliceMut::new(&mut text)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    if received.bytes == 0 {
        return Err(io::Error::other("the helper has ended"));
    }
    match serde_json::from_slice::<Answer>(&text[..received.bytes])? {
        Ok(text) => Ok((text, descriptor)),
        Err(errno) => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Is a helper, if this process was started as one.
pub fn as_helper() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    (args.next()? == ARGUMENT).then(|| match serve(args.next().map(PathBuf::from).as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn serve(folder: Option<&Path>) -> anyhow::Result<()> {
    let _only_a_name = rustix::thread::set_name(c"shmtrace-helper");
    let writes = folder.is_some();
    give_up(Role::Helper { writes })?;
    let socket = io::stdin();
    let mut message = vec![0; MESSAGE];
    loop {
        let (filled, _) = rustix::net::recv(&socket, &mut message[..], RecvFlags::empty())?;
        if filled == 0 {
            return Ok(());
        }
        let request = serde_json::from_slice(&message[..filled])?;
        let (answer, descriptor) = match fulfil(request, folder) {
            Ok((text, descriptor)) => (Ok(text), descriptor),
            Err(error) => (Err(error.raw_os_error().unwrap_or(libc::EIO)), None),
        };
        let answer: Answer = answer;
        let text = serde_json::to_vec(&answer)?;
        let fds = descriptor.as_ref().map(|fd| [fd.as_fd()]);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if let Some(fds) = &fds {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        rustix::net::sendmsg(
            &socket,
            &[IoSlice::new(&text)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
    }
}

fn fulfil(request: Request, folder: Option<&Path>) -> io::Result<(String, Option<OwnedFd>)> {
    match request {
        Request::KernelStack { proc, tid } => {
            let process = the_same(proc)?;
            let mut text = Vec::new();
            process.read_into(&format!("task/{}/stack", tid.0), &mut text)?;
            text.truncate(MESSAGE / 2);
            Ok((String::from_utf8_lossy(&text).into_owned(), None))
        }
        Request::Diagnostics { proc } => {
            let namespace = the_same(proc)?.open_namespace("net")?;
            let socket = DiagSocket::open_in(&namespace)?;
            Ok((String::new(), Some(socket.into())))
        }
        Request::Event { tracepoint } => {
            let event = probes::open_event(tracepoint)?;
            Ok((String::new(), Some(event)))
        }
        Request::File { name } => {
            let folder = folder.ok_or(io::ErrorKind::PermissionDenied)?;
            let mut components = name.components();
            let (Some(Component::Normal(name)), None) = (components.next(), components.next())
            else {
                return Err(io::ErrorKind::PermissionDenied.into());
            };
            output::create_folder(folder)?;
            let file = output::create(&folder.join(name))?;
            Ok((String::new(), Some(file.into())))
        }
    }
}

fn the_same(proc: ProcId) -> io::Result<Process> {
    let process = Process::open(proc.pid)?;
    if process.id() == proc {
        Ok(process)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}
