//! Where fields lie in the running kernel's structures, from its own type information.

use btfparse::{Offset, Readable, TypeInformation};
use shmtrace_common::{KernelOffsets, profile::ProfileOffsets};

/// The kernel's BTF.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Reads the offsets of every field that the probes follow.
pub(super) fn read() -> Result<KernelOffsets, String> {
    let types = kernel_types()?;
    let field = |structure: &str, names: &[&str]| field(&types, structure, names);
    Ok(KernelOffsets {
        task_files: field("task_struct", &["files"])?,
        task_tgid: field("task_struct", &["tgid"])?,
        task_signal: field("task_struct", &["signal"])?,
        // Renamed in 5.14.
        task_state: field("task_struct", &["__state", "state"])?,
        signal_live: field("signal_struct", &["live"])?,
        files_fdt: field("files_struct", &["fdt"])?,
        fdt_max_fds: field("fdtable", &["max_fds"])?,
        fdt_fd: field("fdtable", &["fd"])?,
        file_inode: field("file", &["f_inode"])?,
        inode_ino: field("inode", &["i_ino"])?,
        sock_socket: field("sock", &["sk_socket"])?,
        socket_file: field("socket", &["file"])?,
    })
}

/// The same for sampling.
pub(super) fn read_for_profile() -> Result<ProfileOffsets, String> {
    let types = kernel_types()?;
    let field = |structure: &str, names: &[&str]| field(&types, structure, names);
    Ok(ProfileOffsets {
        task_pid: field("task_struct", &["pid"])?,
        task_tgid: field("task_struct", &["tgid"])?,
        task_state: field("task_struct", &["__state", "state"])?,
        task_signal: field("task_struct", &["signal"])?,
        signal_live: field("signal_struct", &["live"])?,
    })
}

fn kernel_types() -> Result<TypeInformation, String> {
    let bytes = std::fs::read(VMLINUX).map_err(|e| format!("cannot read {VMLINUX}: {e}"))?;
    TypeInformation::new(&Bytes(bytes))
        .map_err(|e| format!("cannot parse {VMLINUX}: {}", e.message()))
}

/// Byte offset of the first of `names` that `structure` has.
fn field(types: &TypeInformation, structure: &str, names: &[&str]) -> Result<u32, String> {
    let id = types
        .id_of(structure)
        .ok_or_else(|| format!("{VMLINUX} does not know struct {structure}"))?;
    names
        .iter()
        .find_map(|name| match types.offset_of(id, name) {
            Ok((_, Offset::ByteOffset(bytes))) => Some(bytes),
            _ => None,
        })
        .ok_or_else(|| {
            format!(
                "{VMLINUX}: struct {structure} has no field {}",
                names.join(" or ")
            )
        })
}

/// A file read whole.
struct Bytes(Vec<u8>);

impl Readable for Bytes {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> btfparse::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.0.get(start..start.checked_add(buffer.len())?))
            .ok_or_else(|| {
                btfparse::Error::new(btfparse::ErrorKind::IOError, "read past the end")
            })?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}
