//! Where fields lie in the running kernel's structures, from its own type information.

use btf_rs::{Backend, Btf, Struct, Type};
use shmtrace_common::{KernelOffsets, profile::ProfileOffsets};

/// The kernel's BTF.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Reads the offsets of every field that the probes follow.
pub(super) fn read() -> Result<KernelOffsets, String> {
    let types = kernel_types()?;
    let field = |structure: &str, names: &[&str]| field(&types, structure, names);
    Ok(KernelOffsets {
        task_files: field("task_struct", &["files"])?,
        task_pid: field("task_struct", &["pid"])?,
        task_tgid: field("task_struct", &["tgid"])?,
        task_signal: field("task_struct", &["signal"])?,
        task_exec_id: field("task_struct", &["self_exec_id"])?,
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

/// Looks types up in the mapped file, which takes a tenth of the time and memory that parsing all of them takes; kernels
/// that do not let it be mapped (before 6.16) have it parsed.
fn kernel_types() -> Result<Btf, String> {
    Btf::from_file_with_backend(VMLINUX, Backend::Mmap)
        .or_else(|_| Btf::from_file(VMLINUX))
        .map_err(|e| format!("cannot read {VMLINUX}: {e}"))
}

/// Byte offset of the first of `names` that `structure` has.
fn field(types: &Btf, structure: &str, names: &[&str]) -> Result<u32, String> {
    let found = types
        .resolve_types_by_name(structure)
        .unwrap_or_default()
        .into_iter()
        .find_map(|found| match found {
            Type::Struct(found) => Some(found),
            _ => None,
        })
        .ok_or_else(|| format!("{VMLINUX} does not know struct {structure}"))?;
    names
        .iter()
        .find_map(|name| member(types, &found, name))
        .and_then(|bits| (bits % 8 == 0).then_some(bits / 8))
        .ok_or_else(|| {
            format!(
                "{VMLINUX}: struct {structure} has no field {}",
                names.join(" or ")
            )
        })
}

/// Bit offset of a member, which may lie in an anonymous struct or union.
fn member(types: &Btf, structure: &Struct, name: &str) -> Option<u32> {
    structure.members.iter().find_map(|member| {
        let found = types.resolve_name(member).unwrap_or_default();
        if found == name {
            return Some(member.bit_offset());
        }
        match types.resolve_chained_type(member) {
            Ok(Type::Struct(inner) | Type::Union(inner)) if found.is_empty() => {
                Some(member.bit_offset() + self::member(types, &inner, name)?)
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_in_anonymous_parts_too_and_what_is_missing_is_named() {
        let types = kernel_types().unwrap();
        // `struct page` has had its `lru` in a union in a struct since 4.16.
        let lru = field(&types, "page", &["lru"]).unwrap();
        assert!((8..32).contains(&lru), "{lru}");
        let error = field(&types, "page", &["no_such", "nor_this"]).unwrap_err();
        assert!(
            error.contains("page has no field no_such or nor_this"),
            "{error}"
        );
        assert!(field(&types, "no_such", &["x"]).is_err());
    }
}
