//! Single messages of a handshake over a WebSocket.

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

/// Why no message came or went.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadMessage {
    #[error("the connection broke during the handshake: {0}")]
    Socket(#[from] Box<tungstenite::Error>),
    #[error("the connection was closed during the handshake")]
    Closed,
    #[error("a handshake message is text")]
    Text,
}

/// The next binary message. May not be dropped half way and then called again.
pub(crate) async fn receive<IO>(socket: &mut WebSocketStream<IO>) -> Result<Bytes, BadMessage>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match socket.next().await {
            Some(Ok(Message::Binary(bytes))) => return Ok(bytes),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Ok(Message::Text(_))) => return Err(BadMessage::Text),
            Some(Ok(Message::Close(_))) | None => return Err(BadMessage::Closed),
            Some(Err(error)) => return Err(Box::new(error).into()),
        }
    }
}

/// Sends one binary message.
pub(crate) async fn send<IO>(socket: &mut WebSocketStream<IO>, message: Bytes) -> Result<(), BadMessage>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    socket.send(Message::Binary(message)).await.map_err(|error| Box::new(error).into())
}
