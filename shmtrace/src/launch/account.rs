//! Another user to run a command as: the one who called `sudo`, or one by name.

use std::{
    ffi::{CStr, CString, OsStr, OsString},
    io,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    process::Command,
    ptr,
};

use thiserror::Error;

/// Bytes that one entry of the user database may take.
const MAX_ENTRY: usize = 1 << 16;
/// Groups that one user may be in.
const MAX_GROUPS: usize = 1 << 12;
/// What `sudo` leaves in the environment.
const OF_SUDO: [&str; 4] = ["SUDO_UID", "SUDO_GID", "SUDO_USER", "SUDO_COMMAND"];

/// Why there is no such account.
#[derive(Debug, Error)]
pub enum AccountError {
    /// Not started by sudo.
    #[error(
        "--user needs to know whose: SUDO_UID is not set, so give a name, --user=NAME, or start with sudo"
    )]
    NoSudo,
    /// Not in the user database.
    #[error("there is no user {0} here (see `getent passwd`)")]
    Unknown(String),
    /// Only root can become somebody else.
    #[error(
        "only root can run a command as {0}: leave out --user, or run `sudo shmtrace run --user ...`"
    )]
    NotRoot(String),
}

/// A user, with everything that a login would set.
#[derive(Debug, Clone)]
pub struct Account {
    name: OsString,
    home: OsString,
    shell: OsString,
    uid: u32,
    gid: u32,
    groups: Vec<libc::gid_t>,
}

impl Account {
    /// The user who called `sudo`.
    pub fn of_sudo() -> Result<Self, AccountError> {
        let uid = std::env::var("SUDO_UID")
            .ok()
            .and_then(|uid| uid.parse().ok());
        let uid: u32 = uid.ok_or(AccountError::NoSudo)?;
        Self::find(&uid.to_string())
    }

    /// A user by name or number.
    pub fn find(user: &str) -> Result<Self, AccountError> {
        let account = look_up(user).ok_or_else(|| AccountError::Unknown(user.to_owned()))?;
        if !rustix::process::geteuid().is_root()
            && rustix::process::geteuid().as_raw() != account.uid
        {
            return Err(AccountError::NotRoot(user.to_owned()));
        }
        Ok(account)
    }

    /// Its name.
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// Its user id.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Sets what depends on the user, and hides that root was in between.
    pub(super) fn environment(&self, command: &mut Command) {
        command
            .env("HOME", &self.home)
            .env("USER", &self.name)
            .env("LOGNAME", &self.name);
        if !self.shell.is_empty() {
            command.env("SHELL", &self.shell);
        }
        for name in OF_SUDO {
            command.env_remove(name);
        }
        let runtime = format!("/run/user/{}", self.uid);
        if Path::new(&runtime).is_dir() {
            command.env("XDG_RUNTIME_DIR", runtime);
        } else {
            command.env_remove("XDG_RUNTIME_DIR");
        }
    }

    /// Makes the calling process one of this user. For a forked child: makes system calls only.
    pub(super) fn become_it(&self) -> io::Result<()> {
        if rustix::process::geteuid().is_root() {
            // SAFETY: the list is as long as stated.
            check(unsafe { libc::setgroups(self.groups.len(), self.groups.as_ptr()) })?;
        }
        // SAFETY: plain numbers.
        check(unsafe { libc::setresgid(self.gid, self.gid, self.gid) })?;
        // SAFETY: plain numbers; last, since it takes the right to do the others.
        check(unsafe { libc::setresuid(self.uid, self.uid, self.uid) })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The entry of the user database, by name or else by number.
fn look_up(user: &str) -> Option<Account> {
    let name = CString::new(user).ok()?;
    let mut buffer = vec![0; MAX_ENTRY];
    // SAFETY: all zeroes is a valid `passwd` (null pointers and numbers).
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found = ptr::null_mut();
    // SAFETY: entry, buffer and result live through the call, and the buffer's length is its own.
    unsafe {
        libc::getpwnam_r(
            name.as_ptr(),
            &raw mut entry,
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut found,
        );
    }
    if found.is_null() {
        let uid = user.parse().ok()?;
        // SAFETY: as above.
        unsafe {
            libc::getpwuid_r(
                uid,
                &raw mut entry,
                buffer.as_mut_ptr(),
                buffer.len(),
                &raw mut found,
            );
        }
    }
    if found.is_null() {
        return None;
    }
    let text = |at: *const libc::c_char| {
        if at.is_null() {
            return OsString::new();
        }
        // SAFETY: a string of the entry that was found, in `buffer`, which is still there.
        OsStr::from_bytes(unsafe { CStr::from_ptr(at) }.to_bytes()).to_owned()
    };
    let groups = groups_of(entry.pw_name, entry.pw_gid);
    Some(Account {
        name: text(entry.pw_name),
        home: text(entry.pw_dir),
        shell: text(entry.pw_shell),
        uid: entry.pw_uid,
        gid: entry.pw_gid,
        groups,
    })
}

fn groups_of(name: *const libc::c_char, gid: libc::gid_t) -> Vec<libc::gid_t> {
    let mut groups = vec![0; MAX_GROUPS];
    let mut count = MAX_GROUPS as libc::c_int;
    // SAFETY: `name` is a string of the entry that the caller holds, and the list has room for `count` groups.
    let result = unsafe { libc::getgrouplist(name, gid, groups.as_mut_ptr(), &raw mut count) };
    if result < 0 {
        return vec![gid];
    }
    groups.truncate(usize::try_from(count).unwrap_or(0));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let root = look_up("root").unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(look_up("0").unwrap().name, "root");
        assert!(root.groups.contains(&0));
        assert!(look_up("no such user").is_none());
        assert!(look_up("4294967290").is_none());
    }
}
