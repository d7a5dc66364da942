//! systemd of this machine as the first process of a test machine, with both of its buses and nothing else.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::initramfs::Initramfs;

/// Where systemd has its programs.
const PROGRAMS: &str = "/usr/lib/systemd";

/// Where the bus of the user's systemd listens.
pub(super) const USER_BUS: &str = "unix:path=/run/user/0/bus";

const UNITS: [(&str, &str); 6] = [
    (
        "default.target",
        "[Unit]\nRequires=steps.service\nAfter=steps.service\n",
    ),
    (
        "steps.service",
        "[Unit]\nRequires=dbus.service user-manager.service\nAfter=dbus.service user-manager.service\n\
         [Service]\nType=oneshot\nExecStart=/init\n",
    ),
    DBUS_SERVICE,
    (
        "dbus.socket",
        "[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
    ),
    (
        "user-manager.service",
        "[Service]\nType=notify\nDelegate=yes\nRuntimeDirectory=user/0\nEnvironment=XDG_RUNTIME_DIR=/run/user/0\n\
         ExecStart=/usr/lib/systemd/systemd --user\n",
    ),
    // Everything is ordered behind it; there is nothing to be done there.
    ("sysinit.target", "[Unit]\n"),
];

/// For the user's systemd. Only where it runs a bus of its own does it listen to one.
const USER_UNITS: [(&str, &str); 4] = [
    (
        "default.target",
        "[Unit]\nRequires=dbus.service\nAfter=dbus.service\n",
    ),
    ("dbus.socket", "[Socket]\nListenStream=%t/bus\n"),
    DBUS_SERVICE,
    ("basic.target", "[Unit]\n"),
];

/// `BUS` = which of both.
const DBUS_SERVICE: (&str, &str) = (
    "dbus.service",
    "[Unit]\nRequires=dbus.socket\n[Service]\n\
     ExecStart=/usr/bin/dbus-daemon --BUS --address=systemd: --nofork --nopidfile\n",
);

const FILES: [(&str, &str); 4] = [
    (
        "etc/passwd",
        "root:x:0:0::/tmp:/bin/sh\nmessagebus:x:100:100::/:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\nmessagebus:x:100:\n"),
    ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
    ("etc/os-release", "ID=test\n"),
];

/// Adds it, its units and what it reads.
pub(super) fn add_to(archive: &mut Initramfs) -> Result<()> {
    let systemd = Path::new(PROGRAMS).join("systemd");
    archive
        .program(&systemd, &below_root(&systemd))
        .context("no systemd to boot: apt-get install systemd")?;
    // From systemd 254 on, what starts its services.
    let executor = Path::new(PROGRAMS).join("systemd-executor");
    if executor.exists() {
        archive.program(&executor, &below_root(&executor))?;
    }
    for program in ["/usr/bin/busctl", "/usr/bin/dbus-daemon"] {
        archive.program(Path::new(program), &below_root(Path::new(program)))?;
    }
    for configuration in [
        "/usr/share/dbus-1/system.conf",
        "/usr/share/dbus-1/session.conf",
        "/usr/share/dbus-1/system.d/org.freedesktop.systemd1.conf",
    ] {
        let configuration = Path::new(configuration);
        archive.copy(configuration, &below_root(configuration))?;
    }
    let units = UNITS.iter().map(|unit| ("system", "system", unit));
    let user_units = USER_UNITS.iter().map(|unit| ("user", "session", unit));
    for (folder, bus, (name, content)) in units.chain(user_units) {
        let content = content.replace("BUS", bus);
        archive.add(&format!("etc/systemd/{folder}/{name}"), content.into());
    }
    for (name, content) in FILES {
        archive.add(name, content.into());
    }
    Ok(())
}

/// The same place in the archive.
fn below_root(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}
