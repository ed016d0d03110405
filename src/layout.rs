//! The layouts of a target: the table that its readers expect. What differs between layouts stands here, as SQL, for the
//! worker, for the triggers' work on a target and, through `ingest.columns_of()`, for the functions that search.
//!
//! - `chunks`: a column for each thing; what the Supabase guides and LangChain read, and more.
//! - `vecs`: `vecs."<name>" (id, vec, metadata)`, a collection of the vecs client (`Collection` in its `collection.py`). Its
//!   metadata is what LlamaIndex's SupabaseVectorStore writes (`node_to_metadata_dict`): the document's own, the ids of the
//!   document under three names, the whole node as JSON text; and `text`, `_chunk_no` and `_tokens`.
//!
//! All of it is for a `search_path` of `pg_catalog`, as every function of ours and the worker have it.

use pgrx::prelude::*;
use pgrx::spi::quote_literal;

use crate::errors::{OrRaise, UserError};

/// pgvector indexes at most so many dimensions of type vector (README, HNSW); halfvec above.
const MAX_VECTOR_DIMENSIONS: i32 = 2000;

/// A layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A column for each thing.
    Chunks,
    /// A collection of the vecs client.
    Vecs,
}

/// What a chunk has, as SQL over its row `c`.
pub struct Columns {
    /// A text of its own: its document's key and its number.
    pub id: &'static str,
    /// Its document's key.
    pub key: &'static str,
    /// Its place in the document, from 0.
    pub chunk_no: &'static str,
    /// Its text.
    pub content: &'static str,
    /// The length of its text in tokens.
    pub tokens: &'static str,
    /// Its document's metadata.
    pub metadata: &'static str,
    /// What a filter is compared with.
    pub filtered: &'static str,
    /// Its vector.
    pub embedding: &'static str,
    /// An expression with an index that is the document's key in chunks that we wrote.
    found_by: &'static str,
    /// Whether we wrote it.
    is_ours: &'static str,
}

const CHUNKS: Columns = Columns {
    id: "c.document_key || '#' || c.chunk_no",
    key: "c.document_key",
    chunk_no: "c.chunk_no",
    content: "c.content",
    tokens: "c.tokens",
    metadata: "c.metadata",
    filtered: "c.metadata",
    embedding: "c.embedding",
    found_by: "c.document_key",
    is_ours: "c.document_key IS NOT NULL",
};

/// The text of a node that LlamaIndex itself wrote (`node_to_metadata_dict`), which is nowhere else. What others call `_node_content`
/// need be no JSON, and must not make a search fail: only a text of which nothing but a string that jsonb takes is left is parsed.
macro_rules! node_text {
    () => {
        r#"(substring(c.metadata ->> '_node_content' FROM E'"text": ?("(?:[^"\\\\\\u0001-\\u001f]|\\\\["\\\\/bfnrt]|\\\\u(?!0000|d[89a-f])[0-9a-f]{4}|\\\\ud[89ab][0-9a-f]{2}\\\\ud[c-f][0-9a-f]{2})*")'))::jsonb #>> '{}'"#
    };
}

const VECS: Columns = Columns {
    id: "c.id",
    key: "coalesce(c.metadata ->> 'doc_id', c.id)",
    chunk_no: "(c.metadata ->> '_chunk_no')::int",
    content: concat!("coalesce(c.metadata ->> 'text', ", node_text!(), ")"),
    tokens: "(c.metadata ->> '_tokens')::int",
    metadata: "CASE WHEN c.metadata ? '_chunk_no' THEN coalesce((c.metadata ->> '_node_content')::jsonb -> 'metadata', c.metadata)
                    WHEN jsonb_typeof(c.metadata) = 'object' AND c.metadata ? '_node_type'
                    THEN c.metadata - '{_node_content,_node_type,doc_id,document_id,ref_doc_id}'::text[]
                    ELSE c.metadata END",
    filtered: "c.metadata",
    embedding: "c.vec",
    found_by: "c.metadata ->> 'doc_id'",
    is_ours: "c.metadata ? '_chunk_no'",
};

/// A row of what [`Layout::insert`] is given.
const INSERTED: Columns = Columns {
    id: "n.key || '#' || n.chunk_no",
    key: "n.key",
    chunk_no: "n.chunk_no",
    content: "n.content",
    tokens: "n.tokens",
    ..CHUNKS
};

impl Layout {
    /// The layout of this name.
    pub fn named(name: &str) -> Result<Self, UserError> {
        match name {
            "chunks" => Ok(Self::Chunks),
            "vecs" => Ok(Self::Vecs),
            _ => Err(
                UserError::invalid(format!("layout {name:?} does not exist"))
                    .hint("layout is one of: chunks, vecs."),
            ),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chunks => "chunks",
            Self::Vecs => "vecs",
        }
    }

    /// What a chunk has in it.
    pub fn columns(self) -> &'static Columns {
        match self {
            Self::Chunks => &CHUNKS,
            Self::Vecs => &VECS,
        }
    }

    /// Schema and name of the target of a pipeline that names none.
    pub fn default_target(self, pipeline: &str) -> (String, String) {
        match self {
            Self::Chunks => ("ingest".into(), format!("{pipeline}_chunks")),
            Self::Vecs => ("vecs".into(), pipeline.into()),
        }
    }

    /// Whether its readers find a table of this schema and name.
    pub fn check_target(self, schema: &str, table: &str) -> Result<(), UserError> {
        if self == Self::Chunks {
            return Ok(());
        }
        let error = |problem| UserError::new(PgSqlErrorCode::ERRCODE_INVALID_NAME, problem);
        if schema != "vecs" {
            return Err(error(format!(
                "the target of a pipeline with layout vecs is in the schema vecs, not in {schema:?}"
            ))
            .hint(format!(
                "The vecs client looks there only: target => 'vecs.{table}'."
            )));
        }
        if table.starts_with('_') {
            return Err(
                error(format!("the vecs client does not see table {table:?}"))
                    .detail("It takes no table for a collection whose name begins with '_'.")
                    .hint("Give another target."),
            );
        }
        Ok(())
    }

    /// Whether it holds vectors of so many dimensions.
    pub fn check_dimensions(self, dimensions: i32) -> Result<(), UserError> {
        if self == Self::Vecs && dimensions > MAX_VECTOR_DIMENSIONS {
            return Err(UserError::invalid(format!(
                "layout vecs holds at most {MAX_VECTOR_DIMENSIONS} dimensions, not {dimensions}"
            ))
            .detail("The vecs client knows the type vector only, and pgvector indexes no more dimensions of it.")
            .hint("Use layout => 'chunks', which holds halfvec, or dimensions => 2000 or less if the model can be shortened."));
        }
        Ok(())
    }

    /// The type of the vectors, without its schema.
    pub fn vector_type(self, dimensions: i32) -> &'static str {
        if dimensions > MAX_VECTOR_DIMENSIONS {
            "halfvec"
        } else {
            "vector"
        }
    }

    /// The column that holds the vectors.
    pub fn embedding_column(self) -> &'static str {
        match self {
            Self::Chunks => "embedding",
            Self::Vecs => "vec",
        }
    }

    /// The columns that a table must have: name and type as `format_type()` tells it, without a schema.
    pub fn wanted_columns(self, dimensions: i32) -> Vec<(&'static str, String)> {
        let vector = format!("{}({dimensions})", self.vector_type(dimensions));
        let columns: &[_] = match self {
            Self::Chunks => &[
                ("document_key", "text"),
                ("chunk_no", "integer"),
                ("content", "text"),
                ("tokens", "integer"),
                ("metadata", "jsonb"),
                ("embedding", &vector),
            ],
            Self::Vecs => &[
                ("id", "character varying"),
                ("vec", &vector),
                ("metadata", "jsonb"),
            ],
        };
        let columns = columns.iter();
        columns
            .map(|(name, kind)| (*name, (*kind).into()))
            .collect()
    }

    /// The statements that make a table of this name. `vector` is the type of its vectors.
    pub fn create_table(self, table: &str, vector: &str) -> Vec<String> {
        let (columns, comments): (_, &[_]) = match self {
            Self::Chunks => (
                format!(
                    "id           bigint  GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
                     document_key text    NOT NULL,
                     chunk_no     int     NOT NULL,
                     content      text    NOT NULL,
                     tokens       int     NOT NULL,
                     metadata     jsonb   NOT NULL DEFAULT '{{}}',
                     embedding    {vector} NOT NULL,
                     UNIQUE (document_key, chunk_no)"
                ),
                &[
                    ("document_key", "ingest.documents.key"),
                    ("chunk_no", "place of the chunk in its document, from 0"),
                    ("tokens", "length of content in tokens of the model"),
                    ("metadata", "ingest.documents.metadata"),
                ],
            ),
            Self::Vecs => (
                format!(
                    "id       varchar NOT NULL PRIMARY KEY,
                     vec      {vector} NOT NULL,
                     metadata jsonb   NOT NULL DEFAULT '{{}}'"
                ),
                &[
                    (
                        "id",
                        "ingest.documents.key, #, place of the chunk in its document",
                    ),
                    (
                        "metadata",
                        "ingest.documents.metadata, and what LlamaIndex reads: text, _node_content, doc_id, ...",
                    ),
                ],
            ),
        };
        let mut statements = vec![
            format!("CREATE TABLE {table} ({columns})"),
            format!(
                "COMMENT ON TABLE {table} IS 'Chunks of documents with their vectors, written by pg_ingest'"
            ),
        ];
        for (column, comment) in comments {
            statements.push(format!("COMMENT ON COLUMN {table}.{column} IS '{comment}'"));
        }
        if self == Self::Vecs {
            // As the client makes it for a new collection.
            statements.push(format!(
                "CREATE INDEX ix_meta_{} ON {table} USING gin (metadata jsonb_path_ops)",
                unique()
            ));
        }
        statements
    }

    /// The index by which a document's chunks are found, for tables whose own keys do not serve: its expression as
    /// `pg_get_expr()` tells it, and the statement that makes it. The vecs client takes what begins with `ix_vector` for an
    /// index on vectors.
    pub fn key_index(self, table: &str) -> Option<(&'static str, String)> {
        (self == Self::Vecs).then(|| {
            let create = format!(
                "CREATE INDEX ix_doc_id_{} ON {table} ((metadata ->> 'doc_id'))",
                unique()
            );
            ("(metadata ->> 'doc_id'::text)", create)
        })
    }

    /// The name of the HNSW index, if its readers look for one. The vecs client reads the method, the operator class and
    /// the parameters (pgvector's defaults) out of it.
    pub fn vector_index_name(self) -> String {
        match self {
            Self::Chunks => String::new(),
            Self::Vecs => format!("ix_vector_cosine_ops_hnsw_m16_efc64_{}", unique()),
        }
    }

    /// The tsvector of a chunk's text in this language, as `pg_get_expr()` tells it of an index on it.
    pub fn text_search(self, language: &str) -> String {
        let content = match self {
            Self::Chunks => "content",
            Self::Vecs => "(metadata ->> 'text'::text)",
        };
        format!(
            "to_tsvector({}::regconfig, {content})",
            quote_literal(language)
        )
    }

    /// What the statement says for the name of the full-text index.
    pub fn text_index_name(self) -> String {
        match self {
            Self::Chunks => String::new(),
            Self::Vecs => format!("ix_text_{}", unique()),
        }
    }

    /// Counts the chunks in a table that we wrote, and their tokens.
    pub fn count(self, table: &str) -> String {
        let Columns {
            tokens, is_ours, ..
        } = self.columns();
        format!(
            "SELECT count(*), coalesce(sum({tokens}), 0)::bigint FROM {table} AS c WHERE {is_ours}"
        )
    }

    /// Counts the rows in a table that somebody else wrote, as far as that can be told.
    pub fn count_others(self, table: &str) -> String {
        format!(
            "SELECT pg_catalog.count(*) FROM {table} AS c WHERE NOT ({})",
            self.columns().is_ours
        )
    }

    /// Those of the keys `$1` (`text[]`) of which there are chunks, in an array.
    pub fn having(self, table: &str) -> String {
        let Columns {
            found_by, is_ours, ..
        } = self.columns();
        format!(
            "SELECT array_agg(DISTINCT {found_by}) FROM {table} AS c WHERE {found_by} = ANY ($1::text[]) AND {is_ours}"
        )
    }

    /// The next keys of documents that have chunks, after `$1` (from the beginning when it is null): so many, in an array.
    pub fn keys_after(self, table: &str, most: i64) -> String {
        let Columns {
            found_by, is_ours, ..
        } = self.columns();
        format!(
            "SELECT array_agg(k.key) FROM (
                 SELECT DISTINCT {found_by} AS key FROM {table} AS c WHERE ($1::text IS NULL OR {found_by} > $1::text) AND {is_ours}
                 ORDER BY key LIMIT {most}) AS k"
        )
    }

    /// Deletes the chunks of the documents with the keys `$1` (`text[]`; all when it is null), and counts them and their
    /// tokens. With `none`, none.
    pub fn delete(self, table: &str, which: Which) -> String {
        let columns = self.columns();
        let which = match which {
            Which::Keys => format!("{} = ANY ($1::text[])", columns.found_by),
            Which::All => "$1::text[] IS NULL".into(),
            Which::None => format!("{} = ANY ('{{}}'::text[]) AND false", columns.found_by),
        };
        format!(
            "WITH gone AS (DELETE FROM {table} AS c WHERE {which} AND {} RETURNING {} AS tokens)
             SELECT count(*), coalesce(sum(tokens), 0)::bigint FROM gone",
            columns.is_ours, columns.tokens
        )
    }

    /// Texts (at most `$2` bytes long) and vectors of chunks of the documents with the keys `$1` (`text[]`), at most `$3` of them.
    pub fn former(self, table: &str) -> String {
        let columns = self.columns();
        format!(
            "SELECT {} AS key, {content} AS content, {embedding}::real[] AS embedding FROM {table} AS c
             WHERE {} = ANY ($1::text[]) AND {} AND octet_length({content}) <= $2 AND {embedding} IS NOT NULL LIMIT $3",
            columns.key,
            columns.found_by,
            columns.is_ours,
            content = columns.content,
            embedding = columns.embedding,
        )
    }

    /// Inserts chunks: `$1` their keys, `$2` numbers, `$3` contents, `$4` tokens, `$5` metadata as text, `$6` the numbers of
    /// all vectors, `$7` of each. The cast to `vector`, pgvector's type, checks dimension and finiteness once more.
    pub fn insert(self, table: &str, vector: &str) -> String {
        let rows = "FROM unnest($1::text[], $2::int[], $3::text[], $4::int[], $5::text[])
                         WITH ORDINALITY AS n(key, chunk_no, content, tokens, metadata, place)";
        let embedding = format!("($6::real[])[(n.place - 1) * $7 + 1 : n.place * $7]::{vector}");
        match self {
            Self::Chunks => format!(
                "INSERT INTO {table} (document_key, chunk_no, content, tokens, metadata, embedding)
                 SELECT n.key, n.chunk_no, n.content, n.tokens, n.metadata::jsonb, {embedding} {rows}"
            ),
            Self::Vecs => format!(
                "INSERT INTO {table} (id, vec, metadata)
                 SELECT {}, {embedding}, {} {rows}",
                INSERTED.id,
                vecs_metadata(&INSERTED, "n.metadata")
            ),
        }
    }

    /// Inserts nothing, into the columns that [`insert`](Self::insert) fills.
    pub fn insert_nothing(self, table: &str, vector: &str) -> String {
        match self {
            Self::Chunks => format!(
                "INSERT INTO {table} (document_key, chunk_no, content, tokens, metadata, embedding)
                 SELECT ''::text, 0, ''::text, 0, '{{}}'::jsonb, NULL::{vector} WHERE false"
            ),
            Self::Vecs => format!(
                "INSERT INTO {table} (id, vec, metadata) SELECT '', NULL::{vector}, '{{}}'::jsonb WHERE false"
            ),
        }
    }

    /// Gives the chunks of the documents with the keys `$1` the metadata `$2` (`text[]`).
    pub fn replace_metadata(self, table: &str) -> String {
        let columns = self.columns();
        format!(
            "UPDATE {table} AS c SET metadata = {}
             FROM unnest($1::text[], $2::text[]) AS u(key, metadata)
             WHERE {} = u.key AND {}",
            self.metadata("u.metadata"),
            columns.found_by,
            columns.is_ours
        )
    }

    /// Gives the chunks of the document with the key `$1` this metadata, as its own statement on a foreign table. postgres_fdw hands
    /// this one on as it is; of one with a join it would fetch all rows, lock them, and find them again by their place in their
    /// table, which rows of several partitions over there have in common.
    pub fn replace_metadata_of_one(self, table: &str, metadata: Option<&str>) -> String {
        let columns = self.columns();
        // Written out: a text that is cast at run time would not be handed on.
        let given = metadata.map_or("NULL".into(), quote_literal);
        format!(
            "UPDATE {table} AS c SET metadata = {} WHERE {} = $1 AND {}",
            self.metadata(&format!("{given}::jsonb")),
            columns.found_by,
            columns.is_ours
        )
    }

    /// The metadata of a chunk `c` whose document has this metadata, as SQL.
    fn metadata(self, given: &str) -> String {
        match self {
            Self::Chunks => format!("{given}::jsonb"),
            Self::Vecs => vecs_metadata(self.columns(), given),
        }
    }
}

/// The metadata of a chunk in layout vecs, of its parts and its document's metadata as text. Metadata that is no object
/// becomes the member `metadata` of one.
fn vecs_metadata(chunk: &Columns, given: &str) -> String {
    let Columns {
        id,
        key,
        chunk_no,
        content,
        tokens,
        ..
    } = chunk;
    let object = format!(
        "(CASE jsonb_typeof({given}::jsonb) WHEN 'object' THEN {given}::jsonb
               ELSE jsonb_build_object('metadata', {given}::jsonb) END)"
    );
    format!(
        "{object} || jsonb_build_object(
             'text', {content}, '_chunk_no', {chunk_no}, '_tokens', {tokens},
             'doc_id', {key}, 'document_id', {key}, 'ref_doc_id', {key}, '_node_type', 'TextNode',
             '_node_content', jsonb_build_object(
                 'class_name', 'TextNode', 'id_', {id}, 'embedding', NULL, 'text', {content}, 'metadata', {object},
                 'relationships', jsonb_build_object('1', jsonb_build_object(
                     'class_name', 'RelatedNodeInfo', 'node_id', {key}, 'node_type', '4', 'metadata', '{{}}'::jsonb)))::text)"
    )
}

#[pg_extern(sql = false)]
fn text_search_of(layout: &str, language: &str) -> String {
    Layout::named(layout).or_raise().text_search(language)
}

/// What makes the name of an index its own, as the vecs client makes it.
fn unique() -> String {
    Spi::get_one::<String>("SELECT left(translate(gen_random_uuid()::text, '-', '_'), 7)")
        .or_raise()
        .unwrap_or_default()
}

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn columns_of(
    layout: &str,
) -> TableIterator<
    'static,
    (
        name!(id, &'static str),
        name!(key, &'static str),
        name!(chunk_no, &'static str),
        name!(content, &'static str),
        name!(metadata, &'static str),
        name!(filtered, &'static str),
        name!(embedding, &'static str),
    ),
> {
    let columns = Layout::named(layout).or_raise().columns();
    TableIterator::once((
        columns.id,
        columns.key,
        columns.chunk_no,
        columns.content,
        columns.metadata,
        columns.filtered,
        columns.embedding,
    ))
}

/// Which chunks are deleted.
#[derive(Clone, Copy)]
pub enum Which {
    /// Those of the documents with these keys.
    Keys,
    /// All that we wrote.
    All,
    /// None.
    None,
}
