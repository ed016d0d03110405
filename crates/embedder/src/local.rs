//! Models that run in this process: a directory with an ONNX sentence-embedding model and its `tokenizer.json`.
//!
//! rten starts threads: in [`InferenceThreads::new`], and once in a process in the first [`LocalModel::load`]. A thread
//! inherits niceness and blocked signals from the one that starts it, so both calls belong on a thread that has set these
//! the way the inference is to run.

use std::fs;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use chunker::{Encoded, Tokenizer};
use rten::{Dimension, Model, ModelOptions, NodeId, RunOptions, ThreadPool, Value, ValueOrView};
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;
use serde::Deserialize;

use crate::{EmbedError, ErrorClass};

/// The file with the graph and its weights, and the file that makes ids of text.
const MODEL_FILE: &str = "model.onnx";
const TOKENIZER_FILE: &str = "tokenizer.json";

/// What models of this family read when no file says otherwise: BERT's 512 positions, in tokens.
const DEFAULT_MAX_TOKENS: usize = 512;

/// How many tokens, padding included, one inference reads at most, if it has more than one text.
///
/// Measured with all-MiniLM-L6-v2 on a virtual AMD EPYC with AVX2 (`examples/embed_speed.rs`), in tokens a second of CPU
/// time, for texts of 6 / 18 / 66 / 252 tokens: one text at a time 1,290 / 2,340 / 3,060 / 2,770; up to 256 tokens
/// 3,330 / 3,520 / 3,090 / 2,720; 1,024: 3,190 / 3,250 / 3,120 / 2,640; 2,048: 3,190 / 3,090 / 2,960 / 2,430 and 100 MB
/// more memory. With two threads on two free cores it is 6,200 to 6,500 tokens a second.
///
/// Texts that share an inference leave each other's vectors alone as long as the graph computes with floats, as it does
/// in the int8 files of this model that store small weights and widen them. A graph that quantises its *activations* while
/// it runs takes one range for the whole batch, so a vector would depend on its neighbours; such a model gets one text at
/// a time.
const TOKENS_PER_INFERENCE: usize = 256;

/// [`TOKENS_PER_INFERENCE`], or 0 (one text at a time) for a model whose vectors depend on their neighbours. rten does not
/// show a graph's operators, but their names stand in the file.
fn tokens_per_inference(model: &Path) -> Result<usize, EmbedError> {
    const OPERATOR: &[u8] = b"DynamicQuantizeLinear";
    let graph = fs::read(model).map_err(|error| unusable(model, &error.to_string()))?;
    let dynamic = graph
        .windows(OPERATOR.len())
        .any(|window| window == OPERATOR);
    Ok(if dynamic { 0 } else { TOKENS_PER_INFERENCE })
}

/// Files of settings are a few kilobytes; a larger one is no such file. In bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The threads that inference runs on. Cheap to clone; clones share the threads.
#[derive(Clone)]
pub struct InferenceThreads {
    pool: Arc<ThreadPool>,
    count: usize,
}

impl InferenceThreads {
    /// Starts `n` threads, at least one. They inherit niceness and signal mask of the calling thread, and end with the
    /// last clone.
    pub fn new(n: usize) -> Self {
        let count = n.max(1);
        Self {
            pool: Arc::new(ThreadPool::with_num_threads(count)),
            count,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// What the files of a model say about it.
#[derive(Debug, Clone)]
pub struct LocalModelInfo {
    /// Numbers in a vector.
    pub dimensions: usize,
    /// The longest input it reads, in tokens, special tokens included.
    pub max_tokens: usize,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

/// A model in memory, ready to embed. Send and Sync.
pub struct LocalModel {
    graph: Graph,
    tokenizer: Tokenizer,
    dimensions: usize,
    max_tokens: usize,
}

struct Graph {
    model: Model,
    inputs: Vec<(NodeId, GraphInput)>,
    output: NodeId,
    pooling: Pooling,
    /// 0: one text at a time.
    tokens_per_inference: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GraphInput {
    TokenIds,
    AttentionMask,
    TypeIds,
    Positions,
}

/// From the vectors of tokens to the vector of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    /// The mean of all tokens.
    Mean,
    /// The first token, `[CLS]`.
    First,
    /// The graph has done it already.
    Done,
}

impl LocalModel {
    /// Loads the model in `dir`: `model.onnx` and `tokenizer.json`, and if they are there `sentence_bert_config.json`,
    /// `config.json` and `1_Pooling/config.json`. Embeds one word, so that a model that loads is a model that works.
    ///
    /// The file is read, not mapped into memory: rten copies weights that lie within an ONNX file anyway, and a mapped
    /// file that somebody truncates kills the process, which here may be a database's backend.
    ///
    /// # Errors
    /// Whatever is wrong, `model_unusable` is set and the message names the file.
    pub fn load(dir: &Path) -> Result<Self, EmbedError> {
        let path = dir.join(MODEL_FILE);
        check_file(&path)?;
        let (tokenizer, max_tokens) = load_tokenizer(dir)?;
        // Packing the weights once costs 40 MB and halves the time of a short text, such as a query.
        let model = guarded(|| {
            ModelOptions::with_all_ops()
                .prepack_weights(true)
                .load_file(&path)
        })
        .and_then(|loaded| loaded.map_err(|error| error.to_string()))
        .map_err(|message| unusable(&path, &message))?;
        let graph = Graph::new(model, pooling(dir)?, tokens_per_inference(&path)?)
            .map_err(|message| unusable(&path, &message))?;
        let mut local = Self {
            graph,
            tokenizer,
            dimensions: 0,
            max_tokens,
        };
        let trial = local
            .encode("word")
            .and_then(|word| local.embed_batch(&[&word], &RunOptions::default()))
            .map_err(|error| unusable(&path, &format!("a trial failed: {}", error.message)))?;
        local.dimensions = trial.first().map_or(0, Vec::len);
        Ok(local)
    }

    /// Whether the two files of a model are in `dir` and can be read; loads nothing.
    ///
    /// # Errors
    /// `model_unusable`, with a message that names the file.
    pub fn check_files(dir: &Path) -> Result<(), EmbedError> {
        if !dir.is_dir() {
            return Err(EmbedError::model_unusable(format!(
                "there is no model directory {}",
                dir.display()
            ))
            .with_hint(HINT_FILES));
        }
        check_file(&dir.join(MODEL_FILE))?;
        check_file(&dir.join(TOKENIZER_FILE))
    }

    /// What the files of the model in `dir` say. Loads the model only when no file tells the dimensions.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn describe(dir: &Path) -> Result<LocalModelInfo, EmbedError> {
        Self::check_files(dir)?;
        let config: Config = read_config(&dir.join("config.json"))?;
        // A directory beside 1_Pooling is a further layer, which may change the dimensions.
        let plain = !dir.join("2_Dense").exists();
        if let (Some(dimensions), true) = (config.hidden_size, plain) {
            let (tokenizer, max_tokens) = load_tokenizer(dir)?;
            return Ok(LocalModelInfo {
                dimensions,
                max_tokens,
                tokenizer,
            });
        }
        let model = Self::load(dir)?;
        Ok(LocalModelInfo {
            dimensions: model.dimensions,
            max_tokens: model.max_tokens,
            tokenizer: model.tokenizer,
        })
    }

    /// Numbers in a vector.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The longest input it reads, in tokens, special tokens included. What is over is cut off.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The tokenizer that counts as this model does.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The vectors of `inputs`, in their order: [`dimensions`](Self::dimensions) numbers each, of length 1. An input longer
    /// than [`max_tokens`](Self::max_tokens) is cut off at its end.
    ///
    /// A text's vector does not depend on the others of the call, beyond the last digits of a float: see
    /// [`TOKENS_PER_INFERENCE`].
    ///
    /// # Errors
    /// [`ErrorClass::InvalidRequest`] for an input that has no tokens at all, [`ErrorClass::BadResponse`] when a vector is
    /// not finite, [`ErrorClass::Internal`] when the inference fails. One failure fails the call.
    pub fn embed(
        &self,
        inputs: &[&str],
        threads: &InferenceThreads,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        let options = RunOptions::default().with_thread_pool(Some(Arc::clone(&threads.pool)));
        let texts = inputs
            .iter()
            .map(|input| self.encode(input))
            .collect::<Result<Vec<_>, _>>()?;
        let batches = batches(&texts, self.graph.tokens_per_inference);
        let next = AtomicUsize::new(0);
        let vectors = Mutex::new(vec![Vec::new(); inputs.len()]);
        let failure = Mutex::new(None);
        let work = || {
            while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                let members: Vec<&Encoded> = batch.iter().map(|index| &texts[*index]).collect();
                match self.embed_batch(&members, &options) {
                    Ok(done) => {
                        let mut vectors = vectors.lock().unwrap_or_else(PoisonError::into_inner);
                        for (index, vector) in batch.iter().zip(done) {
                            vectors[*index] = vector;
                        }
                    }
                    Err(error) => {
                        next.store(batches.len(), Ordering::Relaxed);
                        *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    }
                }
            }
        };
        threads.pool.run(|| {
            rayon::scope(|scope| {
                for _ in 1..threads.count.min(batches.len()) {
                    scope.spawn(|_| work());
                }
                work();
            });
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(vectors.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn encode(&self, input: &str) -> Result<Encoded, EmbedError> {
        let invalid = |message: String| EmbedError::new(ErrorClass::InvalidRequest, message);
        let encoded = guarded(|| self.tokenizer.encode(input, self.max_tokens))
            .map_err(invalid)?
            .map_err(|error| invalid(error.to_string()))?;
        if encoded.ids.is_empty() {
            return Err(invalid("the input has no tokens".to_owned()));
        }
        Ok(encoded)
    }

    fn embed_batch(
        &self,
        texts: &[&Encoded],
        options: &RunOptions,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut vectors = guarded(|| self.graph.run(texts, options))
            .and_then(|result| result)
            .map_err(|message| {
                EmbedError::new(ErrorClass::Internal, format!("inference failed: {message}"))
            })?;
        if vectors.iter_mut().all(|vector| normalize(vector)) {
            Ok(vectors)
        } else {
            Err(EmbedError::new(
                ErrorClass::BadResponse,
                "the model returned a zero or non-finite vector",
            ))
        }
    }
}

/// The texts of each inference, by index: neighbours in length, as many as fit into `tokens` when all are padded to the
/// longest, and at least one.
fn batches(texts: &[Encoded], tokens: usize) -> Vec<Vec<usize>> {
    let mut by_length: Vec<usize> = (0..texts.len()).collect();
    // The longest first, so that threads end at about the same time.
    by_length.sort_by_key(|index| std::cmp::Reverse(texts[*index].ids.len()));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for index in by_length {
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * texts[batch[0]].ids.len() <= tokens => {
                batch.push(index)
            }
            _ => batches.push(vec![index]),
        }
    }
    batches
}

impl std::fmt::Debug for LocalModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalModel")
            .field("dimensions", &self.dimensions)
            .field("max_tokens", &self.max_tokens)
            .finish_non_exhaustive()
    }
}

impl Graph {
    fn new(model: Model, pooling: Pooling, tokens_per_inference: usize) -> Result<Self, String> {
        let name = |id: &NodeId| {
            model
                .node_info(*id)
                .and_then(|info| info.name())
                .unwrap_or("")
                .to_owned()
        };
        let inputs = model
            .input_ids()
            .iter()
            .map(|id| match name(id).as_str() {
                "input_ids" => Ok((*id, GraphInput::TokenIds)),
                "attention_mask" => Ok((*id, GraphInput::AttentionMask)),
                "token_type_ids" => Ok((*id, GraphInput::TypeIds)),
                "position_ids" => Ok((*id, GraphInput::Positions)),
                other => Err(format!(
                    "its input \"{other}\" is none of a sentence-embedding model's (input_ids, attention_mask, token_type_ids)"
                )),
            })
            .collect::<Result<Vec<_>, _>>()?;
        if !inputs
            .iter()
            .any(|(_, input)| *input == GraphInput::TokenIds)
        {
            return Err("it has no input \"input_ids\"".to_owned());
        }
        let outputs = model.output_ids();
        let named = |wanted: &str| outputs.iter().copied().find(|id| name(id) == wanted);
        let rank = |id: &NodeId| {
            model
                .node_info(*id)
                .and_then(|info| info.shape())
                .map(|shape: Vec<Dimension>| shape.len())
        };
        let (output, pooling) = if let Some(id) = named("sentence_embedding") {
            (id, Pooling::Done)
        } else if let Some(id) = named("last_hidden_state").or_else(|| named("token_embeddings")) {
            (id, pooling)
        } else if let Some(id) = outputs.iter().find(|id| rank(id) == Some(3)) {
            (*id, pooling)
        } else {
            let id = outputs.first().ok_or("it has no outputs")?;
            (
                *id,
                if rank(id) == Some(2) {
                    Pooling::Done
                } else {
                    pooling
                },
            )
        };
        Ok(Self {
            model,
            inputs,
            output,
            pooling,
            tokens_per_inference,
        })
    }

    /// The vectors of some texts, not yet of length 1.
    fn run(&self, texts: &[&Encoded], options: &RunOptions) -> Result<Vec<Vec<f32>>, String> {
        let longest = texts.iter().map(|text| text.ids.len()).max().unwrap_or(0);
        let rows = |row: &dyn Fn(&Encoded) -> Vec<i32>| {
            let mut values = Vec::with_capacity(texts.len() * longest);
            for (number, text) in texts.iter().enumerate() {
                values.extend(row(text));
                values.resize((number + 1) * longest, 0);
            }
            Value::from(NdTensor::from_data([texts.len(), longest], values))
        };
        let signed = |values: &[u32]| values.iter().map(|value| *value as i32).collect();
        let inputs: Vec<(NodeId, ValueOrView)> = self
            .inputs
            .iter()
            .map(|(id, input)| {
                let value = match input {
                    GraphInput::TokenIds => rows(&|text| signed(&text.ids)),
                    GraphInput::AttentionMask => rows(&|text| vec![1; text.ids.len()]),
                    GraphInput::TypeIds => rows(&|text| signed(&text.type_ids)),
                    GraphInput::Positions => rows(&|_| (0..longest as i32).collect()),
                };
                (*id, ValueOrView::from(value))
            })
            .collect();
        let [output] = self
            .model
            .run_n(inputs, [self.output], Some(options.clone()))
            .map_err(|error| error.to_string())?;
        let vectors: Vec<Vec<f32>> = if self.pooling == Pooling::Done {
            let vectors: NdTensor<f32, 2> = output
                .try_into()
                .map_err(|_| "its output is not a vector of 32-bit floats for each text")?;
            let dimensions = vectors.shape()[1].max(1);
            vectors
                .to_vec()
                .chunks_exact(dimensions)
                .map(<[f32]>::to_vec)
                .collect()
        } else {
            let states: NdTensor<f32, 3> = output
                .try_into()
                .map_err(|_| "its output is not a vector of 32-bit floats for each token")?;
            let [_, tokens, dimensions] = states.shape();
            if tokens != longest {
                return Err(format!(
                    "its output has {tokens} vectors for {longest} tokens"
                ));
            }
            states
                .to_vec()
                .chunks_exact((tokens * dimensions).max(1))
                .zip(texts)
                .map(|(states, text)| {
                    pool(
                        &states[..text.ids.len() * dimensions],
                        dimensions,
                        self.pooling,
                    )
                })
                .collect()
        };
        if vectors.len() != texts.len() {
            return Err(format!(
                "its output has {} vectors for {} texts",
                vectors.len(),
                texts.len()
            ));
        }
        Ok(vectors)
    }
}

/// One vector from those of a text's tokens, without padding: `states` has `dimensions` numbers for each token.
fn pool(states: &[f32], dimensions: usize, pooling: Pooling) -> Vec<f32> {
    let mut rows = states.chunks_exact(dimensions.max(1));
    if pooling == Pooling::First {
        return rows.next().map(<[f32]>::to_vec).unwrap_or_default();
    }
    let tokens = rows.len() as f32;
    let mut sum = vec![0.0; dimensions];
    for row in rows {
        for (total, value) in sum.iter_mut().zip(row) {
            *total += value;
        }
    }
    sum.iter_mut().for_each(|total| *total /= tokens);
    sum
}

/// Scales to length 1; false when the vector has no direction or is not finite.
fn normalize(vector: &mut [f32]) -> bool {
    let length = vector
        .iter()
        .map(|value| f64::from(*value) * f64::from(*value))
        .sum::<f64>()
        .sqrt();
    if !length.is_finite() || length < f64::from(f32::MIN_POSITIVE) {
        return false;
    }
    for value in vector {
        *value = (f64::from(*value) / length) as f32;
    }
    true
}

/// Runs `work`; a panic in it becomes an error. rten and the tokenizer are large, and their panics must not end a worker.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no reason given");
        format!("panicked: {said}")
    })
}

const HINT_FILES: &str = "A local model is a directory below pg_ingest.model_dir that holds model.onnx and tokenizer.json.";

fn unusable(path: &Path, message: &str) -> EmbedError {
    EmbedError::model_unusable(format!(
        "cannot use the model file {}: {message}",
        path.display()
    ))
    .with_hint(HINT_FILES)
}

fn check_file(path: &Path) -> Result<(), EmbedError> {
    let mut first = [0; 1];
    match fs::File::open(path).and_then(|mut file| {
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("not a regular file"));
        }
        file.read(&mut first)
    }) {
        Ok(0) => Err(unusable(path, "it is empty")),
        Ok(_) => Ok(()),
        Err(error) => Err(unusable(path, &error.to_string())),
    }
}

/// The settings that matter here, of several files; what is absent is None.
#[derive(Default, Deserialize)]
struct Config {
    model_type: Option<String>,
    hidden_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    max_seq_length: Option<usize>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    truncation: Option<Truncation>,
}

#[derive(Deserialize)]
struct Truncation {
    max_length: usize,
}

/// Reads a file of settings; one that is absent has none.
fn read_config<T: Default + for<'de> Deserialize<'de>>(path: &Path) -> Result<T, EmbedError> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(T::default()),
        Err(error) => return Err(unusable(path, &error.to_string())),
    };
    serde_json::from_reader(file.take(MAX_CONFIG_BYTES))
        .map_err(|error| unusable(path, &error.to_string()))
}

fn pooling(dir: &Path) -> Result<Pooling, EmbedError> {
    let path: PathBuf = dir.join("1_Pooling").join("config.json");
    let config: Config = read_config(&path)?;
    Ok(
        if config.pooling_mode_cls_token && !config.pooling_mode_mean_tokens {
            Pooling::First
        } else {
            Pooling::Mean
        },
    )
}

/// The tokenizer, and the longest input in tokens: what `sentence_bert_config.json` says, else the truncation of
/// `tokenizer.json`, else the positions of `config.json`, else [`DEFAULT_MAX_TOKENS`].
fn load_tokenizer(dir: &Path) -> Result<(Tokenizer, usize), EmbedError> {
    let path = dir.join(TOKENIZER_FILE);
    check_file(&path)?;
    let tokenizer = guarded(|| Tokenizer::from_file(&path))
        .and_then(|loaded| loaded.map_err(|error| error.to_string()))
        .map_err(|message| unusable(&path, &message))?;
    let sentence: Config = read_config(&dir.join("sentence_bert_config.json"))?;
    let max_tokens = match sentence.max_seq_length {
        Some(tokens) => tokens,
        None => match truncation(&path)? {
            Some(tokens) => tokens,
            None => positions(&read_config(&dir.join("config.json"))?),
        },
    };
    if max_tokens <= tokenizer.special_tokens() {
        return Err(unusable(
            &path,
            &format!("a limit of {max_tokens} tokens leaves no room for text"),
        ));
    }
    Ok((tokenizer, max_tokens))
}

/// The tokens that a model has positions for. Those of RoBERTa's family begin at 2, after the padding's.
fn positions(config: &Config) -> usize {
    let unused = match config.model_type.as_deref() {
        Some("roberta" | "xlm-roberta" | "camembert" | "mpnet") => 2,
        _ => 0,
    };
    config
        .max_position_embeddings
        .map_or(DEFAULT_MAX_TOKENS, |positions| {
            positions.saturating_sub(unused)
        })
}

fn truncation(tokenizer: &Path) -> Result<Option<usize>, EmbedError> {
    let json = fs::read(tokenizer).map_err(|error| unusable(tokenizer, &error.to_string()))?;
    let config: Config =
        serde_json::from_slice(&json).map_err(|error| unusable(tokenizer, &error.to_string()))?;
    Ok(config.truncation.map(|truncation| truncation.max_length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(tokens: usize) -> Encoded {
        Encoded {
            ids: vec![1; tokens],
            type_ids: vec![0; tokens],
        }
    }

    proptest! {
        #[test]
        fn every_text_is_in_one_batch_and_no_batch_is_too_large(lengths in prop::collection::vec(1_usize..600, 0..80)) {
            let texts: Vec<Encoded> = lengths.iter().map(|length| text(*length)).collect();
            let batches = batches(&texts, TOKENS_PER_INFERENCE);
            let mut seen: Vec<usize> = batches.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..texts.len()).collect::<Vec<_>>());
            for batch in batches {
                let longest = batch.iter().map(|index| lengths[*index]).max().unwrap_or(0);
                prop_assert!(batch.len() == 1 || longest * batch.len() <= TOKENS_PER_INFERENCE);
            }
        }
    }

    #[test]
    fn a_model_with_dynamic_ranges_gets_one_text_at_a_time() {
        let texts = [text(3), text(4), text(3)];
        assert_eq!(batches(&texts, 0).len(), 3);
        let file =
            std::env::temp_dir().join(format!("embedder-dynamic-{}.onnx", std::process::id()));
        std::fs::write(&file, b"\x22\x15DynamicQuantizeLinear").unwrap();
        assert_eq!(tokens_per_inference(&file).unwrap(), 0);
        std::fs::write(&file, b"\x22\x06MatMul").unwrap();
        assert_eq!(tokens_per_inference(&file).unwrap(), TOKENS_PER_INFERENCE);
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_vector_without_direction_is_not_scaled() {
        assert!(!normalize(&mut [0.0, 0.0]));
        assert!(!normalize(&mut [f32::NAN, 1.0]));
        assert!(!normalize(&mut [f32::INFINITY, 1.0]));
        let mut vector = [3.0, 4.0];
        assert!(normalize(&mut vector));
        assert_eq!(vector, [0.6, 0.8]);
    }

    #[test]
    fn pooling_is_over_the_tokens() {
        let states = [1.0, 2.0, 3.0, 6.0];
        assert_eq!(pool(&states, 2, Pooling::Mean), [2.0, 4.0]);
        assert_eq!(pool(&states, 2, Pooling::First), [1.0, 2.0]);
    }

    #[test]
    fn positions_of_roberta_begin_at_two() {
        let config = |json: &str| positions(&serde_json::from_str(json).unwrap());
        assert_eq!(
            config(r#"{"model_type": "bert", "max_position_embeddings": 512}"#),
            512
        );
        assert_eq!(
            config(r#"{"model_type": "xlm-roberta", "max_position_embeddings": 514}"#),
            512
        );
        assert_eq!(config("{}"), DEFAULT_MAX_TOKENS);
    }
}
