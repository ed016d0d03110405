//! The local model against COPY.

use std::time::Duration;

use harness::*;

use crate::report::{line, median, timed};

pub fn pipeline_against_copy(cluster: &Cluster, documents: usize) {
    println!(
        "{documents} documents through the pipeline (local model), against COPY of the finished rows"
    );
    let db = Database::new_in(cluster);
    db.run("SELECT ingest.create_pipeline(index => 'none'); SELECT ingest.embed('The model is loaded.')");
    db.run("SELECT ingest.pause('default')");
    db.run(&format!(
        "INSERT INTO ingest.documents (key, content)
         SELECT 'k' || n, (SELECT string_agg(format('Sentence %s of document %s speaks of the %s.', s, n,
                               (ARRAY['harbour', 'garden', 'engine', 'letter', 'forest'])[1 + (n + s) % 5]), ' ')
                           FROM generate_series(1, 12) s)
         FROM generate_series(1, {documents}) n"
    ));
    let embedding = timed(|| {
        db.run("SELECT ingest.resume('default')");
        db.run("SELECT ingest.wait()");
    });
    let progress = db.progress();
    let columns = "id, document_key, chunk_no, content, tokens, metadata, embedding";
    db.run("CREATE TABLE public.copied (LIKE ingest.default_chunks INCLUDING ALL)");
    let mut rows = Vec::new();
    db.with_client(|client| {
        use std::io::Read;
        client
            .copy_out(&format!("COPY ingest.default_chunks ({columns}) TO STDOUT"))
            .expect("COPY TO")
            .read_to_end(&mut rows)
            .expect("the rows");
    });
    let mut copies: Vec<Duration> = (0..5)
        .map(|_| {
            db.run("TRUNCATE public.copied");
            timed(|| {
                db.with_client(|client| {
                    use std::io::Write;
                    let mut writer = client
                        .copy_in(&format!("COPY public.copied ({columns}) FROM STDIN"))
                        .expect("COPY FROM");
                    writer.write_all(&rows).expect("the rows");
                    writer.finish().expect("COPY ends");
                });
            })
        })
        .collect();
    let copy = median(&mut copies);
    let per_second =
        |count: i64, time: Duration| format!("{:.0}/s", count as f64 / time.as_secs_f64());
    line(
        "documents embedded",
        per_second(progress.embedded, embedding),
    );
    line("tokens embedded", per_second(progress.tokens, embedding));
    line("documents by COPY", per_second(progress.embedded, copy));
    line(
        "pipeline : COPY, documents per second",
        format!("{:.4}", copy.as_secs_f64() / embedding.as_secs_f64()),
    );
    println!();
}
