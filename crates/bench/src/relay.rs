//! A relay that does nothing but copy: one connection in, one out. Two in a row are what a tunnel is measured against.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};

#[derive(Debug, clap::Args)]
pub(crate) struct RelayArgs {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    to: SocketAddr,
    /// Bytes of each direction's buffer.
    #[arg(long, default_value_t = 256 * 1024)]
    buffer: usize,
}

/// Relays until it is killed.
pub(crate) async fn relay(args: &RelayArgs) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen).await?;
    loop {
        let (mut near, _) = listener.accept().await?;
        let (to, buffer) = (args.to, args.buffer);
        tokio::spawn(async move {
            let mut far = TcpStream::connect(to).await?;
            near.set_nodelay(true)?;
            far.set_nodelay(true)?;
            copy_bidirectional_with_sizes(&mut near, &mut far, buffer, buffer).await
        });
    }
}
