//! What one can say to `ingest.documents`.

use std::fmt;

use super::random::Random;
use crate::quoted;

/// Pipelines whose documents are changed in every way.
pub const PIPELINES: [&str; 2] = ["p", "q"];
/// The pipeline whose documents are deleted when they are embedded. Each document has a key of its own there and is never
/// changed, or what happens would depend on who comes first.
pub const ARCHIVE: &str = "a";
/// Keys that documents are given, few enough that they meet.
const KEYS: usize = 8;
/// The word that the provider refuses.
pub const POISON: &str = "poison";

/// What a document says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing.
    Null,
    /// Blanks.
    Blank,
    /// So many sentences, with a word that the provider refuses in one of them or not.
    Text {
        number: usize,
        sentences: usize,
        poison: bool,
    },
}

impl Content {
    /// A random one. There are so few that a document often gets one back that it had.
    fn random(random: &mut Random) -> Self {
        match random.below(20) {
            0 => Self::Null,
            1 => Self::Blank,
            _ => Self::Text {
                number: random.below(6),
                sentences: random.choose(&[1, 1, 2, 9]),
                poison: random.percent(8),
            },
        }
    }

    /// The text itself.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Null => None,
            Self::Blank => Some("  ".into()),
            Self::Text {
                number,
                sentences,
                poison,
            } => {
                let sentence = |n: usize| {
                    let word = if *poison && n == sentences / 2 {
                        POISON
                    } else {
                        "lantern"
                    };
                    format!("Sentence {n} of text {number} tells of the {word} in the garden. ")
                };
                Some((0..*sentences).map(sentence).collect())
            }
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            None => write!(f, "NULL"),
            Some(text) => write!(f, "{}", quoted(&text)),
        }
    }
}

/// Which documents are meant. Never those of [`ARCHIVE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// The one of this pipeline with this key, if there is one.
    One(&'static str, String),
    /// Those of this pipeline that were inserted without a key.
    Nameless(&'static str),
    /// Those of this pipeline.
    Of(&'static str),
    /// All.
    All,
}

impl Filter {
    fn random(random: &mut Random) -> Self {
        let pipeline = random.choose(&PIPELINES);
        match random.below(20) {
            0 => Self::All,
            1 | 2 => Self::Of(pipeline),
            3 | 4 => Self::Nameless(pipeline),
            _ => Self::One(pipeline, key(random)),
        }
    }

    /// Whether a document is meant.
    pub fn holds(&self, pipeline: &str, key: &str) -> bool {
        match self {
            Self::One(p, k) => *p == pipeline && k == key,
            Self::Nameless(p) => *p == pipeline && key.bytes().all(|b| b.is_ascii_digit()),
            Self::Of(p) => *p == pipeline,
            Self::All => PIPELINES.contains(&pipeline),
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(p, key) => write!(f, "pipeline = '{p}' AND key = '{key}'"),
            Self::Nameless(p) => write!(f, r"pipeline = '{p}' AND key ~ '^\d+$'"),
            Self::Of(p) => write!(f, "pipeline = '{p}'"),
            Self::All => write!(f, "pipeline <> '{ARCHIVE}'"),
        }
    }
}

/// What becomes of a row whose key is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// The statement fails.
    Fail,
    /// The row is left out.
    Nothing,
    /// It replaces content and metadata.
    Replace,
}

/// A row to insert.
#[derive(Debug, Clone)]
pub struct NewRow {
    pub key: Option<String>,
    pub content: Content,
    pub metadata: usize,
}

/// A statement on `ingest.documents`.
#[derive(Debug, Clone)]
pub enum Statement {
    Insert(&'static str, Vec<NewRow>, Conflict),
    SetContent(Filter, Content),
    /// An UPDATE that changes nothing.
    Touch(Filter),
    SetMetadata(Filter, usize),
    SetBoth(Filter, Content, usize),
    /// From a key of a pipeline to another, or to none.
    SetKey(&'static str, String, Option<String>),
    /// To the other pipeline.
    Move(&'static str, String, &'static str),
    Delete(Filter),
    Truncate,
}

fn key(random: &mut Random) -> String {
    format!("k{}", random.below(KEYS))
}

/// Metadata by its number.
pub fn metadata(number: usize) -> String {
    format!(r#"{{"m": {number}}}"#)
}

impl Statement {
    /// A random one; `number` is of this one alone. TRUNCATE only where it is allowed.
    pub fn random(random: &mut Random, number: usize, may_truncate: bool) -> Self {
        let content = Content::random(random);
        let filter = Filter::random(random);
        let label = random.below(4);
        let [from, to] = if random.percent(50) {
            PIPELINES
        } else {
            [PIPELINES[1], PIPELINES[0]]
        };
        match random.below(100) {
            0..40 => Self::insert(random, from),
            40..46 => Self::archive(random, number),
            46..66 => Self::SetContent(filter, content),
            66..69 => Self::Touch(filter),
            69..76 => Self::SetMetadata(filter, label),
            76..80 => Self::SetBoth(filter, content, label),
            80..85 => {
                let new = random.percent(80).then(|| key(random));
                Self::SetKey(from, key(random), new)
            }
            85..89 => Self::Move(from, key(random), to),
            89..98 => Self::Delete(filter),
            _ if may_truncate => Self::Truncate,
            _ => Self::insert(random, from),
        }
    }

    /// A random one on documents that no other session has.
    pub fn random_of(random: &mut Random, session: usize) -> Self {
        let mut own = || format!("s{session}-{}", random.below(4));
        let (first, second) = (own(), own());
        let pipeline = random.choose(&PIPELINES);
        let filter = Filter::One(pipeline, first.clone());
        let content = Content::random(random);
        let row = |key: String, random: &mut Random| NewRow {
            key: Some(key),
            content: Content::random(random),
            metadata: random.below(4),
        };
        match random.below(10) {
            0..5 => {
                let mut rows = vec![row(first.clone(), random)];
                if first != second {
                    rows.push(row(second, random));
                }
                Self::Insert(pipeline, rows, Conflict::Replace)
            }
            5 | 6 => Self::SetContent(filter, content),
            7 => Self::SetMetadata(filter, random.below(4)),
            8 => Self::Delete(filter),
            _ => Self::SetBoth(filter, content, random.below(4)),
        }
    }

    fn insert(random: &mut Random, pipeline: &'static str) -> Self {
        let conflict = random.weighted(&[
            (2, Conflict::Fail),
            (2, Conflict::Nothing),
            (6, Conflict::Replace),
        ]);
        let many = if random.percent(40) {
            random.between(2, 8)
        } else {
            1
        };
        let mut rows: Vec<NewRow> = Vec::new();
        for _ in 0..many {
            let key = random.percent(85).then(|| key(random));
            // One statement does not replace a row twice.
            if key.is_none() || rows.iter().all(|row| row.key != key) {
                rows.push(NewRow {
                    key,
                    content: Content::random(random),
                    metadata: random.below(4),
                });
            }
        }
        Self::Insert(pipeline, rows, conflict)
    }

    fn archive(random: &mut Random, number: usize) -> Self {
        let row = |n| NewRow {
            key: Some(format!("a{number}-{n}")),
            content: Content::random(random),
            metadata: 0,
        };
        Self::Insert(ARCHIVE, (0..3).map(row).collect(), Conflict::Fail)
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Insert(pipeline, rows, conflict) => {
                write!(
                    f,
                    "INSERT INTO ingest.documents AS d (pipeline, key, content, metadata) VALUES "
                )?;
                for (n, row) in rows.iter().enumerate() {
                    let comma = if n > 0 { ", " } else { "" };
                    let key = row.key.as_deref().map_or("NULL".into(), quoted);
                    write!(
                        f,
                        "{comma}('{pipeline}', {key}, {}, '{}')",
                        row.content,
                        metadata(row.metadata)
                    )?;
                }
                match conflict {
                    Conflict::Fail => {}
                    Conflict::Nothing => write!(f, " ON CONFLICT DO NOTHING")?,
                    Conflict::Replace => write!(
                        f,
                        " ON CONFLICT (pipeline, key) DO UPDATE SET content = EXCLUDED.content, metadata = EXCLUDED.metadata"
                    )?,
                }
                write!(f, " RETURNING d.key")
            }
            Self::SetContent(filter, content) => {
                write!(
                    f,
                    "UPDATE ingest.documents SET content = {content} WHERE {filter}"
                )
            }
            Self::Touch(filter) => {
                write!(
                    f,
                    "UPDATE ingest.documents SET content = content WHERE {filter}"
                )
            }
            Self::SetMetadata(filter, label) => write!(
                f,
                "UPDATE ingest.documents SET metadata = '{}' WHERE {filter}",
                metadata(*label)
            ),
            Self::SetBoth(filter, content, label) => write!(
                f,
                "UPDATE ingest.documents SET content = {content}, metadata = '{}' WHERE {filter}",
                metadata(*label)
            ),
            Self::SetKey(pipeline, from, to) => {
                let to = to.as_deref().map_or("NULL".into(), quoted);
                write!(
                    f,
                    "UPDATE ingest.documents SET key = {to} WHERE pipeline = '{pipeline}' AND key = '{from}' RETURNING key"
                )
            }
            Self::Move(from, key, to) => write!(
                f,
                "UPDATE ingest.documents SET pipeline = '{to}' WHERE pipeline = '{from}' AND key = '{key}'"
            ),
            Self::Delete(filter) => write!(f, "DELETE FROM ingest.documents WHERE {filter}"),
            Self::Truncate => write!(f, "TRUNCATE ingest.documents"),
        }
    }
}
