//! The engine as its user sees it. What needs a model reads PG_INGEST_MODEL_DIR and is skipped without it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chunker::{SplitOptions, Splitter};

use super::*;

/// Local models send no requests.
static IN_FLIGHT: AtomicI32 = AtomicI32::new(0);

fn pipeline(chunk_tokens: usize) -> Arc<Pipeline> {
    Arc::new(Pipeline {
        id: 1,
        generation: 0,
        model: "local/all-MiniLM-L6-v2".parse().expect("a model name"),
        dimensions: 384,
        split: SplitOptions {
            splitter: Splitter::Text,
            chunk_tokens,
            chunk_overlap: 0,
        },
        batch_size: None,
        remote: None,
    })
}

/// Submits the texts, all of one pipeline, and returns how each ended, by ticket.
fn run(
    model_dir: &Path,
    pipeline: &Arc<Pipeline>,
    contents: &[String],
) -> BTreeMap<u64, Vec<Outcome>> {
    let (ring, rung) = channel();
    let ring = Mutex::new(ring);
    let engine = Engine::start(Config {
        model_dir: model_dir.to_owned(),
        inference_threads: 2,
        split_threads: 2,
        vector_cache: 1024 * 1024,
        requests_in_flight: &IN_FLIGHT,
        notify: Arc::new(move || {
            let _ = ring.lock().map(|ring| ring.send(()));
        }),
    })
    .expect("threads");
    for (ticket, content) in contents.iter().enumerate() {
        assert!(engine.room(pipeline).is_some());
        engine.submit(Document {
            ticket: ticket as u64,
            pipeline: Arc::clone(pipeline),
            content: content.clone(),
            former: Vec::new(),
            alone: false,
            mark: Mark::unseen(),
        });
    }
    assert!(engine.documents_in_flight() > 0);
    let mut ended: BTreeMap<u64, Vec<Outcome>> = BTreeMap::new();
    while engine.documents_in_flight() > 0 {
        rung.recv_timeout(Duration::from_secs(120))
            .expect("the engine rings for every outcome");
        for outcome in engine.poll(usize::MAX) {
            ended.entry(outcome.ticket()).or_default().push(outcome);
        }
    }
    assert_eq!(engine.room(pipeline), LOCAL_ROOM, "all room is given back");
    ended
}

fn model_dir() -> Option<PathBuf> {
    let dir = std::env::var_os("PG_INGEST_MODEL_DIR").map(PathBuf::from);
    if dir.is_none() {
        eprintln!("skipped: PG_INGEST_MODEL_DIR is not set");
    }
    dir
}

#[test]
fn without_a_model_every_document_comes_back_once_and_none_is_blamed() {
    let contents: Vec<String> = (0..50).map(|n| format!("document {n}")).collect();
    let ended = run(Path::new("/nonexistent"), &pipeline(100), &contents);
    assert_eq!(ended.len(), contents.len());
    for outcomes in ended.values() {
        assert!(
            matches!(outcomes.as_slice(), [Outcome::Unusable { .. }]),
            "{outcomes:?}"
        );
    }
}

#[test]
fn a_document_comes_back_whole_and_a_blank_one_fails_alone() {
    let Some(dir) = model_dir() else { return };
    let mut contents: Vec<String> = (0..20)
        .map(|n| format!("Document number {n} speaks of cats. ").repeat(1 + 7 * (n % 4)))
        .collect();
    contents[3] = "  \n\t ".into();
    let pipeline = pipeline(16);
    let ended = run(&dir, &pipeline, &contents);
    assert_eq!(ended.len(), contents.len());
    for (ticket, outcomes) in &ended {
        let content = &contents[*ticket as usize];
        match outcomes.as_slice() {
            [Outcome::Failed { .. }] => assert_eq!(*ticket, 3),
            [Outcome::Embedded { chunks, .. }] => {
                let together: String = chunks.iter().map(|c| c.content.as_str()).collect();
                let bare = |text: &str| text.split_whitespace().collect::<String>();
                assert_eq!(bare(&together), bare(content));
                for chunk in chunks {
                    assert!(chunk.tokens <= 16);
                    let length: f32 = chunk.embedding.iter().map(|x| x * x).sum();
                    assert!((length - 1.0).abs() < 1e-3, "a unit vector");
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_chunk_and_the_same_text_as_a_query_have_the_same_vector() {
    let Some(dir) = model_dir() else { return };
    let text = "How do I rotate a key?".to_owned();
    let ended = run(&dir, &pipeline(100), std::slice::from_ref(&text));
    let Some([Outcome::Embedded { chunks, .. }]) = ended.get(&0).map(Vec::as_slice) else {
        panic!("{ended:?}")
    };
    let engine = Engine::start(Config {
        model_dir: dir,
        inference_threads: 1,
        split_threads: 1,
        vector_cache: 0,
        requests_in_flight: &IN_FLIGHT,
        notify: Arc::new(|| ()),
    })
    .expect("threads");
    let query = engine
        .queries()
        .embed((1, 0), &pipeline(100).model, &text, || true)
        .expect("a vector");
    let cosine: f32 = query
        .iter()
        .zip(chunks[0].embedding.iter())
        .map(|(a, b)| a * b)
        .sum();
    assert!(cosine > 0.999, "cosine {cosine}");
}
