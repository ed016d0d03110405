//! The local models and the tokenizers of this process: loaded at first use, kept, shared.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use chunker::Tokenizer;
use embedder::local::LocalModel;
use embedder::{EmbedError, ModelName, Provider};

/// Models by name.
pub struct Models {
    directory: PathBuf,
    loaded: Mutex<HashMap<String, Arc<LocalModel>>>,
    tokenizers: Mutex<HashMap<String, Tokenizer>>,
}

impl Models {
    /// Models below `directory`; nothing is read yet.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            loaded: Mutex::default(),
            tokenizers: Mutex::default(),
        }
    }

    /// The directory of a local model.
    pub fn path(directory: &Path, model: &ModelName) -> PathBuf {
        directory.join(&model.name)
    }

    /// The model, loaded when this is its first use. A failed load is tried anew the next time, since somebody may have
    /// put the file in place.
    ///
    /// # Errors
    /// `model_unusable` is set: the files are missing or unreadable, or the provider is not a local one.
    pub fn get(&self, model: &ModelName) -> Result<Arc<LocalModel>, EmbedError> {
        if model.provider != Provider::Local {
            return Err(EmbedError::model_unusable(format!(
                "model {model} is not a local one"
            )));
        }
        // Held while loading, so that two threads do not load one model twice.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = loaded.get(&model.name) {
            return Ok(Arc::clone(found));
        }
        let fresh = Arc::new(LocalModel::load(&Self::path(&self.directory, model))?);
        loaded.insert(model.name.clone(), Arc::clone(&fresh));
        Ok(fresh)
    }

    /// The tokenizer of an encoding of tiktoken.
    ///
    /// # Errors
    /// `model_unusable` is set: there is no such encoding.
    pub fn tokenizer(&self, encoding: &str) -> Result<Tokenizer, EmbedError> {
        let mut known = self
            .tokenizers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(encoding) {
            return Ok(found.clone());
        }
        let fresh = Tokenizer::tiktoken(encoding)
            .map_err(|error| EmbedError::model_unusable(error.to_string()))?;
        known.insert(encoding.to_owned(), fresh.clone());
        Ok(fresh)
    }
}
