//! Comparing what is there with what must be.

use std::collections::{BTreeMap, BTreeSet};

use fake_api::vector_of;
use postgres::Client;

use super::state::{Staged, State};
use super::statements::{ARCHIVE, Content, PIPELINES, POISON, metadata};
use crate::ServerError;

/// What holds at any moment, in one snapshot: the counters count what is there; a document that is neither queued nor failed
/// has exactly the chunks of its present content, and no chunk is of a document that is not there.
const FITS: &str = "
WITH target AS (
    SELECT 'p' AS name, document_key, chunk_no, content, tokens, metadata FROM ingest.p_chunks
    UNION ALL SELECT 'q', document_key, chunk_no, content, tokens, metadata FROM ingest.q_chunks
    UNION ALL SELECT 'a', document_key, chunk_no, content, tokens, metadata FROM ingest.a_chunks
), counted AS (
    SELECT p.pipeline_id, p.name,
           (SELECT count(*) FROM ingest.documents d WHERE d.pipeline = p.name) AS documents,
           CASE WHEN p.on_success = 'delete' THEN
               (SELECT count(DISTINCT document_key) FROM target t WHERE t.name = p.name) ELSE 0 END AS archived,
           (SELECT count(*) FROM ingest.queue q WHERE q.pipeline_id = p.pipeline_id) AS queued,
           (SELECT coalesce(sum(octet_length(d.content)), 0)::bigint FROM ingest.queue q JOIN ingest.documents d ON d.id = q.document_id
            WHERE q.pipeline_id = p.pipeline_id) AS queued_bytes,
           (SELECT count(*) FROM ingest.failures f WHERE f.pipeline = p.name AND f.rebuild = (p.successor_of IS NOT NULL)
              AND NOT EXISTS (SELECT FROM ingest.queue q WHERE q.document_id = f.document_id AND q.pipeline_id = p.pipeline_id)) AS failed,
           (SELECT count(*) FROM target t WHERE t.name = p.name) AS chunks,
           (SELECT coalesce(sum(tokens), 0)::bigint FROM target t WHERE t.name = p.name) AS tokens,
           p.successor_of IS NOT NULL AS rebuild
    FROM ingest.pipeline p
), wrong_count AS (
    SELECT format('the counters of %s are %s, and there are %s', c.name, to_jsonb(t), to_jsonb(c) - 'name') AS wrong
    FROM counted c JOIN ingest.totals t USING (pipeline_id) JOIN ingest.progress p ON p.pipeline = c.name
    WHERE (t.documents, t.archived, t.queued, t.queued_bytes, t.failed)
          <> (c.documents, c.archived, c.queued, c.queued_bytes, c.failed)
       -- What is in the table of a rebuild is seen when that has taken its place.
       OR NOT c.rebuild AND (t.chunks, t.tokens) <> (c.chunks, c.tokens)
       OR NOT c.rebuild AND (p.documents, p.embedded, p.pending + p.in_flight, p.failed, p.chunks, p.tokens)
          <> (c.documents + c.archived, c.documents + c.archived - c.queued - c.failed, c.queued, c.failed, c.chunks, c.tokens)
), orphaned AS (
    SELECT format('there is a row of %s for document %s, which is not there', o.kind, o.document_id) AS wrong
    FROM (SELECT 'queue' AS kind, document_id, pipeline_id FROM ingest.queue
          UNION ALL SELECT 'failures', f.document_id, p.pipeline_id FROM ingest.failures f
                    JOIN ingest.pipeline p ON p.name = f.pipeline AND f.rebuild = (p.successor_of IS NOT NULL)) AS o
    LEFT JOIN (SELECT d.id, p.pipeline_id FROM ingest.documents d JOIN ingest.pipeline p ON p.name = d.pipeline) AS d
        ON d.id = o.document_id AND d.pipeline_id = o.pipeline_id
    WHERE d.id IS NULL
), embedded AS (
    SELECT d.* FROM ingest.documents d
    WHERE d.pipeline <> 'a' AND NOT EXISTS (SELECT FROM ingest.queue q JOIN ingest.pipeline p USING (pipeline_id)
                                          WHERE q.document_id = d.id AND p.successor_of IS NULL)
      AND NOT EXISTS (SELECT FROM ingest.failures f WHERE f.document_id = d.id AND NOT f.rebuild)
), due AS (
    SELECT e.pipeline, e.key, c.chunk_no, c.content, c.tokens, e.metadata
    FROM embedded e LEFT JOIN LATERAL ingest.split(e.content, e.pipeline) AS c ON true
), there AS (
    SELECT t.* FROM target t
    WHERE t.name <> 'a' AND NOT EXISTS (SELECT FROM ingest.documents d WHERE d.pipeline = t.name AND d.key = t.document_key
                                          AND d.id NOT IN (SELECT id FROM embedded))
)
SELECT wrong FROM wrong_count
UNION ALL SELECT wrong FROM orphaned
UNION ALL SELECT format('a chunk is missing: %s', d) FROM (TABLE due EXCEPT ALL TABLE there) AS d
UNION ALL SELECT format('there is a chunk too many: %s', t) FROM (TABLE there EXCEPT ALL TABLE due) AS t";

/// Looks whether everything fits together at this moment.
pub fn all_fits(client: &mut Client) -> Result<(), String> {
    let wrong: Vec<String> = rows(client, FITS, &[])?
        .iter()
        .map(|row| row.get(0))
        .collect();
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n"))
    }
}

fn rows(
    client: &mut Client,
    sql: &str,
    parameters: &[&(dyn postgres::types::ToSql + Sync)],
) -> Result<Vec<postgres::Row>, String> {
    let rows = client.query(sql, parameters);
    rows.map_err(|error| format!("{sql}: {}", ServerError::from(error).text()))
}

/// Pipeline and key.
type Place = (String, String);
/// Content, metadata as JSON text.
type Document = (Option<String>, String);
/// A chunk: number, text, tokens, metadata as JSON text.
type Chunk = (i32, String, i32, String);

/// Looks, when nothing is pending, whether the documents are those of the model, those that can be are embedded and the others
/// failures. Returns how many documents and chunks there are.
pub fn is_as_the_model_says(client: &mut Client, state: &State) -> Result<(usize, usize), String> {
    let waiting = rows(client, "SELECT q::text FROM ingest.queue q", &[])?;
    if let Some(row) = waiting.first() {
        return Err(format!(
            "the queue is not empty: {}",
            row.get::<_, String>(0)
        ));
    }
    let documents = staged(client)?;
    let mut expected: BTreeMap<Place, Document> = BTreeMap::new();
    for (place, document) in &state.documents {
        let value = (document.content.text(), metadata(document.metadata));
        expected.insert(place.clone(), value);
    }
    let failed: BTreeSet<Place> = rows(
        client,
        "SELECT d.pipeline, d.key FROM ingest.failures f JOIN ingest.documents d ON d.id = f.document_id AND d.key = f.key AND d.pipeline = f.pipeline",
        &[],
    )?
    .iter()
    .map(|row| (row.get(0), row.get(1)))
    .collect();
    let mut chunks = BTreeMap::new();
    for name in PIPELINES.iter().chain(&[ARCHIVE]) {
        read_chunks(client, name, &mut chunks)?;
    }
    let all_chunks = chunks.values().map(Vec::len).sum();
    let mut must_fail = BTreeSet::new();
    for (place, document) in &state.documents {
        let due = split(client, place, &document.content, document.metadata)?;
        let found = chunks.remove(place).unwrap_or_default();
        match due {
            Some(due) if due == found => {}
            Some(due) => return Err(format!("{place:?} has {found:?}, and not {due:?}")),
            None => {
                must_fail.insert(place.clone());
                are_former(place, document, &found)?;
            }
        }
    }
    for (key, document) in &state.archived {
        let place = (ARCHIVE.to_owned(), key.clone());
        let due = split(client, &place, &document.content, 0)?;
        let found = chunks.remove(&place);
        match (due, found) {
            (Some(due), Some(found)) if due == found => {}
            (_, None) if !document.certain => {}
            (None, None) => {
                must_fail.insert(place.clone());
                expected.insert(place, (document.content.text(), metadata(0)));
            }
            (due, found) => return Err(format!("{place:?} has {found:?}, and not {due:?}")),
        }
    }
    if let Some((place, found)) = chunks.pop_first() {
        return Err(format!("{place:?} is not there, and has {found:?}"));
    }
    for (place, document) in &expected {
        if documents.get(place) != Some(document) {
            let found = documents.get(place);
            return Err(format!("{place:?} is {found:?}, and not {document:?}"));
        }
    }
    if let Some(place) = documents
        .keys()
        .find(|place| !expected.contains_key(*place))
    {
        return Err(format!("{place:?} is there, and should not be"));
    }
    if failed != must_fail {
        return Err(format!("failures are {failed:?}, and not {must_fail:?}"));
    }
    Ok((state.documents.len() + state.archived.len(), all_chunks))
}

fn staged(client: &mut Client) -> Result<BTreeMap<Place, Document>, String> {
    let sql = "SELECT pipeline, key, content, metadata::text FROM ingest.documents";
    let read = |row: &postgres::Row| ((row.get(0), row.get(1)), (row.get(2), row.get(3)));
    Ok(rows(client, sql, &[])?.iter().map(read).collect())
}

/// Reads the chunks of a pipeline by document, and looks whether each vector is its text's.
fn read_chunks(
    client: &mut Client,
    pipeline: &str,
    chunks: &mut BTreeMap<Place, Vec<Chunk>>,
) -> Result<(), String> {
    let sql = format!(
        "SELECT document_key, chunk_no, content, tokens, metadata::text, embedding::real[]
         FROM ingest.{pipeline}_chunks ORDER BY document_key, chunk_no"
    );
    for row in rows(client, &sql, &[])? {
        let (content, vector): (String, Vec<f32>) = (row.get(2), row.get(5));
        let right = vector_of(&content, vector.len());
        if !vector.iter().zip(&right).all(|(a, b)| (a - b).abs() < 1e-6) {
            return Err(format!("the vector of {content:?} is another text's"));
        }
        let place = (pipeline.to_owned(), row.get(0));
        let chunk = (row.get(1), content, row.get(3), row.get(4));
        chunks.entry(place).or_default().push(chunk);
    }
    Ok(())
}

/// The chunks that a content must have; none when it cannot be embedded.
fn split(
    client: &mut Client,
    (pipeline, _): &Place,
    content: &Content,
    label: usize,
) -> Result<Option<Vec<Chunk>>, String> {
    let Some(text) = content.text() else {
        return Ok(None);
    };
    if text.contains(POISON) {
        return Ok(None);
    }
    let sql = "SELECT chunk_no, content, tokens FROM ingest.split($1, $2) ORDER BY 1";
    let Ok(rows) = client.query(sql, &[&text, pipeline]) else {
        return Ok(None);
    };
    let chunk = |row: &postgres::Row| (row.get(0), row.get(1), row.get(2), metadata(label));
    let chunks: Vec<Chunk> = rows.iter().map(chunk).collect();
    Ok((!chunks.is_empty()).then_some(chunks))
}

/// Looks whether the chunks of a document that failed are none, or those of one content that it had before, or has, cut in
/// another way.
fn are_former(place: &Place, document: &Staged, chunks: &[Chunk]) -> Result<(), String> {
    let whole = |text: &str| chunks.iter().all(|chunk| text.contains(chunk.1.trim()));
    let contents = document.former.iter().chain([&document.content]);
    let mut former = contents.filter_map(Content::text);
    let numbered = chunks
        .iter()
        .enumerate()
        .all(|(n, chunk)| chunk.0 == n as i32);
    if chunks.is_empty() || (numbered && former.any(|text| whole(&text))) {
        return Ok(());
    }
    Err(format!("{place:?} failed, and has {chunks:?}"))
}
