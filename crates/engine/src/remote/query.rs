//! A query: one text, ahead of the backlog.

use std::sync::Arc;
use std::time::{Duration, Instant};

use embedder::remote::Purpose;
use embedder::{EmbedError, ErrorClass};
use limiter::Now;
use tokio::time::sleep;

use super::call::Refusal;
use super::lane::{LONGEST_SLEEP, LOOK_AGAIN};
use super::{Event, Lane, NOT_REMOTE, Remotes};
use crate::pipeline::Pipeline;

/// How long a query whose key was refused waits for another one.
const KEY_WAIT: Duration = Duration::from_secs(1);

impl Remotes {
    /// The vector of a query: ahead of the backlog, and asked again while the provider is busy, until `deadline` or until
    /// nobody wants it any more.
    pub(crate) fn query(
        self: &Arc<Self>,
        pipeline: &Arc<Pipeline>,
        text: String,
        tokens: usize,
        deadline: Instant,
        wanted: impl Fn() -> bool,
    ) -> Result<Vec<f32>, EmbedError> {
        let runtime = self.runtime()?;
        let (sender, answers) = std::sync::mpsc::channel();
        let this = Arc::clone(self);
        let lane = self.lane(pipeline);
        let task = runtime.spawn(async move {
            let _ = sender.send(this.query_until(&lane, text, tokens, deadline).await);
        });
        loop {
            match answers.recv_timeout(Duration::from_millis(50)) {
                Ok(answer) => return answer,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) if wanted() => {}
                Err(_) => {
                    task.abort();
                    return Err(EmbedError::new(
                        ErrorClass::Internal,
                        "the query was given up",
                    ));
                }
            }
        }
    }

    async fn query_until(
        &self,
        lane: &Lane,
        text: String,
        tokens: usize,
        deadline: Instant,
    ) -> Result<Vec<f32>, EmbedError> {
        let mut last: Option<EmbedError> = None;
        let mut attempt = 0;
        loop {
            let pipeline = lane.pipeline();
            let Some(budget) = pipeline.remote.as_ref().map(|remote| remote.budget) else {
                return Err(EmbedError::model_unusable(NOT_REMOTE));
            };
            let admitted = budget
                .limit
                .admit(Now::read(), budget.claimant(true), tokens as u64);
            if let Err(wait) = admitted {
                let wait = wait.duration();
                if Instant::now() + wait >= deadline {
                    return Err(last.unwrap_or_else(|| too_busy(wait)));
                }
                sleep(wait.min(LONGEST_SLEEP)).await;
                continue;
            }
            let texts = vec![text.clone()];
            let result = self
                .call(&pipeline, Purpose::Query, texts, tokens, Vec::new())
                .await;
            match result {
                Ok(mut answer) => {
                    return answer.vectors.pop().ok_or_else(|| {
                        EmbedError::new(ErrorClass::BadResponse, "no vector in the answer")
                    });
                }
                Err(Refusal {
                    error,
                    wait: Some(wait),
                }) => {
                    attempt += 1;
                    self.note(Event::Throttled {
                        pipeline: pipeline.id,
                        inputs: 1,
                        attempt,
                        error: error.clone(),
                        wait,
                    });
                    last = Some(error);
                }
                Err(Refusal { error, wait: None }) => {
                    if error.class != ErrorClass::Auth
                        || !self.gets_another_key(lane, &pipeline).await
                    {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Has the key of a pipeline read anew; whether it is another one.
    async fn gets_another_key(&self, lane: &Lane, pipeline: &Pipeline) -> bool {
        let start = Instant::now();
        if !lane.has_another_key(pipeline) {
            self.note(Event::KeyRefused {
                pipeline: pipeline.id,
            });
        }
        while !lane.has_another_key(pipeline) {
            if start.elapsed() > KEY_WAIT {
                return false;
            }
            sleep(LOOK_AGAIN).await;
        }
        true
    }
}

/// What a query is told that would have to wait too long.
fn too_busy(wait: Duration) -> EmbedError {
    EmbedError::new(
        ErrorClass::RateLimited,
        format!(
            "the budget of the pipeline allows no request for another {:.0} s",
            wait.as_secs_f64().ceil()
        ),
    )
    .with_hint("SELECT * FROM ingest.limits shows what is used and until when it cools down.")
}
