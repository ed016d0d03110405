//! The server: connections, and a request's way from its arrival to its answer.

use std::any::Any;
use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::Map;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::answer::{Action, Plan};
use crate::behaviour::Behaviour;
use crate::body::{Body, Cut, ResetOnDrop};
use crate::budget::Budget;
use crate::fault::Rule;
use crate::judge::{Arrival, plan};
use crate::record::{Log, Record, Ticket, Verdict};

/// What the server's threads and the test share.
pub(crate) struct Shared {
    behaviour: Mutex<Arc<Behaviour>>,
    budget: Mutex<Budget>,
    rules: Mutex<Vec<Arc<Rule>>>,
    log: Mutex<Log>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Whether answers are held back.
    pub held: watch::Sender<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic is remembered and reaches the test in another way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(behaviour: Behaviour) -> Self {
        Self {
            behaviour: Mutex::new(Arc::new(behaviour)),
            budget: Mutex::new(Budget::new()),
            rules: Mutex::default(),
            log: Mutex::default(),
            panic: Mutex::default(),
            held: watch::Sender::new(false),
        }
    }

    pub(crate) fn behaviour(&self) -> Arc<Behaviour> {
        lock(&self.behaviour).clone()
    }

    pub(crate) fn change_behaviour(&self, change: impl FnOnce(&mut Behaviour)) {
        change(Arc::make_mut(&mut lock(&self.behaviour)));
    }

    pub(crate) fn budget(&self) -> MutexGuard<'_, Budget> {
        lock(&self.budget)
    }

    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }

    /// A copy, because a rule may take its time.
    pub(crate) fn rules(&self) -> Vec<Arc<Rule>> {
        lock(&self.rules).clone()
    }

    pub(crate) fn add_rule(&self, rule: Arc<Rule>) {
        lock(&self.rules).push(rule);
    }

    pub(crate) fn clear_rules(&self) {
        lock(&self.rules).clear();
    }

    /// Of several panics, the first tells most.
    fn remember_panic(&self, panic: Box<dyn Any + Send>) {
        lock(&self.panic).get_or_insert(panic);
    }

    pub(crate) fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        lock(&self.panic).take()
    }
}

/// A listener on a free port.
pub(crate) async fn listen() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await
}

/// Takes connections, for ever.
pub(crate) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        // It fails when this process has too many files open, which the test will notice.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        shared.log().connections += 1;
        let shared = shared.clone();
        tokio::spawn(async move {
            let connection = tokio::spawn(serve(stream, shared.clone()));
            if let Err(error) = connection.await
                && let Ok(panic) = error.try_into_panic()
            {
                shared.remember_panic(panic);
            }
        });
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    // Else the last part of an answer waits for the client to acknowledge the one before.
    let _ = stream.set_nodelay(true);
    let reset = ResetOnDrop::default();
    let wire = Wire {
        stream,
        reset: reset.clone(),
    };
    let service = service_fn(move |request| respond(shared.clone(), reset.clone(), request));
    // What a connection ends with is the client's business, or was asked for.
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(wire), service)
        .await;
}

async fn respond(
    shared: Arc<Shared>,
    connection: ResetOnDrop,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Body>, Cut> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
    let at = Instant::now();
    let headers: Vec<(String, String)> = head
        .headers
        .iter()
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.to_string(), value)
        })
        .collect();
    let key = crate::record::header(&headers, "authorization")
        .map(|value| value.strip_prefix("Bearer ").unwrap_or(value))
        .or_else(|| crate::record::header(&headers, "api-key"))
        .map(str::to_owned);
    let mut number = 0;
    let slot = shared.log().enter(|next| {
        number = next;
        Record {
            number,
            arrived: at,
            method: head.method.to_string(),
            path: head.uri.to_string(),
            key,
            headers: headers.clone(),
            inputs: 0,
            tokens: 0,
            fields: Map::new(),
            texts: Vec::new(),
            verdict: Verdict::Open,
            status: None,
            sent_fully: false,
            ended: None,
        }
    });
    let ticket = Ticket {
        shared: shared.clone(),
        slot,
        sent_fully: false,
    };
    let arrival = Arrival {
        number,
        slot,
        at,
        method: head.method.to_string(),
        uri: head.uri,
        headers,
        body,
    };
    // Counting and writing take milliseconds, and a test's closure as long as it likes: meanwhile others must arrive.
    let planned = {
        let shared = shared.clone();
        tokio::task::spawn_blocking(move || plan(&shared, arrival)).await
    };
    let Plan {
        wait,
        can_be_held,
        action,
    } = match planned {
        Ok(plan) => plan,
        Err(error) => {
            if let Ok(panic) = error.try_into_panic() {
                shared.remember_panic(panic);
            }
            return Err(Cut);
        }
    };
    if !wait.is_zero() {
        tokio::time::sleep_until((at + wait).into()).await;
    }
    if can_be_held {
        // The sender lives as long as what is shared.
        let _ = shared.held.subscribe().wait_for(|held| !held).await;
    }
    match action {
        Action::Hang => std::future::pending().await,
        Action::End(end) => Err(connection.end(end)),
        Action::Answer {
            head,
            length,
            steps,
        } => {
            shared
                .log()
                .update(slot, |record| record.status = Some(head.status));
            let mut response = hyper::Response::builder().status(head.status);
            for (name, value) in &head.headers {
                response = response.header(name, value);
            }
            let body = Body::new(steps, length, connection, ticket);
            Ok(response
                .body(body)
                .expect("a test asks for headers that HTTP can carry"))
        }
    }
}

/// A connection that may end with a reset.
struct Wire {
    stream: TcpStream,
    reset: ResetOnDrop,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.reset.is_set() {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
