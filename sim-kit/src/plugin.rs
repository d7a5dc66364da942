//! The plugin's side of every stand-in: take a request, answer it with its own payload on its own channel.

use crate::child::name_process;
use crate::cli::PluginOptions;
use crate::lane::{Endpoint, Transport};

/// Takes the name that the host gave in argv\[0\], if it gave one.
pub fn adopt_name() {
    if let Some(name) = std::env::args().next()
        && name.starts_with("dodeca-mod-")
    {
        name_process(&name);
    }
}

/// Enters the hub and answers until the transport fails or the host ends us.
pub fn run<T: Transport>(options: &PluginOptions) -> anyhow::Result<()> {
    adopt_name();
    options.runtime.build(2)?.block_on(async {
        let endpoint = T::open(&options.hub_path, options.peer_id, options.doorbell_fd)?;
        loop {
            let request = endpoint.recv().await?;
            endpoint.send(request).await?;
        }
    })
}
