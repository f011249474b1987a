//! Both ends of a bare link, as the peers' programs are: a port at home, a port behind the agent, nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use async_trait::async_trait;
use glidepath_tunnel::dial::{DialConfig, Trust, dialer};
use glidepath_tunnel::home::{Admitted, Gate, HomeConfig, HomeEnd, Knock, Refusal};
use glidepath_tunnel::link::Link;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Of each direction of each stream.
const COPY_BYTES: usize = 64 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct HomeArgs {
    /// Where agents dial.
    #[arg(long)]
    link: SocketAddr,
    /// Where users connect.
    #[arg(long)]
    public: SocketAddr,
    /// Certificate and key (PEM); without them there is no TLS.
    #[arg(long, num_args = 2, value_names = ["CERT", "KEY"])]
    tls: Option<Vec<PathBuf>>,
    /// Threads, as the service has them.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

#[derive(Debug, clap::Args)]
pub(crate) struct AgentArgs {
    /// `ws://` or `wss://` of home.
    #[arg(long)]
    home: String,
    /// Certificate authority (PEM) that home's certificate is of.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Where streams go.
    #[arg(long)]
    origin: SocketAddr,
    /// Links to keep up, each with an identity of its own.
    #[arg(long, default_value_t = 1)]
    links: usize,
}

/// Serves until it is killed.
pub(crate) fn home(args: &HomeArgs) -> anyhow::Result<()> {
    let acceptor = match args.tls.as_deref() {
        Some([cert, key]) => Some(acceptor(cert, key)?),
        _ => None,
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(args.threads).enable_all().build()?;
    runtime.block_on(async {
        let newest = Arc::new(Newest::default());
        let home = HomeEnd::new(HomeConfig::default(), Arc::clone(&newest) as Arc<dyn Gate>);
        let links = TcpListener::bind(args.link).await.context("--link")?;
        let public = TcpListener::bind(args.public).await.context("--public")?;
        tokio::spawn(async move {
            while let Ok((user, _)) = public.accept().await {
                let Some(link) = newest.link() else { continue };
                tokio::spawn(carry(user, link));
            }
        });
        loop {
            let (tcp, peer) = links.accept().await?;
            tcp.set_nodelay(true)?;
            let (home, acceptor) = (home.clone(), acceptor.clone());
            tokio::spawn(async move {
                match acceptor {
                    None => home.serve(tcp, peer).await,
                    Some(acceptor) => {
                        if let Ok(tls) = acceptor.accept(tcp).await {
                            home.serve(tls, peer).await;
                        }
                    }
                }
            });
        }
    })
}

async fn carry(mut user: TcpStream, link: Link) {
    let _ = user.set_nodelay(true);
    if let Ok(mut stream) = link.open("bench") {
        let _ = copy_bidirectional_with_sizes(&mut user, &mut stream, COPY_BYTES, COPY_BYTES).await;
    }
}

/// Dials until it is killed.
pub(crate) fn agent(args: &AgentArgs) -> anyhow::Result<()> {
    // As the real agent: one thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let trust = match &args.ca {
        Some(file) => {
            Trust::CaPem(std::fs::read_to_string(file).with_context(|| file.display().to_string())?)
        }
        None => Trust::SystemRoots,
    };
    runtime.block_on(async {
        let mut links = JoinSet::new();
        for number in 0..args.links {
            let config = DialConfig::new(&args.home, trust.clone(), format!("{number}").into(), "bench");
            let (link, dialer) = dialer(config)?;
            links.spawn(async move {
                dialer.run().await;
            });
            let origin = args.origin;
            links.spawn(async move {
                while let Some(mut incoming) = link.accept().await {
                    tokio::spawn(async move {
                        let Ok(mut server) = TcpStream::connect(origin).await else { return };
                        let _ = server.set_nodelay(true);
                        let _ = copy_bidirectional_with_sizes(
                            &mut incoming.stream,
                            &mut server,
                            COPY_BYTES,
                            COPY_BYTES,
                        )
                        .await;
                    });
                }
            });
        }
        while links.join_next().await.is_some() {}
        Ok(())
    })
}

/// Lets everybody in and remembers who came last.
#[derive(Default)]
struct Newest(Mutex<Option<Link>>);

impl Newest {
    fn link(&self) -> Option<Link> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Gate for Newest {
    async fn admit(&self, knock: Knock) -> Result<Admitted, Refusal> {
        Ok(Admitted { identity: knock.credential })
    }

    fn linked(&self, _admitted: &Admitted, link: Link) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(link);
    }
}

fn acceptor(cert: &PathBuf, key: &PathBuf) -> anyhow::Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(cert)?.collect::<Result<Vec<_>, _>>()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
