//! `embed`: a query's vector, made by the worker, which has the model at hand.
//!
//! The worker listens on a socket in the data directory, which only the server's own user can open; see
//! [`crate::worker::query_server`]. The backend waits on its latch and the socket, so a cancel or a
//! `statement_timeout` ends the wait at once.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use pgrx::prelude::*;

use crate::api::definition::Definition;
use crate::api::status::{is_served, require_worker};
use crate::errors::{OrRaise, UserError};
use crate::worker::query_server::{self, Answer, MAX_ANSWER, MAX_QUESTION, Question};
use crate::{access, shmem};

/// Looks for a worker that is starting, and milliseconds between them: five seconds.
const PATIENCE: u32 = 100;
const LOOK_AGAIN: i64 = 50;

#[pg_extern(sql = false)]
fn embed_array(input: Option<&str>, pipeline: Option<&str>) -> Option<Vec<f32>> {
    let input = input?;
    let definition = Definition::named(pipeline.unwrap_or("default"));
    definition.require_use();
    if input.trim().is_empty() {
        UserError::invalid("the text to embed is empty")
            .hint("Ask with at least one word.")
            .raise();
    }
    if input.len() > MAX_QUESTION / 2 {
        UserError::new(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!(
                "the text to embed is longer than {} bytes",
                MAX_QUESTION / 2
            ),
        )
        .detail(format!("It has {}.", input.len()))
        .hint(
            "A model reads some hundreds of words of a query; documents go into ingest.documents.",
        )
        .raise();
    }
    wait_for_worker();
    require_worker();
    let is_owned = definition.is_owned();
    let question = Question {
        pipeline: definition.pipeline_id,
        generation: definition.generation,
        model: definition.model,
        input: input.to_owned(),
    };
    match ask(&question).or_raise() {
        Answer::Vector(vector) => Some(vector),
        Answer::Error { message, hint } => {
            let (message, hint) = match access::is_for_the_owner(&message) && !is_owned {
                true => (access::told_to_others(), None),
                false => (message, hint),
            };
            let error = UserError::new(
                PgSqlErrorCode::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
                format!("the query cannot be embedded: {message}"),
            );
            match hint {
                Some(hint) => error.hint(hint).raise(),
                None => error.raise(),
            }
        }
    }
}

/// Waits for the worker that is on its way to this database, as after CREATE EXTENSION or a restart.
fn wait_for_worker() {
    // SAFETY: a plain global, set when the backend connected.
    let database = unsafe { pg_sys::MyDatabaseId };
    let Some(shared) = shmem::get() else {
        return;
    };
    let is_there = || shared.workers_of(database).next().is_some();
    if is_there() || !is_served(database) {
        return;
    }
    for look in 0..PATIENCE {
        // One that looked a moment ago may have found no extension yet.
        if look % 20 == 0 {
            shared.request_worker(database);
        }
        wait_on(-1, 0, LOOK_AGAIN);
        if is_there() {
            return;
        }
    }
}

/// Asks the workers of this database in turn until one answers.
fn ask(question: &Question) -> Result<Answer, UserError> {
    let unavailable = |detail: String| {
        UserError::new(
            PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
            "the pg_ingest worker does not answer",
        )
        .detail(detail)
        .hint("It may be starting: try again. SELECT * FROM ingest.doctor() tells more.")
    };
    // SAFETY: a plain global, set when the backend connected.
    let database = unsafe { pg_sys::MyDatabaseId };
    // A worker that has just started is not listening yet.
    for _ in 0..PATIENCE {
        for index in shmem::get()
            .into_iter()
            .flat_map(|shared| shared.workers_of(database).map(|(index, _)| index))
        {
            if let Ok(stream) = UnixStream::connect(query_server::socket_path(index)) {
                return exchange(stream, question).map_err(|error| unavailable(error.to_string()));
            }
        }
        wait_on(-1, 0, LOOK_AGAIN);
    }
    Err(unavailable(
        "none of the workers listens for queries".into(),
    ))
}

fn exchange(mut stream: UnixStream, question: &Question) -> std::io::Result<Answer> {
    stream.set_nonblocking(true)?;
    let message = serde_json::to_vec(question)?;
    let mut frame = (message.len() as u32).to_le_bytes().to_vec();
    frame.extend(message);
    let mut sent = 0;
    while sent < frame.len() {
        match stream.write(&frame[sent..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => sent += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                wait_on(stream.as_raw_fd(), pg_sys::WL_SOCKET_WRITEABLE, -1);
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let mut received = Vec::new();
    let mut buffer = [0u8; 16 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => received.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                wait_on(stream.as_raw_fd(), pg_sys::WL_SOCKET_READABLE, -1);
                continue;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        }
        if let Some((length, body)) = received.split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            if length > MAX_ANSWER {
                return Err(ErrorKind::InvalidData.into());
            }
            if body.len() >= length {
                return Answer::decode(&body[..length])
                    .ok_or_else(|| ErrorKind::InvalidData.into());
            }
        }
    }
}

/// Waits for the socket (none when negative) or the timeout (milliseconds, none when negative). Raises when the query is
/// cancelled or the server stops.
fn wait_on(socket: i32, events: u32, timeout: i64) {
    let mut wanted = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH;
    if socket >= 0 {
        wanted |= events;
    }
    if timeout >= 0 {
        wanted |= pg_sys::WL_TIMEOUT;
    }
    // SAFETY: MyLatch is this backend's; the socket is open for the duration of the call.
    let woken = unsafe {
        pg_sys::WaitLatchOrSocket(
            pg_sys::MyLatch,
            wanted as i32,
            socket,
            timeout,
            pg_sys::PG_WAIT_EXTENSION,
        )
    };
    if woken & pg_sys::WL_LATCH_SET as i32 != 0 {
        // SAFETY: as above.
        unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
    }
    pgrx::check_for_interrupts!();
}
