//! The model: what must be there.

use std::collections::BTreeMap;

use super::statements::{ARCHIVE, Conflict, Content, Filter, Statement};

/// A staged document.
#[derive(Debug, Clone)]
pub struct Staged {
    /// What it says.
    pub content: Content,
    /// The number of its metadata.
    pub metadata: usize,
    /// What it said before under this key: its chunks may serve as long as the present content cannot be embedded.
    pub former: Vec<Content>,
}

/// A document that was inserted into the pipeline that deletes what is embedded.
#[derive(Debug, Clone)]
pub struct Archived {
    /// What it says.
    pub content: Content,
    /// Whether it must be embedded. Nobody knows of one that was staged when the table was emptied.
    pub certain: bool,
}

/// The documents of a database, by pipeline and key.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Those of the pipelines that keep them.
    pub documents: BTreeMap<(String, String), Staged>,
    /// The others.
    pub archived: BTreeMap<String, Archived>,
}

/// The statement fails because a key is taken.
#[derive(Debug)]
pub struct KeyTaken;

impl State {
    /// Whether a statement fails because a key is taken.
    pub fn refuses(&self, statement: &Statement) -> bool {
        self.clone().apply(statement, &[]).is_err()
    }

    /// Whether the document that a statement is about is there.
    pub fn has(&self, statement: &Statement) -> bool {
        match statement {
            Statement::SetContent(filter, _)
            | Statement::SetMetadata(filter, _)
            | Statement::Delete(filter) => self.clone().meant(filter).next().is_some(),
            _ => true,
        }
    }

    /// Does what a statement does. `returned`: the keys that it returned, among them those that were given to documents
    /// without one.
    pub fn apply(&mut self, statement: &Statement, returned: &[String]) -> Result<(), KeyTaken> {
        let mut given = returned
            .iter()
            .filter(|key| key.bytes().all(|b| b.is_ascii_digit()));
        let mut unknown = 0;
        let mut nameless = || {
            unknown += 1;
            given
                .next()
                .cloned()
                .unwrap_or_else(|| format!("the new one {unknown}"))
        };
        match statement {
            Statement::Insert(ARCHIVE, rows, _) => {
                for row in rows {
                    let document = Archived {
                        content: row.content.clone(),
                        certain: true,
                    };
                    self.archived
                        .insert(row.key.clone().unwrap_or_default(), document);
                }
            }
            Statement::Insert(pipeline, rows, conflict) => {
                for row in rows {
                    let key = row.key.clone().unwrap_or_else(&mut nameless);
                    let place = ((*pipeline).to_owned(), key);
                    match (self.documents.get_mut(&place), conflict) {
                        (Some(_), Conflict::Fail) => return Err(KeyTaken),
                        (Some(_), Conflict::Nothing) => {}
                        (Some(document), Conflict::Replace) => {
                            document.say(&row.content);
                            document.metadata = row.metadata;
                        }
                        (None, _) => {
                            let document = Staged {
                                content: row.content.clone(),
                                metadata: row.metadata,
                                former: Vec::new(),
                            };
                            self.documents.insert(place, document);
                        }
                    }
                }
            }
            Statement::Touch(_) => {}
            Statement::SetContent(filter, content) => {
                self.meant(filter)
                    .for_each(|document| document.say(content));
            }
            Statement::SetMetadata(filter, label) => {
                self.meant(filter)
                    .for_each(|document| document.metadata = *label);
            }
            Statement::SetBoth(filter, content, label) => self.meant(filter).for_each(|document| {
                document.say(content);
                document.metadata = *label;
            }),
            Statement::SetKey(pipeline, from, to) => {
                let there = ((*pipeline).to_owned(), from.clone());
                if self.documents.contains_key(&there) {
                    let key = to.clone().unwrap_or_else(nameless);
                    self.rename(there, ((*pipeline).to_owned(), key))?;
                }
            }
            Statement::Move(from, key, to) => {
                let place = |pipeline: &str| (pipeline.to_owned(), key.clone());
                self.rename(place(from), place(to))?;
            }
            Statement::Delete(filter) => self
                .documents
                .retain(|(pipeline, key), _| !filter.holds(pipeline, key)),
            Statement::Truncate => {
                self.documents.clear();
                self.archived
                    .values_mut()
                    .for_each(|document| document.certain = false);
            }
        }
        Ok(())
    }

    fn meant(&mut self, filter: &Filter) -> impl Iterator<Item = &mut Staged> {
        self.documents
            .iter_mut()
            .filter(|((pipeline, key), _)| filter.holds(pipeline, key))
            .map(|(_, document)| document)
    }

    fn rename(&mut self, from: (String, String), to: (String, String)) -> Result<(), KeyTaken> {
        if from == to {
            return Ok(());
        }
        if self.documents.contains_key(&from) && self.documents.contains_key(&to) {
            return Err(KeyTaken);
        }
        if let Some(mut document) = self.documents.remove(&from) {
            // Under another key it is another document, which has no chunks yet.
            document.former.clear();
            self.documents.insert(to, document);
        }
        Ok(())
    }
}

impl Staged {
    fn say(&mut self, content: &Content) {
        if self.content != *content {
            let before = std::mem::replace(&mut self.content, content.clone());
            self.former.push(before);
        }
    }
}
